# SPDX-License-Identifier: MIT
"""Page tables of VMPL0 against a dict, with memory that runs out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from svsmd.core.memory import OutOfMemory
from svsmd.core.page_entry import Mapping, PageFlags
from svsmd.core.paging import AlreadyMapped, NotMapped, PageTable
from svsmd.snp.types import PAGE_SIZE, Gpa, PageSize
from tests.limited_pages import Pages, memory_for_pages

GIB = 1 << 30
MIB = 1 << 20
R, W, X, U, S = (
    PageFlags.READ,
    PageFlags.WRITE,
    PageFlags.EXECUTE,
    PageFlags.USER,
    PageFlags.SHARED,
)
TREES = ((4, 0), (3, 0), (3, 0xFFFF_8000_0000_0000))
# Few places at each level, so that tables are shared and become empty.
OFFSETS = st.builds(
    lambda gib, mib, page: gib * GIB + mib * 2 * MIB + page * PAGE_SIZE,
    st.sampled_from((0, 1, 511)),
    st.sampled_from((0, 1, 511)),
    st.sampled_from((0, 1, 2, 510, 511)),
)
GPAS = st.integers(0, 64).map(lambda n: n * 2 * MIB)
FLAGS = st.sampled_from((R, W, X, W | S, R | S))
SIZES = st.sampled_from(list(PageSize))


class PageTableMachine(RuleBasedStateMachine):
    """The dict has one entry for each 4 KiB page; 2 MiB pages are 512 that share a mapping."""

    @initialize(tree=st.sampled_from(TREES), room=st.integers(1, 14))
    def start(self, tree: tuple[int, int], room: int) -> None:
        self.memory, self.cpu = memory_for_pages()
        self.pages = Pages(room)
        levels, self.base = tree
        self.table = PageTable(self.cpu, self.pages, levels, self.base)
        self.model: dict[int, Mapping] = {}

    def flags(self, flags: PageFlags, user: bool) -> PageFlags:
        return flags | U if user and self.base == 0 else flags

    def covered(self, gva: int, size: PageSize) -> Iterator[int]:
        return iter(range(gva, gva + size.nbytes, PAGE_SIZE))

    @rule(at=OFFSETS, gpa=GPAS, flags=FLAGS, user=st.booleans(), size=SIZES)
    def map(self, at: int, gpa: int, flags: PageFlags, user: bool, size: PageSize) -> None:
        gva = self.base + at // size.nbytes * size.nbytes
        flags = self.flags(flags, user)
        taken = any(page in self.model for page in self.covered(gva, size))
        before, free = bytes(self.memory.data), self.pages.free_count
        try:
            self.table.map(self.cpu, gva, gpa, flags, size)
        except AlreadyMapped:
            assert taken
        except OutOfMemory:
            assert not taken
            assert self.pages.failed
        else:
            assert not taken
            for page in self.covered(gva, size):
                self.model[page] = Mapping(Gpa(gpa), flags, size)
            return
        assert self.pages.free_count == free, "nothing half-done"
        assert self.pages.contents(bytes(self.memory.data)) == self.pages.contents(before)

    @rule(at=OFFSETS, gpa=GPAS, npages=st.integers(0, 1100), flags=FLAGS)
    def map_range(self, at: int, gpa: int, npages: int, flags: PageFlags) -> None:
        gva = self.base + at
        wanted = range(gva, gva + npages * PAGE_SIZE, PAGE_SIZE)
        inside = not wanted or wanted[-1] < self.base + (1 << 39) or self.table.levels == 4
        taken = any(page in self.model for page in wanted)
        free = self.pages.free_count
        try:
            self.table.map_range(self.cpu, gva, gpa, npages, flags)
        except AlreadyMapped:
            assert taken
        except ValueError:
            assert not inside
        except OutOfMemory:
            assert self.pages.failed
        else:
            assert inside
            assert not taken
            for number, page in enumerate(wanted):
                self.model[page] = Mapping(Gpa(gpa + number * PAGE_SIZE), flags, PageSize.SIZE_4K)
            return
        assert self.pages.free_count == free, "nothing half-done"

    @rule(at=OFFSETS, inside=st.integers(0, PAGE_SIZE - 1))
    def unmap(self, at: int, inside: int) -> None:
        gva = self.base + at
        there = self.model.get(gva)
        if there is None:
            with pytest.raises(NotMapped):
                self.table.unmap(self.cpu, gva + inside)
            return
        assert self.table.unmap(self.cpu, gva + inside) == there
        for page in self.covered(gva // there.size.nbytes * there.size.nbytes, there.size):
            del self.model[page]

    @rule(at=OFFSETS, flags=FLAGS, user=st.booleans())
    def protect(self, at: int, flags: PageFlags, user: bool) -> None:
        gva, flags = self.base + at, self.flags(flags, user)
        there = self.model.get(gva)
        if there is None:
            with pytest.raises(NotMapped):
                self.table.protect(self.cpu, gva, flags)
            return
        self.table.protect(self.cpu, gva, flags)
        for page in self.covered(gva // there.size.nbytes * there.size.nbytes, there.size):
            self.model[page] = there._replace(flags=flags)

    @rule(at=OFFSETS, inside=st.integers(0, PAGE_SIZE - 1))
    def lookup(self, at: int, inside: int) -> None:
        gva = self.base + at
        assert self.table.lookup(self.cpu, gva + inside) == self.model.get(gva)

    @rule(at=OFFSETS, gpa=GPAS)
    def write_and_execute(self, at: int, gpa: int) -> None:
        with pytest.raises(ValueError, match="cannot be"):
            self.table.map(self.cpu, self.base + at, gpa, W | X)

    @invariant()
    def tables_are_those_that_are_needed(self) -> None:
        # One for each 2 MiB with small pages, each GiB, each 512 GiB, and the root.
        small = {page >> 21 for page, m in self.model.items() if m.size is PageSize.SIZE_4K}
        needed = len(small) + len({page >> 30 for page in self.model}) + 1
        if self.table.levels == 4:
            needed += len({page >> 39 for page in self.model})
        assert self.pages.used_count == needed

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.table.free(self.cpu)
            assert self.pages.used_count == 0


TestPageTable = PageTableMachine.TestCase
TestPageTable.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_refused_addresses() -> None:
    (_, cpu), pages = memory_for_pages(), Pages(32)
    with pytest.raises(ValueError, match="levels"):
        PageTable(cpu, pages, 2)
    with pytest.raises(ValueError, match="levels"):
        PageTable(cpu, pages, 3, GIB)
    table = PageTable(cpu, pages)
    for gva, gpa, size in (
        (1, 0, PageSize.SIZE_4K),
        (0, 1, PageSize.SIZE_4K),
        (PAGE_SIZE, 0, PageSize.SIZE_2M),
        (0, PAGE_SIZE, PageSize.SIZE_2M),
        (1 << 47, 0, PageSize.SIZE_4K),
        (-PAGE_SIZE, 0, PageSize.SIZE_4K),
        (1 << 64, 0, PageSize.SIZE_4K),
        (0, 1 << 39, PageSize.SIZE_4K),
        (0, 1 << 52, PageSize.SIZE_4K),
    ):
        with pytest.raises(ValueError, match="cannot be mapped"):
            table.map(cpu, gva, gpa, R, size)
    with pytest.raises(ValueError, match="user half"):
        table.map(cpu, 0xFFFF_8000_0000_0000, 0, U)
    user = PageTable(cpu, pages, 3)
    with pytest.raises(ValueError, match="mapped"):
        user.map(cpu, -PAGE_SIZE, 0, R)
    with pytest.raises(ValueError, match="mapped"):
        table.map_range(cpu, -PAGE_SIZE, 0, 1, R)
    with pytest.raises(ValueError, match="mapped"):
        user.unmap(cpu, 1 << 39)
    assert user.lookup(cpu, 1 << 39) is None


def test_attached_tree_keeps_its_owner() -> None:
    (_, cpu), pages = memory_for_pages(), Pages(32)
    one, other, user = PageTable(cpu, pages), PageTable(cpu, pages), PageTable(cpu, pages, 3)
    user.map(cpu, PAGE_SIZE, 2 * MIB, U | W)
    for table in (one, other):
        table.attach(cpu, user)
        assert table.lookup(cpu, PAGE_SIZE) == Mapping(Gpa(2 * MIB), U | W, PageSize.SIZE_4K)
        with pytest.raises(ValueError, match="attached"):
            table.unmap(cpu, PAGE_SIZE)
        with pytest.raises(ValueError, match="attached"):
            table.map(cpu, 0, 0, R)
        with pytest.raises(ValueError, match="attached"):
            table.protect(cpu, PAGE_SIZE, R)
        with pytest.raises(AlreadyMapped):
            table.attach(cpu, user)
    one.free(cpu)
    assert user.lookup(cpu, PAGE_SIZE) is not None
    other.detach(cpu, 0)
    assert other.lookup(cpu, PAGE_SIZE) is None
    other.detach(cpu, 0)
    other.free(cpu)
    user.free(cpu)
    assert pages.used_count == 0
