# SPDX-License-Identifier: MIT
"""A machine as gdb sees it: worlds and programs are processes, and vCPUs are their threads.

Who knows no processes sees vCPUs, which show the world that runs on them (`ANY_WORLD`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options
from svsmd.gdbstub.catchpoints import (
    Catchpoints,
    event_register,
    event_stop,
    is_event_register,
)
from svsmd.gdbstub.guest_kernel import GuestKernel
from svsmd.gdbstub.machine_breakpoints import MachineBreakpoints
from svsmd.gdbstub.machine_files import GUEST, MachineFiles
from svsmd.gdbstub.machine_view import MachineView
from svsmd.gdbstub.monitor import monitor_commands
from svsmd.gdbstub.physical_memory import read_physical, write_physical
from svsmd.gdbstub.tables import machine_tables
from svsmd.gdbstub.target import (
    ANY_WORLD,
    BreakpointKind,
    Exited,
    MonitorCommand,
    Relocation,
    Selection,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    Table,
    TargetError,
    Thread,
    ThreadId,
    WatchpointKind,
)
from svsmd.gdbstub.world_filter import code_of
from svsmd.gdbstub.world_view import ACTIVITY, MAX_ADDRESS, View, WorldView
from svsmd.gdbstub.worlds import Worlds, pid_of
from svsmd.host.vcpu import Vcpu
from svsmd.machine import Machine
from svsmd.slice_end import DebugEvent, Ended, Idle
from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.debug_support import Watch
from svsmd.snp.events import SnpEvent
from svsmd.snp.exits import DebugReason
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Vmpl

_WATCH_REASON: Final = {
    WatchpointKind.WRITE: DebugReason.WRITE_WATCHPOINT,
    WatchpointKind.READ: DebugReason.READ_WATCHPOINT,
    WatchpointKind.ACCESS: DebugReason.ACCESS_WATCHPOINT,
}
_STOP_REASON: Final = {
    DebugReason.BREAKPOINT: StopReason.SWBREAK,
    DebugReason.WRITE_WATCHPOINT: StopReason.WATCH,
    DebugReason.READ_WATCHPOINT: StopReason.RWATCH,
    DebugReason.ACCESS_WATCHPOINT: StopReason.AWATCH,
}
_SVSM_PID: Final = pid_of(Vmpl.VMPL0)
_MAX_SERVICE_STEPS: Final = 2000
"""So many instructions the SVSM may take to serve what a step of another world asks of it before
the whole machine runs for it."""
_MAX_WATCH: Final = PAGE_SIZE
_MAX_REMEMBERED: Final = 256
"""Watchpoints whose world is remembered, those that were removed included."""
_RESUMES_BEHIND: Final = (b"\x0f\x05", b"\x0f\xa2")
"""SYSCALL and CPUID: what the SVSM does for a program that executes these ends behind them."""


_WatchKey = tuple[int, WatchpointKind, int, int]
"""Process, kind, address, length."""


class _Arrival(NamedTuple):
    """Where a thread that is being stepped comes back, and whether its step is done then."""

    breakpoint: Breakpoint
    done: bool


class MachineTarget:
    """What the debugger stub asks of a machine; see svsmd.gdbstub.target."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._worlds = Worlds(machine)
        self._kernel = GuestKernel.of(machine, self._worlds)
        self._files = MachineFiles(machine, self._worlds, self._kernel)
        self._breakpoints = MachineBreakpoints(lambda: machine.silicon.debug)
        self._watches: dict[_WatchKey, list[tuple[int, int]]] = {}
        self._watch_worlds: dict[_WatchKey, ThreadId] = {}
        self.step_interrupts = False
        """See SupportsStepInterrupts."""
        self._arrivals: list[_Arrival] = []
        """Where the thread that is being stepped comes back."""
        self._catchpoints = Catchpoints(lambda: machine.events)
        self.pass_signals = self._catchpoints.pass_signals
        self.forget_events = self._catchpoints.forget_events
        self.view: Final = MachineView(machine, self._worlds, self.threads)
        self._commands = {
            **monitor_commands(self.view),
            **self._catchpoints.commands,
            "breakpoints": MonitorCommand(
                "", "breakpoints, hits and evaluated conditions", self._list_breakpoints
            ),
            "step-irq": MonitorCommand("[on|off]", "whether steps take interrupts", self._step_irq),
        }
        self._tables = machine_tables(self.view)

    # -- threads ----------------------------------------------------------------------------

    def _vcpu(self, index: int) -> Vcpu:
        return self._machine.hypervisor.vcpus[index]

    def threads(self) -> Sequence[Thread]:
        """See Target."""
        return [
            Thread(ThreadId(ANY_WORLD, vcpu.index + 1), f"vcpu{vcpu.index}", self._describe(vcpu))
            for vcpu in self._machine.hypervisor.vcpus
        ]

    @staticmethod
    def _describe(vcpu: Vcpu) -> str:
        world = vcpu.world
        if world is None:
            return "not started"
        return f"VMPL{int(vcpu.vmpl)}, {ACTIVITY[world.activity]}"

    def process_threads(self) -> Sequence[Thread]:
        """See SupportsProcesses."""
        return self._worlds.threads()

    def executable(self, pid: int) -> str | None:
        """See SupportsFiles."""
        return self._files.executable(pid)

    def read_file(self, name: str) -> bytes | None:
        """See SupportsFiles."""
        return self._files.read(name)

    def relocation(self, pid: int) -> Relocation | None:
        """See SupportsRelocation."""
        kernel = self._kernel
        if kernel is None or pid != self._worlds.guest_pid or kernel.start is None:
            return None
        return Relocation(kernel.linked, kernel.start)

    def report_moves(self, on: bool) -> None:
        """See SupportsRelocation."""
        if self._kernel is not None:
            self._kernel.report_moves(on)

    # -- registers and memory ---------------------------------------------------------------

    def read_registers(self, thread: ThreadId) -> bytes:
        """See Target."""
        return self._worlds.view(thread).read_registers()

    def expedited(self, thread: ThreadId) -> tuple[int, int, int]:
        """See SupportsExpedited."""
        return self._worlds.view(thread).expedited()

    def read_register(self, thread: ThreadId, name: str) -> int | None:
        """See Target."""
        if is_event_register(name):
            return event_register(self._machine.events.last, name)
        return self._worlds.view(thread).read_register(name)

    def write_register(self, thread: ThreadId, name: str, value: int) -> None:
        """See Target."""
        self._worlds.view(thread).write_register(name, value)

    def read_memory(self, thread: ThreadId, gva: int, length: int) -> bytes:
        """See Target."""
        return self._worlds.view(thread).read_memory(gva, length)

    def write_memory(self, thread: ThreadId, gva: int, data: bytes) -> None:
        """See Target."""
        self._worlds.view(thread).write_memory(gva, data)

    def read_physical_memory(self, gpa: int, length: int) -> bytes:
        """See SupportsPhysicalMemory."""
        return read_physical(self._machine.silicon, gpa, length)

    def write_physical_memory(self, gpa: int, data: bytes) -> None:
        """See SupportsPhysicalMemory."""
        write_physical(self._machine.silicon, gpa, data)

    # -- breakpoints ------------------------------------------------------------------------

    def insert_breakpoint(
        self,
        pid: int,
        kind: BreakpointKind,
        address: int,
        options: Options = NO_OPTIONS,
        *,
        physical: bool = False,
    ) -> None:
        """See SupportsBreakpoints."""
        if physical and not self._machine.silicon.memory.contains(address, 1):
            raise TargetError(f"there is no RAM at {address:#x}")
        code = code_of(pid, self._worlds.executing)
        self._breakpoints.insert(pid, kind, address, options, code, physical=physical)

    def remove_breakpoint(
        self, pid: int, kind: BreakpointKind, address: int, *, physical: bool = False
    ) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints.remove(pid, kind, address, physical=physical)

    def forget_removed_breakpoints(self) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints.forget_removed()

    def arrived(self, thread: ThreadId) -> bool:
        """See SupportsBreakpoints."""
        if not self._machine.silicon.debug.has_breakpoints:
            return False
        vcpu = self._worlds.vcpu_of(thread)
        if vcpu is None:
            return False
        registers = WorldView(self._machine.silicon, vcpu.world).load()
        return registers is not None and self._machine.silicon.debug.hit(registers.linear_rip)

    def take_output(self) -> bytes:
        """See SupportsBreakpoints; called after each slice, too."""
        if self._kernel is not None:
            self._kernel.between_slices()
        return self._breakpoints.console.take()

    # -- watchpoints ------------------------------------------------------------------------

    def insert_watchpoint(
        self, thread: ThreadId, kind: WatchpointKind, address: int, length: int
    ) -> None:
        """See SupportsWatchpoints."""
        if length > _MAX_WATCH:
            raise TargetError(f"{length} bytes are more than a watchpoint can watch: {_MAX_WATCH}")
        key = thread.pid, kind, address, length
        if thread.pid == ANY_WORLD:
            spans, where = self._watched(key)
        else:
            spans, where = self._spans(self._worlds.view(thread), address, length), thread
        for at, chunk, gpa in spans:
            self._machine.silicon.debug.add_watch(Watch(_WATCH_REASON[kind], at, chunk, gpa))
        self._watches[key] = [(at, chunk) for at, chunk, _ in spans]
        self._watch_worlds.pop(key, None)
        self._watch_worlds[key] = where
        if len(self._watch_worlds) > _MAX_REMEMBERED:
            del self._watch_worlds[next(iter(self._watch_worlds))]

    def _watched(self, key: _WatchKey) -> tuple[list[tuple[int, int, int]], ThreadId]:
        """What a watchpoint has on each page (see `_spans`), and the world it is in.

        Debuggers take watchpoints out at every stop and set them again when they resume, from
        whatever world has stopped then. So one stays with the world where it was first set; else
        the first world that maps it has it, beginning with the one that stopped.
        """
        _, _, address, length = key
        stopped = self._vcpu(self._machine.current_vcpu)
        worlds = [
            (ThreadId(vcpu.index, world.vmpl), world)
            for vcpu in self._machine.hypervisor.vcpus
            for world in vcpu.worlds
        ]
        known = self._watch_worlds.get(key)
        worlds.sort(
            key=lambda item: (
                item[0] != known, item[1] is not stopped.world, item[0].pid != stopped.index,
            )
        )  # fmt: skip
        refused = TargetError("no vCPU has started, there is no memory to watch")
        for where, world in worlds:
            try:
                view = WorldView(self._machine.silicon, world)
                return self._spans(view, address, length), where
            except TargetError as error:
                if world is worlds[0][1]:
                    refused = error
        raise refused

    @staticmethod
    def _spans(view: View, address: int, length: int) -> list[tuple[int, int, int]]:
        """Address, length and GPA of what a range has on each page."""
        spans = []
        done = 0
        while done < length:
            at = (address + done) & MAX_ADDRESS
            gpa, _ = view.span(at)
            chunk = min(length - done, PAGE_SIZE - (at & PAGE_MASK))
            spans.append((at, chunk, gpa))
            done += chunk
        return spans

    def remove_watchpoint(self, pid: int, kind: WatchpointKind, address: int, length: int) -> None:
        """See SupportsWatchpoints."""
        for at, chunk in self._watches.pop((pid, kind, address, length), ()):
            self._machine.silicon.debug.remove_watch(_WATCH_REASON[kind], at, chunk)

    # -- run control ------------------------------------------------------------------------

    def name_process(self, event: Stopped) -> Stopped:
        """See SupportsProcesses."""
        vcpu = self._vcpu(event.tid - 1)
        pid, tid = self._worlds.running(vcpu)
        if self._kernel is not None and self._kernel.has_moved():
            # A breakpoint there is reached by the debugger that has been told where it is.
            self._machine.silicon.report_again(self._worlds.vmcb_of(ThreadId(pid, tid)))
            return Stopped(tid, reason=StopReason.EXEC, pid=pid, file=GUEST)
        return replace(event, pid=pid, tid=tid)

    def step(self, thread: ThreadId, *, alone: bool = False) -> StopEvent | None:
        """See Target."""
        event, _ = self.step_within(thread, None, 0, alone=alone)
        return event

    def step_within(
        self, thread: ThreadId, within: range | None, most: int, *, alone: bool = False
    ) -> tuple[StopEvent | None, int]:
        """See SupportsRangeSteps; a step ends behind its instruction without a range."""
        event = self._step_thread(thread, within, most, alone=alone)
        return event, self._machine.silicon.debug.steps

    def _step_thread(
        self, thread: ThreadId, within: range | None, most: int, *, alone: bool
    ) -> StopEvent | None:
        if thread.pid == ANY_WORLD:
            event = self._step(thread.tid - 1, within, most)
            return Stopped(thread.tid) if event is None else event
        done = Stopped(thread.tid, pid=thread.pid)
        vcpu = self._worlds.vcpu_of(thread)
        if vcpu is None:
            if alone or not self._worlds.can_run(thread):
                return done
            self._await(thread, {self._pc(thread): False})
            return None
        pc = self._pc(thread)
        event = self._step(vcpu.index, within, most)
        debug = self._machine.silicon.debug
        if debug.steps:
            pc = debug.last_pc
        return self._step_through(thread, vcpu, event, pc, done, alone=alone)

    def _step_through(
        self,
        thread: ThreadId,
        vcpu: Vcpu,
        event: Stopped | Exited | None,
        pc: int,
        done: Stopped,
        *,
        alone: bool,
    ) -> StopEvent | None:
        """Step a thread that runs, and the SVSM while it is at the thread's service."""
        left = False
        for _ in range(_MAX_SERVICE_STEPS):
            if isinstance(event, Exited):
                return event
            if self._worlds.vcpu_of(thread) is not None:
                if event is not None and event != Stopped(vcpu.index + 1):
                    return replace(event, pid=thread.pid, tid=thread.tid)
                if not left or event is None or self._pc(thread) != pc:
                    return done
                left = False  # back where it was, of a fault or an interrupt: now it goes on
            else:
                left = True
                named = self._in_service(thread, event)
                if named is not None:
                    return replace(named, pid=thread.pid, tid=thread.tid) if alone else named
                if event is None or thread.pid == _SVSM_PID:
                    break
            event = self._step(vcpu.index, own=not left)
        if alone:
            return done
        if not self._worlds.can_run(thread):  # it has ended
            return self.name_process(Stopped(vcpu.index + 1))
        behind = self._resumes_behind(thread, pc)
        self._await(thread, behind or {self._pc(thread): True})
        return None

    def _in_service(self, thread: ThreadId, event: Stopped | None) -> Stopped | None:
        """What stops the machine while others run for a thread: not a step, but a breakpoint."""
        if event is None:
            return None
        named = self.name_process(event)
        if event != Stopped(event.tid):
            return named
        return replace(named, reason=StopReason.SWBREAK) if self.arrived(named.thread) else None

    def _pc(self, thread: ThreadId) -> int:
        return self._worlds.view(thread).pc

    def _resumes_behind(self, thread: ThreadId, pc: int) -> dict[int, bool]:
        """Where a program goes on when the SVSM has served what happened at `pc`."""
        if self._worlds.program(thread.pid) is None:
            return {}
        try:
            code = self.read_memory(thread, pc, 2)
        except TargetError:
            code = b""
        return {pc: False} | ({pc + 2: True} if code in _RESUMES_BEHIND else {})

    def _await(self, thread: ThreadId, arrivals: dict[int, bool]) -> None:
        """Stop when a thread is back at one of these addresses."""
        vmpl, _ = code_of(thread.pid, self._worlds.executing)
        debug = self._machine.silicon.debug
        for address, done in arrivals.items():
            breakpoint_ = Breakpoint(
                address, vmpl=vmpl, accepts=lambda: self._worlds.executing() == thread
            )
            debug.add_breakpoint(breakpoint_)
            self._arrivals.append(_Arrival(breakpoint_, done))
        self._machine.silicon.report_again(self._worlds.vmcb_of(thread))

    def finish_step(self, thread: ThreadId, event: StopEvent) -> StopEvent | None:
        """See SupportsProcesses."""
        arrivals = {arrival.breakpoint.address: arrival.done for arrival in self._arrivals}
        self.abandon_step()
        if isinstance(event, Exited):
            return event
        named = self.name_process(event)
        if event.reason is not StopReason.SWBREAK or named.thread != thread:
            return named
        done = arrivals.get(self._pc(thread))
        if done is None:
            return named
        if not done:
            again = self.step(thread)
            if isinstance(again, Stopped) and again.reason is not StopReason.SWBREAK:
                self.arrived(again.thread)
            return again
        return replace(named, reason=StopReason.SIGNAL, address=0)

    def abandon_step(self) -> None:
        """See SupportsProcesses."""
        for arrival in self._arrivals:
            self._machine.silicon.debug.remove_breakpoint(arrival.breakpoint)
        self._arrivals.clear()

    def _step(
        self, index: int, within: range | None = None, most: int = 0, *, own: bool = True
    ) -> Stopped | Exited | None:
        """Execute one instruction of a vCPU; None if it has none to execute.

        `own`: of the thread that is stepped, which takes no interrupts unless it shall.
        """
        hold = own and not self.step_interrupts
        end = self._machine.step_vcpu(index, within, most, hold_interrupts=hold)
        match end:
            case Ended(exit_code, _):
                return Exited(exit_code)
            case DebugEvent(event=SnpEvent() as event):
                return event_stop(event)
            case DebugEvent(vcpu, DebugReason.PANIC, _):
                return Stopped(vcpu + 1, Signal.SIGABRT)
            case DebugEvent(vcpu, kind, address) if kind is not DebugReason.STEP:
                return Stopped(vcpu + 1, Signal.SIGTRAP, _STOP_REASON[kind], address)
            case Idle():
                return None
            case _:
                return Stopped(index + 1)

    # -- monitor ----------------------------------------------------------------------------

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        """See SupportsMonitor."""
        return self._commands

    @property
    def tables(self) -> Mapping[str, Table]:
        """See SupportsTables."""
        return self._tables

    def select(self, selection: Selection) -> None:
        """See SupportsSelection."""
        self.view.selection = selection

    def _step_irq(self, arguments: Sequence[str]) -> str:
        match arguments:
            case []:
                pass
            case ["on" | "off" as state]:
                self.step_interrupts = state == "on"
            case _:
                raise TargetError("step-irq is on or off")
        if self.step_interrupts:
            return "steps take interrupts, as a free run does\n"
        return "interrupts wait while a step is made\n"

    def _list_breakpoints(self, arguments: Sequence[str]) -> str:
        if arguments:
            raise TargetError("breakpoints takes no arguments")
        return self._breakpoints.table()
