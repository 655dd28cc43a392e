# SPDX-License-Identifier: MIT
"""Memory looked through at this end: packets qSearch:memory and qCRC.

gdb's `find` and `compare-sections` then transfer nothing. One packet looks at `MAX_LENGTH` bytes at
most, so that it does not keep the machine and its other clients waiting for long.

Spec: GDB manual, E.4 General Query Packets; the CRC is that of gdb's libiberty (xcrc32.c):
polynomial 0x04C11DB7, highest bit first, start value all ones, no final inversion.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    ADDRESS_LIMIT,
    UNSUPPORTED,
    Context,
    Errno,
    Handler,
    PacketError,
    parse_address_length,
    parse_hex,
)
from svsmd.gdbstub.packets.mem import read_memory
from svsmd.gdbstub.target import TargetError

MAX_LENGTH: Final = 64 << 20
_CHUNK: Final = 1 << 20

# zlib's CRC goes lowest bit first: with the bits of each byte, and of the result, turned round it
# is the one that gdb wants.
_REVERSED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_ALL_ONES: Final = 0xFFFF_FFFF


def search(ctx: Context, args: bytes) -> bytes:
    """`qSearch:memory:ADDRESS;LENGTH;PATTERN`: 0, or 1 and the address of the first match."""
    if not args.startswith(b":memory:"):
        return UNSUPPORTED
    parts = args.removeprefix(b":memory:").split(b";", 2)
    if len(parts) != 3 or not parts[2]:
        raise PacketError(Errno.INVALID, "malformed search")
    start, length, pattern = parse_hex(parts[0]), parse_hex(parts[1]), parts[2]
    kept = b""
    for at, data in _chunks(ctx, start, length):
        window = kept + data
        found = window.find(pattern)
        if found >= 0:
            return b"1,%x" % (at - len(kept) + found)
        kept = window[max(0, len(window) - len(pattern) + 1) :]
    return b"0"


def crc(ctx: Context, args: bytes) -> bytes:
    """`qCRC:ADDRESS,LENGTH`."""
    if not args.startswith(b":"):
        return UNSUPPORTED
    start, length = parse_address_length(args[1:])
    value = 0
    for _, data in _chunks(ctx, start, length):
        value = zlib.crc32(data.translate(_REVERSED), value)
    return b"C%x" % int(f"{value ^ _ALL_ONES:032b}"[::-1], 2)


def _chunks(ctx: Context, start: int, length: int) -> Iterator[tuple[int, bytes]]:
    """All of a range, whole; `TargetError` at the first byte that cannot be read."""
    if length > MAX_LENGTH or start + length > ADDRESS_LIMIT:
        raise PacketError(Errno.INVALID, f"{MAX_LENGTH:#x} bytes are the most for one packet")
    end = start + length
    while start < end:
        data = read_memory(ctx, start, min(_CHUNK, end - start))
        if not data:
            raise TargetError(f"no memory at {start:#x}")
        yield start, data
        start += len(data)


HANDLERS: Final[Mapping[bytes, Handler]] = {b"qSearch": search, b"qCRC": crc}
