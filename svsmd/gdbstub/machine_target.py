# SPDX-License-Identifier: MIT
"""A machine as gdb sees it: vCPUs are threads, and the world that a vCPU runs in is what they show.

The program counter is the linear address, CS base included, so that gdb reads and disassembles the
right bytes in every mode. Registers and memory are those of the silicon, whatever the guest's VMPL
may reach: a debugger of this machine stands beside it, not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

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
    TargetError,
    Thread,
    WatchpointKind,
)
from svsmd.host.vcpu import Activity, Vcpu, World
from svsmd.machine import Machine
from svsmd.slice_end import DebugEvent, Ended
from svsmd.snp.debug_support import Watch
from svsmd.snp.exits import DebugReason
from svsmd.snp.faults import GuestFault, NestedFault, Vector
from svsmd.snp.register_file import RegisterFile, UnknownRegister
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Vmpl
from svsmd.snp.vmsa import Vmsa

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
_ACTIVITY: Final = {
    Activity.RUNNABLE: "running",
    Activity.HALTED: "halted",
    Activity.HALTED_MASKED: "halted with interrupts off",
    Activity.RESET_HOLD_BY_GHCB: "in reset",
    Activity.RESET_HOLD_BY_MSR: "in reset",
}
_VMSA_FIELDS: Final = (
    ("rip", "rsp", "rflags", "cpl"),
    ("cr0", "cr3", "cr4", "efer"),
    ("sev_features", "vintr_ctrl", "guest_exitcode"),
)
_NO_REGISTERS: Final = bytes(G_LAYOUT.size)
_MAX_ADDRESS: Final = (1 << 64) - 1
_MAX_WATCH: Final = PAGE_SIZE
_MAX_REMEMBERED: Final = 256
"""Watchpoints whose world is remembered, those that were removed included."""
_MAX_RMP_LINES: Final = 64


class MachineTarget:
    """What the debugger stub asks of a machine; see svsmd.gdbstub.target."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._breakpoints: dict[tuple[BreakpointKind, int], None] = {}
        self._watches: set[tuple[WatchpointKind, int, int]] = set()
        self._watch_worlds: dict[tuple[WatchpointKind, int, int], tuple[int, Vmpl]] = {}
        self._commands = {
            "info": MonitorCommand("", "ticks, vCPUs and the VMPL that each runs at", self._info),
            "rmp": MonitorCommand("GPA [COUNT]", "RMP entries of pages", self._rmp),
            "vmsa": MonitorCommand("[VCPU]", "VMSAs of a vCPU, registers up to date", self._vmsa),
            "walk": MonitorCommand(
                "GVA", "where the current vCPU finds a linear address", self._walk
            ),
        }

    # -- vCPUs ------------------------------------------------------------------------------

    def _vcpu(self, tid: int) -> Vcpu:
        return self._machine.hypervisor.vcpus[tid - 1]

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
        return f"VMPL{int(vcpu.vmpl)}, {_ACTIVITY[world.activity]}"

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
        registers = self._load(tid)
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
        except GuestFault as fault:
            if fault.vector == Vector.GP:
                raise TargetError(f"{gva:#x} is not a canonical address") from None
            raise TargetError(f"no page table maps {gva:#x}") from None
        except NestedFault as fault:
            raise TargetError(
                f"the page tables that map {gva:#x} cannot be read ({fault.row})"
            ) from None
        spa = leaf.gpa & ~C_BIT
        left = leaf.page_size - (gva & (leaf.page_size - 1))
        if not silicon.memory.contains(spa, left):
            left = PAGE_SIZE - (gva & PAGE_MASK)
        if not silicon.memory.contains(spa, left):
            raise TargetError(f"{gva:#x} is at {spa:#x}, which is no RAM")
        return spa, left

    def read_memory(self, tid: int, gva: int, length: int) -> bytes:
        """See Target."""
        silicon, world = self._machine.silicon, self._vcpu(tid).world
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

    # -- run control ------------------------------------------------------------------------

    def insert_breakpoint(self, kind: BreakpointKind, address: int) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints[kind, address] = None
        self._machine.silicon.debug.breakpoints.add(address)

    def remove_breakpoint(self, kind: BreakpointKind, address: int) -> None:
        """See SupportsBreakpoints."""
        self._breakpoints.pop((kind, address), None)
        if not any(other == address for _, other in self._breakpoints):
            self._machine.silicon.debug.breakpoints.discard(address)

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

    def _info(self, arguments: Sequence[str]) -> str:
        if arguments:
            raise TargetError("info takes no arguments")
        machine = self._machine
        lines = [f"{machine.config.name}: {machine.clock_now} ticks"]
        lines += [f"  {thread.name}: {thread.info}" for thread in self.threads()]
        return "\n".join(lines) + "\n"

    def _rmp(self, arguments: Sequence[str]) -> str:
        if not 1 <= len(arguments) <= 2:
            raise TargetError("usage: rmp GPA [COUNT]")
        gpa = _number(arguments[0]) & ~PAGE_MASK
        count = _number(arguments[1]) if len(arguments) == 2 else 1
        rmp = self._machine.silicon.rmp
        lines = []
        for page in range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + min(count, _MAX_RMP_LINES)):
            entry = rmp.lookup(page << PAGE_SHIFT)
            if entry is None:
                lines.append(f"{page << PAGE_SHIFT:#x}: no RAM")
                continue
            flags = [
                name
                for name in ("assigned", "validated", "vmsa", "immutable", "in_use")
                if getattr(entry, name)
            ]
            permissions = " ".join(
                f"VMPL{vmpl}:{int(mask):04b}" for vmpl, mask in enumerate(entry.permissions)
            )
            lines.append(
                f"{page << PAGE_SHIFT:#x}: {' '.join(flags) or 'shared'} gpa {entry.gpa:#x} "
                f"asid {entry.asid} {'2M' if entry.page_size else '4K'} {permissions}"
            )
        return "\n".join(lines) + "\n"

    def _vmsa(self, arguments: Sequence[str]) -> str:
        if len(arguments) > 1:
            raise TargetError("usage: vmsa [VCPU]")
        machine = self._machine
        index = _number(arguments[0]) if arguments else machine.current_vcpu
        vcpus = machine.hypervisor.vcpus
        if index >= len(vcpus):
            raise TargetError(f"there is no vCPU {index}")
        lines = []
        for world in vcpus[index].worlds:
            spa = world.vmcb.vmsa_spa
            mark = "*" if world is vcpus[index].world else " "
            lines.append(
                f"{mark} VMPL{int(world.vmpl)}: VMSA at {spa:#x}, {_ACTIVITY[world.activity]}"
            )
            if not machine.silicon.memory.contains(spa, PAGE_SIZE):
                continue
            machine.silicon.make_readable(spa, PAGE_SIZE)
            vmsa = Vmsa(machine.silicon.memory.page(spa))
            lines += [
                "    " + " ".join(f"{name} {getattr(vmsa, name):#x}" for name in names)
                for names in _VMSA_FIELDS
            ]
        return "\n".join(lines or [f"vCPU {index} has no VMSA"]) + "\n"

    def _walk(self, arguments: Sequence[str]) -> str:
        if len(arguments) != 1:
            raise TargetError("usage: walk GVA")
        gva = _number(arguments[0])
        spa, _ = self._span(self._vcpu(self._machine.current_vcpu + 1).world, gva)
        c_bit = self._machine.silicon.processor.translate_for_debugger(gva) & C_BIT
        return f"{gva:#x} -> {spa:#x}, C-bit {'set' if c_bit else 'clear'}\n"


def _number(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        raise TargetError(f"{text!r} is not a number") from None
    if not 0 <= value < 1 << 64:
        raise TargetError(f"{text} is not a 64-bit number")
    return value
