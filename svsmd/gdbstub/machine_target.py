# SPDX-License-Identifier: MIT
"""A machine as gdb sees it: vCPUs are threads, and the world that a vCPU runs in is what they show.

The program counter is the linear address, CS base included, so that gdb reads and disassembles the
right bytes in every mode. Registers and memory are those of the silicon, whatever the guest's VMPL
may reach: a debugger of this machine stands beside it, not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options
from svsmd.gdbstub.catchpoints import (
    Catchpoints,
    event_register,
    event_stop,
    is_event_register,
)
from svsmd.gdbstub.machine_breakpoints import MachineBreakpoints
from svsmd.gdbstub.machine_view import ACTIVITY, MachineView
from svsmd.gdbstub.monitor import monitor_commands
from svsmd.gdbstub.physical_memory import read_physical, write_physical
from svsmd.gdbstub.tables import machine_tables
from svsmd.gdbstub.target import (
    G_LAYOUT,
    NO_SYSCALL,
    BreakpointKind,
    Exited,
    MonitorCommand,
    Signal,
    StopEvent,
    Stopped,
    StopReason,
    Table,
    TargetError,
    Thread,
    WatchpointKind,
)
from svsmd.gdbstub.why import debugger_refusal
from svsmd.host.vcpu import Vcpu, World
from svsmd.machine import Machine
from svsmd.slice_end import DebugEvent, Ended
from svsmd.snp.debug_support import Watch
from svsmd.snp.events import SnpEvent
from svsmd.snp.exits import DebugReason
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.register_file import RegisterFile, UnknownRegister
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SIZE, Vmpl

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
_NO_REGISTERS: Final = bytes(G_LAYOUT.size)
_MAX_ADDRESS: Final = (1 << 64) - 1
_MAX_WATCH: Final = PAGE_SIZE
_MAX_REMEMBERED: Final = 256
"""Watchpoints whose world is remembered, those that were removed included."""


class MachineTarget:
    """What the debugger stub asks of a machine; see svsmd.gdbstub.target."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._breakpoints = MachineBreakpoints(lambda: machine.silicon.debug)
        self._watches: set[tuple[WatchpointKind, int, int]] = set()
        self._watch_worlds: dict[tuple[WatchpointKind, int, int], tuple[int, Vmpl]] = {}
        self._selected: int | None = None
        self._catchpoints = Catchpoints(lambda: machine.events)
        self.pass_signals = self._catchpoints.pass_signals
        self.forget_events = self._catchpoints.forget_events
        self.view: Final = MachineView(machine, self._selection, self.threads, self._read_selected)
        self._commands = {
            **monitor_commands(self.view),
            **self._catchpoints.commands,
            "breakpoints": MonitorCommand(
                "", "breakpoints, hits and evaluated conditions", self._list_breakpoints
            ),
        }
        self._tables = machine_tables(self.view)

    # -- vCPUs ------------------------------------------------------------------------------

    def _vcpu(self, tid: int) -> Vcpu:
        return self._machine.hypervisor.vcpus[tid - 1]

    def _selection(self) -> tuple[Vcpu, World | None]:
        tid = self._machine.current_vcpu + 1 if self._selected is None else self._selected
        vcpu = self._vcpu(tid)
        return vcpu, vcpu.world

    def select(self, tid: int) -> None:
        """See SupportsSelection."""
        self._selected = tid

    def threads(self) -> Sequence[Thread]:
        """See Target."""
        return [
            Thread(vcpu.index + 1, f"vcpu{vcpu.index}", self._describe(vcpu))
            for vcpu in self._machine.hypervisor.vcpus
        ]

    @staticmethod
    def _describe(vcpu: Vcpu) -> str:
        world = vcpu.world
        if world is None:
            return "not started"
        return f"VMPL{int(vcpu.vmpl)}, {ACTIVITY[world.activity]}"

    def _load(self, tid: int) -> RegisterFile | None:
        """Registers of the vCPU's current world; None if it has none that can be loaded."""
        return self._load_world(self._vcpu(tid).world)

    def _load_world(self, world: World | None) -> RegisterFile | None:
        silicon = self._machine.silicon
        if world is None or not silicon.load_for_debugger(world.vmcb):
            return None
        return silicon.registers

    # -- registers --------------------------------------------------------------------------

    def read_registers(self, tid: int) -> bytes:
        """See Target."""
        registers = self._load(tid)
        if registers is None:
            return _NO_REGISTERS
        general = registers.general()
        rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest = general
        x87 = registers.x87()
        selectors = registers.selectors()
        es, cs, ss, ds, fs, gs = selectors[:6]
        return G_LAYOUT.pack(
            rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, *rest,
            registers.linear_rip, registers.rflags & 0xFFFF_FFFF,
            cs, ss, ds, es, fs, gs,
            x87.stack, x87.fcw, x87.fsw, x87.ftw, 0, 0, 0, 0, 0,
            registers.vectors(), registers.mxcsr, NO_SYSCALL,
            registers.read("fs_base"), registers.read("gs_base"),
        )  # fmt: skip

    def read_register(self, tid: int, name: str) -> int:
        """See Target."""
        if is_event_register(name):
            return event_register(self._machine.events.last, name)
        world = self._vcpu(tid).world
        if name == "ghcb":
            return world.ghcb_gpa or 0 if world is not None else 0
        registers = self._load_world(world)
        if registers is None:
            return 0
        try:
            return registers.read(name)
        except UnknownRegister as error:
            raise TargetError(str(error)) from None

    def write_register(self, tid: int, name: str, value: int) -> None:
        """See Target."""
        registers = self._load(tid)
        if registers is None:
            raise TargetError("this vCPU has not started")
        try:
            registers.write(name, value)
        except (UnknownRegister, ValueError) as error:
            raise TargetError(str(error)) from None

    # -- memory -----------------------------------------------------------------------------

    def _span(self, world: World | None, gva: int) -> tuple[int, int]:
        """Physical address of a linear one and how far it goes on, with no effect on the guest."""
        if self._load_world(world) is None:
            raise TargetError("this vCPU has not started, it maps no memory")
        silicon = self._machine.silicon
        try:
            leaf = silicon.processor.translate_leaf_for_debugger(gva)
        except (GuestFault, NestedFault):
            raise TargetError(debugger_refusal(silicon.processor, gva)) from None
        spa = leaf.gpa & ~C_BIT
        left = leaf.page_size - (gva & (leaf.page_size - 1))
        if not silicon.memory.contains(spa, left):
            left = PAGE_SIZE - (gva & PAGE_MASK)
        if not silicon.memory.contains(spa, left):
            raise TargetError(debugger_refusal(silicon.processor, gva))
        return spa, left

    def read_memory(self, tid: int, gva: int, length: int) -> bytes:
        """See Target."""
        return self._read_world(self._vcpu(tid).world, gva, length)

    def _read_world(self, world: World | None, gva: int, length: int) -> bytes:
        silicon = self._machine.silicon
        parts = []
        done = 0
        while done < length:
            try:
                spa, left = self._span(world, (gva + done) & _MAX_ADDRESS)
            except TargetError:
                if not done:
                    raise
                break
            chunk = min(length - done, left)
            silicon.make_readable(spa, chunk)
            parts.append(silicon.memory.read(spa, chunk))
            done += chunk
        return b"".join(parts)

    def write_memory(self, tid: int, gva: int, data: bytes) -> None:
        """See Target."""
        world = self._vcpu(tid).world
        spans = []
        done = 0
        while done < len(data):
            spa, left = self._span(world, (gva + done) & _MAX_ADDRESS)
            chunk = min(len(data) - done, left)
            spans.append((spa, data[done : done + chunk]))
            done += chunk
        for spa, part in spans:
            self._machine.silicon.debug_write(spa, part)

    def _read_selected(self, gva: int, length: int) -> bytes:
        return self._read_world(self.view.selected()[1], gva, length)

    def read_physical_memory(self, gpa: int, length: int) -> bytes:
        """See SupportsPhysicalMemory."""
        return read_physical(self._machine.silicon, gpa, length)

    def write_physical_memory(self, gpa: int, data: bytes) -> None:
        """See SupportsPhysicalMemory."""
        write_physical(self._machine.silicon, gpa, data)

    # -- run control ------------------------------------------------------------------------

    def insert_breakpoint(
        self,
        kind: BreakpointKind,
        address: int,
        options: Options = NO_OPTIONS,
        *,
        physical: bool = False,
    ) -> None:
        """See SupportsBreakpoints."""
        if physical and not self._machine.silicon.memory.contains(address, 1):
            raise TargetError(f"there is no RAM at {address:#x}")
        self._breakpoints.insert(kind, address, options, physical=physical)

    def remove_breakpoint(
        self, kind: BreakpointKind, address: int, *, physical: bool = False
    ) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints.remove(kind, address, physical=physical)

    def forget_removed_breakpoints(self) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints.forget_removed()

    def arrived(self, tid: int) -> bool:
        """See SupportsBreakpoints."""
        registers = self._load(tid)
        return registers is not None and self._machine.silicon.debug.hit(registers.linear_rip)

    def take_output(self) -> bytes:
        """See SupportsBreakpoints."""
        return self._breakpoints.console.take()

    def insert_watchpoint(self, kind: WatchpointKind, address: int, length: int) -> None:
        """See SupportsWatchpoints."""
        if length > _MAX_WATCH:
            raise TargetError(f"{length} bytes are more than a watchpoint can watch: {_MAX_WATCH}")
        key = kind, address, length
        spans, where = self._watched(key)
        for at, chunk, gpa in spans:
            self._machine.silicon.debug.add_watch(Watch(_WATCH_REASON[kind], at, chunk, gpa))
        self._watches.add(key)
        self._watch_worlds.pop(key, None)
        self._watch_worlds[key] = where
        if len(self._watch_worlds) > _MAX_REMEMBERED:
            del self._watch_worlds[next(iter(self._watch_worlds))]

    def _watched(
        self, key: tuple[WatchpointKind, int, int]
    ) -> tuple[list[tuple[int, int, int]], tuple[int, Vmpl]]:
        """Address, length and GPA of what a watchpoint has on each page, and the world it is in.

        Debuggers take watchpoints out at every stop and set them again when they resume, from
        whatever world has stopped then. So one stays with the world where it was first set; else
        the first world that maps it has it, beginning with the one that stopped.
        """
        _, address, length = key
        stopped = self._vcpu(self._machine.current_vcpu + 1)
        worlds = [
            ((vcpu.index, world.vmpl), world)
            for vcpu in self._machine.hypervisor.vcpus
            for world in vcpu.worlds
        ]
        known = self._watch_worlds.get(key)
        worlds.sort(
            key=lambda item: (
                item[0] != known, item[1] is not stopped.world, item[0][0] != stopped.index,
            )
        )  # fmt: skip
        refused = TargetError("no vCPU has started, there is no memory to watch")
        for where, world in worlds:
            spans = []
            done = 0
            try:
                while done < length:
                    at = (address + done) & _MAX_ADDRESS
                    gpa, _ = self._span(world, at)
                    chunk = min(length - done, PAGE_SIZE - (at & PAGE_MASK))
                    spans.append((at, chunk, gpa))
                    done += chunk
            except TargetError as error:
                if world is worlds[0][1]:
                    refused = error
                continue
            return spans, where
        raise refused

    def remove_watchpoint(self, kind: WatchpointKind, address: int, length: int) -> None:
        """See SupportsWatchpoints."""
        if (kind, address, length) not in self._watches:
            return
        self._watches.remove((kind, address, length))
        done = 0
        while done < length:
            at = (address + done) & _MAX_ADDRESS
            chunk = min(length - done, PAGE_SIZE - (at & PAGE_MASK))
            self._machine.silicon.debug.remove_watch(_WATCH_REASON[kind], at, chunk)
            done += chunk

    def step(self, tid: int) -> StopEvent:
        """See Target."""
        end = self._machine.step_vcpu(tid - 1)
        match end:
            case Ended(exit_code, _):
                return Exited(exit_code)
            case DebugEvent(event=SnpEvent() as event):
                return event_stop(event)
            case DebugEvent(vcpu, DebugReason.PANIC, _):
                return Stopped(vcpu + 1, Signal.SIGABRT)
            case DebugEvent(vcpu, kind, address) if kind is not DebugReason.STEP:
                return Stopped(vcpu + 1, Signal.SIGTRAP, _STOP_REASON[kind], address)
            case _:
                return Stopped(tid)

    # -- monitor ----------------------------------------------------------------------------

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        """See SupportsMonitor."""
        return self._commands

    @property
    def tables(self) -> Mapping[str, Table]:
        """See SupportsTables."""
        return self._tables

    def _list_breakpoints(self, arguments: Sequence[str]) -> str:
        if arguments:
            raise TargetError("breakpoints takes no arguments")
        return self._breakpoints.table()
