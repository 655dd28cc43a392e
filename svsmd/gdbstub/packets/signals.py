# SPDX-License-Identifier: MIT
"""Signals that the client does not want to hear of: packet QPassSignals.

Only events are filtered by it (docs/gdb.md, "Events of the machine"). Breakpoints, steps and Ctrl-C
are reported whatever the client says: it waits for them.

Spec: GDB manual, E.4 General Query Packets, QPassSignals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import OK, UNSUPPORTED, Context, Handler, parse_hex
from svsmd.gdbstub.target import SupportsEvents


def pass_signals(ctx: Context, args: bytes) -> bytes:
    """`QPassSignals:SIGNAL[;SIGNAL]...`; each list replaces the one before."""
    if not isinstance(ctx.target, SupportsEvents):
        return UNSUPPORTED
    ctx.passed = frozenset(parse_hex(text) for text in args[1:].split(b";") if text)
    if ctx.in_control:
        apply(ctx)
    return OK


def apply(ctx: Context) -> None:
    """What the client said last counts: it has the run control."""
    if isinstance(ctx.target, SupportsEvents):
        ctx.target.pass_signals(ctx.passed)


def release(ctx: Context) -> None:
    """The client has left the run control, and with it what it waited for."""
    if isinstance(ctx.target, SupportsEvents):
        ctx.target.forget_events()


HANDLERS: Final[Mapping[bytes, Handler]] = {b"QPassSignals": pass_signals}
