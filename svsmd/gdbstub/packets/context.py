# SPDX-License-Identifier: MIT
"""What packet handlers share: the state of one debugging session, and small parsers.

Spec: GDB manual, E.1 (hexadecimal numbers, thread ids, error replies).
"""

from __future__ import annotations

from binascii import unhexlify
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from svsmd.gdbstub.agent.packet import Options
from svsmd.gdbstub.rsp import MAX_BODY
from svsmd.gdbstub.target import (
    ANY_WORLD,
    BreakpointKind,
    Exited,
    RunControl,
    Selection,
    Signal,
    StopEvent,
    Stopped,
    SupportsBreakpoints,
    SupportsExpedited,
    SupportsProcesses,
    SupportsRangeSteps,
    Target,
    Thread,
    ThreadId,
    WatchpointKind,
)

MAX_SEEN: Final = 256
"""Processes that have ended, and are remembered as long as the client may ask for them."""

MAX_CONSOLE: Final = (MAX_BODY - len(b"O")) // 2
"""Most bytes of text in one console packet."""

OK: Final = b"OK"
UNSUPPORTED: Final = b""
"""The reply to a packet that the stub does not know."""

ADDRESS_LIMIT: Final = 1 << 64

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"


class Errno(Enum):
    """Numbers of error replies for clients that take no text: Linux errno values."""

    NO_SUCH_FILE = 2
    NO_SUCH_THREAD = 3
    BAD_FILE = 9
    ACCESS = 13
    FAULT = 14
    BUSY = 16
    INVALID = 22
    TOO_MANY_FILES = 24
    NO_SPACE = 28


class PacketError(Exception):
    """The packet gets an error reply: `E.text` if the client takes text, else `Enn`."""

    def __init__(self, errno: Errno, text: str) -> None:
        super().__init__(text)
        self.errno = errno


class Action(Enum):
    """What the session has to do where a handler has no plain reply."""

    RESUME = "run the machine; the stop reply comes later"
    INTERRUPT = "stop the machine, as Ctrl-C does"
    START_NO_ACK_MODE = "reply OK, and use no acknowledgements from then on"
    DETACH = "reply OK and end the session"
    DETACH_SILENTLY = "end the session"


