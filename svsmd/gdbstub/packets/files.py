# SPDX-License-Identifier: MIT
"""The machine's files, to be read: packet vFile.

Names are those of `SupportsFiles`, nothing of the host's file system. gdb reads the executables
that qXfer:exec-file names.

Spec: GDB manual, E.11 Host I/O Packets, E.13.8 Protocol-specific Representation of Datatypes.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    UNSUPPORTED,
    Context,
    Errno,
    Handler,
    PacketError,
    Reply,
    parse_hex,
    parse_hex_data,
)
from svsmd.gdbstub.rsp import MAX_BODY
from svsmd.gdbstub.target import SupportsFiles

MAX_OPEN: Final = 16
"""Files that a session may have open."""
_FIRST_DESCRIPTOR: Final = 3
_REPLY_ROOM: Final = len(b"F00000000;")
_READ_ONLY: Final = 0
_REGULAR_READABLE: Final = 0o100444
_BLOCK: Final = 4096
_STAT: Final = struct.Struct(">IIIIIIIQQQIII")
"""st_dev ino mode nlink uid gid rdev (32 bits), size blksize blocks (64), three times (32)."""


def file_operation(ctx: Context, args: bytes) -> Reply:
    """`vFile:OPERATION:PARAMETER...`."""
    operation, _, parameters = args[1:].partition(b":")
    handler = _OPERATIONS.get(operation)
    if handler is None or not isinstance(ctx.target, SupportsFiles):
        return UNSUPPORTED
    try:
        return handler(ctx, parameters)
    except PacketError as error:
        return b"F-1,%x" % error.errno.value


def _set_file_system(ctx: Context, pid: bytes) -> bytes:
    """All processes see the same files."""
    parse_hex(pid)
    return b"F0"


def _open(ctx: Context, parameters: bytes) -> bytes:
    """`NAME,FLAGS,MODE`."""
    name, _, rest = parameters.partition(b",")
    flags, _, mode = rest.partition(b",")
    parse_hex(mode)
    if parse_hex(flags) != _READ_ONLY:
        raise PacketError(Errno.ACCESS, "files can only be read")
    assert isinstance(ctx.target, SupportsFiles)
    contents = ctx.target.read_file(parse_hex_data(name).decode("utf-8", "replace"))
    if contents is None:
        raise PacketError(Errno.NO_SUCH_FILE, "no such file")
    if len(ctx.files) >= MAX_OPEN:
        raise PacketError(Errno.TOO_MANY_FILES, f"{MAX_OPEN} files are open already")
    free = range(_FIRST_DESCRIPTOR, _FIRST_DESCRIPTOR + MAX_OPEN)
    descriptor = next(n for n in free if n not in ctx.files)
    ctx.files[descriptor] = contents
    return b"F%x" % descriptor


def _contents(ctx: Context, descriptor: bytes) -> bytes:
    contents = ctx.files.get(parse_hex(descriptor))
    if contents is None:
        raise PacketError(Errno.BAD_FILE, "not an open file")
    return contents


def _read(ctx: Context, parameters: bytes) -> bytes:
    """`DESCRIPTOR,COUNT,OFFSET`."""
    descriptor, _, rest = parameters.partition(b",")
    count_text, _, offset_text = rest.partition(b",")
    contents = _contents(ctx, descriptor)
    count, offset = parse_hex(count_text), parse_hex(offset_text)
    data = contents[offset : offset + min(count, MAX_BODY - _REPLY_ROOM)]
    return b"F%x;%b" % (len(data), data)


def _stat(ctx: Context, descriptor: bytes) -> bytes:
    size = len(_contents(ctx, descriptor))
    blocks = -(-size // 512)
    stat = _STAT.pack(0, 0, _REGULAR_READABLE, 1, 0, 0, 0, size, _BLOCK, blocks, 0, 0, 0)
    return b"F%x;%b" % (len(stat), stat)


def _close(ctx: Context, descriptor: bytes) -> bytes:
    _contents(ctx, descriptor)
    del ctx.files[parse_hex(descriptor)]
    return b"F0"


_OPERATIONS: Final[Mapping[bytes, Handler]] = {
    b"setfs": _set_file_system,
    b"open": _open,
    b"pread": _read,
    b"fstat": _stat,
    b"close": _close,
}

HANDLERS: Final[Mapping[bytes, Handler]] = {b"vFile": file_operation}
