# SPDX-License-Identifier: MIT
"""Breakpoints and watchpoints: packets Z0 to Z4 and z0 to z4.

Inserting what is there and removing what is not there is no error, as the protocol demands; the
machine is asked once for each.

Spec: GDB manual, E.2 Packets.
Deviations: conditions and commands (`;X...`, `;cmds...`) are not advertised, and refused rather
than dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Final

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

MAX_POINTS: Final = 0x10000
"""Most breakpoints, and most watchpoints, of a session."""

_BREAKPOINT_KINDS: Final = {b"%d" % kind: kind for kind in BreakpointKind}
_WATCHPOINT_KINDS: Final = {b"%d" % kind: kind for kind in WatchpointKind}


def insert(ctx: Context, args: bytes) -> bytes:
    """`Z TYPE,ADDRESS,KIND`; KIND is the length of a watchpoint."""
    type_, where = _parse(args)
    target = ctx.target
    if type_ in _BREAKPOINT_KINDS and isinstance(target, SupportsBreakpoints):
        breakpoint_ = _BREAKPOINT_KINDS[type_], _address(where)
        if breakpoint_ not in ctx.breakpoints:
            _check_room(ctx.breakpoints)
            target.insert_breakpoint(*breakpoint_)
            ctx.breakpoints.add(breakpoint_)
        return OK
    if type_ in _WATCHPOINT_KINDS and isinstance(target, SupportsWatchpoints):
        watchpoint = (_WATCHPOINT_KINDS[type_], *_range(where))
        if watchpoint not in ctx.watchpoints:
            _check_room(ctx.watchpoints)
            target.insert_watchpoint(*watchpoint)
            ctx.watchpoints.add(watchpoint)
        return OK
    return UNSUPPORTED


def remove(ctx: Context, args: bytes) -> bytes:
    """`z TYPE,ADDRESS,KIND`."""
    type_, where = _parse(args)
    target = ctx.target
    if type_ in _BREAKPOINT_KINDS and isinstance(target, SupportsBreakpoints):
        breakpoint_ = _BREAKPOINT_KINDS[type_], _address(where)
        if breakpoint_ in ctx.breakpoints:
            ctx.breakpoints.remove(breakpoint_)
            target.remove_breakpoint(*breakpoint_)
        return OK
    if type_ in _WATCHPOINT_KINDS and isinstance(target, SupportsWatchpoints):
        watchpoint = (_WATCHPOINT_KINDS[type_], *_range(where))
        if watchpoint in ctx.watchpoints:
            ctx.watchpoints.remove(watchpoint)
            target.remove_watchpoint(*watchpoint)
        return OK
    return UNSUPPORTED


def remove_all(ctx: Context) -> None:
    """Take out everything that the client has left behind."""
    target = ctx.target
    if isinstance(target, SupportsBreakpoints):
        for breakpoint_ in ctx.breakpoints:
            target.remove_breakpoint(*breakpoint_)
    if isinstance(target, SupportsWatchpoints):
        for watchpoint in ctx.watchpoints:
            target.remove_watchpoint(*watchpoint)
    ctx.breakpoints.clear()
    ctx.watchpoints.clear()


def has_breakpoint(ctx: Context, address: int) -> bool:
    """Whether there is an execution breakpoint of either kind at `address`."""
    return any((kind, address) in ctx.breakpoints for kind in BreakpointKind)


def _parse(args: bytes) -> tuple[bytes, bytes]:
    type_, _, where = args.partition(b",")
    if b";" in where:
        raise PacketError(Errno.INVALID, "conditions and commands are not supported")
    return type_, where


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