@dataclass(slots=True)
class Context:
    """The state that packets read and change."""

    target: Target
    last_stop: StopEvent
    """How the machine stands, or how it stood before it was resumed."""
    general: ThreadId
    """The thread that registers and memory belong to (`Hg`)."""
    user_thread: ThreadId | None = None
    """The thread that the user looks at, if the client has said so otherwise than by `Hg`."""
    step_thread: ThreadId | None = None
    """The thread of the legacy packet `s` (`Hc`); None: the one that stopped."""
    resumed: ThreadId | None = None
    """What the client resumed last, tid 0 for a whole process; None for everything."""
    has_resumed: bool = False
    one_memory: bool = False
    """The client knows of one address space only, and names a thread for its registers alone."""
    listings: int = 0
    """Lists of threads since the last stop."""
    quiet: int | None = None
    """The process that the client found stopped when it came, and has not resumed yet.

    gdb 13 shows no stop there before that, and waits for ever: its `stop_soon` is only reset when
    the inferior that was the current one is resumed.
    """
    stale: set[ThreadId] = field(default_factory=set)
    """Threads whose stop was reported, and that the client has not resumed since.

    Another stop there is an internal error of gdb 13 (`find_inline_frame_state (thread) == NULL`).
    """
    stepping: ThreadId | None = None
    """The thread whose step needs others to run (`SupportsProcesses`)."""
    unfinished: bool = False
    """The last stop is that of a range step that has taken long: the client goes on with it."""
    interrupted: bool = False
    """Ctrl-C came there, for the user of a step that never stands still."""
    running: bool = False
    client_features: frozenset[bytes] = frozenset()
    """What the client said in qSupported, such as b"swbreak+"."""
    breakpoints: dict[tuple[int, BreakpointKind, int, bool], Options] = field(default_factory=dict)
    """By process, kind, address, and whether that is a guest-physical one."""
    watchpoints: set[tuple[int, WatchpointKind, int, int]] = field(default_factory=set)
    """Process, kind, address and length of each."""
    console: list[bytes] = field(default_factory=list)
    """Console packets that go out before the reply."""
    told: dict[int, deque[bytes]] = field(default_factory=dict)
    """What the client has read of registers that it cannot write, by number."""
    physical: bool = False
    """Addresses are guest-physical ones (`Qqemu.PhyMemMode:1`)."""
    no_timer: bool = True
    """NOTIMER of `Qqemu.sstep`, which changes nothing here."""
    document: bytes = b""
    """The document of the transfer (qXfer) under way, if it is one that changes: it must not do so
    between the parts of one transfer."""
    files: dict[int, bytes] = field(default_factory=dict)
    """What is open (vFile), by descriptor."""
    seen: dict[int, Thread] = field(default_factory=dict)
    """One thread of each process that the client was told of, by pid."""
    detached: set[int] = field(default_factory=set)
    """Processes that the client has detached from."""
    control: RunControl | None = None
    """How the client gets the run control, and leaves it; None if there are no others."""
    in_control: bool = True
    """The client has the run control; else it only reads."""
    passed: frozenset[int] = frozenset()
    """Signals that the client does not want to hear of (QPassSignals)."""
    chosen: Selection = field(default_factory=Selection)
    """What `monitor` commands and tables are about; see `selection`."""
    breaking: SupportsBreakpoints | None = field(init=False)
    """The target, if it has breakpoints. Whether it has takes Python as long as a step."""
    expediting: SupportsExpedited | None = field(init=False)
    ranging: SupportsRangeSteps | None = field(init=False)
    _processes: SupportsProcesses | None = field(init=False)

    def __post_init__(self) -> None:
        target = self.target
        self.breaking = target if isinstance(target, SupportsBreakpoints) else None
        self.expediting = target if isinstance(target, SupportsExpedited) else None
        self.ranging = target if isinstance(target, SupportsRangeSteps) else None
        self._processes = target if isinstance(target, SupportsProcesses) else None

    def say(self, text: str) -> None:
        """Show the user a line before the reply."""
        self.console += console_packets(f"{text}\n".encode())

    @property
    def selected(self) -> ThreadId:
        """The thread that commands and tables are about."""
        return self.user_thread or self.general

    @property
    def memory_thread(self) -> ThreadId:
        """The thread whose address space memory is read and written in."""
        if self.one_memory and isinstance(self.last_stop, Stopped):
            return self.last_stop.thread
        return self.general

    @property
    def selection(self) -> Selection:
        """What commands and tables are about, up to date."""
        self.chosen.thread = self.selected
        return self.chosen

    @property
    def processes(self) -> SupportsProcesses | None:
        """The target's processes, if the client knows what that is."""
        return self._processes if b"multiprocess+" in self.client_features else None

    def all_threads(self) -> list[Thread]:
        """What the client may ask for.

        gdb 13 never forgets a process whose threads are gone, it asks for their registers and has
        breakpoints to remove. So one that has ended stays in the list, and says so.
        """
        processes = self.processes
        if processes is None:
            return list(self.target.threads())
        threads = [t for t in processes.process_threads() if t.id.pid not in self.detached]
        there = {thread.id.pid for thread in threads}
        for thread in threads:
            if thread.id.pid in self.seen:
                self.seen[thread.id.pid] = thread
        gone = [pid for pid in self.seen if pid not in there and pid not in self.detached]
        for pid in gone[:-MAX_SEEN]:
            del self.seen[pid]
        for pid in gone[-MAX_SEEN:]:
            ended = self.seen[pid]
            threads.append(Thread(ended.id, ended.name, "has ended"))
        return threads

    def list_threads(self) -> list[Thread]:
        """What a list of threads has, when the client asks for one.

        gdb 13 asks once at each stop, and switches to a process that it finds then, forgetting why
        it has stopped. So those that have begun since are in the next list, which its user asks
        for, unless it is they who have stopped.
        """
        self.listings += 1
        threads = self.all_threads()
        if self.processes is None:
            return threads
        if self.has_resumed and self.listings == 1:
            threads = [thread for thread in threads if thread.id.pid in self.seen]
        for thread in threads:
            self.seen.setdefault(thread.id.pid, thread)
        return threads

    def first_thread(self) -> ThreadId:
        """Some thread, if there is nothing else to go by."""
        return (self.all_threads() or self.target.threads())[0].id

    def check_thread(self, thread: ThreadId) -> ThreadId:
        """`thread`, if there is such a one; tid 0 is any of its process. Raises `PacketError`."""
        if thread == self.general:  # so for every step of a series
            return thread
        for other in self.all_threads():
            if other.id == thread or (other.id.pid == thread.pid and not thread.tid):
                return other.id
        raise PacketError(Errno.NO_SUCH_THREAD, f"no thread {thread.pid}.{thread.tid}")

    def show(self, event: StopEvent) -> StopEvent:
        """The same stop, as one of a thread that the client sees."""
        processes = self.processes
        if processes is None or isinstance(event, Exited):
            return event
        if event.pid == ANY_WORLD:
            event = processes.name_process(event)
        resumed = self.resumed
        if resumed is not None and resumed.pid != event.pid and self._is_elsewhere(event):
            return self._show_resumed(event, resumed)
        return self._show_attached(event)

    def _is_elsewhere(self, event: Stopped) -> bool:
        """Whether the client is better told of a stop of the process that it resumed."""
        unready = event.pid == self.quiet or event.thread in self.stale
        return event.signal is Signal.SIGINT or unready

    def _show_resumed(self, event: Stopped, resumed: ThreadId) -> Stopped:
        """A stop that no thread caused, or that the client would not show: of what it resumed."""
        try:
            thread = self.check_thread(resumed)
        except PacketError:
            return self._show_attached(event)
        if event.signal is not Signal.SIGINT:
            self.say(
                f"stopped in thread {event.tid} of process {event.pid}, "
                "which was not resumed: see there, or `set schedule-multiple on`"
            )
        return Stopped(thread.tid, event.signal, words=event.words, pid=thread.pid)

    def _show_attached(self, event: Stopped) -> Stopped:
        """A stop of a process that the client has detached from is one of a neighbour."""
        if event.pid not in self.detached:
            return event
        threads = self.all_threads()
        near = [t for t in threads if t.core == event.tid - 1 and t.id.tid == event.tid]
        instead = (near or threads)[0].id if threads else event.thread
        return Stopped(instead.tid, event.signal, words=event.words, pid=instead.pid)

    def plain(self, event: StopEvent) -> StopEvent:
        """A stop that another client sees, as this one is told of it.

        Of the reasons it gets none: gdb takes one for a breakpoint that it knows nothing of, and
        resumes.
        """
        if isinstance(event, Exited):
            return event
        stop = Stopped(event.tid, event.signal, words=event.words, pid=event.pid)
        if stop.pid == ANY_WORLD or self.processes is not None:
            return stop
        threads = (
            self.target.process_threads() if isinstance(self.target, SupportsProcesses) else ()
        )
        core = next((thread.core for thread in threads if thread.id == stop.thread), None)
        return Stopped(1 if core is None else core + 1, stop.signal, words=stop.words)

    def format(self, thread: ThreadId) -> bytes:
        """A thread id as the client writes it."""
        if thread.pid == ANY_WORLD:
            return b"%x" % thread.tid
        return b"p%x.%x" % thread


