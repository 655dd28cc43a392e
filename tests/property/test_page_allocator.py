# SPDX-License-Identifier: MIT
"""The page allocator and the slab caches against an oracle that keeps plain sets of pages."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from svsmd.core.gate import SvsmPanic
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind, SlabCache
from svsmd.core.memory.page_info import MAX_ORDER, PageFlag, PageInfo
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Gpa
from tests.own_memory import own_memory

MIB = 1 << 20
BASE = 6 * MIB
REGION = range(BASE, BASE + 3 * MIB)
"""A multiple of 2 MiB lies in its middle."""
RESERVED = (range(BASE, BASE + 0x2_3000), range(BASE + 0x10_5000, BASE + 0x10_6000))
INFO = Gpa(BASE + 0x2_3000)
GUEST = (0, 1, 2, 255, 256, 257, 300, 511)
"""Frames that the guest deposits: two MiB, the first of them at frame 0."""

KINDS = (
    PageKind.ANONYMOUS,
    PageKind.PER_CPU,
    PageKind.VMSA,
    PageKind.PROCESS,
    PageKind.VALIDATION,
)
FROM_DEPOSITS = {PageKind.ANONYMOUS, PageKind.PROCESS}


class AllocatorMachine(RuleBasedStateMachine):
    @initialize(poison=st.booleans())
    def start(self, poison: bool) -> None:
        self.memory, self.cpu = own_memory(0, REGION.stop)
        self.pages = PageAllocator(self.cpu, REGION, RESERVED, INFO, poison=poison)
        self.poison = poison
        self.live: dict[int, tuple[int, PageKind, int]] = {}
        """GPA -> order, kind, references."""
        self.deposited: set[int] = set()
        self.promised = 0
        self.failures = 0
        info = range(INFO, INFO + PageAllocator.info_nbytes(REGION))
        self.fixed = {
            frame
            for r in (*RESERVED, info)
            for frame in range(r.start >> PAGE_SHIFT, r.stop >> PAGE_SHIFT)
        }
        self.cache = SlabCache(self.pages, 24, "test")
        self.objects: dict[int, bytes] = {}
        self.everything = self.free_lists()

    # Oracle ----------------------------------------------------------------------------------

    def used(self) -> set[int]:
        frames: set[int] = set()
        for gpa, (order, _kind, _references) in self.live.items():
            block = set(range(gpa >> PAGE_SHIFT, (gpa >> PAGE_SHIFT) + (1 << order)))
            assert not block & frames, "two allocations overlap"
            frames |= block
        slabs = {gpa >> PAGE_SHIFT for gpa in self.objects}
        assert not slabs & frames
        return frames | slabs

    def free_region(self) -> set[int]:
        every = set(range(REGION.start >> PAGE_SHIFT, REGION.stop >> PAGE_SHIFT))
        return every - self.fixed - self.used()

    def info_pages(self) -> set[int]:
        """Of the deposits: those that hold the page information of their MiB."""
        return {f for f in self.deposited if self.pages.kind_of(self.cpu, Gpa(f << 12)) == 4}

    def free_deposits(self) -> set[int]:
        return self.deposited - self.used() - self.info_pages()

    @staticmethod
    def has_block(frames: set[int], order: int, multiple: int = 0) -> bool:
        return any(
            frame % (1 << order) == 0
            and all(frame + i in frames for i in range(1 << order))
            and not (multiple and frame << PAGE_SHIFT & multiple - 1 == 0)
            for frame in frames
        )

    # Rules -----------------------------------------------------------------------------------

    @rule(order=st.integers(0, MAX_ORDER), kind=st.sampled_from(KINDS))
    def allocate(self, order: int, kind: PageKind) -> None:
        if kind is PageKind.VMSA:
            order = 0
        region = self.free_region()
        kept = 0 if kind is PageKind.VALIDATION else self.promised
        avoid = HUGE_PAGE_SIZE if kind is PageKind.VMSA else 0
        from_region = len(region) - (1 << order) >= kept
        possible = from_region and self.has_block(region, order, avoid)
        if kind in FROM_DEPOSITS:
            possible = possible or self.has_block(self.free_deposits(), order)
        try:
            gpa = self.pages.allocate(self.cpu, order, kind)
        except OutOfMemory:
            assert not possible
            self.failures += 1
            return
        assert possible
        assert gpa % (PAGE_SIZE << order) == 0
        assert self.cpu.port.read(0xFFFF_8000_0000_0000 + gpa, PAGE_SIZE << order) == bytes(
            PAGE_SIZE << order
        )
        if kind is PageKind.VMSA:
            assert gpa % HUGE_PAGE_SIZE
        if kind is PageKind.VALIDATION:
            self.promised -= min(self.promised, 1 << order)
        self.live[gpa] = (order, kind, 1)
        self.memory.data[gpa : gpa + (PAGE_SIZE << order)] = b"\x5a" * (PAGE_SIZE << order)
        self.used()

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        gpa = data.draw(st.sampled_from(sorted(self.live)))
        order, kind, references = self.live[gpa]
        self.pages.get(self.cpu, Gpa(gpa))
        self.live[gpa] = (order, kind, references + 1)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        gpa = data.draw(st.sampled_from(sorted(self.live)))
        self.drop(gpa)

    def drop(self, gpa: int) -> None:
        order, kind, references = self.live[gpa]
        if references > 1:
            with pytest.raises(SvsmPanic):
                self.pages.free(self.cpu, Gpa(gpa))
        last = self.pages.put(self.cpu, Gpa(gpa))
        assert last == (references == 1)
        if not last:
            self.live[gpa] = (order, kind, references - 1)
            return
        del self.live[gpa]
        if kind is PageKind.VALIDATION:
            self.promised += 1 << order

    @rule(npages=st.integers(0, 300))
    def promise(self, npages: int) -> None:
        possible = len(self.free_region()) >= self.promised + npages
        try:
            self.pages.promise(self.cpu, npages)
        except OutOfMemory:
            assert not possible
            return
        assert possible
        self.promised += npages

    @rule(frame=st.sampled_from(GUEST))
    def deposit(self, frame: int) -> None:
        if frame not in self.deposited:
            self.pages.deposit(self.cpu, Gpa(frame << PAGE_SHIFT))
            self.deposited.add(frame)

    @rule()
    def withdraw(self) -> None:
        free = self.free_deposits()
        gpa = self.pages.withdraw(self.cpu)
        if gpa is None:
            assert not free
            return
        frame = gpa >> PAGE_SHIFT
        assert frame in self.deposited - self.used()
        assert not any(self.memory.data[gpa : gpa + PAGE_SIZE])
        self.deposited.remove(frame)

    @rule()
    def new_object(self) -> None:
        try:
            gpa = self.cache.allocate(self.cpu)
        except OutOfMemory:
            self.failures += 1
            return
        assert gpa % 16 == 0
        assert gpa not in self.objects
        assert not any(self.memory.data[gpa : gpa + 32])
        mark = gpa.to_bytes(8, "little") * 4
        self.memory.data[gpa : gpa + 32] = mark
        self.objects[gpa] = mark

    @precondition(lambda self: self.objects)
    @rule(data=st.data())
    def free_object(self, data: st.DataObject) -> None:
        gpa = data.draw(st.sampled_from(sorted(self.objects)))
        assert self.memory.data[gpa : gpa + 32] == self.objects.pop(gpa)
        self.cache.free(self.cpu, Gpa(gpa))

    @rule(offset=st.integers(0, (REGION.stop >> PAGE_SHIFT) + 3), bad=st.booleans())
    def wild_free(self, offset: int, bad: bool) -> None:
        gpa = (offset << PAGE_SHIFT) + (8 if bad else 0)
        slabs = {o & -PAGE_SIZE for o in self.objects}
        if gpa not in self.live and gpa not in slabs:
            with pytest.raises(SvsmPanic):
                self.pages.free(self.cpu, Gpa(gpa))
            with pytest.raises(SvsmPanic):
                self.pages.get(self.cpu, Gpa(gpa))

    # Invariants ------------------------------------------------------------------------------

    def free_lists(self) -> list[tuple[int, ...]]:
        """How many free blocks of the region each order has, counted in the page information."""
        counts = [0] * (MAX_ORDER + 1)
        start = INFO + PAGE_SIZE
        nbytes = (len(REGION) >> PAGE_SHIFT) * 16
        for info in PageInfo.unpack_all(bytes(self.memory.data[start : start + nbytes])):
            if info.kind == PageKind.FREE and not info.flags & PageFlag.TAIL:
                counts[info.order] += 1
        return [tuple(counts)]

    @invariant()
    def statistics_are_right(self) -> None:
        statistics = self.pages.statistics()
        region, deposits = self.free_region(), self.free_deposits()
        assert statistics.total == (len(REGION) >> PAGE_SHIFT) + len(self.deposited)
        assert statistics.free == len(region) + len(deposits)
        assert statistics.deposited == len(self.deposited)
        assert statistics.promised == self.promised
        assert statistics.failures == self.failures
        assert statistics.withdrawable >= len(deposits)
        assert sum(n << order for order, n in enumerate(statistics.free_blocks)) == statistics.free
        used: Counter[PageKind] = Counter()
        for order, kind, _references in self.live.values():
            used[kind] += 1 << order
        for kind in KINDS:
            assert statistics.by_kind.get(kind, 0) == used[kind]
        slab = self.cache.statistics()
        assert slab.used == len(self.objects)
        assert slab.slabs == len({gpa & -PAGE_SIZE for gpa in self.objects})
        assert sum(statistics.by_kind.values()) == statistics.total

    @invariant()
    def deposits_are_known(self) -> None:
        for frame in GUEST:
            known = self.pages.has_deposited(frame << PAGE_SHIFT, PAGE_SIZE)
            assert known == (frame in self.deposited)
        assert self.pages.has_deposited(0, 2 * MIB) == bool(self.deposited)

    @invariant()
    def contents_are_left_alone(self) -> None:
        for gpa, (order, kind, references) in self.live.items():
            assert self.memory.data[gpa] == 0x5A
            assert self.memory.data[gpa + (PAGE_SIZE << order) - 1] == 0x5A
            assert self.pages.kind_of(self.cpu, Gpa(gpa)) is kind
            assert self.pages.references(self.cpu, Gpa(gpa)) == references

    def teardown(self) -> None:
        if not hasattr(self, "pages"):
            return
        for gpa in list(self.live):
            while gpa in self.live:
                self.drop(gpa)
        for gpa in list(self.objects):
            del self.objects[gpa]
            self.cache.free(self.cpu, Gpa(gpa))
        while self.deposited:
            self.withdraw()
        assert self.pages.withdraw(self.cpu) is None
        assert self.free_lists() == self.everything, "everything is merged again"
        self.statistics_are_right()


AllocatorMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAllocator = AllocatorMachine.TestCase
