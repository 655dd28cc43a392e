# SPDX-License-Identifier: MIT
"""Reverse Map Table: who owns each page of memory, and what each VMPL may do with it.

Spec: 24593 (APM vol. 2) 15.36.3 to 15.36.7, 15.36.11, 15.36.12; 24594 (APM vol. 3) RMPUPDATE,
PSMASH, PVALIDATE, RMPADJUST, RMPQUERY. What rests on the manuals and what is our reading of them is
listed in docs/access-checks.md.

How the table is stored: 16 bytes a page, as in hardware, in one private anonymous mapping, so that
memory nobody touched costs nothing. A 2 MiB page is one entry, at its first page; its other 511
entries are all zero. An entry that is not assigned is all zero too, whatever its size was.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from svsmd.snp.events import EventClass, SnpEvents
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, NpfError, Vector
from svsmd.snp.rmp_history import RmpChange, RmpHistory
from svsmd.snp.types import (
    HUGE_PAGE_SIZE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    PAGES_PER_HUGE_PAGE,
    Gpa,
    PageSize,
    Spa,
    Vmpl,
)

GUEST_ASID: Final = 1
"""ASID of the one guest; 0 is the host (and, on an assigned page, the security processor)."""

NUM_VMPLS: Final = 4
"""CPUID 8000_001F:EBX[15:12]."""

_NO_GPA: Final = Gpa(0)


class RmpReturn(IntEnum):
    """Return code in EAX of the RMP instructions (24594).

    FAIL_BADADDR is PSMASH's answer for a page that is no 2 MiB entry.
    """

    SUCCESS = 0
    FAIL_INPUT = 1
    FAIL_PERMISSION = 2
    FAIL_INUSE = 3
    FAIL_OVERLAP = 4
    FAIL_SIZEMISMATCH = 6
    FAIL_BADADDR = 7


class Perm(IntFlag):
    """VMPL permission mask (24593, table 15-36). Bit 4, supervisor shadow stack, is not offered."""

    NONE = 0
    READ = 1 << 0
    WRITE = 1 << 1
    EXECUTE_USER = 1 << 2
    EXECUTE_SUPERVISOR = 1 << 3
    ALL = READ | WRITE | EXECUTE_USER | EXECUTE_SUPERVISOR


class RmpAttributes(IntEnum):
    """Where the fields of RMPADJUST's RDX are (24594, RMPADJUST)."""

    TARGET_VMPL_MASK = 0xFF
    PERM_SHIFT = 8
    PERM_MASK = 0xF << 8
    VMSA = 1 << 16


@dataclass(frozen=True, slots=True)
class RmpEntry:
    """The entry that governs one 4 KiB page.

    For a page inside a 2 MiB entry it is that entry, `gpa` being this page's own guest physical
    address. `in_use` is the hardware's mark of a page that a running VMRUN holds (24593, 15.36.12).
    """

    assigned: bool = False
    validated: bool = False
    vmsa: bool = False
    immutable: bool = False
    in_use: bool = False
    page_size: PageSize = PageSize.SIZE_4K
    gpa: Gpa = _NO_GPA
    asid: int = 0
    permissions: tuple[Perm, Perm, Perm, Perm] = (Perm.NONE, Perm.NONE, Perm.NONE, Perm.NONE)


@dataclass(frozen=True, slots=True)
class RmpUpdate:
    """New state that RMPUPDATE takes from memory at RCX (24594, RMPUPDATE).

    `gpa` is that of the first byte of the page; its offset bits are ignored.
    """

    assigned: bool = False
    page_size: PageSize = PageSize.SIZE_4K
    immutable: bool = False
    gpa: Gpa = _NO_GPA
    asid: int = 0


class RmpQueryResult(NamedTuple):
    """Result of RMPQUERY: `code` for EAX, the rest is 0 unless that is SUCCESS."""

    code: RmpReturn
    permissions: int
    vmsa: bool
    page_size: PageSize


