# SPDX-License-Identifier: MIT
"""Registers and memory of a world: one VMPL of one vCPU, whether it runs now or not.

The program counter is the linear address, CS base included, so that gdb reads and disassembles the
right bytes in every mode. Registers and memory are those of the silicon, whatever the VMPL may
reach: a debugger of this machine stands beside it, not in it.

Spec: 24593, appendix B.4 (VMSA, where the registers of a world that does not run lie).
"""

from __future__ import annotations

from typing import Final

from svsmd.gdbstub.target import G_LAYOUT, NO_SYSCALL, TargetError
from svsmd.gdbstub.why import debugger_refusal
from svsmd.host.vcpu import DR7_AFTER_RESET, Activity, World
from svsmd.snp.cpu_unicorn import RBP, RSP
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.register_file import RegisterFile, UnknownRegister
from svsmd.snp.register_writes import ReadOnlyRegister, check_width
from svsmd.snp.silicon import Silicon
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SIZE

ACTIVITY: Final = {
    Activity.RUNNABLE: "running",
    Activity.HALTED: "halted",
    Activity.HALTED_MASKED: "halted with interrupts off",
    Activity.RESET_HOLD_BY_GHCB: "in reset",
    Activity.RESET_HOLD_BY_MSR: "in reset",
}
"""What a world does, in words."""
NO_REGISTERS: Final = bytes(G_LAYOUT.size)
_RBP, _RSP, _PC = 6, 7, 16
"""Their places in `G_LAYOUT`."""
MAX_ADDRESS: Final = (1 << 64) - 1
_READ_ONLY: Final = {
    "cpu_mode": "it follows from cr0, efer, eflags and cs",
    "pc_lin": "set rip",
    "vmpl": "it belongs to the VMSA",
    "ghcb": "it is what the host has registered for the world",
    "sev_status": "it follows from SEV_FEATURES of the VMSA",
    "tsc": "it is the clock of the machine",
}
"""Registers and why they are that."""


class View:
    """What a debugger sees of a thread; this one has nothing.

    Args:
        silicon: where it runs.
        nothing: why there is nothing to see.
    """

    def __init__(self, silicon: Silicon, nothing: str) -> None:
        self._silicon = silicon
        self._nothing = nothing

    def read_registers(self) -> bytes:
        """See Target."""
        return NO_REGISTERS

    def expedited(self) -> tuple[int, int, int]:
        """See SupportsExpedited."""
        registers = G_LAYOUT.unpack(self.read_registers())
        return registers[_RBP], registers[_RSP], registers[_PC]

    @property
    def pc(self) -> int:
        """The linear address that it executes next."""
        pc: int = G_LAYOUT.unpack(self.read_registers())[_PC]
        return pc

    def read_register(self, name: str) -> int | None:
        """See Target."""
        return None

    def write_register(self, name: str, value: int) -> None:
        """See Target."""
        raise TargetError(self._nothing)

    def code_bits(self) -> int:
        """How its code is to be disassembled: 16, 32 or 64. Raises `TargetError`."""
        raise TargetError(self._nothing)

    def span(self, gva: int) -> tuple[int, int]:
        """Physical address of a linear one and how far it goes on. Raises `TargetError`."""
        raise TargetError(f"{self._nothing}, it maps no memory")

    def read_memory(self, gva: int, length: int) -> bytes:
        """See Target."""
        parts = []
        done = 0
        while done < length:
            try:
                part = self._read_some((gva + done) & MAX_ADDRESS, length - done)
            except TargetError:
                if not done:
                    raise
                break
            parts.append(part)
            done += len(part)
        return b"".join(parts)

    def _read_some(self, gva: int, length: int) -> bytes:
        silicon = self._silicon
        spa, left = self.span(gva)
        chunk = min(length, left)
        silicon.make_readable(spa, chunk)
        return silicon.memory.read(spa, chunk)

    def write_memory(self, gva: int, data: bytes) -> None:
        """See Target."""
        spans = []
        done = 0
        while done < len(data):
            spa, left = self.span((gva + done) & MAX_ADDRESS)
            chunk = min(len(data) - done, left)
            spans.append((spa, data[done : done + chunk]))
            done += chunk
        for spa, part in spans:
            self._silicon.debug_write(spa, part)


class WorldView(View):
    """What a debugger sees of a world."""

    def __init__(self, silicon: Silicon, world: World | None) -> None:
        super().__init__(silicon, "this vCPU has not started")
        self._world = world

    def load(self) -> RegisterFile | None:
        """Registers of the world; None if it has none that can be loaded."""
        silicon = self._silicon
        if self._world is None or not silicon.load_for_debugger(self._world.vmcb):
            return None
        return silicon.registers

    @property
    def cpl(self) -> int:
        """Its CPL; 0 if it has no registers."""
        return 0 if self.load() is None else self._silicon.cpu.cpl

    def read_registers(self) -> bytes:
        """See Target."""
        registers = self.load()
        if registers is None:
            return NO_REGISTERS
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

    def expedited(self) -> tuple[int, int, int]:
        """See SupportsExpedited."""
        registers = self.load()
        if registers is None:
            return 0, 0, 0
        regs = self._silicon.cpu.regs
        return regs[RBP], regs[RSP], registers.linear_rip

    @property
    def pc(self) -> int:
        """See View."""
        registers = self.load()
        return 0 if registers is None else registers.linear_rip

    def read_register(self, name: str) -> int | None:
        """See Target."""
        world, registers = self._world, self.load()
        if world is None:
            return 0
        match name:  # of what the host keeps for a world
            case "ghcb":
                return world.ghcb_gpa or 0
            case "ghcb_msr":
                return world.vmcb.ghcb_msr
            case "cr8":
                return world.plane.apic.task_priority
            case "dr7":
                return world.dr7
        if registers is None:
            return 0
        try:
            return registers.read(name)
        except UnknownRegister as error:
            raise TargetError(str(error)) from None

    def write_register(self, name: str, value: int) -> None:
        """See Target."""
        world, registers = self._world, self.load()
        if world is None or registers is None:
            raise TargetError(self._nothing)
        try:
            match name:
                case "cr8":
                    check_width("cr8", value, 4)
                    world.plane.apic.task_priority = world.vmcb.v_tpr = value
                case "dr7":
                    check_width("dr7", value, 32)
                    world.dr7 = value | DR7_AFTER_RESET
                case "ghcb_msr":
                    world.vmcb.ghcb_msr = value
                case _ if name in _READ_ONLY:
                    raise TargetError(f"{name} cannot be written: {_READ_ONLY[name]}")
                case _:
                    registers.write(name, value)
        except (ReadOnlyRegister, ValueError) as error:
            raise TargetError(str(error)) from None

    def code_bits(self) -> int:
        """See View."""
        registers = self.load()
        return super().code_bits() if registers is None else registers.code_bits

    def span(self, gva: int) -> tuple[int, int]:
        """See View; with no effect on the guest."""
        if self.load() is None:
            return super().span(gva)
        silicon = self._silicon
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
