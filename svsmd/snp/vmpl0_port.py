# SPDX-License-Identifier: MIT
"""How the SVSM's core touches the machine: as code at VMPL0, CPL 0, on the vCPU that called it.

Every access walks the page tables under that vCPU's CR3 and is checked against the RMP; nothing
here can do what an instruction at VMPL0 could not.

Spec: 24593, 15.36; 24594 for the instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, NestedFault, Vector
from svsmd.snp.rmp import RmpQueryResult
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor


class Vmpl0Port:
    """VMPL0's view of the machine. Valid while a gate call is being served."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor

    def read(self, gva: int, n: int) -> bytes:
        """Reads `n` bytes.

        Raises:
            GuestFault: #PF, #GP or #VC 0x404, with the address that faulted.
            NestedFault: the host gave the page away, or it is not RAM.
        """
        return self._p.read(gva, n, 0)

    def write(self, gva: int, data: bytes) -> None:
        """Writes all of `data`, or nothing if a page of it faults; raises as read()."""
        self._p.write_system(gva, data, 0)

    def _operand(self, gva: int) -> tuple[Spa, Gpa]:
        gpa = self._p.translate(gva, AccessKind.READ, 0)
        if not gpa & C_BIT:
            raise GuestFault(Vector.GP, 0, gva)
        plain = gpa & ~C_BIT
        return Spa(plain), Gpa(plain)

    def pvalidate(self, gva: int, size: PageSize, validate: bool) -> tuple[int, bool]:
        """PVALIDATE; returns EAX and CF."""
        spa, gpa = self._operand(gva)
        code, carry = self._p.rmp.pvalidate(spa, gpa, Vmpl.VMPL0, size, validate)
        return int(code), carry

    def rmpadjust(self, gva: int, size: PageSize, attributes: int) -> int:
        """RMPADJUST with RDX = `attributes`; returns EAX."""
        spa, gpa = self._operand(gva)
        try:
            return int(self._p.rmp.rmpadjust(spa, gpa, Vmpl.VMPL0, size, attributes))
        except GuestFault as fault:
            fault.address = gva
            raise

    def rmpquery(self, gva: int, target: int) -> RmpQueryResult:
        """RMPQUERY of the permissions of VMPL `target`."""
        spa, gpa = self._operand(gva)
        return self._p.rmp.rmpquery(spa, gpa, Vmpl.VMPL0, target)

    def exchange_byte(self, gva: int, value: int) -> int:
        """XCHG of one byte; returns the old one."""
        old = self.read(gva, 1)[0]
        self.write(gva, bytes([value]))
        return old

    def zero(self, gva: int, n: int) -> None:
        """Clears `n` bytes, which fault page by page."""
        while n:
            chunk = min(n, PAGE_SIZE - (gva & PAGE_MASK))
            self.write(gva, bytes(chunk))
            gva += chunk
            n -= chunk

    def flush_tlb(self) -> None:
        """INVLPGB of everything, then TLBSYNC."""
        self._p.cpu.flush_tlb()

    def charge(self, ticks: int) -> None:
        """The time that the work since the last call takes on the vCPU."""
        self._p.cpu.shared.ticks += ticks


__all__ = ["GuestFault", "NestedFault", "Vmpl0Port"]
