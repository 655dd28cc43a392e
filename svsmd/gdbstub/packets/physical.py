# SPDX-License-Identifier: MIT
"""Physical memory mode, by QEMU's packets: m, M, x and X then take guest-physical addresses.

Spec: none; QEMU, docs/system/gdb.rst ("Examining physical memory") and gdbstub/system.c.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    OK,
    UNSUPPORTED,
    Context,
    Errno,
    Handler,
    PacketError,
)
from svsmd.gdbstub.target import SupportsPhysicalMemory

_MODES: Final = {b"0": False, b"1": True}


def query(ctx: Context, args: bytes) -> bytes:
    """`qqemu.PhyMemMode`: 0 or 1. `qqemu.Supported`: what there is of QEMU's own packets."""
    if not isinstance(ctx.target, SupportsPhysicalMemory):
        return UNSUPPORTED
    match args:
        case b".PhyMemMode":
            return b"%d" % ctx.physical
        case b".Supported":
            return b"PhyMemMode"
        case _:
            return UNSUPPORTED


def switch(ctx: Context, args: bytes) -> bytes:
    """`Qqemu.PhyMemMode:MODE`."""
    name, colon, mode = args.partition(b":")
    if name != b".PhyMemMode" or not isinstance(ctx.target, SupportsPhysicalMemory):
        return UNSUPPORTED
    if not colon or mode not in _MODES:
        raise PacketError(Errno.INVALID, "the mode is 0 or 1")
    ctx.physical = _MODES[mode]
    return OK


HANDLERS: Final[Mapping[bytes, Handler]] = {b"qqemu": query, b"Qqemu": switch}
