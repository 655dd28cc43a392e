# SPDX-License-Identifier: MIT
"""QEMU's own packets: physical memory mode, in which m, M, x and X take guest-physical addresses,
and what steps can be asked for.

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
    parse_hex,
)
from svsmd.gdbstub.target import SupportsPhysicalMemory

_MODES: Final = {b"0": False, b"1": True}
_STEP_BITS: Final = b"ENABLE=1"
"""What a single step can be asked for. QEMU has NOIRQ and NOTIMER, too; here interrupts and timers
come in steps as in a free run. pwndbg and gef know by `ENABLE=` that they need not look for a
process in front of them."""
_STEP: Final = b"0x1"


def query(ctx: Context, args: bytes) -> bytes:
    """`qqemu.NAME`: `PhyMemMode`, 0 or 1; `sstepbits` and `sstep`; `Supported`, all of these."""
    match args:
        case b".sstepbits":
            return _STEP_BITS
        case b".sstep":
            return _STEP
        case b".PhyMemMode" if isinstance(ctx.target, SupportsPhysicalMemory):
            return b"%d" % ctx.physical
        case b".Supported":
            names = b"sstepbits;sstep"
            physical = isinstance(ctx.target, SupportsPhysicalMemory)
            return names + b";PhyMemMode" if physical else names
        case _:
            return UNSUPPORTED


def switch(ctx: Context, args: bytes) -> bytes:
    """`Qqemu.PhyMemMode:MODE`, `Qqemu.sstep=BITS`; QEMU answers its two queries here as well."""
    name, colon, mode = args.partition(b":")
    if name == b".PhyMemMode" and isinstance(ctx.target, SupportsPhysicalMemory):
        if not colon or mode not in _MODES:
            raise PacketError(Errno.INVALID, "the mode is 0 or 1")
        ctx.physical = _MODES[mode]
        return OK
    if args.startswith(b".sstep="):
        if parse_hex(args.removeprefix(b".sstep=").removeprefix(b"0x")) != 1:
            raise PacketError(Errno.INVALID, "interrupts and timers come in steps, too")
        return OK
    return query(ctx, args) if args in (b".sstepbits", b".sstep") else UNSUPPORTED


HANDLERS: Final[Mapping[bytes, Handler]] = {b"qqemu": query, b"Qqemu": switch}
