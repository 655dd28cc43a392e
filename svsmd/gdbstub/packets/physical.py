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
from svsmd.gdbstub.target import SupportsPhysicalMemory, SupportsStepInterrupts

_MODES: Final = {b"0": False, b"1": True}
_ENABLE, _NOIRQ, _NOTIMER = 1 << 0, 1 << 1, 1 << 2
"""What a single step can be asked for. pwndbg and gef know by the first one's name that they need
not look for a process in front of them. The last one is kept, and does nothing: a step moves the
clock by its one instruction, whatever time passes."""


def _step_bits(ctx: Context) -> bytes:
    names = b"ENABLE=%x" % _ENABLE
    if isinstance(ctx.target, SupportsStepInterrupts):
        names += b",NOIRQ=%x,NOTIMER=%x" % (_NOIRQ, _NOTIMER)
    return names


def _step_flags(ctx: Context) -> bytes:
    flags = _ENABLE
    if isinstance(ctx.target, SupportsStepInterrupts):
        flags |= 0 if ctx.target.step_interrupts else _NOIRQ
        flags |= _NOTIMER if ctx.no_timer else 0
    return b"%#x" % flags


def _set_step_flags(ctx: Context, text: bytes) -> bytes:
    flags = parse_hex(text.removeprefix(b"0x"))
    supported = _ENABLE
    if isinstance(ctx.target, SupportsStepInterrupts):
        supported |= _NOIRQ | _NOTIMER
    if flags & ~supported:
        raise PacketError(Errno.INVALID, f"steps have no flags but {supported:#x}")
    if not flags & _ENABLE:
        raise PacketError(Errno.INVALID, "a step without ENABLE would not end")
    if isinstance(ctx.target, SupportsStepInterrupts):
        ctx.target.step_interrupts = not flags & _NOIRQ
        ctx.no_timer = bool(flags & _NOTIMER)
    return OK


def query(ctx: Context, args: bytes) -> bytes:
    """`qqemu.NAME`: `PhyMemMode`, 0 or 1; `sstepbits` and `sstep`; `Supported`, all of these."""
    match args:
        case b".sstepbits":
            return _step_bits(ctx)
        case b".sstep":
            return _step_flags(ctx)
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
        return _set_step_flags(ctx, args.removeprefix(b".sstep="))
    return query(ctx, args) if args in (b".sstepbits", b".sstep") else UNSUPPORTED


def release(ctx: Context) -> None:
    """The session is over, and with it what it wanted of steps."""
    if isinstance(ctx.target, SupportsStepInterrupts):
        ctx.target.step_interrupts = False


HANDLERS: Final[Mapping[bytes, Handler]] = {b"qqemu": query, b"Qqemu": switch}
