# SPDX-License-Identifier: MIT
"""How the SVSM's core touches the machine: as code at VMPL0, CPL 0, on the vCPU that called it.

Every access walks the page tables under that vCPU's CR3 and is checked against the RMP; nothing
here can do what an instruction at VMPL0 could not.

Spec: 24593, 15.36; 24594 for the instructions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from svsmd.snp.access import AccessKind
from svsmd.snp.events.rmp_instructions import (
    PVALIDATE,
    RMPADJUST,
    tell_pvalidate,
    tell_rmpadjust,
)
from svsmd.snp.faults import GuestFault, NestedFault, Vector
from svsmd.snp.page_walk import KnownTables, Translation
from svsmd.snp.rmp import RmpQueryResult
from svsmd.snp.types import (
    C_BIT,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PHYSICAL_BITS,
    Gpa,
    PageSize,
    Spa,
    Vmpl,
)

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor


_SHIFTS: Final = (PAGE_SHIFT, 21, 30)
"""Of the sizes that a page can have: 4 KiB, 2 MiB, 1 GiB."""
_KERNEL_HALF: Final = 1 << 63
_VC_RDTSC: Final = 0x6E
_TLB_ENTRIES: Final = 4096
"""Of one page size; with more the oldest half is forgotten."""


class _Entry(NamedTuple):
    """One translation: GPA of the page with its C-bit, and whether it is one for writes too."""

    base: int
    written: bool


class Tlb:
    """The translations under one CR3, by page size and page number."""

    def __init__(self) -> None:
        self.sizes: Final[tuple[tuple[int, dict[int, _Entry]], ...]] = tuple(
            (shift, {}) for shift in _SHIFTS
        )
        self._by_shift = dict(self.sizes)

    def find(self, gva: int, *, write: bool) -> tuple[int, int] | None:
        """GPA with C-bit and bytes to the end of the page, or None if a walk is needed."""
        for shift, entries in self.sizes:
            entry = entries.get(gva >> shift)
            if entry is not None and (entry.written or not write):
                offset = gva & ((1 << shift) - 1)
                return entry.base | offset, (1 << shift) - offset
        return None

    def add(self, gva: int, leaf: Translation) -> None:
        """Remember a walk."""
        shift = leaf.page_size.bit_length() - 1
        entries = self._by_shift[shift]
        if len(entries) >= _TLB_ENTRIES:
            for old in list(entries)[: _TLB_ENTRIES // 2]:
                del entries[old]
        entries[gva >> shift] = _Entry(leaf.gpa & -leaf.page_size, leaf.written)

    def forget(self, gva: int) -> None:
        """Whatever page the address is in."""
        for shift, entries in self.sizes:
            entries.pop(gva >> shift, None)


def _parts(gva: int, n: int) -> list[tuple[int, int]]:
    """Start and length of the parts of a range that lie in different pages."""
    first = PAGE_SIZE - (gva & PAGE_MASK)
    if n <= first:
        return [(gva, n)]
    return [
        (max(gva, page), min(gva + n, page + PAGE_SIZE) - max(gva, page))
        for page in range(gva & ~PAGE_MASK, gva + n, PAGE_SIZE)
    ]


class Vmpl0Port:
    """VMPL0's view of the machine. Valid while a gate call is being served.

    It has a TLB as a CPU has one: what it has seen stays, whatever becomes of the tables, until
    INVLPG of an address there, a load of its CR3 by `write_cr3`, or a flush. Only supervisor
    addresses are remembered: what is allowed at the user's depends on RFLAGS.AC. What the RMP says
    is looked up with every access.

    `known` only makes walks shorter. It relies on the SVSM changing its upper tables through this
    port; native code that did so would have to load another CR3.
    """

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._tlbs: dict[int, Tlb] = {}
        self.known: Final = KnownTables()
        self._engine_is_stale = False

    def _translate(self, gva: int, kind: AccessKind) -> tuple[int, int]:
        """GPA with C-bit, and bytes to the end of its page."""
        cr3 = self._p.cpu.cr[3]
        tlb = self._tlbs.get(cr3)
        if tlb is None:
            tlb = self._tlbs[cr3] = Tlb()
        write = kind is AccessKind.WRITE
        found = tlb.find(gva, write=write)
        if found is not None:
            return found
        if gva & _KERNEL_HALF:
            leaf = self._p.translate_leaf(gva, kind, 0, self.known)
            tlb.add(gva, leaf)
        else:
            leaf = self._p.translate_leaf(gva, kind, 0)
        return leaf.gpa, leaf.page_size - (gva & (leaf.page_size - 1))

    def _check(self, gva: int, kind: AccessKind) -> None:
        """Raises as an access to the page would."""
        gpa, _ = self._translate(gva, kind)
        try:
            self._p.physical.resolve(0, gpa, kind)
        except GuestFault as fault:
            fault.address = gva
            raise

    def read(self, gva: int, n: int) -> bytes:
        """Reads `n` bytes.

        Raises:
            GuestFault: #PF, #GP or #VC 0x404, with the address that faulted.
            NestedFault: the host gave the page away, or it is not RAM.
        """
        if (gva & PAGE_MASK) + n <= PAGE_SIZE:
            return self._read(gva, n)
        return b"".join(self._read(start, chunk) for start, chunk in _parts(gva, n))

    def _read(self, gva: int, n: int) -> bytes:
        """In one page."""
        gpa, _ = self._translate(gva, AccessKind.READ)
        try:
            return self._p.physical.read(0, gpa, n)
        except GuestFault as fault:
            fault.address = gva
            raise

    def write(self, gva: int, data: bytes) -> None:
        """Writes all of `data`, or nothing if a page of it faults; raises as read()."""
        if (gva & PAGE_MASK) + len(data) <= PAGE_SIZE:
            self._write(gva, data)
            return
        parts = _parts(gva, len(data))
        for start, _ in parts:
            self._check(start, AccessKind.WRITE)
        for start, chunk in parts:
            self._write(start, data[start - gva : start - gva + chunk])

    def _write(self, gva: int, data: bytes) -> None:
        """In one page."""
        gpa, _ = self._translate(gva, AccessKind.WRITE)
        try:
            spa = self._p.physical.write(0, gpa, data)
        except GuestFault as fault:
            fault.address = gva
            raise
        self._p.write_memory_hook(spa, len(data))
        self.known.memory_written(spa, len(data))

    def _operand(self, gva: int) -> tuple[Spa, Gpa]:
        gpa, _ = self._translate(gva, AccessKind.READ)
        plain = gpa & ~C_BIT
        return Spa(plain), Gpa(plain)

    def pvalidate(self, gva: int, size: PageSize, validate: bool) -> tuple[int, bool]:
        """PVALIDATE; returns EAX and CF."""
        spa, gpa = self._operand(gva)
        code, carry = self._p.rmp.pvalidate(spa, gpa, Vmpl.VMPL0, size, validate)
        events = self._p.events
        if events.armed & PVALIDATE:
            tell_pvalidate(
                events, gpa, gva, size.nbytes, validate=validate, result=code, carry=carry
            )
        return int(code), carry

    def rmpadjust(self, gva: int, size: PageSize, attributes: int) -> int:
        """RMPADJUST with RDX = `attributes`; returns EAX."""
        spa, gpa = self._operand(gva)
        try:
            code = self._p.rmp.rmpadjust(spa, gpa, Vmpl.VMPL0, size, attributes)
        except GuestFault as fault:
            fault.address = gva
            raise
        events = self._p.events
        if events.armed & RMPADJUST:
            tell_rmpadjust(events, gpa, gva, size.nbytes, attributes, code, Vmpl.VMPL0)
        return int(code)

    def rmpquery(self, gva: int, target: int) -> RmpQueryResult:
        """RMPQUERY of the permissions of VMPL `target`."""
        spa, gpa = self._operand(gva)
        return self._p.rmp.rmpquery(spa, gpa, Vmpl.VMPL0, target)

    def rdmsr(self, index: int) -> int:
        """RDMSR of an MSR that the processor itself answers; GuestFault (#VC) for any other."""
        return self._p.read_msr(index)

    def read_cr2(self) -> int:
        """MOV from CR2."""
        return self._p.cpu.cr[2]

    def rdtsc(self) -> int:
        """RDTSC; GuestFault (#VC) where the host intercepts it."""
        if self._p.vmcb.intercept_rdtsc:
            raise GuestFault(Vector.VC, _VC_RDTSC)
        return self._p.tsc

    def rdrand(self) -> int:
        """RDRAND of 64 bits."""
        return self._p.random(8)

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
            self.known.memory_written(spa, chunk)
            gva += chunk
            n -= chunk

    def write_cr3(self, value: int) -> None:
        """MOV to CR3: this CPU forgets its translations under that value.

        Raises:
            GuestFault: #GP, for reserved bits.
        """
        if value >> PHYSICAL_BITS:
            raise GuestFault(Vector.GP, 0)
        self._tlbs.pop(value, None)
        self._p.cpu.cr[3] = value
        self._engine_is_stale = True

    def invlpg(self, gva: int) -> None:
        """INVLPG."""
        tlb = self._tlbs.get(self._p.cpu.cr[3])
        if tlb is not None:
            tlb.forget(gva)
        self._engine_is_stale = True

    def flush_tlb(self) -> None:
        """INVLPGB of everything, then TLBSYNC."""
        self._tlbs.clear()
        self._engine_is_stale = True

    def settle(self) -> None:
        """The gate call ends: what it has invalidated, the engine forgets before it goes on.

        The engine drops all that it has cached, since it cannot drop a single page.
        """
        if self._engine_is_stale:
            self._engine_is_stale = False
            self._p.cpu.flush_tlb()

    def charge(self, ticks: int) -> None:
        """The time that the work since the last call takes on the vCPU."""
        self._p.cpu.shared.ticks += ticks


__all__ = ["GuestFault", "NestedFault", "Vmpl0Port"]
