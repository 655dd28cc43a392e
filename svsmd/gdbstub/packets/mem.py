# SPDX-License-Identifier: MIT
"""Memory by guest-virtual address: packets m, x, M, X; by guest-physical one in physical mode.

A read across the end of what is readable returns the readable part; a read whose first byte is not
readable, and a write that does not fit, get an error reply.

Spec: GDB manual, E.2 Packets. `x` is the one of GDB 16 (`binary-upload`), whose reply begins with
`b`; LLDB, whose older `x` has no such prefix, asks `x0,0` to tell the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    OK,
    Context,
    Errno,
    Handler,
    PacketError,
    parse_address_length,
    parse_hex_data,
)
from svsmd.gdbstub.rsp import MAX_BODY
from svsmd.gdbstub.target import SupportsPhysicalMemory

MAX_HEX_READ: Final = MAX_BODY // 2
"""Most bytes that one `m` returns."""

MAX_BINARY_READ: Final = MAX_BODY - len(b"b")
"""Most bytes that one `x` returns; escapes may make the packet longer than PacketSize, which binds
the client's packets only."""


def read_hex(ctx: Context, args: bytes) -> bytes:
    """`m ADDRESS,LENGTH`."""
    return _read(ctx, args, MAX_HEX_READ).hex().encode()


def read_binary(ctx: Context, args: bytes) -> bytes:
    """`x ADDRESS,LENGTH`."""
    return b"b" + _read(ctx, args, MAX_BINARY_READ)


def write_hex(ctx: Context, args: bytes) -> bytes:
    """`M ADDRESS,LENGTH:DATA`."""
    where, _, text = args.partition(b":")
    return _write(ctx, where, parse_hex_data(text))


def write_binary(ctx: Context, args: bytes) -> bytes:
    """`X ADDRESS,LENGTH:DATA`; gdb sends one of length 0 to see whether it is supported."""
    where, _, data = args.partition(b":")
    return _write(ctx, where, data)


def read_memory(ctx: Context, address: int, length: int) -> bytes:
    """Memory by the kind of address that the client has chosen; see `Target.read_memory`."""
    if ctx.physical and isinstance(ctx.target, SupportsPhysicalMemory):
        return ctx.target.read_physical_memory(address, length)
    return ctx.target.read_memory(ctx.memory_thread, address, length)


def _read(ctx: Context, args: bytes, limit: int) -> bytes:
    address, length = parse_address_length(args)
    if not length:
        return b""
    return read_memory(ctx, address, min(length, limit))


def _write(ctx: Context, where: bytes, data: bytes) -> bytes:
    address, length = parse_address_length(where)
    if length != len(data):
        raise PacketError(Errno.INVALID, f"{len(data)} bytes of data for a length of {length}")
    if not data:
        return OK
    if ctx.physical and isinstance(ctx.target, SupportsPhysicalMemory):
        ctx.target.write_physical_memory(address, data)
    else:
        ctx.target.write_memory(ctx.memory_thread, address, data)
    return OK


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"m": read_hex,
    b"x": read_binary,
    b"M": write_hex,
    b"X": write_binary,
}
