# SPDX-License-Identifier: MIT
"""The user half of a process: what is mapped where, and the pages that have been touched.

Theory of operation. Regions say what may be at an address; a page gets memory when it is first
touched, by the process (a #PF at CPL 3) or by the core on its behalf. Only then it counts against
the process' quota, and only there it can be refused: with ENOMEM to the core, with the end of the
process at CPL 3. The truth about pages is in the page tables; regions are the core's own notes.

A process has one thread, so its tables are loaded on one CPU at most: the one that runs it.

Spec: 24593, 8.2.15 (#PF error code).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Final, Protocol

from svsmd.core.access import load_own, store_own
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.page_entry import PageFlags
from svsmd.core.paging.page_table import PageTable
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa

USER_START: Final = 0x1_0000
"""Lowest address that may be mapped: a null pointer plus something stays a fault."""
USER_END: Final = 0x7F_FFFF_0000
"""One slot of the PML4, without its end: the address behind any code is canonical."""
MMAP_TOP: Final = 0x70_0000_0000
"""Where the core places mappings by itself, downwards."""
STACK_TOP: Final = USER_END
STACK_LIMIT: Final = 1 << 20
"""Bytes to which a stack may grow."""
REGIONS_MAX: Final = 256

_PF_PRESENT: Final = 1 << 0
_PF_WRITE: Final = 1 << 1
_PF_FETCH: Final = 1 << 4


class Access(IntFlag):
    """What a region allows; PROT_READ, PROT_WRITE and PROT_EXEC of mmap()."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXECUTE = 4


class Backing(Protocol):
    """Where the pages of a region come from."""

    shared: bool
    """Whether `page` gives the object's own pages (with a reference for each) or contents only."""

    def page(self, cpu: PerCpu, index: int, /) -> Gpa | bytes:
        """Page number `index`: itself, or the bytes that a fresh one begins with."""
        ...

    def get(self) -> None:
        """One region more uses it."""
        ...

    def put(self, cpu: PerCpu, /) -> None:
        """One region less."""
        ...


class Anonymous:
    """Zeros."""

    shared = False

    def page(self, _cpu: PerCpu, _index: int) -> bytes:
        """Nothing but zeros."""
        return b""

    def get(self) -> None:
        """Nothing to count."""

    def put(self, _cpu: PerCpu) -> None:
        """Nothing to count."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Private copies of bytes: a segment of an executable, or a file mapped MAP_PRIVATE."""

    data: bytes
    shared = False

    def page(self, _cpu: PerCpu, index: int) -> bytes:
        """What is there of them; the rest of the page is zero."""
        return self.data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]

    def get(self) -> None:
        """Nothing to count."""

    def put(self, _cpu: PerCpu) -> None:
        """Nothing to count."""


ANONYMOUS: Final = Anonymous()


@dataclass(frozen=True, slots=True)
class Region:
    """Addresses [start, stop), in whole pages; `first` is the page of the backing at `start`."""

    start: int
    stop: int
    access: Access
    backing: Backing
    first: int = 0

    def continues(self, below: Region) -> bool:
        """Whether it is no more than what lies below it goes on with."""
        return (
            below.stop == self.start
            and below.backing is self.backing is ANONYMOUS
            and below.access == self.access
        )


@dataclass(slots=True)
class Quota:
    """Pages that a process may have: those of its address space, page tables included, and those
    that the core sets aside for what it has made, for as long as that lives."""

    limit: int
    used: int = 0

    def charge(self, npages: int) -> None:
        """Count pages that the core sets aside for the process. Fails with ENOMEM."""
        if self.used + npages > self.limit:
            raise CallFailed(Errno.ENOMEM)
        self.used += npages

    def refund(self, npages: int) -> None:
        """They do not count any more."""
        self.used -= npages