# Low word of a stored entry. The GPA sits in its own bits 51:12.
_ASSIGNED: Final = 1 << 0
_SIZE_2M: Final = 1 << 1
_IMMUTABLE: Final = 1 << 2
_VALIDATED: Final = 1 << 3
_VMSA: Final = 1 << 4
_GPA: Final = ((1 << 52) - 1) & ~PAGE_MASK
# High word: ASID in 31:0, then one byte of permissions per VMPL, VMPL0's lowest.
_ASID: Final = (1 << 32) - 1
_PERM_POSITION: Final = (32, 40, 48, 56)
_PERM_BYTE: Final = 0xFF

# Plain names: a look-up in an enumeration costs as much as the test it is for.
_SUCCESS: Final = RmpReturn.SUCCESS
_SIZE_4K_OPERAND: Final = int(PageSize.SIZE_4K)
_SIZE_2M_OPERAND: Final = int(PageSize.SIZE_2M)

_ALL: Final = int(Perm.ALL)
_READ: Final = int(Perm.READ)
_DATA: Final = int(Perm.READ | Perm.WRITE)
_FRESH_PERMISSIONS: Final = _ALL << _PERM_POSITION[0]
"""VMPL0 everything, the others nothing: what RMPUPDATE leaves (24593, 15.36.7)."""

_ATTR_VMPL: Final = int(RmpAttributes.TARGET_VMPL_MASK)
_ATTR_PERM: Final = int(RmpAttributes.PERM_MASK)
_ATTR_PERM_SHIFT: Final = int(RmpAttributes.PERM_SHIFT)
_ATTR_VMSA: Final = int(RmpAttributes.VMSA)
_ATTR_DEFINED: Final = _ATTR_VMPL | _ATTR_PERM | _ATTR_VMSA

_HUGE_MASK: Final = HUGE_PAGE_SIZE - 1
_HEAD: Final = ~(PAGES_PER_HUGE_PAGE - 1)
_ENTRY_SIZE: Final = 16
_REGION_SIZE: Final = PAGES_PER_HUGE_PAGE * _ENTRY_SIZE

# A region of 512 entries as one number: entry * _EVERY_ENTRY puts the same entry everywhere, adding
# _GPA_STEPS makes the GPAs consecutive. Two big-number operations instead of 512 small ones.
_EVERY_ENTRY: Final = sum(1 << (8 * _ENTRY_SIZE * i) for i in range(PAGES_PER_HUGE_PAGE))
_GPA_STEPS: Final = sum(
    (i << PAGE_SHIFT) << (8 * _ENTRY_SIZE * i) for i in range(PAGES_PER_HUGE_PAGE)
)

# Neither FINAL nor WALK: real hardware was seen to report 0xC_8000_0005 for a 4 KiB PVALIDATE on a
# 2 MiB entry (docs/access-checks.md, source K2).
_NPF_RMP: Final = int(NpfError.P | NpfError.U | NpfError.RMP | NpfError.ENC)
_NPF_SIZEM: Final = _NPF_RMP | int(NpfError.SIZEM)

_RMPUPDATE_EVENT: Final = EventClass.RMPUPDATE.bit

_PERMS: Final = tuple(Perm(mask) for mask in range(_ALL + 1))
_UNASSIGNED: Final = RmpEntry()


