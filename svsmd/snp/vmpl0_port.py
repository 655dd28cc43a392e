# SPDX-License-Identifier: MIT
"""How the SVSM's core touches the machine: as code at VMPL0, CPL 0, on the vCPU that called it.

Every access walks the page tables under that vCPU's CR3 and is checked against the RMP; nothing
here can do what an instruction at VMPL0 could not.

Spec: 24593, 15.36; 24594 for the instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.rmp import RmpQueryResult
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor


_LARGE_SHIFT: Final = 30
_LARGE_SIZE: Final = 1 << _LARGE_SHIFT


class Vmpl0Port:
    """VMPL0's view of the machine. Valid while a gate call is being served."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        # Like the CPU's TLB: (gva >> shift) -> translation of a large page, for reads, and for
        # reads and writes, until it is flushed or CR3 is another one.
        self._cr3 = 0
        self._readable: dict[int, int] = {}
        self._writable: dict[int, int] = {}

    def _translate(self, gva: int, kind: AccessKind) -> tuple[int, int]:
        """GPA with C-bit, and bytes to the end of its page."""
        cr3 = self._p.cpu.cr[3]
        if cr3 != self._cr3:
            self._forget()
            self._cr3 = cr3
        write = kind is AccessKind.WRITE
        base = (self._writable if write else self._readable).get(gva >> _LARGE_SHIFT)
        offset = gva & (_LARGE_SIZE - 1)
        if base is not None:
            return base | offset, _LARGE_SIZE - offset
        leaf = self._p.translate_leaf(gva, kind, 0)
        if leaf.page_size == _LARGE_SIZE:
            self._readable[gva >> _LARGE_SHIFT] = leaf.gpa - offset
            if write:
                self._writable[gva >> _LARGE_SHIFT] = leaf.gpa - offset
        return leaf.gpa, leaf.page_size - (gva & (leaf.page_size - 1))

    def _spans(self, gva: int, n: int, kind: AccessKind) -> Iterator[tuple[int, int]]:
        """GPA with C-bit and bytes of each page of a range that may be accessed so."""
        physical = self._p.physical
        while n:
            chunk = min(n, PAGE_SIZE - (gva & PAGE_MASK))
            gpa, _ = self._translate(gva, kind)
            try:
                physical.resolve(0, gpa, kind)
            except GuestFault as fault:
                fault.address = gva
                raise
            yield gpa, chunk
            gva += chunk
            n -= chunk

    def read(self, gva: int, n: int) -> bytes:
        """Reads `n` bytes.

        Raises:
            GuestFault: #PF, #GP or #VC 0x404, with the address that faulted.
            NestedFault: the host gave the page away, or it is not RAM.
        """
        physical = self._p.physical
        spans = self._spans(gva, n, AccessKind.READ)
        return b"".join(physical.read(0, gpa, chunk) for gpa, chunk in spans)

    def write(self, gva: int, data: bytes) -> None:
        """Writes all of `data`, or nothing if a page of it faults; raises as read()."""
        done = 0
        for gpa, chunk in list(self._spans(gva, len(data), AccessKind.WRITE)):
            spa = self._p.physical.write(0, gpa, data[done : done + chunk])
            self._p.write_memory_hook(spa, chunk)
            done += chunk

    def _operand(self, gva: int) -> tuple[Spa, Gpa]:
        gpa, _ = self._translate(gva, AccessKind.READ)
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

    def rdmsr(self, index: int) -> int:
        """RDMSR of an MSR that the processor itself answers; GuestFault (#VC) for any other."""
        return self._p.read_msr(index)

    def exchange_byte(self, gva: int, value: int) -> int:
        """XCHG of one byte; returns the old one."""
        old = self.read(gva, 1)[0]
        self.write(gva, bytes([value]))
        return old

    def zero(self, gva: int, n: int) -> None:
        """Clears `n` bytes; raises as read(), with what lies before the fault cleared.

        Memory that nobody touched since the machine was made stays untouched.
        """
        p = self._p
        while n:
            gpa, left = self._translate(gva, AccessKind.WRITE)
            spa = p.physical.resolve(0, gpa, AccessKind.WRITE)[0]
            chunk = min(n, left, p.rmp.contiguous(spa))
            p.memory.zero(spa, chunk)
            p.write_memory_hook(spa, chunk)
            gva += chunk
            n -= chunk

    def flush_tlb(self) -> None:
        """INVLPGB of everything, then TLBSYNC."""
        self._forget()
        self._p.cpu.flush_tlb()

    def _forget(self) -> None:
        self._readable.clear()
        self._writable.clear()

    def charge(self, ticks: int) -> None:
        """The time that the work since the last call takes on the vCPU."""
        self._p.cpu.shared.ticks += ticks


__all__ = ["GuestFault", "NestedFault", "Vmpl0Port"]
