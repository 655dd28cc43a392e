# SPDX-License-Identifier: MIT
"""What the debugger stub asks of a machine: protocols to implement and the values they exchange.

A machine implements `Target`, and of the `Supports...` protocols those that it can serve; the
session looks at what is there and advertises exactly that. Who runs the machine implements
`Runner`. Everything here is synchronous and is called from one thread only, the one that also
receives the bytes of the client, and `Target` only while the machine stands still.

Spec: GDB manual, appendix E (remote serial protocol): E.3 stop reply packets, E.2 packets Z and z.
"""

from __future__ import annotations

import struct
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, NamedTuple, Protocol, TypeVar, runtime_checkable

from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options

G_LAYOUT: Final = struct.Struct("<16Q Q I 6I 80s 8I 256s I q 2Q")
"""The registers of a `g` packet: gdb's default amd64-linux layout, in every CPU mode.

Fields in order: rax rbx rcx rdx rsi rdi rbp rsp r8..r15 (16 x u64), rip (u64), eflags (u32),
cs ss ds es fs gs (selectors, 6 x u32), st0..st7 (8 x 10 bytes, one block), fctrl fstat ftag fiseg
fioff foseg fooff fop (8 x u32), xmm0..xmm15 (16 x 16 bytes, one block), mxcsr (u32), orig_rax
(i64, `NO_SYSCALL`), fs_base, gs_base (u64).
"""

T = TypeVar("T")

NO_SYSCALL: Final = -1
"""Value of orig_rax that tells gdb that no Linux system call is being restarted."""


class Signal(IntEnum):
    """Signal numbers of stop replies: gdb's own numbering (include/gdb/signals.def)."""

    NONE = 0
    """The machine stands still, and nothing has happened to this thread."""
    SIGINT = 2
    SIGILL = 4
    SIGTRAP = 5
    SIGABRT = 6
    SIGFPE = 8
    SIGBUS = 10
    SIGSEGV = 11
    # One for each class of events: `handle` and QPassSignals then filter them.
    SIG40 = 52
    SIG41 = 53
    SIG42 = 54
    SIG43 = 55
    SIG44 = 56
    SIG45 = 57
    SIG46 = 58
    SIG47 = 59
    SIG48 = 60
    SIG49 = 61
    SIG50 = 62


class BreakpointKind(IntEnum):
    """The type digit of Z0 and Z1. The machine patches no memory for either."""

    SOFTWARE = 0
    HARDWARE = 1


class WatchpointKind(IntEnum):
    """The type digit of Z2, Z3 and Z4."""

    WRITE = 2
    READ = 3
    ACCESS = 4


class StopReason(Enum):
    """Why a vCPU stopped; the values are the stop reasons of T packets."""

    SIGNAL = ""
    """Nothing but the signal: a finished step, an interruption, a fault."""
    SWBREAK = "swbreak"
    HWBREAK = "hwbreak"
    WATCH = "watch"
    RWATCH = "rwatch"
    AWATCH = "awatch"
    EXEC = "exec"
    """The process runs another file from here on, or the same one where it has been moved to."""


ANY_WORLD: Final = 0
"""A pid that no process has: threads are vCPUs then, and show whatever world runs on them."""


class ThreadId(NamedTuple):
    """A thread of a process.

    A world (a VMPL) is a process: pid is the VMPL + 1, and tid n + 1 is that world on vCPU n. So is
    a program that runs isolated at CPL 3 under the SVSM, with one thread. Under `ANY_WORLD` tid
    n + 1 is vCPU n, whatever runs there: all that a client sees that does not know processes.
    """

    pid: int
    tid: int


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread as gdb shows it."""

    id: ThreadId
    name: str
    """Short name of `info threads`, such as "vcpu0"."""
    info: str
    """What it is doing, such as "VMPL2, halted"."""
    core: int | None = None
    """The vCPU that it belongs to or runs on; None if it has none now."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The machine stands still.

    At a breakpoint the PC is the address of the breakpoint, the instruction not executed. At a
    watchpoint the access is done and the PC is that of the next instruction.
    """

    tid: int
    """The vCPU that stopped the machine, counted from 1, or the thread of process `pid`."""
    signal: Signal = Signal.SIGTRAP
    reason: StopReason = StopReason.SIGNAL
    address: int = 0
    """For WATCH, RWATCH and AWATCH: an accessed address (GVA) inside the watched range."""
    words: str = ""
    """A line for the user's console, shown before the stop; empty if the reason says it all."""
    pid: int = ANY_WORLD
    """The process; nothing but `SupportsProcesses` knows it."""
    file: str = ""
    """For EXEC: name of the file."""

    @property
    def thread(self) -> ThreadId:
        """The thread that gdb shows."""
        return ThreadId(self.pid, self.tid)


