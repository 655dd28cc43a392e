# SPDX-License-Identifier: MIT
"""Execution: packets vCont, c, C, s, S, `?`, D, k, vKill, and stop replies.

The machine is all-stop: a step executes one instruction of one vCPU while the others stand still,
synchronously; anything else that resumes a thread runs the whole machine. Signals given to C and S
are ignored, since a machine has none.

Spec: GDB manual, E.2 Packets, E.3 Stop Reply Packets.
Deviations: k and vKill detach. Whoever started the machine ends it, not a debugger's `kill`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from svsmd.gdbstub.packets.context import (
    UNSUPPORTED,
    Action,
    Context,
    Errno,
    Handler,
    PacketError,
    Reply,
    parse_hex,
    parse_tid,
)
from svsmd.gdbstub.rsp import MAX_BODY
from svsmd.gdbstub.target import (
    Exited,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    SupportsBreakpoints,
)
from svsmd.gdbstub.target_xml import G_SPANS, REGISTER_NUMBERS

MAX_RANGE_STEPS: Final = 1000
"""Most steps that one range step takes before it reports, still in the range; gdb then goes on.

It bounds how long the stub is deaf to Ctrl-C.
"""

MAX_CONSOLE: Final = (MAX_BODY - 1) // 2
"""Most bytes of text in one console packet."""

# What gdb wants to know after every step, in the packet that reports it. One `g` less a step.
_EXPEDITED: Final = [
    (b"%02x:" % REGISTER_NUMBERS[name], G_SPANS[REGISTER_NUMBERS[name]])
    for name in ("rbp", "rsp", "rip")
]
_RIP: Final = G_SPANS[REGISTER_NUMBERS["rip"]]

_VCONT_ACTION: Final = re.compile(
    rb"(?P<kind>[cst]|[CS](?:[0-9a-fA-F]{2})|r(?P<start>[0-9a-fA-F]+),(?P<end>[0-9a-fA-F]+))"
    rb"(?::(?P<tid>-1|[0-9a-fA-F]+))?"
)


def stop_reply(ctx: Context, event: StopEvent) -> bytes:
    """The body of the packet that reports `event`."""
    if isinstance(event, Exited):
        return b"W%02x" % (event.code & 0xFF)
    registers = ctx.target.read_registers(event.tid)
    expedited = b"".join(
        b"%b%b;" % (number, registers[span].hex().encode()) for number, span in _EXPEDITED
    )
    return b"T%02x%bthread:%x;%b" % (event.signal, expedited, event.tid, _reason(ctx, event))


def _reason(ctx: Context, event: Stopped) -> bytes:
    name = event.reason.value.encode()
    match event.reason:
        case StopReason.SIGNAL:
            return b""
        case StopReason.SWBREAK | StopReason.HWBREAK:
            # The protocol forbids these two unless the client has announced them.
            return name + b":;" if name + b"+" in ctx.client_features else b""
        case StopReason.WATCH | StopReason.RWATCH | StopReason.AWATCH:
            return b"%b:%x;" % (name, event.address)


def report_stop(ctx: Context, event: StopEvent) -> bytes:
    """Note that the machine has stopped, and say so: its thread becomes the current one.

    What commands of breakpoints have printed until then is said first.
    """
    ctx.last_stop = event
    ctx.console += console_output(ctx)
    if isinstance(event, Stopped):
        ctx.general_tid = event.tid
        if event.words:
            ctx.say(event.words)
    return stop_reply(ctx, event)


def console_output(ctx: Context) -> list[bytes]:
    """Packets with what commands of breakpoints have printed; while the client waits for a stop."""
    if not isinstance(ctx.target, SupportsBreakpoints):
        return []
    text = ctx.target.take_output()
    parts = (text[at : at + MAX_CONSOLE] for at in range(0, len(text), MAX_CONSOLE))
    return [b"O" + part.hex().encode() for part in parts]


def why_stopped(ctx: Context, args: bytes) -> bytes:
    """`?`, which no console output may precede: the client does not run anything."""
    reply = report_stop(ctx, ctx.last_stop)
    ctx.console.clear()
    return reply


def vcont(ctx: Context, args: bytes) -> Reply:
    """`vCont?` and `vCont;ACTION[:TID]...`; the leftmost action that fits a thread is its own."""
    if args == b"?":
        return b"vCont;c;C;s;S;t;r"
    if not args.startswith(b";"):
        return UNSUPPORTED
    kinds = set()
    for text in args[1:].split(b";"):
        match = _VCONT_ACTION.fullmatch(text)
        if match is None:
            raise PacketError(Errno.INVALID, "malformed vCont action")
        kind = text[:1]
        tid = None if match["tid"] is None else parse_tid(match["tid"])
        if tid is not None:
            ctx.check_tid(tid)
        if kind in b"sS":
            return step(ctx, tid)
        if kind == b"r":
            return range_step(ctx, tid, parse_hex(match["start"]), parse_hex(match["end"]))
        kinds.add(kind)
    if kinds == {b"t"}:
        return Action.INTERRUPT if ctx.running else _stopped_on_request(ctx)
    return resume(ctx)


def _stopped_on_request(ctx: Context) -> bytes:
    # vCont;t of a thread that stands still: stopped, with signal 0.
    return b"T00thread:%x;" % ctx.general_tid


def resume(ctx: Context) -> Reply:
    """Run the machine, unless it has ended."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    if isinstance(ctx.target, SupportsBreakpoints):
        ctx.target.forget_removed_breakpoints()
    return Action.RESUME