Reply = bytes | Action
Handler = Callable[[Context, bytes], Reply]


def console_packets(text: bytes) -> list[bytes]:
    """Bodies of the packets that have the client print `text`."""
    parts = (text[at : at + MAX_CONSOLE] for at in range(0, len(text), MAX_CONSOLE))
    return [b"O" + part.hex().encode() for part in parts]


def parse_hex(text: bytes) -> int:
    """An unsigned number of up to 64 bits, in hex digits only. Raises `PacketError`."""
    if not text or len(text) > 16 or text.translate(None, _HEX_DIGITS):
        raise PacketError(Errno.INVALID, "malformed number")
    return int(text, 16)


def parse_hex_data(text: bytes) -> bytes:
    """Bytes given as two hex digits each. Raises `PacketError`."""
    try:
        return unhexlify(text)
    except ValueError:
        raise PacketError(Errno.INVALID, "malformed hex data") from None


def parse_address_length(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH; the range does not wrap round the end of the address space."""
    address, comma, length = text.partition(b",")
    if not comma:
        raise PacketError(Errno.INVALID, "malformed packet")
    start, nbytes = parse_hex(address), parse_hex(length)
    if start + nbytes > ADDRESS_LIMIT:
        raise PacketError(Errno.INVALID, "range beyond the end of the address space")
    return start, nbytes


def parse_thread(ctx: Context, text: bytes) -> ThreadId | None:
    """A thread id; None for "all" (-1) and "any" (0), tid 0 for those of one process.

    `TID`, or `pPID`, `pPID.TID` for clients that know processes. Raises `PacketError`.
    """
    if text == b"-1":
        return None
    if ctx.processes is None:
        tid = parse_hex(text)
        return ThreadId(ANY_WORLD, tid) if tid else None
    if not text.startswith(b"p"):
        if parse_hex(text):
            raise PacketError(Errno.INVALID, "a thread id without a process")
        return None
    pid_text, dot, tid_text = text[1:].partition(b".")
    tid = 0 if not dot or tid_text == b"-1" else parse_hex(tid_text)
    pid = 0 if pid_text == b"-1" else parse_hex(pid_text)
    if not pid and tid:
        raise PacketError(Errno.INVALID, "a thread of any process")
    return ThreadId(pid, tid) if pid else None