@dataclass(frozen=True, slots=True)
class Exited:
    """The machine has ended and cannot be resumed: gdb is told that the process exited."""

    code: int
    """Exit code of the machine, 0 to 255."""


StopEvent = Stopped | Exited


class TargetError(Exception):
    """The machine refuses a request; the text is shown to the user of gdb. One line, no full stop.

    Example: `TargetError("no page table maps 0x1000")`.
    """


class Target(Protocol):
    """The machine as a debugger sees it, all vCPUs stopped.

    `thread` is always one of `threads()`, or of `SupportsProcesses.process_threads()`, or was one:
    a program that has ended reads as zeros, and its memory is not there. Addresses are linear
    (GVA), as that thread translates them.
    """

    def threads(self) -> Sequence[Thread]:
        """Every vCPU, in ascending order of `tid`, `ANY_WORLD` their pid; at least one."""
        ...

    def read_registers(self, thread: ThreadId) -> bytes:
        """The `g` registers, packed by `G_LAYOUT` (560 bytes)."""
        ...

    def read_register(self, thread: ThreadId, name: str) -> int | None:
        """One of the registers that are not in `G_LAYOUT` (`target_xml.SYSTEM_REGISTERS`).

        None if it has no value now. Raises `TargetError` if there is none of that name.
        """
        ...

    def write_register(self, thread: ThreadId, name: str, value: int) -> None:
        """Set any register of the description, those of `G_LAYOUT` (st0, xmm0, ...) included.

        `value` is unsigned and fits the size of the register; orig_rax never comes here. Raises
        `TargetError` for a read-only register or a value that the processor would not take.
        """
        ...

    def read_memory(self, thread: ThreadId, gva: int, length: int) -> bytes:
        """Up to `length` bytes from `gva` on: fewer, at least one, if what follows is not readable.

        Reads what the thread would read (private pages through its own C-bit), with no effect on
        the guest. Raises `TargetError` if the first byte is not readable.
        """
        ...

    def write_memory(self, thread: ThreadId, gva: int, data: bytes) -> None:
        """Write all of `data`, also to pages that are read-only to the guest.

        Raises `TargetError`, with nothing written, if one of the bytes is not mapped.
        """
        ...

    def step(self, thread: ThreadId, *, alone: bool = False) -> StopEvent | None:
        """Execute one instruction of one vCPU while the others stand still.

        A breakpoint at the instruction itself does not stop it; a watchpoint hit is reported. The
        call is bounded: stepping a halted vCPU that nothing wakes returns at once.

        None for a thread of a process that something else has to run for: see `finish_step`. If it
        is to be stepped `alone`, the stop is always its own, and maybe it has not moved.
        """
        ...


@runtime_checkable
class SupportsProcesses(Protocol):
    """A machine whose worlds and programs are processes.

    A thread whose vCPU runs something else stands still, and has registers and memory like any
    other. To step it, others have to run: the SVSM to serve a call, or the guest to make one. Then
    `step` returns None, and the machine is to be resumed; with the stop that follows `finish_step`
    is called, and if that returns None, too, the machine is to be resumed again.
    """

    def process_threads(self) -> Sequence[Thread]:
        """All threads of all processes, process by process; at least one."""
        ...

    def name_process(self, event: Stopped) -> Stopped:
        """The same stop, told of the thread that runs on the vCPU."""
        ...

    def finish_step(self, thread: ThreadId, event: StopEvent) -> StopEvent | None:
        """Goes on with the step of a thread; `event` stopped the machine meanwhile."""
        ...

    def abandon_step(self) -> None:
        """A step that has not come to its end does not any more."""
        ...


