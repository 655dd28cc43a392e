# SPDX-License-Identifier: MIT
"""PVALIDATE, RMPADJUST, RMPQUERY, INVLPGB and TLBSYNC, as guest code executes them.

The engine knows none of them; they arrive as undefined opcodes.

Spec: 24594 (APM vol. 3), the instructions' pages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from svsmd.snp.access import AccessKind
from svsmd.snp.events.rmp_instructions import (
    PVALIDATE,
    RMPADJUST,
    tell_pvalidate,
    tell_rmpadjust,
)
from svsmd.snp.faults import GuestFault, Vector
from svsmd.snp.types import C_BIT, Gpa, PageSize, Spa, Vmpl

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor

_REP, _REPNE, _LOCK = 0xF3, 0xF2, 0xF0
_CF, _PF, _ZF = 1 << 0, 1 << 2, 1 << 6
_RAX, _RCX, _RDX = 0, 1, 2


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
        instruction: Callable[[], None] | None = None
        if last == 0xFF and repne:
            instruction = self._pvalidate
        elif last == 0xFE and rep:
            instruction = self._rmpadjust
        elif last == 0xFD and rep:
            instruction = self._rmpquery
        elif last in (0xFE, 0xFF) and not rep and not repne:
            instruction = self._flush
        if instruction is None or _LOCK in prefixes:
            return False
        if self._p.cpu.cpl:
            raise GuestFault(Vector.GP, 0)
        try:
            instruction()
        except GuestFault as fault:
            if fault.address is None:
                fault.address = self._p.cpu.regs[_RAX]
            raise
        return self._p.retire(len(prefixes) + 3)

    def _operand(self) -> tuple[Spa, Gpa]:
        """Translates the address in RAX as a read at CPL 0; its C-bit does not matter."""
        p = self._p
        if not p.paging_is_long():
            raise GuestFault(Vector.GP, 0)
        plain = p.translate(p.cpu.regs[_RAX], AccessKind.READ, 0) & ~C_BIT
        return Spa(plain), Gpa(plain)

    def _size(self) -> PageSize:
        return PageSize.SIZE_2M if self._p.cpu.regs[_RCX] & 1 else PageSize.SIZE_4K

    def _return(self, code: int, *, carry: bool = False) -> None:
        """EAX, and the flags that follow from it."""
        flags = _CF if carry else 0
        flags |= 0 if code else _ZF
        flags |= 0 if code.bit_count() & 1 else _PF
        self._p.cpu.regs[_RAX] = code
        self._p.set_arithmetic_flags(flags)

    def _pvalidate(self) -> None:
        p = self._p
        if p.vmpl:  # before anything else (docs/access-checks.md, RI-30)
            raise GuestFault(Vector.GP, 0)
        spa, gpa = self._operand()
        validate = bool(p.cpu.regs[_RDX] & 1)
        gva, size = p.cpu.regs[_RAX], self._size()
        code, carry = p.rmp.pvalidate(spa, gpa, Vmpl(p.vmpl), size, validate)
        if p.events.armed & PVALIDATE:
            tell_pvalidate(
                p.events, gpa, gva, size.nbytes, validate=validate, result=code, carry=carry
            )
        self._return(int(code), carry=carry)

    def _rmpadjust(self) -> None:
        p = self._p
        spa, gpa = self._operand()
        gva, size, attributes = p.cpu.regs[_RAX], self._size(), p.cpu.regs[_RDX]
        code = p.rmp.rmpadjust(spa, gpa, Vmpl(p.vmpl), size, attributes)
        if p.events.armed & RMPADJUST:
            tell_rmpadjust(p.events, gpa, gva, size.nbytes, attributes, code, p.vmpl)
        self._return(int(code))

    def _rmpquery(self) -> None:
        p = self._p
        spa, gpa = self._operand()
        result = p.rmp.rmpquery(spa, gpa, Vmpl(p.vmpl), p.cpu.regs[_RDX] & 0xFF)
        if not result.code:
            attributes = p.cpu.regs[_RDX] & 0xFF | result.permissions << 8
            p.cpu.regs[_RDX] = attributes | int(result.vmsa) << 16
            p.cpu.regs[_RCX] = int(result.page_size)
        self._return(int(result.code))

    def _flush(self) -> None:
        """INVLPGB and TLBSYNC: one TLB for all, so any of them flushes it."""
        self._p.cpu.flush_tlb()
