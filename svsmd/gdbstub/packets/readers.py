# SPDX-License-Identifier: MIT
"""What a client may do that has not the run control: a reader.

It may do what only looks, and what changes nothing but its own session. What would change the
machine, or what its owner has set up, is refused. To resume the machine means to wait for the next
stop that the owner sees (`svsmd.gdbstub.session`).

A packet or a command that is not listed here is refused, so that a new one is no hole.

Spec: docs/gdb.md, "Several debuggers".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from svsmd.gdbstub.packets.context import Context, PacketError, parse_thread
from svsmd.gdbstub.target import ThreadId

_LOOK: Final = frozenset(
    b"? g p m x H T D k vKill vAttach vFile qSupported QStartNoAckMode QNonStop QPassSignals qC "
    b"qAttached qfThreadInfo qsThreadInfo qThreadExtraInfo qSymbol qXfer qSearch qCRC qqemu "
    b"qOffsets QThreadSuffixSupported qHostInfo qProcessInfo qThreadStopInfo "
    # A reader has no breakpoints: to remove one that is not there is no error. An owner that has
    # lost the run control takes its own ones out so, as far as it knows.
    b"z".split()
)
"""Packets that change nothing in the machine. qRcmd is judged by its command."""

RESUMING: Final = frozenset({b"vCont", b"c", b"C", b"s", b"S"})
"""Packets that may run the machine."""

_QEMU_STEPS: Final = b".sstep="
"""What the packet Qqemu sets of steps; its other things are a client's own."""

_WAIT: Final = frozenset({b"c", b"C"})
_WAITING_VCONT: Final = re.compile(rb"\?|(;(c|C[0-9a-fA-F]{2}|t)(:[-p.0-9a-fA-F]+)?)+")
"""Actions of vCont that a reader may take: to wait, and to wait no more."""


_OF_THREAD: Final = re.compile(rb":([-p.0-9a-fA-F]+)")


_LOOKING_COMMANDS: Final = frozenset({
    "help", "run-control", "info", "cpu", "rmp", "vmsa", "walk", "gva2gpa", "why", "xp", "x",
    "breakpoints", "event", "python",
})  # fmt: skip
"""Commands of `monitor` that only look."""

_LOOKING_ALONE: Final = frozenset({"catch", "step-irq"})
"""Commands that do so without arguments."""


def may_send(name: bytes, args: bytes) -> bool:
    """Whether a reader may send a packet; `name` as in a table of handlers."""
    if name == b"vCont":
        return _WAITING_VCONT.fullmatch(args) is not None
    if name in _WAIT:
        return b";" not in args and (name == b"C" or not args)  # without an address
    if name == b"Qqemu":
        return not args.startswith(_QEMU_STEPS)
    return name in _LOOK or name == b"qRcmd"


def may_command(name: str, arguments: Sequence[str]) -> bool:
    """Whether a reader may give a command of `monitor`."""
    return name in _LOOKING_COMMANDS or (name in _LOOKING_ALONE and not arguments)


def thread_to_run(ctx: Context, args: bytes) -> ThreadId:
    """The thread that a packet would have run; the selected one if it does not say."""
    match = _OF_THREAD.search(args)
    try:
        thread = None if match is None else parse_thread(ctx, match[1])
        return ctx.general if thread is None else ctx.check_thread(thread)
    except PacketError:
        return ctx.general


def refusal(ctx: Context) -> str:
    """Why a reader may not."""
    if ctx.control is not None and ctx.control.is_free:
        return "no debugger has the run control; monitor run-control take"
    return "another debugger has the run control; monitor run-control"