class Preparing(Exception):
    """What is asked for takes seconds to make: whoever asks again after `prepare` gets it.

    Args:
        prepare: makes it, in the task of the session; the machine and all others go on.
    """

    def __init__(self, prepare: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.prepare: Final = prepare


@runtime_checkable
class SupportsStepInterrupts(Protocol):
    """A machine that can hold interrupts back while it makes a step.

    Attributes:
        step_interrupts: steps take interrupts and NMIs, as a free run does. Else they stay pending,
            until the machine runs.
    """

    step_interrupts: bool


@runtime_checkable
class SupportsExpedited(Protocol):
    """A machine that tells quicker than by all registers what is wanted at each stop."""

    def expedited(self, thread: ThreadId) -> tuple[int, int, int]:
        """RBP, RSP and RIP, as `Target.read_registers` has them."""
        ...


@runtime_checkable
class SupportsRangeSteps(Protocol):
    """A machine that goes on by itself with a step whose end is in a range of addresses."""

    def step_within(
        self, thread: ThreadId, within: range, most: int, *, alone: bool = False
    ) -> tuple[StopEvent | None, int]:
        """As `Target.step`, and `most` instructions more at most, while the PC is in `within`.

        It may end sooner. Returns how many more it were, too. A breakpoint that was reached by
        them is reported; one at the PC where it ends otherwise is not.
        """
        ...


@runtime_checkable
class SupportsFiles(Protocol):
    """A machine that has the executables of its processes."""

    def executable(self, pid: int) -> str | None:
        """Name of the file that a process runs; None if there is none."""
        ...

    def read_file(self, name: str) -> bytes | None:
        """Contents of a file of the machine; None if there is none of that name.

        Raises `Preparing`.
        """
        ...


class Relocation(NamedTuple):
    """Where the executable of a process lies."""

    linked: int
    """Address of its first byte in the file, which is its entry point."""
    actual: int
    """The same where it runs."""


@runtime_checkable
class SupportsRelocation(Protocol):
    """A machine that has processes whose code chooses its own address."""

    def relocation(self, pid: int) -> Relocation | None:
        """Where the executable of a process has been moved to; None if that is not known yet."""
        ...

    def report_moves(self, on: bool) -> None:
        """Whether the machine stops (`StopReason.EXEC`) when it is known of a process.

        The client has read its executable before, and will read it again.
        """
        ...


@runtime_checkable
class SupportsBreakpoints(Protocol):
    """A machine with execution breakpoints (Z0, Z1).

    They are kept outside guest memory and match the linear address at execution in their process,
    so they may be set before the code or its page tables exist. A vCPU whose stop at a breakpoint
    was reported goes past it when it is resumed.
    """

    def insert_breakpoint(
        self,
        pid: int,
        kind: BreakpointKind,
        address: int,
        options: Options = NO_OPTIONS,
        *,
        physical: bool = False,
    ) -> None:
        """Stop before the instruction at linear `address`. Raises `TargetError`.

        Conditions and commands are evaluated when it is reached: without a condition that holds,
        the machine goes on, and with commands it does so anyway. A condition that cannot be
        evaluated holds. One that is there already gets other options; with `physical`, the address
        is a guest-physical one, and another breakpoint; so is one of another process.
        """
        ...

    def remove_breakpoint(
        self, pid: int, kind: BreakpointKind, address: int, *, physical: bool = False
    ) -> None:
        """Forget it, but not how often it was hit."""
        ...

    def forget_removed_breakpoints(self) -> None:
        """The machine goes on without those that were removed."""
        ...

    def arrived(self, thread: ThreadId) -> bool:
        """A step has ended at the PC of this thread.

        A breakpoint there is reached by that, and its commands are run. Returns whether one wants
        the machine to stop. A thread that does not execute now has reached nothing.
        """
        ...

    def take_output(self) -> bytes:
        """What commands of breakpoints have printed since the last call; bounded."""
        ...


@runtime_checkable
class SupportsWatchpoints(Protocol):
    """A machine with data watchpoints (Z2, Z3, Z4); each is inserted once and removed once."""

    def insert_watchpoint(
        self, thread: ThreadId, kind: WatchpointKind, address: int, length: int
    ) -> None:
        """Stop after an access to [address, address + length), length 1 or more.

        The thread says whose memory that is; whoever accesses it is stopped. Raises
        `TargetError`, for example for a length that it cannot watch.
        """
        ...

    def remove_watchpoint(self, pid: int, kind: WatchpointKind, address: int, length: int) -> None:
        """Forget it."""
        ...


@dataclass(frozen=True, slots=True)
class MonitorCommand:
    """One command of `monitor`."""

    usage: str
    """Arguments, such as "GPA [COUNT]"; empty if there are none."""
    help: str
    """One line that says what it does."""
    run: Callable[[Sequence[str]], str]
    """Called with the arguments; returns the text to print. Raises `TargetError`."""


@runtime_checkable
class SupportsMonitor(Protocol):
    """A machine with `monitor` commands; `monitor help` is made by the stub."""

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        """The commands by name."""
        ...


@dataclass(slots=True)
class Selection:
    """What a client has its `monitor` commands and tables show."""

    thread: ThreadId | None = None
    """The selected thread (`Hg`); None: the vCPU that stopped."""
    vcpu: int | None = None
    """The vCPU that `monitor cpu` has named; None: that of the selected thread."""


@runtime_checkable
class SupportsSelection(Protocol):
    """A machine whose `monitor` commands and tables are about what a client has selected."""

    def select(self, selection: Selection) -> None:
        """What follows is for the client whose selection this is; commands may change it."""
        ...


@runtime_checkable
class SupportsPhysicalMemory(Protocol):
    """A machine whose memory can be reached by guest-physical address."""

    def read_physical_memory(self, gpa: int, length: int) -> bytes:
        """As `Target.read_memory`, by guest-physical address."""
        ...

    def write_physical_memory(self, gpa: int, data: bytes) -> None:
        """As `Target.write_memory`, by guest-physical address."""
        ...


@dataclass(frozen=True, slots=True)
class Table:
    """One table of `info os`."""

    title: str
    description: str
    columns: Sequence[str]
    rows: Callable[[], Iterable[Sequence[str]]]
    """As many cells as there are columns. Raises `TargetError`."""


@runtime_checkable
class SupportsTables(Protocol):
    """A machine with tables (qXfer:osdata:read)."""

    @property
    def tables(self) -> Mapping[str, Table]:
        """The tables by the name that `info os` takes."""
        ...


@runtime_checkable
class SupportsEvents(Protocol):
    """A machine that stops at events, which it reports as signals of its own."""

    def pass_signals(self, signals: Collection[int]) -> None:
        """Count the events of these signals, and of no others, without a stop."""
        ...

    def forget_events(self) -> None:
        """The session is over: no event stops the machine any more."""
        ...


class Execution(Protocol):
    """What a session asks of who runs the machine, while it holds it."""

    def resume(self, *, at_once: bool = False) -> StopEvent | None:
        """Run all vCPUs until something stops them; then `on_stop`.

        `at_once`: before this returns, in the thread of the stub and for no more than a moment. If
        that was enough, the stop is returned, and `on_stop` is not told of it.
        """
        ...

    def interrupt(self) -> None:
        """Stop soon, if it still runs: `on_stop` with SIGINT, or with a stop that came first."""
        ...

    def detach(self, resume: bool) -> None:
        """The debugger has left run control; `on_stop` is not called any more.

        If `resume`, the machine goes on, unless it has ended; else it stays as it stands, for the
        next debugger. Called while the machine stands still, except when the stub is cancelled.
        """
        ...


class Runner(Execution, Protocol):
    """Run control: whoever owns the task that runs the slices of the machine.

    `on_stop` is called in the thread of the stub, between slices, once for each `resume` that has
    not returned the stop; and once more, with `Exited`, if the machine ends while it stands still.
    Never from inside a call of this protocol.

    Attributes:
        after_slice: called in the thread of the stub after each slice, before `on_stop`; the
            machine stands still.
        on_rest: called when the machine has come to stand still, after `on_stop`.
        debuggers: how many are connected, kept by the stub.
    """

    after_slice: Callable[[], None]
    on_rest: Callable[[], None]
    debuggers: int

    @property
    def running(self) -> bool:
        """Slices are run; false while a debugger holds the machine, and when it has ended."""
        ...

    @property
    def last_stop(self) -> StopEvent:
        """How the machine stands, or stood when a debugger held it last."""
        ...

    @property
    def position(self) -> int:
        """Ticks since power-on, while the machine stands still: others after each instruction."""
        ...

    async def visit(self, look: Callable[[], T]) -> T:
        """Call `look` while no slice runs, soon, and return what it returns.

        The guest has its share of the time, however many visits there are; other tasks have theirs
        only if it runs. Exceptions of `look` are raised here.
        """
        ...

    def attach(self, on_stop: Callable[[StopEvent], None]) -> StopEvent:
        """A debugger takes run control, maybe from another one, whose `on_stop` is called no more.

        Called in a visit. The machine stands still from then on; returns how. After `-S` that is
        `Stopped` at its first instruction.
        """
        ...


class RunControl(Protocol):
    """What a client can do about who has the run control. Called in a visit."""

    def describe(self) -> str:
        """The debuggers that are there, and who has the run control: lines."""
        ...

    @property
    def is_free(self) -> bool:
        """Nobody has it."""
        ...

    def take(self, *, force: bool) -> None:
        """This client has it from now on, and the machine stands still.

        Raises `TargetError` if another one has it, unless `force` takes it away from that.
        """
        ...

    def give(self) -> None:
        """This client leaves it, as if it had detached, and goes on as a reader."""
        ...
