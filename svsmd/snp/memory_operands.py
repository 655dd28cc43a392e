# SPDX-License-Identifier: MIT
"""The memory operands of an instruction that is about to be executed.

Spec: 24594, the instructions' pages; 24592, 2.3 (addressing).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import capstone
from capstone import x86 as cs_x86

from svsmd.snp.access import AccessKind
from svsmd.snp.cpu_unicorn import SS
from svsmd.snp.engine_layout import HF_CS32, HF_CS64
from svsmd.snp.register_names import GENERAL

if TYPE_CHECKING:
    from svsmd.snp.cpu_unicorn import UnicornCpu

_RSP, _RBP = 4, 5
_MAX_ADDRESS: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class MemoryOperand:
    """Bytes that an instruction accesses, by their linear address."""

    address: int
    length: int
    kinds: tuple[AccessKind, ...]


class OperandDecoder:
    """Finds memory operands, explicit and implicit, from the CPU's registers as they are."""

    def __init__(self, cpu: UnicornCpu) -> None:
        self._cpu = cpu
        self._disassemblers: dict[int, Any] = {}

    def operands(self, code: bytes) -> Iterator[MemoryOperand]:
        """Operands of the instruction at RIP, whose bytes these are."""
        for insn in self._disassembler().disasm(code, self._cpu.rip, 1):
            yield from self._explicit(insn)
            yield from self._implicit(insn)

    def _disassembler(self) -> Any:
        hflags = self._cpu.hflags
        mode = (
            capstone.CS_MODE_64
            if hflags & HF_CS64
            else capstone.CS_MODE_32
            if hflags & HF_CS32
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
        if name in GENERAL:
            return self._cpu.regs[GENERAL.index(name)]
        if name.startswith("e"):
            return self._cpu.regs[GENERAL.index("r" + name[1:])] & 0xFFFF_FFFF
        if name.endswith("d") and name.startswith("r"):
            return self._cpu.regs[GENERAL.index(name[:-1])] & 0xFFFF_FFFF
        return self._cpu.regs[GENERAL.index("r" + name)] & 0xFFFF

    def _segment_base(self, insn: Any, segment: int) -> int:
        names = {
            cs_x86.X86_REG_FS: 4, cs_x86.X86_REG_GS: 5, cs_x86.X86_REG_ES: 0,
            cs_x86.X86_REG_CS: 1, cs_x86.X86_REG_SS: 2, cs_x86.X86_REG_DS: 3,
        }  # fmt: skip
        index = names.get(segment, 3)
        if self._cpu.hflags & HF_CS64 and index not in (4, 5):
            return 0
        return self._cpu.segment_base(index)

    def _explicit(self, insn: Any) -> Iterator[MemoryOperand]:
        operands = insn.operands
        first = operands[0] if operands else None
        for operand in operands:
            if operand.type != cs_x86.X86_OP_MEM or insn.mnemonic.startswith(("lea", "nop")):
                continue
            memory = operand.mem
            offset = self._register(insn, memory.base) + memory.disp
            offset += self._register(insn, memory.index) * memory.scale
            offset &= (1 << 8 * insn.addr_size) - 1
            address = self._linear(self._segment_base(insn, memory.segment), offset)
            kinds = []
            # Capstone takes the destination of SSE's moves for a source.
            moved_to = insn.mnemonic.startswith("mov") and operand is first
            if not moved_to and (operand.access & capstone.CS_AC_READ or not operand.access):
                kinds.append(AccessKind.READ)
            if moved_to or operand.access & capstone.CS_AC_WRITE:
                kinds.append(AccessKind.WRITE)
            yield MemoryOperand(address, max(operand.size, 1), tuple(kinds))

    def _linear(self, base: int, offset: int) -> int:
        """A linear address is as wide as the mode is."""
        return (base + offset) & (_MAX_ADDRESS if self._cpu.hflags & HF_CS64 else 0xFFFF_FFFF)

    def _implicit(self, insn: Any) -> Iterator[MemoryOperand]:
        long_mode = self._cpu.hflags & HF_CS64
        width = 8 if long_mode else 4
        base = 0 if long_mode else self._cpu.segment_base(SS)
        mnemonic = insn.mnemonic.split()[-1]
        if mnemonic.startswith(("push", "call", "enter")):
            at = self._linear(base, self._cpu.regs[_RSP] - width)
            yield MemoryOperand(at, width, (AccessKind.WRITE,))
        elif mnemonic.startswith(("pop", "ret", "iret", "leave")):
            at = self._linear(base, self._cpu.regs[_RBP if mnemonic == "leave" else _RSP])
            yield MemoryOperand(at, 5 * width if "iret" in mnemonic else width, (AccessKind.READ,))
