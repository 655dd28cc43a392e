# SPDX-License-Identifier: MIT
"""Breakpoints, watchpoints and steps, none of which the guest can see.

Breakpoints are the engine's; no memory is patched. Watchpoints are nested leaves that are kept
away from the watched page: each access to it faults, is looked at, and runs as one instruction on
a leaf of its own. The guest's debug registers stay the guest's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import capstone
from capstone import x86 as cs_x86

from svsmd.snp.access import AccessKind
from svsmd.snp.exits import DebugReason
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.types import C_BIT, HUGE_PAGE_SHIFT, PAGE_SHIFT

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_ACCESSES: Final = {
    DebugReason.WRITE_WATCHPOINT: (AccessKind.WRITE,),
    DebugReason.READ_WATCHPOINT: (AccessKind.READ,),
    DebugReason.ACCESS_WATCHPOINT: (AccessKind.READ, AccessKind.WRITE),
}
_RSP: Final = 4
_REGISTER_NAMES: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Watch:
    """A watched range of memory.

    Attributes:
        address: linear address, as the debugger named it.
        gpa: where that was when it was set, without the C-bit.
    """

    reason: DebugReason
    address: int
    length: int
    gpa: int


@dataclass(frozen=True, slots=True)
class _Operand:
    address: int
    length: int
    kinds: tuple[AccessKind, ...]


class DebugSupport:
    """What the debugger has asked the processor to look for."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._cpu = processor.cpu
        self.stepping = False
        self._transient = False
        self.breakpoints: set[int] = set()
        self._watches: list[Watch] = []
        self._disassemblers: dict[int, Any] = {}

    # -- steps ------------------------------------------------------------------------------

    def set_stepping(self, on: bool) -> None:
        """Each completed instruction ends the run while this is on."""
        self.stepping = on
        self._apply()

    def hidden_step(self, on: bool) -> None:
        """One instruction on leaves of its own."""
        self._transient = on
        self._apply()

    @property
    def hidden(self) -> bool:
        """Whether single-step traps are ours, unless the guest set its own TF."""
        return self.stepping or self._transient

    def _apply(self) -> None:
        if self.hidden != bool(self._cpu.shared.stepping):
            self._cpu.set_stepping(self.hidden)

    # -- breakpoints ------------------------------------------------------------------------

    def wants_breakpoint(self, address: int) -> bool:
        """Whether the debugger still has a breakpoint at this linear address."""
        return address in self.breakpoints

    def arm(self) -> None:
        """Before a run: the engine knows all breakpoints; forgotten ones cost nothing."""
        for address in self.breakpoints - self._cpu.armed_breakpoints:
            self._cpu.arm_breakpoint(address)

    # -- watchpoints ------------------------------------------------------------------------

    def add_watch(self, watch: Watch) -> None:
        """Starts watching; its pages lose their leaves."""
        self._watches.append(watch)
        self._drop_leaves(watch)

    def remove_watch(self, reason: DebugReason, address: int, length: int) -> None:
        """Stops watching."""
        for watch in self._watches:
            if (watch.reason, watch.address, watch.length) == (reason, address, length):
                self._watches.remove(watch)
                self._drop_leaves(watch)
                return

    def _drop_leaves(self, watch: Watch) -> None:
        first = watch.gpa >> PAGE_SHIFT
        last = (watch.gpa + watch.length - 1) >> PAGE_SHIFT
        self._cpu.nested.unmap(first, last - first + 1)
        self._cpu.flush_tlb()

    def watches_page(self, page: int) -> bool:
        """Whether any byte of a page is watched."""
        return any(
            w.gpa >> PAGE_SHIFT <= page <= (w.gpa + w.length - 1) >> PAGE_SHIFT
            for w in self._watches
        )

    def watches_region(self, gpa: int) -> bool:
        """Whether any byte of the 2 MiB around an address is watched."""
        region = gpa >> HUGE_PAGE_SHIFT
        return any(
            w.gpa >> HUGE_PAGE_SHIFT <= region <= (w.gpa + w.length - 1) >> HUGE_PAGE_SHIFT
            for w in self._watches
        )

    def watch_hit(self, gpa: int, kind: AccessKind) -> Watch | None:
        """The watchpoint that the instruction at RIP is about to hit on the page of `gpa`."""
        watches = [
            w
            for w in self._watches
            if w.gpa >> PAGE_SHIFT <= gpa >> PAGE_SHIFT <= (w.gpa + w.length - 1) >> PAGE_SHIFT
        ]
        if not watches:
            return None
        for operand in self._operands():
            for watch in watches:
                if not set(operand.kinds) & set(_ACCESSES[watch.reason]):
                    continue
                at = self._gpa(operand.address)
                if at is None:
                    continue
                if at < watch.gpa + watch.length and watch.gpa < at + operand.length:
                    return watch
        return None

    def _gpa(self, address: int) -> int | None:
        try:
            return self._p.translate_for_debugger(address) & ~C_BIT
        except (GuestFault, NestedFault):
            return None

    # -- what an instruction is about to touch ----------------------------------------------

    def operand_addresses(self) -> list[int]:
        """Linear addresses of the memory operands of the instruction at RIP."""
        return [operand.address for operand in self._operands()]

    def _operands(self) -> Iterator[_Operand]:
        try:
            code = self._p.code_bytes()
        except (GuestFault, NestedFault):
            return
        for insn in self._disassembler().disasm(code, self._cpu.rip, 1):
            yield from self._explicit(insn)
            yield from self._implicit(insn)

    def _disassembler(self) -> Any:
        hflags = self._cpu.hflags
        mode = (
            capstone.CS_MODE_64
            if hflags & 1 << 15
            else capstone.CS_MODE_32
            if hflags & 1 << 4
            else capstone.CS_MODE_16
        )
        if mode not in self._disassemblers:
            engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
            engine.detail = True
            self._disassemblers[mode] = engine
        return self._disassemblers[mode]

    def _register(self, insn: Any, number: int) -> int:
        """Value of a base or index register by its capstone number."""
        if number in (0, cs_x86.X86_REG_RIZ, cs_x86.X86_REG_EIZ):
            return 0
        name: str = insn.reg_name(number)
        if name in ("rip", "eip"):
            return int(insn.address + insn.size)
        if name in _REGISTER_NAMES:
            return self._cpu.regs[_REGISTER_NAMES.index(name)]
        if name.startswith("e"):
            return self._cpu.regs[_REGISTER_NAMES.index("r" + name[1:])] & 0xFFFF_FFFF
        if name.endswith("d") and name.startswith("r"):
            return self._cpu.regs[_REGISTER_NAMES.index(name[:-1])] & 0xFFFF_FFFF
        return self._cpu.regs[_REGISTER_NAMES.index("r" + name)] & 0xFFFF

    def _segment_base(self, insn: Any, segment: int) -> int:
        names = {
            cs_x86.X86_REG_FS: 4, cs_x86.X86_REG_GS: 5, cs_x86.X86_REG_ES: 0,
            cs_x86.X86_REG_CS: 1, cs_x86.X86_REG_SS: 2, cs_x86.X86_REG_DS: 3,
        }  # fmt: skip
        index = names.get(segment, 3)
        if self._cpu.hflags & 1 << 15 and index not in (4, 5):
            return 0
        return self._cpu.word(self._cpu.layout.segs + 24 * index + 8)

    def _explicit(self, insn: Any) -> Iterator[_Operand]:
        for operand in insn.operands:
            if operand.type != cs_x86.X86_OP_MEM or insn.mnemonic.startswith(("lea", "nop")):
                continue
            memory = operand.mem
            address = self._register(insn, memory.base) + memory.disp
            address += self._register(insn, memory.index) * memory.scale
            address += self._segment_base(insn, memory.segment)
            kinds = []
            if operand.access & capstone.CS_AC_READ or not operand.access:
                kinds.append(AccessKind.READ)
            if operand.access & capstone.CS_AC_WRITE:
                kinds.append(AccessKind.WRITE)
            yield _Operand(address & (1 << 64) - 1, max(operand.size, 1), tuple(kinds))

    def _implicit(self, insn: Any) -> Iterator[_Operand]:
        rsp = self._cpu.regs[_RSP]
        mnemonic = insn.mnemonic.split()[-1]
        width = 8 if self._cpu.hflags & 1 << 15 else 4
        if mnemonic.startswith(("push", "call", "enter")):
            yield _Operand(rsp - width, width, (AccessKind.WRITE,))
        elif mnemonic.startswith(("pop", "ret", "iret", "leave")):
            at = self._cpu.regs[5] if mnemonic == "leave" else rsp
            yield _Operand(at, 5 * width if "iret" in mnemonic else width, (AccessKind.READ,))