class Rmp:
    """The Reverse Map Table over the RAM of the machine.

    `ranges` are the SPA ranges of RAM in bytes, page aligned; a page outside is not covered by the
    RMP and belongs to the host for ever (24593, 15.36.5).

    `events` is told of RMPUPDATE; everybody who makes events has the RMP, and finds it there.

    All of `on_change` are called with (first page, number of pages) after every instruction that
    changed an entry; page numbers are SPA >> 12. They are not when one fails or changes nothing.
    """

    def __init__(
        self,
        ranges: Iterable[range],
        on_change: Callable[[int, int], None] | None = None,
        events: SnpEvents | None = None,
    ) -> None:
        self.events: Final = events or SnpEvents()
        self.on_change: Final = [] if on_change is None else [on_change]
        self._ranges = tuple(
            (r.start >> PAGE_SHIFT, r.stop >> PAGE_SHIFT) for r in ranges if r.stop > r.start
        )
        # Rounded up to whole 2 MiB regions, so that the region of the last page can be looked at.
        pages = max((stop for _, stop in self._ranges), default=0)
        regions = max(1, -(-pages // PAGES_PER_HUGE_PAGE))
        # Private, not the shared default: reading an untouched page then allocates nothing.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._table = memoryview(mmap.mmap(-1, regions * _REGION_SIZE, flags=flags))
        self._words = self._table.cast("Q")
        # Assigned 4 KiB entries of each region: a 2 MiB operand then need not look at 512 of them.
        self._assigned_4k = array("H", bytes(2 * regions))
        self._in_use: set[int] = set()
        self.history: Final = RmpHistory(regions)

    # Looking up ------------------------------------------------------------------------------

    def covers(self, page: int) -> bool:
        """Whether the RMP has an entry for the page with number `page` (SPA >> 12)."""
        for start, stop in self._ranges:  # noqa: SIM110 - any() costs three times as much
            if start <= page < stop:
                return True
        return False

    def lookup(self, spa: int) -> RmpEntry | None:
        """The entry that governs the 4 KiB page at `spa`, or None if the RMP does not cover it."""
        page = spa >> PAGE_SHIFT
        if not self.covers(page):
            return None
        index = self._index(page)
        low = self._words[index]
        in_use = page in self._in_use
        if not low & _ASSIGNED:
            return RmpEntry(in_use=True) if in_use else _UNASSIGNED
        high = self._words[index + 1]
        offset = (page << PAGE_SHIFT) & _HUGE_MASK if low & _SIZE_2M else 0
        p0, p1, p2, p3 = (_PERMS[(high >> shift) & _ALL] for shift in _PERM_POSITION)
        return RmpEntry(
            assigned=True,
            validated=bool(low & _VALIDATED),
            vmsa=bool(low & _VMSA),
            immutable=bool(low & _IMMUTABLE),
            in_use=in_use,
            page_size=PageSize.SIZE_2M if low & _SIZE_2M else PageSize.SIZE_4K,
            gpa=Gpa((low & _GPA) + offset),
            asid=high & _ASID,
            permissions=(p0, p1, p2, p3),
        )

    def runs(self) -> Iterator[tuple[int, int]]:
        """All covered pages in runs of entries that differ in their GPAs alone, which go on.

        First page and number of pages; a debugger's table is made of them.
        """
        first = count = 0
        expected: tuple[int, int] | None = None
        for page, npages, low, high in self._equal_pieces():
            if count and page == first + count and (low, high) == expected:
                count += npages
            else:
                if count:
                    yield first, count
                first, count = page, npages
            step = npages << PAGE_SHIFT if low & _ASSIGNED else 0
            expected = (low + step, high)
        if count:
            yield first, count

    def _equal_pieces(self) -> Iterator[tuple[int, int, int, int]]:
        """Page, number of pages, and the first entry: a region at once where that is possible."""
        words = self._words
        for start, stop in self._ranges:
            page = start
            while page < stop:
                low, high = words[page << 1], words[(page << 1) + 1]
                whole = not page % PAGES_PER_HUGE_PAGE and page + PAGES_PER_HUGE_PAGE <= stop
                if whole and (low & _SIZE_2M or self._is_even(page, low, high)):
                    yield page, PAGES_PER_HUGE_PAGE, low, high
                    page += PAGES_PER_HUGE_PAGE
                else:
                    yield page, 1, low, high
                    page += 1

    def _is_even(self, page: int, low: int, high: int) -> bool:
        """Whether the entries of a region are one and the same, with consecutive GPAs."""
        entry = high << 64 | low
        wanted = entry * _EVERY_ENTRY + (_GPA_STEPS if low & _ASSIGNED else 0)
        start = page * _ENTRY_SIZE
        # bytes: comparing a memoryview goes byte by byte.
        region = bytes(self._table[start : start + _REGION_SIZE])
        return region == wanted.to_bytes(_REGION_SIZE, "little")

    def permissions(
        self, page: int, vmpl: int, gpa_page: int | None = None, asid: int = GUEST_ASID
    ) -> int:
        """What `vmpl` may do with a page through a private mapping, as `Perm` bits; 0 is nothing.

        The fast path of `access.check` for whoever fills nested tables: `page` is SPA >> 12,
        `gpa_page` the GPA >> 12 it would be mapped at (None: the same number), and the mapping is
        taken to have the page size of the entry. 0 also stands for not covered, not assigned,
        another owner or GPA, immutable and not validated; `access.check` tells them apart.
        READ and WRITE are left out of a mask that has WRITE alone (24593, 15.36.7).
        """
        if not self.covers(page):
            return 0
        index = self._index(page)
        low = self._words[index]
        if low & (_ASSIGNED | _VALIDATED | _IMMUTABLE) != _ASSIGNED | _VALIDATED:
            return 0
        high = self._words[index + 1]
        if high & _ASID != asid:
            return 0
        wanted = page if gpa_page is None else gpa_page
        if low & _SIZE_2M:
            wanted -= page & ~_HEAD
        if (low & _GPA) >> PAGE_SHIFT != wanted:
            return 0
        mask = (high >> _PERM_POSITION[vmpl]) & _ALL
        return mask if mask & _READ else mask & ~_DATA

    def assigned(self, page: int) -> bool:
        """Whether the page with number `page` is assigned to a guest or the security processor."""
        return self.covers(page) and bool(self._words[self._index(page)] & _ASSIGNED)

    def contiguous(self, spa: int) -> int:
        """Bytes from `spa` to the end of the entry that governs it."""
        size = (
            HUGE_PAGE_SIZE if self._words[self._index(spa >> PAGE_SHIFT)] & _SIZE_2M else PAGE_SIZE
        )
        return size - (spa & (size - 1))

    def hypervisor_owned(self, spa: int, page_size: PageSize) -> bool:
        """The Hypervisor-Owned check of a mapping of that size (24593, 15.36.10).

        Every 4 KiB page in it has to be unassigned. Uncovered pages are the host's.
        """
        page = spa >> PAGE_SHIFT
        if not page_size:
            return not self.assigned(page)
        region = page // PAGES_PER_HUGE_PAGE
        if not 0 <= region < len(self._assigned_4k):
            return True
        return not (self._assigned_4k[region] or self._words[(page & _HEAD) << 1] & _SIZE_2M)

    # Host ------------------------------------------------------------------------------------

    def rmpupdate(self, spa: Spa, new: RmpUpdate) -> RmpReturn:
        """RMPUPDATE: gives a page to a guest or to the security processor, or takes it back.

        FAIL_INPUT: `spa` is not page aligned or, for 2 MiB, not 2 MiB aligned; not covered; or an
        unassigned state with IMMUTABLE or an ASID. FAIL_PERMISSION: the entry is immutable.
        FAIL_INUSE: a page of it is held by a running VMRUN. FAIL_OVERLAP: a 4 KiB operand inside a
        2 MiB entry, or a 2 MiB operand over assigned 4 KiB entries.

        On success VALIDATED and VMSA are clear and the permissions are everything for VMPL0 and
        nothing for the others, even if the operand repeats the state that was there.
        """
        page = spa >> PAGE_SHIFT
        huge = new.page_size
        if spa & (_HUGE_MASK if huge else PAGE_MASK):
            return RmpReturn.FAIL_INPUT
        if not new.assigned and (new.immutable or new.asid):
            return RmpReturn.FAIL_INPUT
        npages = PAGES_PER_HUGE_PAGE if huge else 1
        if not self.covers(page) or not self.covers(page + npages - 1):
            return RmpReturn.FAIL_INPUT
        index = self._index(page)
        words = self._words
        low = words[index]
        if low & _IMMUTABLE:
            return RmpReturn.FAIL_PERMISSION
        if self._in_use and self._any_in_use(page, npages):
            return RmpReturn.FAIL_INUSE
        region = page // PAGES_PER_HUGE_PAGE
        if huge:
            if self._assigned_4k[region]:
                return RmpReturn.FAIL_OVERLAP
        elif low & _SIZE_2M:
            return RmpReturn.FAIL_OVERLAP
        new_low = new_high = 0
        if new.assigned:
            new_low = new.gpa & _GPA | _ASSIGNED
            if huge:
                new_low |= _SIZE_2M
            if new.immutable:
                new_low |= _IMMUTABLE
            new_high = new.asid & _ASID | _FRESH_PERMISSIONS
        if not huge:
            self._assigned_4k[region] += (new_low & _ASSIGNED) - (low & _ASSIGNED)
        self._store(RmpChange.RMPUPDATE, index, page, npages, new_low, new_high)
        if self.events.armed & _RMPUPDATE_EVENT:
            size = PageSize(huge).nbytes
            values = {"gpa": spa, "size": size, "assigned": int(new.assigned)}
            self.events.note(EventClass.RMPUPDATE, values)
        return _SUCCESS

    def psmash(self, spa: Spa) -> RmpReturn:
        """PSMASH: splits a 2 MiB entry into 512 entries of 4 KiB with consecutive GPAs.

        All other fields are copied, VALIDATED and permissions too. FAIL_INPUT: `spa` is not 2 MiB
        aligned or not covered. FAIL_PERMISSION: immutable. FAIL_INUSE: a page of it is held by a
        running VMRUN. FAIL_BADADDR: it is not an assigned 2 MiB entry.
        """
        page = spa >> PAGE_SHIFT
        if spa & _HUGE_MASK or not self.covers(page):
            return RmpReturn.FAIL_INPUT
        index = self._index(page)
        low = self._words[index]
        if low & _IMMUTABLE:
            return RmpReturn.FAIL_PERMISSION
        if not low & _SIZE_2M:
            return RmpReturn.FAIL_BADADDR
        if self._in_use and self._any_in_use(page, PAGES_PER_HUGE_PAGE):
            return RmpReturn.FAIL_INUSE
        entry = self._words[index + 1] << 64 | (low & ~_SIZE_2M)
        start = page * _ENTRY_SIZE
        self._table[start : start + _REGION_SIZE] = (entry * _EVERY_ENTRY + _GPA_STEPS).to_bytes(
            _REGION_SIZE, "little"
        )
        self._assigned_4k[page // PAGES_PER_HUGE_PAGE] = PAGES_PER_HUGE_PAGE
        self.history.note(RmpChange.PSMASH, page, PAGES_PER_HUGE_PAGE)
        for callback in self.on_change:
            callback(page, PAGES_PER_HUGE_PAGE)
        return _SUCCESS

    # Guest -----------------------------------------------------------------------------------

    def pvalidate(
        self,
        spa: Spa,
        gpa: Gpa,
        vmpl: Vmpl,
        page_size: PageSize,
        validate: bool,
        *,
        mapping_size: PageSize | None = None,
        asid: int = GUEST_ASID,
    ) -> tuple[RmpReturn, bool]:
        """PVALIDATE after address translation: sets or clears VALIDATED. Returns (EAX, CF).

        CF is set if the entry had that state already (its value is only meaningful with SUCCESS,
        and False otherwise). `mapping_size` is that of the nested mapping, None if it is in step
        with the RMP. Nothing but VALIDATED changes.

        Raises GuestFault #GP(0) at a VMPL other than 0; NestedFault with the RMP bit if the page is
        not covered, is not the guest's at that GPA or is immutable, and with SIZEM for a 4 KiB
        operand on a 2 MiB entry or mapping. FAIL_INPUT: a 2 MiB operand that is not aligned.
        FAIL_SIZEMISMATCH: a 2 MiB operand on a 4 KiB entry or mapping. FAIL_INUSE: the page is held
        by a running VMRUN.
        """
        if vmpl != 0:
            raise GuestFault(Vector.GP, 0)
        if page_size and gpa & _HUGE_MASK:
            return RmpReturn.FAIL_INPUT, False
        index = self._checked_index(spa, gpa, asid, page_size, mapping_size)
        low = self._words[index]
        if page_size and not (low & _SIZE_2M and mapping_size != _SIZE_4K_OPERAND):
            return RmpReturn.FAIL_SIZEMISMATCH, False
        npages = PAGES_PER_HUGE_PAGE if page_size else 1
        page = spa >> PAGE_SHIFT
        if self._in_use and self._any_in_use(page, npages):
            return RmpReturn.FAIL_INUSE, False
        new_low = low | _VALIDATED if validate else low & ~_VALIDATED
        if new_low == low:
            return _SUCCESS, True
        self._store(RmpChange.PVALIDATE, index, page, npages, new_low, self._words[index + 1])
        return _SUCCESS, False

    def rmpadjust(
        self,
        spa: Spa,
        gpa: Gpa,
        vmpl: Vmpl,
        page_size: PageSize,
        attributes: int,
        *,
        mapping_size: PageSize | None = None,
        asid: int = GUEST_ASID,
    ) -> RmpReturn:
        """RMPADJUST after address translation: sets the permissions of a VMPL, and at VMPL0 VMSA.

        `vmpl` is the caller's, `attributes` is RDX (`RmpAttributes`). The VMSA bit of a caller
        other than VMPL0 is ignored. FAIL_PERMISSION: the target VMPL is not numerically greater
        than the caller's, or a permission is asked for that the caller lacks. FAIL_INPUT: a 2 MiB
        operand that is not aligned, no such VMPL, reserved attributes. FAIL_SIZEMISMATCH: a 2 MiB
        operand on a 4 KiB entry or mapping. FAIL_INUSE: the page is held by a running VMRUN.

        Raises NestedFault as `pvalidate` does, and GuestFault #VC 0x404 if the page is not
        validated.
        """
        if page_size and gpa & _HUGE_MASK:
            return RmpReturn.FAIL_INPUT
        target = attributes & _ATTR_VMPL
        if target <= vmpl:
            return RmpReturn.FAIL_PERMISSION
        if target >= NUM_VMPLS or attributes & ~_ATTR_DEFINED:
            return RmpReturn.FAIL_INPUT
        index = self._checked_index(spa, gpa, asid, page_size, mapping_size)
        low = self._words[index]
        if not low & _VALIDATED:
            raise GuestFault(Vector.VC, PAGE_NOT_VALIDATED)
        if page_size and not (low & _SIZE_2M and mapping_size != _SIZE_4K_OPERAND):
            return RmpReturn.FAIL_SIZEMISMATCH
        npages = PAGES_PER_HUGE_PAGE if page_size else 1
        page = spa >> PAGE_SHIFT
        if self._in_use and self._any_in_use(page, npages):
            return RmpReturn.FAIL_INUSE
        high = self._words[index + 1]
        wanted = (attributes & _ATTR_PERM) >> _ATTR_PERM_SHIFT
        if wanted & ~(high >> _PERM_POSITION[vmpl]):
            return RmpReturn.FAIL_PERMISSION
        shift = _PERM_POSITION[target]
        new_high = high & ~(_PERM_BYTE << shift) | wanted << shift
        new_low = low
        if vmpl == 0:
            new_low = low | _VMSA if attributes & _ATTR_VMSA else low & ~_VMSA
        self._store(RmpChange.RMPADJUST, index, page, npages, new_low, new_high)
        return _SUCCESS

    def rmpquery(
        self, spa: Spa, gpa: Gpa, vmpl: Vmpl, target: int, *, asid: int = GUEST_ASID
    ) -> RmpQueryResult:
        """RMPQUERY after address translation: permissions of `target`, VMSA bit, size of the entry.

        FAIL_PERMISSION: `target` (RDX[7:0]) is numerically smaller than the caller's `vmpl`.
        FAIL_INPUT: no such VMPL. Raises NestedFault and GuestFault #VC 0x404 as `rmpadjust` does,
        without SIZEM: the instruction has no page size operand.
        """
        if target < vmpl:
            return RmpQueryResult(RmpReturn.FAIL_PERMISSION, 0, False, PageSize.SIZE_4K)
        if target >= NUM_VMPLS:
            return RmpQueryResult(RmpReturn.FAIL_INPUT, 0, False, PageSize.SIZE_4K)
        index = self._checked_index(spa, gpa, asid, PageSize.SIZE_2M, None)
        low = self._words[index]
        if not low & _VALIDATED:
            raise GuestFault(Vector.VC, PAGE_NOT_VALIDATED)
        return RmpQueryResult(
            RmpReturn.SUCCESS,
            (self._words[index + 1] >> _PERM_POSITION[target]) & _ALL,
            bool(low & _VMSA),
            PageSize.SIZE_2M if low & _SIZE_2M else PageSize.SIZE_4K,
        )

    # Hardware and security processor ---------------------------------------------------------

    def set_in_use(self, spa: Spa, in_use: bool) -> None:
        """VMRUN marks the page (VMCB, VMSA) as held, VMEXIT clears the mark (24593, 15.36.12)."""
        page = spa >> PAGE_SHIFT
        if in_use:
            self._in_use.add(page)
        else:
            self._in_use.discard(page)

    def is_in_use(self, spa: Spa) -> bool:
        """Whether a running VMRUN holds the 4 KiB page at `spa`."""
        return spa >> PAGE_SHIFT in self._in_use

    def firmware_update(
        self,
        spa: Spa,
        *,
        validated: bool | None = None,
        immutable: bool | None = None,
        vmsa: bool | None = None,
        permissions: tuple[int, int, int, int] | None = None,
    ) -> None:
        """The security processor's own way to change the entry of an assigned page.

        It is above IMMUTABLE and in-use; None leaves a field as it is. It takes a page from the
        Pre-Guest state to Guest-Valid, and clears IMMUTABLE when a page is reclaimed (56860,
        SNP_LAUNCH_UPDATE and SNP_PAGE_RECLAIM). Raises ValueError if the page is not assigned:
        commands check the page's state first, and fail with a status code of their own.
        """
        page = spa >> PAGE_SHIFT
        if not self.assigned(page):
            raise ValueError(f"page at spa {spa:#x} is not assigned")
        index = self._index(page)
        low = self._words[index]
        high = self._words[index + 1]
        for bit, value in ((_VALIDATED, validated), (_IMMUTABLE, immutable), (_VMSA, vmsa)):
            if value is not None:
                low = low | bit if value else low & ~bit
        if permissions is not None:
            high &= _ASID
            for mask, shift in zip(permissions, _PERM_POSITION, strict=True):
                high |= (mask & _ALL) << shift
        if low & _SIZE_2M:
            self._store(RmpChange.LAUNCH, index, page & _HEAD, PAGES_PER_HUGE_PAGE, low, high)
        else:
            self._store(RmpChange.LAUNCH, index, page, 1, low, high)

    # -----------------------------------------------------------------------------------------

    def _index(self, page: int) -> int:
        """Index in words of the entry that governs a covered page."""
        head = (page & _HEAD) << 1
        return head if self._words[head] & _SIZE_2M else page << 1

    def _checked_index(
        self, spa: int, gpa: int, asid: int, page_size: PageSize, mapping_size: PageSize | None
    ) -> int:
        """Index of the entry after the RMP checks of a guest instruction, or NestedFault.

        RMP-Covered, Guest-Owned, Reverse-Map, Mutable (24593, 15.36.10) and the half of the size
        check that the host has to solve (24593, 15.36.11).
        """
        page = spa >> PAGE_SHIFT
        if not self.covers(page):
            raise NestedFault(gpa, _NPF_RMP, "RI-20")
        index = self._index(page)
        low = self._words[index]
        if not low & _ASSIGNED:
            raise NestedFault(gpa, _NPF_RMP, "RI-21")
        if self._words[index + 1] & _ASID != asid:
            raise NestedFault(gpa, _NPF_RMP, "RI-22")
        offset = (page << PAGE_SHIFT) & _HUGE_MASK if low & _SIZE_2M else 0
        if (low & _GPA) + offset != gpa & ~PAGE_MASK:
            raise NestedFault(gpa, _NPF_RMP, "RI-23")
        if low & _IMMUTABLE:
            raise NestedFault(gpa, _NPF_RMP, "RI-24")
        if not page_size and (low & _SIZE_2M or mapping_size == _SIZE_2M_OPERAND):
            raise NestedFault(gpa, _NPF_SIZEM, "RI-25")
        return index

    def _any_in_use(self, page: int, npages: int) -> bool:
        return any(page <= held < page + npages for held in self._in_use)

    def _store(
        self, change: RmpChange, index: int, page: int, npages: int, low: int, high: int
    ) -> None:
        words = self._words
        if words[index] == low and words[index + 1] == high:
            return
        words[index] = low
        words[index + 1] = high
        self.history.note(change, page, npages)
        for callback in self.on_change:
            callback(page, npages)
