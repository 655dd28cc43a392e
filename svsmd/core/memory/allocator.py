# SPDX-License-Identifier: MIT
"""The page allocator: blocks of 2**order pages out of the SVSM's region and the guest's deposits.

A buddy allocator. Its lists and counts lie in the SVSM's memory (`page_info.py`), where a debugger
finds them; this object holds where they are. There are two pools with lists of their own: the
region, and pages that the guest has deposited (SVSM_CORE_DEPOSIT_MEM) and may take back as long as
they are free. The second is used when the first has nothing left, and only for what can go away
again: whatever lives as long as the SVSM comes from the region.

To free what is not allocated is a bug of the SVSM, and a panic. To find nothing is not: the caller
gets OutOfMemory, and nothing has changed.

Spec: none for the method; 58019 (SVSM), 6.5 and 6.6, for deposits. A VMSA must not begin at a
multiple of 2 MiB: an erratum of real parts that COCONUT-SVSM and Linux step round too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from svsmd.core.access import load_own, store_own, zero_own
from svsmd.core.gate import SvsmPanic
from svsmd.core.memory.page_info import (
    ENTRY_SIZE,
    FIXED_KINDS,
    FREE_KINDS,
    MAX_ORDER,
    NEXT_OFFSET,
    NO_FRAME,
    POISON,
    PREV_OFFSET,
    SECTION_PAGES,
    SECTION_SHIFT,
    SECTION_SIZE,
    AllocatorHeader,
    PageFlag,
    PageInfo,
    PageKind,
)
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa

_POISONED_PAGE: Final = bytes([POISON]) * PAGE_SIZE

_FROM_DEPOSITS: Final = frozenset(
    {PageKind.ANONYMOUS, PageKind.PAGE_TABLE, PageKind.PROCESS, PageKind.FILE}
)
"""Kinds that may come from the guest's deposits."""


class OutOfMemory(Exception):
    """There is no free block of that size; `npages` is what was asked for."""

    def __init__(self, npages: int) -> None:
        super().__init__(f"{npages} pages are not to be had")
        self.npages: Final = npages


class Pool(IntEnum):
    """Where a page belongs when it is free."""

    REGION = 0
    DEPOSITS = 1

    @property
    def free_kind(self) -> PageKind:
        """The kind of its free pages."""
        return PageKind.DEPOSITED if self is Pool.DEPOSITS else PageKind.FREE


@dataclass(frozen=True, slots=True)
class AllocatorStatistics:
    """Counts in pages, unless their name says otherwise.

    Attributes:
        total: all of the SVSM's memory, deposits included.
        free: free in either pool.
        promised: free ones of the region that are kept for the validation bitmap.
        deposited: all that the guest has deposited.
        withdrawable: those of them that it may take back now.
        free_blocks: free blocks of both pools, by order.
        by_kind: pages of each kind that there is.
        failures: how often there was nothing to be had.
    """

    total: int
    free: int
    promised: int
    deposited: int
    withdrawable: int
    free_blocks: tuple[int, ...]
    by_kind: Mapping[PageKind, int]
    failures: int


@dataclass(slots=True)
class _Section:
    """One MiB: where its page information lies, its pool, and a bit for each page it has."""

    info: Gpa
    pool: Pool
    present: int = field(default=(1 << SECTION_PAGES) - 1)