class AddressSpace:
    """The user half of one process.

    Raises:
        OutOfMemory: there is no page for its top table.
    """

    def __init__(self, cpu: PerCpu, pages: PageAllocator, quota: Quota) -> None:
        self._pages = pages
        self.quota: Final = quota
        self.table: Final = PageTable(cpu, pages, levels=3)
        self._regions: list[Region] = []
        self._npages = self._counted = 0
        self._count_pages(0)

    def _count_pages(self, more: int) -> None:
        self._npages += more
        self._count(self._npages + self.table.tables)

    def _count(self, npages: int) -> None:
        """Let the quota know what is in use here; others count there, too."""
        self.quota.used += npages - self._counted
        self._counted = npages

    @property
    def regions(self) -> tuple[Region, ...]:
        """Ascending."""
        return tuple(self._regions)

    # Mapping ---------------------------------------------------------------------------------

    def map(
        self,
        cpu: PerCpu,
        start: int | None,
        nbytes: int,
        access: Access,
        backing: Backing = ANONYMOUS,
        first: int = 0,
        *,
        replace_old: bool = False,
    ) -> int:
        """Map whole pages at `start`, or where there is room; returns where.

        Fails with EINVAL (nothing of the user half, or writable and executable), EACCES (shared and
        executable: another process may write there), EEXIST, ENOMEM (no room, or too many regions).
        """
        size = (nbytes + PAGE_MASK) & ~PAGE_MASK
        if nbytes <= 0 or access & (Access.WRITE | Access.EXECUTE) == Access.WRITE | Access.EXECUTE:
            raise CallFailed(Errno.EINVAL)
        if backing.shared and access & Access.EXECUTE:
            raise CallFailed(Errno.EACCES)
        if start is None:
            start = self._find_room(size)
        if start & PAGE_MASK or start < USER_START or start + size > USER_END:
            raise CallFailed(Errno.EINVAL)
        if replace_old:
            self.unmap(cpu, start, size)
        elif any(r.start < start + size and start < r.stop for r in self._regions):
            raise CallFailed(Errno.EEXIST)
        if len(self._regions) >= REGIONS_MAX:
            raise CallFailed(Errno.ENOMEM)
        backing.get()
        region = Region(start, start + size, access, backing, first)
        bisect.insort(self._regions, region, key=lambda r: r.start)
        self._join()
        return start

    def _join(self) -> None:
        """Make one region of zeros of neighbours that differ in nothing."""
        joined: list[Region] = []
        for region in self._regions:
            if joined and region.continues(joined[-1]):
                region = replace(joined.pop(), stop=region.stop)
            joined.append(region)
        self._regions = joined

    def _find_room(self, size: int) -> int:
        top = MMAP_TOP
        for region in reversed(self._regions):
            if region.start >= top:
                continue
            # One page stays free between neighbours: who runs over the end of one hits nothing.
            if region.stop + PAGE_SIZE + size <= top:
                break
            top = min(top, region.start - PAGE_SIZE)
        if top - size < USER_START:
            raise CallFailed(Errno.ENOMEM)
        return top - size

    def unmap(self, cpu: PerCpu, start: int, nbytes: int) -> None:
        """Unmap whole pages; what is not mapped stays so. Fails with EINVAL, ENOMEM (regions)."""
        stop = self._check_range(start, nbytes)
        inside = self._split(cpu, start, stop)
        for region in inside:
            self._regions.remove(region)
            self._drop_pages(cpu, region)
            region.backing.put(cpu)

    def protect(self, cpu: PerCpu, start: int, nbytes: int, access: Access) -> None:
        """Change what whole pages allow.

        Fails with EINVAL, EACCES (as `map`), ENOMEM (not all of it is mapped).
        """
        stop = self._check_range(start, nbytes)
        if access & (Access.WRITE | Access.EXECUTE) == Access.WRITE | Access.EXECUTE:
            raise CallFailed(Errno.EINVAL)
        found = [r for r in self._regions if r.start < stop and start < r.stop]
        if sum(min(r.stop, stop) - max(r.start, start) for r in found) != stop - start:
            raise CallFailed(Errno.ENOMEM)
        if access & Access.EXECUTE and any(r.backing.shared for r in found):
            raise CallFailed(Errno.EACCES)
        for region in self._split(cpu, start, stop):
            self._regions[self._regions.index(region)] = replace(region, access=access)
            for page in self.table.leaves(cpu, region.start, region.stop):
                self.table.protect(cpu, page, _page_flags(access))
                cpu.port.invlpg(page)
        self._join()

    @staticmethod
    def _check_range(start: int, nbytes: int) -> int:
        stop = start + ((nbytes + PAGE_MASK) & ~PAGE_MASK)
        if nbytes <= 0 or start & PAGE_MASK or start < USER_START or stop > USER_END:
            raise CallFailed(Errno.EINVAL)
        return stop

    def _split(self, cpu: PerCpu, start: int, stop: int) -> list[Region]:
        """Cut regions at both ends of a range; returns those inside it."""
        for cut in (start, stop):
            for index, r in enumerate(self._regions):
                if r.start < cut < r.stop:
                    if len(self._regions) >= REGIONS_MAX:
                        raise CallFailed(Errno.ENOMEM)
                    upper = replace(r, start=cut, first=r.first + (cut - r.start) // PAGE_SIZE)
                    self._regions[index : index + 1] = [replace(r, stop=cut), upper]
                    r.backing.get()
                    break
        return [r for r in self._regions if start <= r.start and r.stop <= stop]

    def _drop_pages(self, cpu: PerCpu, region: Region) -> None:
        for page in self.table.leaves(cpu, region.start, region.stop):
            self._drop_page(cpu, page)

    def _drop_page(self, cpu: PerCpu, page: int) -> None:
        gpa = self.table.unmap(cpu, page).gpa
        cpu.port.invlpg(page)
        self._pages.put(cpu, Gpa(gpa))
        self._count_pages(-1)

    def free(self, cpu: PerCpu) -> None:
        """Give everything back; the tables must not be loaded any more."""
        for region in self._regions:
            self._drop_pages(cpu, region)
            region.backing.put(cpu)
        self._regions.clear()
        self.table.free(cpu)
        self._count(0)

    # Pages -----------------------------------------------------------------------------------

    def region_at(self, address: int) -> Region | None:
        """The region that an address lies in."""
        index = bisect.bisect_right(self._regions, address, key=lambda r: r.start) - 1
        if index >= 0 and address < self._regions[index].stop:
            return self._regions[index]
        return None

    def untouched(self, page: int) -> bytes | None:
        """What a page that nobody has touched begins with, zeros behind it; for debuggers.

        None if nothing may be accessed there, or the page is an object's own.
        """
        region = self.region_at(page)
        if region is None or not region.access:
            return None
        index = region.first + (page - region.start) // PAGE_SIZE
        match region.backing:
            case Contents(data):
                return data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            case Anonymous():
                return b""
            case _:
                return None

    def fault(self, cpu: PerCpu, address: int, error_code: int) -> None:
        """A #PF at CPL 3: after this the access may be tried again. Fails with EFAULT, ENOMEM."""
        wanted = Access.WRITE if error_code & _PF_WRITE else Access.READ
        if error_code & _PF_FETCH:
            wanted = Access.EXECUTE
        if error_code & _PF_PRESENT:
            raise CallFailed(Errno.EFAULT)
        self._touch(cpu, address, wanted, make=True)

    def _touch(self, cpu: PerCpu, address: int, wanted: Access, make: bool) -> Gpa:
        """The GPA of the page of an address, which is made if it may. EFAULT or ENOMEM."""
        region = self.region_at(address)
        # What may be executed or written can be read too: x86 has no other pages.
        if wanted is Access.READ:
            wanted = Access.READ | Access.WRITE | Access.EXECUTE
        if region is None or not region.access & wanted:
            raise CallFailed(Errno.EFAULT)
        page = address & ~PAGE_MASK
        mapping = self.table.lookup(cpu, page)
        if mapping is not None:
            return Gpa(mapping.gpa)
        if not make:
            raise CallFailed(Errno.EFAULT)
        if self.quota.used >= self.quota.limit:
            raise CallFailed(Errno.ENOMEM)
        try:
            gpa = self._make_page(cpu, region, page)
        except OutOfMemory:
            raise CallFailed(Errno.ENOMEM) from None
        self._count_pages(+1)
        if self.quota.used > self.quota.limit:  # by its tables
            self._drop_page(cpu, page)
            raise CallFailed(Errno.ENOMEM)
        return gpa

    def _make_page(self, cpu: PerCpu, region: Region, page: int) -> Gpa:
        found = region.backing.page(cpu, region.first + (page - region.start) // PAGE_SIZE)
        if isinstance(found, bytes):
            gpa = self._pages.allocate(cpu, kind=PageKind.PROCESS)
            if found:
                store_own(cpu, gpa, found)
        else:
            gpa = found
            self._pages.get(cpu, gpa)
        try:
            self.table.map(cpu, page, gpa, _page_flags(region.access))
        except OutOfMemory:
            self._pages.put(cpu, gpa)
            raise
        return gpa

    # Access on behalf of the process ---------------------------------------------------------

    def read(self, cpu: PerCpu, address: int, nbytes: int) -> bytes:
        """What the process would read. Fails with EFAULT, ENOMEM."""
        spans = self._spans(cpu, address, nbytes, Access.READ)
        return b"".join(load_own(cpu, gpa, size) for gpa, size in spans)

    def peek(self, cpu: PerCpu, address: int, nbytes: int) -> bytes | None:
        """What the process would read, if all of its pages are there; none is made."""
        try:
            spans = list(self._spans(cpu, address, nbytes, Access.READ, make=False))
        except CallFailed:
            return None
        return b"".join(load_own(cpu, gpa, size) for gpa, size in spans)

    def write(self, cpu: PerCpu, address: int, data: bytes) -> None:
        """Write as the process could. Fails with EFAULT, ENOMEM; then nothing is written."""
        done = 0
        for gpa, size in list(self._spans(cpu, address, len(data), Access.WRITE)):
            store_own(cpu, gpa, data[done : done + size])
            done += size

    def check_writable(self, cpu: PerCpu, address: int, nbytes: int) -> None:
        """Fails as `write` would; a `write` of so much that comes before CPL 3 runs does not."""
        for _ in self._spans(cpu, address, nbytes, Access.WRITE):
            pass

    def read_string(self, cpu: PerCpu, address: int, limit: int) -> bytes:
        """Bytes up to a zero, of at most `limit`. Fails with EFAULT, ENOMEM, ENAMETOOLONG."""
        text = b""
        while len(text) <= limit:
            size = min(PAGE_SIZE - (address & PAGE_MASK), limit + 1 - len(text))
            piece, zero, _ = self.read(cpu, address, size).partition(b"\0")
            text += piece
            if zero:
                return text
            address += size
        raise CallFailed(Errno.ENAMETOOLONG)

    def _spans(
        self, cpu: PerCpu, address: int, nbytes: int, wanted: Access, make: bool = True
    ) -> Iterator[tuple[Gpa, int]]:
        """GPA and size of each piece of a range that the process may access so."""
        if nbytes < 0 or address < USER_START or address + nbytes > USER_END:
            raise CallFailed(Errno.EFAULT)
        while nbytes:
            size = min(nbytes, PAGE_SIZE - (address & PAGE_MASK))
            gpa = self._touch(cpu, address, wanted, make)
            yield Gpa(gpa + (address & PAGE_MASK)), size
            address += size
            nbytes -= size


def _page_flags(access: Access) -> PageFlags:
    """The leaf of a page. Without any access it stays, but as a page of CPL 0."""
    flags = PageFlags.READ
    if access:
        flags |= PageFlags.USER
    if access & Access.WRITE:
        flags |= PageFlags.WRITE
    if access & Access.EXECUTE:
        flags |= PageFlags.EXECUTE
    return flags
