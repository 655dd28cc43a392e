# SPDX-License-Identifier: MIT
"""Page allocator and slab caches: what is a panic, what an error, and what poison finds."""

from __future__ import annotations

import pytest

from svsmd.core.gate import SvsmPanic
from svsmd.core.memory import MAX_ORDER, OutOfMemory, PageAllocator, PageKind, SlabCache
from svsmd.core.memory.slab import HEADER_SIZE, MAX_OBJECT_SIZE
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa
from tests.own_memory import OwnMemory, own_memory

MIB = 1 << 20
BASE = 4 * MIB
REGION = range(BASE, BASE + 4 * MIB)
INFO = Gpa(BASE + MIB)
RESERVED = [range(BASE, BASE + MIB)]


def make(*, poison: bool = False) -> tuple[OwnMemory, PerCpu, PageAllocator]:
    memory, cpu = own_memory(0, REGION.stop)
    return memory, cpu, PageAllocator(cpu, REGION, RESERVED, INFO, poison=poison)


def test_setting_up_takes_one_store_a_mib() -> None:
    memory, cpu, pages = make()
    assert memory.stores == 4 + 1
    assert cpu.port is memory
    statistics = pages.statistics()
    assert statistics.total == 1024
    assert statistics.free == 768 - 5
    assert statistics.by_kind[PageKind.RESERVED] == 256
    assert statistics.by_kind[PageKind.PAGE_INFO] == 5


def test_exhaustion_is_an_error_and_changes_nothing() -> None:
    memory, cpu, pages = make()
    free = pages.statistics().free
    blocks = [pages.allocate(cpu) for _ in range(free)]
    before = bytes(memory.data)
    with pytest.raises(OutOfMemory) as caught:
        pages.allocate(cpu)
    assert caught.value.npages == 1
    changed = [i for i, (a, b) in enumerate(zip(before, memory.data, strict=True)) if a != b]
    assert all(INFO <= i < INFO + 32 for i in changed), "only the header's count of failures"
    assert pages.statistics().failures == 1
    pages.free(cpu, blocks[100])
    assert pages.allocate(cpu) == blocks[100]


def test_vmsa_never_begins_at_a_multiple_of_2_mib() -> None:
    _, cpu, pages = make()
    got = {pages.allocate(cpu, 0, PageKind.VMSA) for _ in range(762)}
    assert not any(gpa % HUGE_PAGE_SIZE == 0 for gpa in got)
    with pytest.raises(OutOfMemory):
        pages.allocate(cpu, 0, PageKind.VMSA)
    assert pages.allocate(cpu) % HUGE_PAGE_SIZE == 0


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        (-1, PageKind.ANONYMOUS),
        (MAX_ORDER + 1, PageKind.ANONYMOUS),
        (1, PageKind.VMSA),
        (0, PageKind.FREE),
        (0, PageKind.DEPOSITED),
        (0, PageKind.RESERVED),
    ],
)
def test_what_nobody_may_ask_for(order: int, kind: PageKind) -> None:
    _, cpu, pages = make()
    with pytest.raises(ValueError, match=r"allocate|VMSA"):
        pages.allocate(cpu, order, kind)


def test_wrong_frees_are_panics() -> None:
    _, cpu, pages = make()
    block = pages.allocate(cpu, 2)
    for wild in (block + 8, block + PAGE_SIZE, BASE, INFO, 0, REGION.stop, 1 << 60):
        with pytest.raises(SvsmPanic):
            pages.free(cpu, Gpa(wild))
    pages.free(cpu, block)
    with pytest.raises(SvsmPanic, match="free already"):
        pages.free(cpu, block)
    with pytest.raises(SvsmPanic, match="free already"):
        pages.put(cpu, block)


def test_references() -> None:
    _, cpu, pages = make()
    page = pages.allocate(cpu)
    pages.get(cpu, page)
    with pytest.raises(SvsmPanic, match="2 references"):
        pages.free(cpu, page)
    assert not pages.put(cpu, page)
    assert pages.put(cpu, page)


@pytest.mark.parametrize("offset", [0, 7, PAGE_SIZE - 1, PAGE_SIZE + 5])
def test_poison_finds_a_write_after_free(offset: int) -> None:
    memory, cpu, pages = make(poison=True)
    block = pages.allocate(cpu, 1)
    pages.free(cpu, block)
    assert memory.data[block : block + 2 * PAGE_SIZE] == b"\xcc" * 2 * PAGE_SIZE
    memory.data[block + offset] ^= 1
    with pytest.raises(SvsmPanic, match="after it was freed"):
        pages.allocate(cpu, 1)