class PageAllocator:
    """All pages of `region`, which begins and ends at a multiple of 1 MiB.

    `reserved` are the parts of it in use already. The page information goes to `info`, inside the
    region: `info_nbytes` of them, zero. With `poison` freed pages are filled, and looked at when
    they are allocated again.
    """

    def __init__(
        self,
        cpu: PerCpu,
        region: range,
        reserved: Iterable[range],
        info: Gpa,
        *,
        poison: bool = False,
    ) -> None:
        if region.start % SECTION_SIZE or region.stop % SECTION_SIZE or info & PAGE_MASK:
            raise ValueError(f"{region} is no region of whole MiB")
        self.region: Final = region
        self._info: Final = info
        self.poison: Final = poison
        self._sections: dict[int, _Section] = {}
        self._idle: dict[int, None] = {}
        """Sections of deposits that have nothing but their page information left."""
        self._header: Final = AllocatorHeader()
        header = self._header
        header.magic, header.region_base = AllocatorHeader.MAGIC, region.start
        header.region_pages = len(region) >> PAGE_SHIFT
        self._build(cpu, reserved)

    @staticmethod
    def info_nbytes(region: range) -> int:
        """Bytes of page information for a region: the header's page, and one for each MiB."""
        return (1 + (len(region) >> SECTION_SHIFT)) * PAGE_SIZE

    def _build(self, cpu: PerCpu, reserved: Iterable[range]) -> None:
        """Write the page information of the region, a page at a time, and the header."""
        own = range(self._info, self._info + self.info_nbytes(self.region))
        if own.start < self.region.start or own.stop > self.region.stop:
            raise ValueError("the page information does not lie in the region")
        first = self.region.start >> PAGE_SHIFT
        kinds = [PageKind.FREE] * self._header.region_pages
        for kind, ranges in ((PageKind.RESERVED, reserved), (PageKind.PAGE_INFO, [own])):
            for taken in ranges:
                for frame in range(taken.start >> PAGE_SHIFT, -(-taken.stop >> PAGE_SHIFT)):
                    kinds[frame - first] = kind
        blocks = _free_blocks(first, kinds)
        lists: dict[int, list[int]] = {}
        for frame, order in blocks.items():
            lists.setdefault(order, []).append(frame)
        neighbours: dict[int, tuple[int, int]] = {}
        for order in range(MAX_ORDER + 1):
            frames = [NO_FRAME, *lists.get(order, []), NO_FRAME]
            self._header.heads[Pool.REGION][order] = frames[1]
            self._header.heads[Pool.DEPOSITS][order] = NO_FRAME
            self._header.blocks[Pool.REGION][order] = len(frames) - 2
            for before, frame, after in zip(frames, frames[1:], frames[2:], strict=False):
                neighbours[frame] = (after, before)
        entries: list[PageInfo] = []
        for frame, kind in enumerate(kinds, first):
            self._header.pages_of_kind[kind] += 1
            if frame in blocks:
                entries.append(PageInfo(kind, blocks[frame], 0, 0, *neighbours[frame]))
            elif kind is PageKind.FREE:
                entries.append(PageInfo(kind, 0, PageFlag.TAIL))
            else:
                entries.append(PageInfo(kind, 0, 0, 1))
        for index in range(0, len(entries), SECTION_PAGES):
            where = Gpa(self._info + PAGE_SIZE + index * ENTRY_SIZE)
            store_own(cpu, where, PageInfo.pack_all(entries[index : index + SECTION_PAGES]))
            self._sections[(first + index) >> MAX_ORDER] = _Section(where, Pool.REGION)
        self._store_header(cpu)

    # What callers use ------------------------------------------------------------------------

    def allocate(self, cpu: PerCpu, order: int = 0, kind: PageKind = PageKind.ANONYMOUS) -> Gpa:
        """2**order adjoining pages, aligned to their size, zero, with one reference.

        Raises OutOfMemory, and ValueError for what nobody may ask for: a VMSA of several pages, or
        a kind that is not allocated.
        """
        if not 0 <= order <= MAX_ORDER or kind in FIXED_KINDS:
            raise ValueError(f"cannot allocate order {order}, kind {kind!r}")
        if kind is PageKind.VMSA and order:
            raise ValueError("a VMSA is one page")
        pool = self._pool_for(order, kind)
        frame = None
        if pool is not None:
            avoid = HUGE_PAGE_SIZE if kind is PageKind.VMSA else 0
            frame = self._take(cpu, pool, order, avoid)
        if frame is None:
            self._header.failures += 1
            self._store_header(cpu)
            raise OutOfMemory(1 << order)
        self._prepare(cpu, frame, order)
        tails = [PageInfo(kind, order, PageFlag.TAIL)] * ((1 << order) - 1)
        self._store(cpu, frame, PageInfo(kind, order, PageFlag.NONE, 1), *tails)
        self._count(kind, order, 1)
        if kind is PageKind.VALIDATION:
            self._header.promised_pages -= min(1 << order, self._header.promised_pages)
        self._store_header(cpu)
        return Gpa(frame << PAGE_SHIFT)

    def get(self, cpu: PerCpu, gpa: Gpa) -> None:
        """One reference more to an allocation."""
        frame, info = self._allocated(cpu, gpa)
        self._store(cpu, frame, info._replace(references=info.references + 1))

    def put(self, cpu: PerCpu, gpa: Gpa) -> bool:
        """One reference less; returns whether it was the last one, and the allocation is free."""
        frame, info = self._allocated(cpu, gpa)
        if info.references > 1:
            self._store(cpu, frame, info._replace(references=info.references - 1))
            return False
        self._release(cpu, frame, info)
        return True

    def free(self, cpu: PerCpu, gpa: Gpa) -> None:
        """Free an allocation that has one reference."""
        frame, info = self._allocated(cpu, gpa)
        if info.references != 1:
            raise SvsmPanic(f"page {gpa:#x} is freed, and has {info.references} references")
        self._release(cpu, frame, info)

    def release(self, cpu: PerCpu, pages: range) -> None:
        """Reserved pages of the region, which nobody needs any more, are free from now on."""
        for frame in range(pages.start >> PAGE_SHIFT, pages.stop >> PAGE_SHIFT):
            if self._load(cpu, frame).kind != PageKind.RESERVED:
                raise SvsmPanic(f"page {frame << PAGE_SHIFT:#x} was not reserved")
            self._count(PageKind.RESERVED, 0, -1)
            self._free_block(cpu, frame, 0)
        self._store_header(cpu)

    def kind_of(self, cpu: PerCpu, gpa: Gpa) -> PageKind:
        """The kind of the page that `gpa` lies in; ABSENT if it is none of the SVSM's."""
        frame = gpa >> PAGE_SHIFT
        if frame >> MAX_ORDER not in self._sections:
            return PageKind.ABSENT
        return PageKind(self._load(cpu, frame).kind)

    def references(self, cpu: PerCpu, gpa: Gpa) -> int:
        """How many references an allocation has."""
        return self._allocated(cpu, gpa)[1].references

    def promise(self, cpu: PerCpu, npages: int) -> None:
        """Keep pages of the region for the validation bitmap, so that it never finds none.

        Raises OutOfMemory.
        """
        if self._free_pages(Pool.REGION) < self._header.promised_pages + npages:
            raise OutOfMemory(npages)
        self._header.promised_pages += npages
        self._store_header(cpu)

    def statistics(self) -> AllocatorStatistics:
        """How things are now."""
        header = self._header
        return AllocatorStatistics(
            total=header.region_pages + header.deposited_pages,
            free=sum(map(self._free_pages, Pool)),
            promised=header.promised_pages,
            deposited=header.deposited_pages,
            withdrawable=self.withdrawable,
            free_blocks=tuple(
                sum(header.blocks[pool][order] for pool in Pool) for order in range(MAX_ORDER + 1)
            ),
            by_kind={kind: n for kind in PageKind if (n := header.pages_of_kind[kind])},
            failures=header.failures,
        )

    # Deposits --------------------------------------------------------------------------------

    def deposit(self, cpu: PerCpu, gpa: Gpa) -> None:
        """Take a page of the guest that no VMPL but VMPL0 can reach any more.

        The first one of a MiB holds the page information of that MiB, so a deposit never costs
        memory that the SVSM had before.
        """
        frame = gpa >> PAGE_SHIFT
        number, bit = frame >> MAX_ORDER, 1 << (frame & (SECTION_PAGES - 1))
        section = self._sections.get(number)
        if section is None:
            zero_own(cpu, gpa, PAGE_SIZE)
            self._sections[number] = _Section(gpa, Pool.DEPOSITS, bit)
            self._idle[number] = None
            self._store(cpu, frame, PageInfo(PageKind.PAGE_INFO, references=1))
            self._count(PageKind.PAGE_INFO, 0, 1)
        elif section.present & bit:
            raise SvsmPanic(f"page {gpa:#x} is deposited, and is the SVSM's already")
        else:
            section.present |= bit
            self._idle.pop(number, None)
            self._free_block(cpu, frame, 0)
        self._header.deposited_pages += 1
        self._store_header(cpu)

    def withdraw(self, cpu: PerCpu) -> Gpa | None:
        """Give up a deposited page that is free, zeroed; None if there is none."""
        if self._idle:
            number, _ = self._idle.popitem()
            gpa = self._sections.pop(number).info
            self._count(PageKind.PAGE_INFO, 0, -1)
        else:
            frame = self._take(cpu, Pool.DEPOSITS, 0)
            if frame is None:
                return None
            self._check_poison(cpu, frame, self._load(cpu, frame))
            self._store(cpu, frame, PageInfo())
            gpa = Gpa(frame << PAGE_SHIFT)
            section = self._sections[frame >> MAX_ORDER]
            section.present &= ~(1 << (frame & (SECTION_PAGES - 1)))
            if section.present & (section.present - 1) == 0:
                self._idle[frame >> MAX_ORDER] = None
        zero_own(cpu, gpa, PAGE_SIZE)
        self._header.deposited_pages -= 1
        self._store_header(cpu)
        return gpa

    @property
    def deposited(self) -> int:
        """How many pages the guest has deposited and not taken back."""
        return int(self._header.deposited_pages)

    @property
    def withdrawable(self) -> int:
        """How many deposited pages `withdraw` would give up one after the other, at least."""
        return self._free_pages(Pool.DEPOSITS) + len(self._idle)

    def has_deposited(self, gpa: int, nbytes: int) -> bool:
        """Whether a page of this range is a deposited one."""
        first, last = gpa >> PAGE_SHIFT, (gpa + nbytes - 1) >> PAGE_SHIFT
        for number in range(first >> MAX_ORDER, (last >> MAX_ORDER) + 1):
            section = self._sections.get(number)
            if section is None or section.pool is not Pool.DEPOSITS:
                continue
            base = number << MAX_ORDER
            low, high = max(first - base, 0), min(last - base, SECTION_PAGES - 1)
            if section.present >> low & ((1 << (high - low + 1)) - 1):
                return True
        return False

    # Blocks ----------------------------------------------------------------------------------

    def _pool_for(self, order: int, kind: PageKind) -> Pool | None:
        promised = 0 if kind is PageKind.VALIDATION else self._header.promised_pages
        if self._has_block(Pool.REGION, order) and (
            self._free_pages(Pool.REGION) - (1 << order) >= promised
        ):
            return Pool.REGION
        if kind in _FROM_DEPOSITS and self._has_block(Pool.DEPOSITS, order):
            return Pool.DEPOSITS
        return None

    def _has_block(self, pool: Pool, order: int) -> bool:
        return any(self._header.blocks[pool][order:])

    def _free_pages(self, pool: Pool) -> int:
        return int(self._header.pages_of_kind[pool.free_kind])

    def _take(self, cpu: PerCpu, pool: Pool, order: int, avoid: int = 0) -> int | None:
        """Cut a block off the lists; not one that begins at a multiple of `avoid` bytes."""
        heads = self._header.heads[pool]
        for found in range(order, MAX_ORDER + 1):
            frame = int(heads[found])
            while found == order and frame != NO_FRAME and _is_multiple(frame, avoid):
                frame = self._load(cpu, frame).next
            if frame == NO_FRAME:
                continue
            self._unlink(cpu, pool, frame, self._load(cpu, frame))
            for half in range(found - 1, order - 1, -1):
                upper = frame + (1 << half)
                if _is_multiple(frame, avoid):
                    # What is wanted comes from the upper half then.
                    frame, upper = upper, frame
                self._link(cpu, pool, upper, half)
            self._count(pool.free_kind, order, -1)
            return frame
        return None

    def _release(self, cpu: PerCpu, frame: int, info: PageInfo) -> None:
        self._count(PageKind(info.kind), info.order, -1)
        if info.kind == PageKind.VALIDATION:
            self._header.promised_pages += 1 << info.order
        self._free_block(cpu, frame, info.order)
        self._store_header(cpu)

    def _free_block(self, cpu: PerCpu, frame: int, order: int) -> None:
        """Put a block on the lists, merged with its buddy as often as that is free."""
        pool = self._sections[frame >> MAX_ORDER].pool
        kind = pool.free_kind
        flags = PageFlag.TAIL
        if self.poison:
            flags |= PageFlag.POISONED
            store_own(cpu, frame << PAGE_SHIFT, _POISONED_PAGE * (1 << order))
        self._store(cpu, frame, *[PageInfo(kind, 0, flags)] * (1 << order))
        self._count(kind, order, 1)
        while order < MAX_ORDER:
            buddy = frame ^ 1 << order
            info = self._load(cpu, buddy)
            if info.kind != kind or info.order != order or info.flags & PageFlag.TAIL:
                break
            self._unlink(cpu, pool, buddy, info)
            frame &= ~(1 << order)
            order += 1
        self._link(cpu, pool, frame, order)

    def _link(self, cpu: PerCpu, pool: Pool, frame: int, order: int) -> None:
        """Make a page the first one of a free block, at the front of its list."""
        heads = self._header.heads[pool]
        after = int(heads[order])
        flags = self._load(cpu, frame).flags & ~PageFlag.TAIL
        self._store(cpu, frame, PageInfo(pool.free_kind, order, flags, 0, after, NO_FRAME))
        if after != NO_FRAME:
            self._store_link(cpu, after, PREV_OFFSET, frame)
        heads[order] = frame
        self._header.blocks[pool][order] += 1

    def _unlink(self, cpu: PerCpu, pool: Pool, frame: int, info: PageInfo) -> None:
        """Take a free block off its list; its first page is one like the others then."""
        if info.prev == NO_FRAME:
            self._header.heads[pool][info.order] = info.next
        else:
            self._store_link(cpu, info.prev, NEXT_OFFSET, info.next)
        if info.next != NO_FRAME:
            self._store_link(cpu, info.next, PREV_OFFSET, info.prev)
        self._header.blocks[pool][info.order] -= 1
        self._store(cpu, frame, PageInfo(info.kind, 0, info.flags | PageFlag.TAIL))

    def _prepare(self, cpu: PerCpu, frame: int, order: int) -> None:
        """Look for poison that somebody has written to, and make a block zero."""
        if self.poison:
            raw = load_own(cpu, self._entry(frame), ENTRY_SIZE << order)
            for page, info in enumerate(PageInfo.unpack_all(raw), frame):
                self._check_poison(cpu, page, info)
        zero_own(cpu, frame << PAGE_SHIFT, PAGE_SIZE << order)

    def _check_poison(self, cpu: PerCpu, frame: int, info: PageInfo) -> None:
        if not info.flags & PageFlag.POISONED:
            return
        gpa = frame << PAGE_SHIFT
        data = load_own(cpu, gpa, PAGE_SIZE)
        if data != _POISONED_PAGE:
            offset = next(i for i, byte in enumerate(data) if byte != POISON)
            raise SvsmPanic(f"page {gpa:#x} was written to at {offset:#x} after it was freed")

    def _allocated(self, cpu: PerCpu, gpa: int) -> tuple[int, PageInfo]:
        """Frame and entry of an allocation; panics if there is none."""
        frame = gpa >> PAGE_SHIFT
        if gpa & PAGE_MASK or frame >> MAX_ORDER not in self._sections:
            raise SvsmPanic(f"{gpa:#x} is no page of the SVSM")
        info = self._load(cpu, frame)
        if info.kind in FREE_KINDS:
            raise SvsmPanic(f"page {gpa:#x} is free already")
        if info.kind in FIXED_KINDS or info.flags & PageFlag.TAIL or not info.references:
            raise SvsmPanic(f"page {gpa:#x} was not allocated")
        return frame, info

    # Page information ------------------------------------------------------------------------

    def _entry(self, frame: int) -> int:
        section = self._sections[frame >> MAX_ORDER]
        return section.info + (frame & (SECTION_PAGES - 1)) * ENTRY_SIZE

    def _load(self, cpu: PerCpu, frame: int) -> PageInfo:
        return PageInfo.unpack(load_own(cpu, self._entry(frame), ENTRY_SIZE))

    def _store(self, cpu: PerCpu, frame: int, *entries: PageInfo) -> None:
        store_own(cpu, self._entry(frame), PageInfo.pack_all(entries))

    def _store_link(self, cpu: PerCpu, frame: int, offset: int, to: int) -> None:
        store_own(cpu, self._entry(frame) + offset, to.to_bytes(4, "little"))

    def _count(self, kind: PageKind, order: int, sign: int) -> None:
        self._header.pages_of_kind[kind] += sign << order

    def _store_header(self, cpu: PerCpu) -> None:
        store_own(cpu, self._info, bytes(self._header))


def _is_multiple(frame: int, nbytes: int) -> bool:
    """Whether a page begins at a multiple of `nbytes`; 0 has none."""
    return nbytes > 0 and (frame << PAGE_SHIFT) % nbytes == 0


def _free_blocks(first: int, kinds: list[PageKind]) -> dict[int, int]:
    """The largest free blocks, by frame: their orders. `kinds` begins with frame `first`."""
    blocks: dict[int, int] = {}
    index = 0
    while index < len(kinds):
        if kinds[index] is not PageKind.FREE:
            index += 1
            continue
        order = 0
        while order < MAX_ORDER and not (first + index) & (1 << order):
            block = kinds[index : index + (2 << order)]
            if len(block) < 2 << order or any(kind is not PageKind.FREE for kind in block):
                break
            order += 1
        blocks[first + index] = order
        index += 1 << order
    return blocks
