# SPDX-License-Identifier: MIT
"""Execution: packets vCont, c, C, s, S, `?`, D, k, vAttach, vKill, and stop replies.

The machine is all-stop: a step executes one instruction of one vCPU while the others stand still,
synchronously; anything else that resumes a thread runs the whole machine. Signals given to C and S
are ignored, since a machine has none.

Spec: GDB manual, E.2 Packets, E.3 Stop Reply Packets.
Deviations: k and vKill detach. Whoever started the machine ends it, not a debugger's `kill`.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, NamedTuple

from svsmd.gdbstub.packets.breakpoints import remove_all
from svsmd.gdbstub.packets.context import (
    OK,
    UNSUPPORTED,
    Action,
    Context,
    Errno,
    Handler,
    PacketError,
    Reply,
    console_packets,
    parse_hex,
    parse_thread,
)
from svsmd.gdbstub.target import (
    Exited,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    SupportsRelocation,
    ThreadId,
)
from svsmd.gdbstub.target_xml import G_SPANS, REGISTER_NUMBERS

MAX_RANGE_STEPS: Final = 0x10000
"""Most instructions that one range step takes before it reports, still in the range; gdb goes on.

It bounds how long the stub is deaf to Ctrl-C; one that came meanwhile ends the next range step.
"""
STEP_COST: Final = 0x100
"""So many of them a step counts for that the target has to be asked for by itself."""

# What gdb wants to know after every step, in the packet that reports it. One `g` less a step.
_EXPEDITED: Final = tuple(REGISTER_NUMBERS[name] for name in ("rbp", "rsp", "rip"))
_EXPEDITED_SPANS: Final = tuple(G_SPANS[number] for number in _EXPEDITED)
_STOP_REPLY: Final = b"T%%02x%02x:%%b;%02x:%%b;%02x:%%b;thread:%%b;%%b" % _EXPEDITED
_THREE: Final = struct.Struct("<3Q")

_VCONT_ACTION: Final = re.compile(
    rb"(?P<kind>[cst]|[CS](?:[0-9a-fA-F]{2})|r(?P<start>[0-9a-fA-F]+),(?P<end>[0-9a-fA-F]+))"
    rb"(?::(?P<thread>[-p.0-9a-fA-F]+))?"
)


class _ThreadAction(NamedTuple):
    """One action of vCont."""

    kind: bytes
    start: int
    end: int
    thread: bytes | None

    @property
    def everything(self) -> bool:
        """Whether what no action before it fits is resumed."""
        return self.kind == b"c" and self.thread is None


@lru_cache(maxsize=64)
def _parse_actions(args: bytes) -> tuple[_ThreadAction, ...]:
    """Clients that step send the same packet again and again. Raises `PacketError`."""
    actions = []
    for text in args[1:].split(b";"):
        match = _VCONT_ACTION.fullmatch(text)
        if match is None:
            raise PacketError(Errno.INVALID, "malformed vCont action")
        start = end = 0
        if match["start"] is not None:
            start, end = parse_hex(match["start"]), parse_hex(match["end"])
        actions.append(_ThreadAction(text[:1], start, end, match["thread"]))
    return tuple(actions)


def stop_reply(ctx: Context, event: StopEvent) -> bytes:
    """The body of the packet that reports `event`."""
    if isinstance(event, Exited):
        ended = b"W%02x" % (event.code & 0xFF)
        # All processes are gone, but a stop is one of one process.
        return ended if ctx.processes is None else ended + b";process:%x" % _ended_pid(ctx)
    thread = event.thread
    digits = _THREE.pack(*_expedited(ctx, thread)).hex().encode()
    return _STOP_REPLY % (
        event.signal, digits[:16], digits[16:32], digits[32:], ctx.format(thread),
        _reason(ctx, event),
    )  # fmt: skip


def _expedited(ctx: Context, thread: ThreadId) -> tuple[int, int, int]:
    """RBP, RSP and RIP."""
    if ctx.expediting is not None:
        return ctx.expediting.expedited(thread)
    registers = ctx.target.read_registers(thread)
    rbp, rsp, rip = (int.from_bytes(registers[span], "little") for span in _EXPEDITED_SPANS)
    return rbp, rsp, rip


def _ended_pid(ctx: Context) -> int:
    return ctx.general.pid if ctx.resumed is None else ctx.resumed.pid


def _reason(ctx: Context, event: Stopped) -> bytes:
    if event.reason is StopReason.SIGNAL:
        return b""
    name = event.reason.value.encode()
    match event.reason:
        case StopReason.SWBREAK | StopReason.HWBREAK:
            # The protocol forbids these two unless the client has announced them.
            return name + b":;" if name + b"+" in ctx.client_features else b""
        case StopReason.WATCH | StopReason.RWATCH | StopReason.AWATCH:
            return b"%b:%x;" % (name, event.address)
        case StopReason.EXEC:
            return b"%b:%b;" % (name, event.file.encode().hex().encode())


def report_stop(ctx: Context, event: StopEvent) -> bytes:
    """Note that the machine has stopped, and say so: its thread becomes the current one.

    What commands of breakpoints have printed until then is said first.
    """
    ctx.stepping = None
    ctx.unfinished = ctx.interrupted = False
    ctx.console += console_output(ctx)
    ctx.last_stop = event = ctx.show(event)
    ctx.listings = 0
    if isinstance(event, Exited) and ctx.processes is not None:
        ctx.detached.add(_ended_pid(ctx))  # else the client would find it again
    if isinstance(event, Stopped):
        ctx.general, ctx.user_thread = event.thread, None
        _introduce(ctx, ctx.general)
        if event.words:
            ctx.say(event.words)
    return stop_reply(ctx, event)


def console_output(ctx: Context) -> list[bytes]:
    """Packets with what commands of breakpoints have printed; while the client waits for a stop."""
    if not ctx.in_control or ctx.breaking is None:
        return []
    output = ctx.breaking.take_output()
    return console_packets(output) if output else []


def _introduce(ctx: Context, thread: ThreadId) -> None:
    """The client hears of a thread, and with it of its process."""
    if ctx.processes is not None:
        ctx.stale.add(thread)
        if thread.pid not in ctx.seen:
            found = next((t for t in ctx.all_threads() if t.id == thread), None)
            if found is not None:
                ctx.seen[thread.pid] = found


def settle(ctx: Context, event: StopEvent) -> StopEvent | None:
    """What the client is told of a stop; None if the step that it waits for is not done yet."""
    processes = ctx.processes
    if ctx.stepping is None or processes is None:
        return event
    return processes.finish_step(ctx.stepping, event)


def abandon_step(ctx: Context) -> None:
    """Nobody waits for the step under way any more."""
    if ctx.stepping is not None and ctx.processes is not None:
        ctx.processes.abandon_step()
    ctx.stepping = None


def why_stopped(ctx: Context, args: bytes) -> bytes:
    """`?`, which no console output may precede: the client does not run anything."""
    reply = report_stop(ctx, _of_moved_process(ctx, ctx.last_stop))
    ctx.console.clear()
    if not ctx.has_resumed:
        ctx.quiet = ctx.general.pid
    return reply


def _of_moved_process(ctx: Context, event: StopEvent) -> StopEvent:
    """A stop that nothing caused, as one of the process that does not lie where it was linked.

    gdb 13 moves symbols when it attaches, and only those of the process that it finds stopped.
    """
    target = ctx.target
    if isinstance(event, Exited) or event.reason is not StopReason.SIGNAL:
        return event
    if ctx.processes is None or not isinstance(target, SupportsRelocation):
        return event
    for thread in ctx.all_threads():
        place = target.relocation(thread.id.pid)
        if place is not None and place.actual != place.linked:
            return replace(event, pid=thread.id.pid, tid=thread.id.tid)
    return event


def vcont(ctx: Context, args: bytes) -> Reply:
    """`vCont?` and `vCont;ACTION[:TID]...`; the leftmost action that fits a thread is its own."""
    if args == b"?":
        return b"vCont;c;C;s;S;t;r"
    if not args.startswith(b";"):
        return UNSUPPORTED
    kinds = set()
    actions = _parse_actions(args)
    for kind, start, end, thread_text in actions:
        thread = None if thread_text is None else parse_thread(ctx, thread_text)
        # gdb 13 steps a thread alone past a breakpoint, and fails if another one stops then.
        alone = len(actions) == 1 and thread is not None
        if not ctx.running and kind != b"t":
            everything = actions[-1].everything
            _note_resumed(ctx, None if everything else thread, alone=alone)
        if thread is not None:
            thread = ctx.check_thread(thread)
        if kind in b"sS":
            return step(ctx, thread, alone=alone)
        if kind == b"r":
            return range_step(ctx, thread, start, end, alone=alone)
        kinds.add(kind)
    if kinds == {b"t"}:
        return Action.INTERRUPT if ctx.running else _stopped_on_request(ctx)
    return resume(ctx)


def _note_resumed(ctx: Context, thread: ThreadId | None, *, alone: bool) -> None:
    ctx.resumed, ctx.has_resumed = thread, True
    if thread is None or thread.pid == ctx.quiet:
        ctx.quiet = None
    if thread is None:
        ctx.stale.clear()
    elif alone and thread.tid:
        ctx.stale.discard(thread)
    else:
        ctx.stale = {other for other in ctx.stale if other.pid != thread.pid}


def _stopped_on_request(ctx: Context) -> bytes:
    # vCont;t of a thread that stands still: stopped, with signal 0.
    return b"T00thread:%b;" % ctx.format(ctx.general)


def resume(ctx: Context) -> Reply:
    """Run the machine, unless it has ended."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    if ctx.in_control and ctx.breaking is not None:
        ctx.breaking.forget_removed_breakpoints()
    return Action.RESUME