def step(ctx: Context, tid: int | None) -> bytes:
    """Execute one instruction of thread `tid`, or of the thread that stopped last."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    stepped = ctx.last_stop.tid if tid is None else tid
    event = ctx.target.step(stepped)
    _arrived(ctx, event)
    return report_stop(ctx, event)


def _arrived(ctx: Context, event: StopEvent) -> bool:
    """Whether a step has led to a breakpoint that stops; its commands run then if it has some.

    gdb finds out by itself what is at the PC, and evaluates a condition once more.
    """
    return (
        isinstance(event, Stopped)
        and isinstance(ctx.target, SupportsBreakpoints)
        and ctx.target.arrived(event.tid)
    )


def range_step(ctx: Context, tid: int | None, start: int, end: int) -> bytes:
    """Step until the PC leaves [start, end), something else happens, or it takes too long."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    target = ctx.target
    stepped = ctx.last_stop.tid if tid is None else tid
    plain = Stopped(stepped, Signal.SIGTRAP)
    for _ in range(MAX_RANGE_STEPS):
        event = target.step(stepped)
        if _arrived(ctx, event) or event != plain:
            break
        pc = int.from_bytes(target.read_registers(stepped)[_RIP], "little")
        if not start <= pc < end:
            break
    return report_stop(ctx, event)


def legacy_continue(ctx: Context, args: bytes) -> Reply:
    """`c [ADDRESS]`."""
    _set_pc(ctx, args)
    return resume(ctx)


def legacy_continue_signal(ctx: Context, args: bytes) -> Reply:
    """`C SIGNAL[;ADDRESS]`."""
    return legacy_continue(ctx, args.partition(b";")[2])


def legacy_step(ctx: Context, args: bytes) -> Reply:
    """`s [ADDRESS]`."""
    _set_pc(ctx, args)
    return step(ctx, ctx.step_tid)


def legacy_step_signal(ctx: Context, args: bytes) -> Reply:
    """`S SIGNAL[;ADDRESS]`."""
    return legacy_step(ctx, args.partition(b";")[2])


def _set_pc(ctx: Context, address: bytes) -> None:
    if address:
        ctx.target.write_register(ctx.general_tid, "rip", parse_hex(address))


def detach(ctx: Context, args: bytes) -> Reply:
    """`D[;PID]`, and `vKill;PID`."""
    return Action.DETACH


def kill(ctx: Context, args: bytes) -> Reply:
    """`k`, which has no reply."""
    return Action.DETACH_SILENTLY


HANDLERS: Final[Mapping[bytes, Handler]] = {
    b"?": why_stopped,
    b"vCont": vcont,
    b"c": legacy_continue,
    b"C": legacy_continue_signal,
    b"s": legacy_step,
    b"S": legacy_step_signal,
    b"D": detach,
    b"vKill": detach,
    b"k": kill,
}