def test_poison_is_content_with_what_nobody_touched() -> None:
    _, cpu, pages = make(poison=True)
    for _ in range(3):
        blocks = [pages.allocate(cpu, order) for order in (0, 3, 1, 8, 0)]
        for block in blocks:
            pages.free(cpu, block)


def test_overwritten_memory_of_the_region_without_poison_is_zero_again() -> None:
    memory, cpu, pages = make()
    page = pages.allocate(cpu)
    memory.data[page] = 1
    pages.free(cpu, page)
    assert pages.allocate(cpu) == page
    assert not any(memory.data[page : page + PAGE_SIZE])


def test_deposits_serve_when_the_region_is_empty() -> None:
    _, cpu, pages = make()
    for gpa in (0x1000, 0x2000, 0x3000):
        pages.deposit(cpu, Gpa(gpa))
    while pages.statistics().free > 2:
        pages.allocate(cpu)
    assert {pages.allocate(cpu), pages.allocate(cpu)} == {0x2000, 0x3000}
    for kind in (PageKind.PER_CPU, PageKind.VMSA, PageKind.ANONYMOUS):
        with pytest.raises(OutOfMemory):
            pages.allocate(cpu, 0, kind)
    assert pages.withdraw(cpu) is None
    pages.free(cpu, Gpa(0x2000))
    assert pages.withdraw(cpu) == 0x2000
    pages.free(cpu, Gpa(0x3000))
    assert {pages.withdraw(cpu), pages.withdraw(cpu)} == {0x1000, 0x3000}
    assert not pages.has_deposited(0, MIB)


def test_deposits_are_what_the_svsm_has_not() -> None:
    _, cpu, pages = make()
    pages.deposit(cpu, Gpa(0x1000))
    for gpa in (0x1000, BASE, INFO + 0x10000):
        with pytest.raises(SvsmPanic, match="already"):
            pages.deposit(cpu, Gpa(gpa))


class TestSlab:
    def test_objects_fill_pages_that_go_back(self) -> None:
        _, cpu, pages = make()
        free = pages.statistics().free
        cache = SlabCache(pages, 100, "test")
        assert (cache.size, cache.capacity) == (112, (PAGE_SIZE - HEADER_SIZE) // 112)
        objects = [cache.allocate(cpu) for _ in range(cache.capacity + 1)]
        assert len(set(objects)) == len(objects)
        assert pages.statistics().by_kind[PageKind.SLAB] == 2
        assert cache.statistics().slabs == 2
        for gpa in objects:
            cache.free(cpu, gpa)
        assert pages.statistics().free == free

    @pytest.mark.parametrize("size", [0, -1, MAX_OBJECT_SIZE + 1])
    def test_sizes(self, size: int) -> None:
        _, _, pages = make()
        with pytest.raises(ValueError, match="slab"):
            SlabCache(pages, size, "test")

    def test_wrong_frees_are_panics(self) -> None:
        _, cpu, pages = make()
        cache, other = SlabCache(pages, 64, "one"), SlabCache(pages, 64, "two")
        first, second = cache.allocate(cpu), cache.allocate(cpu)
        foreign = other.allocate(cpu)
        for wild in (first + 8, first & -PAGE_SIZE, second + 64, foreign, 0):
            with pytest.raises(SvsmPanic):
                cache.free(cpu, Gpa(wild))
        cache.free(cpu, first)
        with pytest.raises(SvsmPanic, match="free already"):
            cache.free(cpu, first)

    def test_poison_finds_a_write_after_free(self) -> None:
        memory, cpu, pages = make(poison=True)
        cache = SlabCache(pages, 64, "test")
        first, _second = cache.allocate(cpu), cache.allocate(cpu)
        cache.free(cpu, first)
        assert cache.allocate(cpu) == first
        cache.free(cpu, first)
        memory.data[first + 63] = 0
        with pytest.raises(SvsmPanic, match="written to while it was free"):
            cache.allocate(cpu)

    def test_overwritten_header(self) -> None:
        memory, cpu, pages = make()
        cache = SlabCache(pages, 64, "test")
        first = cache.allocate(cpu)
        memory.data[first & -PAGE_SIZE] ^= 1
        with pytest.raises(SvsmPanic, match="overwritten"):
            cache.allocate(cpu)
