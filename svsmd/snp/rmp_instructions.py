# SPDX-License-Identifier: MIT
"""PVALIDATE, RMPADJUST, RMPQUERY, INVLPGB and TLBSYNC, as guest code executes them.

The engine knows none of them; they arrive as undefined opcodes.

Spec: 24594 (APM vol. 3), the instructions' pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, Vector
from svsmd.snp.types import C_BIT, Gpa, PageSize, Spa, Vmpl

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_REP, _REPNE = 0xF3, 0xF2
_CF: Final = 1
_RAX, _RCX, _RDX, _R8 = 0, 1, 2, 8


class RmpInstructions:
    """The RMP instructions on the loaded context."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor

    def execute(self, prefixes: bytes, operation: bytes) -> bool:
        """Executes 0F 01 /7 forms; False if it is none of them.

        Raises:
            GuestFault, NestedFault: as the instruction does.
        """
        last = operation[2] if len(operation) == 3 else 0
        repne, rep = _REPNE in prefixes, _REP in prefixes
        if last == 0xFF and repne:
            self._pvalidate()
        elif last == 0xFE and rep:
            self._rmpadjust()
        elif last == 0xFD and rep:
            self._rmpquery()
        elif last in (0xFE, 0xFF) and not rep and not repne:
            self._flush()
        else:
            return False
        return self._p.retire(len(prefixes) + 3)

    def _operand(self) -> tuple[Spa, Gpa]:
        """Translates the address in RAX as a read at CPL 0; the C-bit must be set."""
        p = self._p
        if p.cpu.cpl:
            raise GuestFault(Vector.GP, 0)
        if not p.paging_is_long():
            raise GuestFault(Vector.GP, 0)
        gpa = p.translate(p.cpu.regs[_RAX], AccessKind.READ, 0)
        if not gpa & C_BIT:
            raise GuestFault(Vector.GP, 0)
        plain = gpa & ~C_BIT
        return Spa(plain), Gpa(plain)

    def _size(self) -> PageSize:
        return PageSize.SIZE_2M if self._p.cpu.regs[_RCX] & 1 else PageSize.SIZE_4K

    def _pvalidate(self) -> None:
        p = self._p
        spa, gpa = self._operand()
        validate = bool(p.cpu.regs[_RDX] & 1)
        code, carry = p.rmp.pvalidate(spa, gpa, Vmpl(p.vmpl), self._size(), validate)
        p.cpu.regs[_RAX] = int(code)
        p.set_arithmetic_flags(_CF if carry else 0)

    def _rmpadjust(self) -> None:
        p = self._p
        spa, gpa = self._operand()
        attributes = p.cpu.regs[_RDX]
        code = p.rmp.rmpadjust(spa, gpa, Vmpl(p.vmpl), self._size(), attributes)
        p.cpu.regs[_RAX] = int(code)
        p.set_arithmetic_flags(0)

    def _rmpquery(self) -> None:
        p = self._p
        spa, gpa = self._operand()
        result = p.rmp.rmpquery(spa, gpa, Vmpl(p.vmpl), p.cpu.regs[_RDX] & 0xFF)
        p.cpu.regs[_RAX] = int(result.code)
        if not result.code:
            attributes = p.cpu.regs[_RDX] & 0xFF | result.permissions << 8
            p.cpu.regs[_RDX] = attributes | int(result.vmsa) << 16
            p.cpu.regs[_RCX] = int(result.page_size)
        p.set_arithmetic_flags(0)

    def _flush(self) -> None:
        """INVLPGB and TLBSYNC: one TLB for all, so any of them flushes it."""
        if self._p.cpu.cpl:
            raise GuestFault(Vector.GP, 0)
        self._p.cpu.flush_tlb()
