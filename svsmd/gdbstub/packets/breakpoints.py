# SPDX-License-Identifier: MIT
"""Breakpoints and watchpoints: packets Z0 to Z4 and z0 to z4.

They belong to the process of the thread that `Hg` has selected; gdb selects one before each.

Inserting what is there and removing what is not there is no error, as the protocol demands; the
machine is asked once for each, and again for a breakpoint whose conditions or commands have
changed.

Spec: GDB manual, E.2 Packets.
Deviations: conditions and commands (`;X...`, `;cmds...`) that the stub cannot evaluate are refused
rather than dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Final

from svsmd.gdbstub.agent.bytecode import BadExpression
from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options, parse_options
from svsmd.gdbstub.packets.context import (
    OK,
    UNSUPPORTED,
    Context,
    Errno,
    Handler,
    PacketError,
    parse_address_length,
    parse_hex,
)
from svsmd.gdbstub.target import (
    BreakpointKind,
    SupportsBreakpoints,
    SupportsWatchpoints,
    WatchpointKind,
)
from svsmd.gdbstub.target_xml import REGISTERS

MAX_POINTS: Final = 0x10000
"""Most breakpoints, and most watchpoints, of a session."""

MAX_BYTE_CODE: Final = 1 << 20
"""Most bytes of conditions and commands of a session."""

_REGISTERS: Final = [register.name if register.bitsize <= 64 else None for register in REGISTERS]
_BREAKPOINT_KINDS: Final = {b"%d" % kind: kind for kind in BreakpointKind}
_WATCHPOINT_KINDS: Final = {b"%d" % kind: kind for kind in WatchpointKind}


def insert(ctx: Context, args: bytes) -> bytes:
    """`Z TYPE,ADDRESS,KIND`; KIND is the length of a watchpoint."""
    type_, where, options = _parse(args)
    target = ctx.target
    if type_ in _BREAKPOINT_KINDS and isinstance(target, SupportsBreakpoints):
        kind, address = _BREAKPOINT_KINDS[type_], _address(where)
        key = ctx.general.pid, kind, address, ctx.physical
        old = ctx.breakpoints.get(key)
        if old is None:
            _check_room(ctx.breakpoints)
        if options != old:
            _check_options(ctx, options)
            target.insert_breakpoint(ctx.general.pid, kind, address, options, physical=ctx.physical)
            ctx.breakpoints[key] = options
        return OK
    if options is not NO_OPTIONS:
        raise PacketError(Errno.INVALID, "only breakpoints have conditions and commands")
    if type_ in _WATCHPOINT_KINDS and isinstance(target, SupportsWatchpoints):
        watchpoint = (ctx.general.pid, _WATCHPOINT_KINDS[type_], *_range(where))
        if watchpoint not in ctx.watchpoints:
            _check_room(ctx.watchpoints)
            target.insert_watchpoint(ctx.general, *watchpoint[1:])
            ctx.watchpoints.add(watchpoint)
        return OK
    return UNSUPPORTED


def remove(ctx: Context, args: bytes) -> bytes:
    """`z TYPE,ADDRESS,KIND`."""
    type_, where, _ = _parse(args)
    target = ctx.target
    if type_ in _BREAKPOINT_KINDS and isinstance(target, SupportsBreakpoints):
        key = ctx.general.pid, _BREAKPOINT_KINDS[type_], _address(where), ctx.physical
        if key in ctx.breakpoints:
            _remove_breakpoint(ctx, target, key)
        return OK
    if type_ in _WATCHPOINT_KINDS and isinstance(target, SupportsWatchpoints):
        watchpoint = (ctx.general.pid, _WATCHPOINT_KINDS[type_], *_range(where))
        if watchpoint in ctx.watchpoints:
            ctx.watchpoints.remove(watchpoint)
            target.remove_watchpoint(*watchpoint)
        return OK
    return UNSUPPORTED


def remove_all(ctx: Context, pid: int | None = None) -> None:
    """Take out everything that the client has left behind, or what it has in one process."""
    target = ctx.target
    if isinstance(target, SupportsBreakpoints):
        for key in [key for key in ctx.breakpoints if pid in (None, key[0])]:
            _remove_breakpoint(ctx, target, key)
        if pid is None:
            target.forget_removed_breakpoints()
            target.take_output()  # for nobody
    for watchpoint in [w for w in ctx.watchpoints if pid in (None, w[0])]:
        ctx.watchpoints.remove(watchpoint)
        if isinstance(target, SupportsWatchpoints):
            target.remove_watchpoint(*watchpoint)


def _remove_breakpoint(
    ctx: Context, target: SupportsBreakpoints, key: tuple[int, BreakpointKind, int, bool]
) -> None:
    del ctx.breakpoints[key]
    pid, kind, address, physical = key
    target.remove_breakpoint(pid, kind, address, physical=physical)


def _parse(args: bytes) -> tuple[bytes, bytes, Options]:
    where, _, text = args.partition(b";")
    type_, _, where = where.partition(b",")
    try:
        options = parse_options(text, _REGISTERS) if text else NO_OPTIONS
    except BadExpression as error:
        raise PacketError(Errno.INVALID, str(error)) from None
    return type_, where, options


def _check_options(ctx: Context, options: Options) -> None:
    total = sum(other.size for other in ctx.breakpoints.values() if other.size)
    if total + options.size > MAX_BYTE_CODE:
        raise PacketError(Errno.NO_SPACE, f"more than {MAX_BYTE_CODE} bytes of expressions")


def _address(where: bytes) -> int:
    address, _, kind = where.partition(b",")
    parse_hex(kind)  # the length of an x86 breakpoint instruction: means nothing here
    return parse_hex(address)


def _range(where: bytes) -> tuple[int, int]:
    address, length = parse_address_length(where)
    if not length:
        raise PacketError(Errno.INVALID, "watchpoint of no length")
    return address, length


def _check_room(points: Sized) -> None:
    if len(points) >= MAX_POINTS:
        raise PacketError(Errno.NO_SPACE, f"there are {MAX_POINTS} already")


HANDLERS: Final[Mapping[bytes, Handler]] = {b"Z": insert, b"z": remove}