def step(ctx: Context, thread: ThreadId | None, *, alone: bool = False) -> Reply:
    """Execute one instruction of a thread, or of the one that stopped last."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    stepped = ctx.last_stop.thread if thread is None else thread
    event = ctx.target.step(stepped, alone=alone)
    _arrived(ctx, event)
    return _stepped(ctx, stepped, event)


def _arrived(ctx: Context, event: StopEvent | None) -> bool:
    """Whether a step has led to a breakpoint that stops; its commands run then if it has some.

    gdb finds out by itself what is at the PC, and evaluates a condition once more. A stop at a
    breakpoint has reached it before it was reported.
    """
    return (
        isinstance(event, Stopped)
        and event.reason not in (StopReason.SWBREAK, StopReason.HWBREAK)
        and ctx.breaking is not None
        and ctx.breaking.arrived(event.thread)
    )


def _stepped(ctx: Context, thread: ThreadId, event: StopEvent | None) -> Reply:
    if event is None:
        ctx.stepping = thread
        return Action.RESUME
    return report_stop(ctx, event)


def range_step(
    ctx: Context, thread: ThreadId | None, start: int, end: int, *, alone: bool = False
) -> Reply:
    """Step until the PC leaves [start, end), something else happens, or it takes too long."""
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    target = ctx.target
    stepped = ctx.last_stop.thread if thread is None else thread
    if ctx.interrupted:
        return report_stop(ctx, Stopped(stepped.tid, Signal.SIGINT, pid=stepped.pid))
    plain = Stopped(stepped.tid, Signal.SIGTRAP, pid=stepped.pid)
    left, more = MAX_RANGE_STEPS, 0
    while left > 0:
        if ctx.ranging is None:
            event = target.step(stepped, alone=alone)
        else:
            within = range(start, end)
            event, more = ctx.ranging.step_within(stepped, within, left - 1, alone=alone)
        left -= STEP_COST + more
        if _arrived(ctx, event) or event != plain:
            break
        _, _, pc = _expedited(ctx, stepped)
        if not start <= pc < end:
            break
    else:
        reply = report_stop(ctx, plain)
        ctx.unfinished = True
        return reply
    return _stepped(ctx, stepped, event)


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
    return step(ctx, ctx.step_thread)


def legacy_step_signal(ctx: Context, args: bytes) -> Reply:
    """`S SIGNAL[;ADDRESS]`."""
    return legacy_step(ctx, args.partition(b";")[2])


def _set_pc(ctx: Context, address: bytes) -> None:
    if address:
        ctx.target.write_register(ctx.general, "rip", parse_hex(address))


def detach(ctx: Context, args: bytes) -> Reply:
    """`D[;PID]`, and `vKill;PID`.

    The machine is released with the last process that the client was told of.
    """
    # While it runs, nobody can be asked for its processes.
    if ctx.processes is None or ctx.running or not args.startswith(b";"):
        return Action.DETACH
    pid = parse_hex(args[1:])
    known = {thread.id.pid for thread in ctx.all_threads()}
    if pid not in known:
        raise PacketError(Errno.NO_SUCH_THREAD, f"no process {pid}")
    if known & (set(ctx.seen) | {pid}) == {pid}:
        return Action.DETACH
    ctx.detached.add(pid)
    remove_all(ctx, pid)
    if ctx.general.pid == pid:
        ctx.general, ctx.user_thread = ctx.first_thread(), None
    return OK


def attach(ctx: Context, args: bytes) -> Reply:
    """`vAttach;PID`: a process that the client has detached from is there again."""
    processes = ctx.processes
    if processes is None:
        return UNSUPPORTED
    if isinstance(ctx.last_stop, Exited):
        return stop_reply(ctx, ctx.last_stop)
    pid = parse_hex(args[1:])
    thread = next((t.id for t in processes.process_threads() if t.id.pid == pid), None)
    if thread is None:
        raise PacketError(Errno.NO_SUCH_THREAD, f"no process {pid}")
    ctx.detached.discard(pid)
    return report_stop(ctx, Stopped(thread.tid, pid=pid))


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
    b"vAttach": attach,
    b"vKill": detach,
    b"k": kill,
}
