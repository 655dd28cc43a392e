# SPDX-License-Identifier: MIT
"""The validation bitmap against a plain list of bools, in all its forms."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.validation_bitmap import CHUNK_PAGES, MAX_RUN_EDGES, ValidationBitmap
from svsmd.snp.types import PAGE_SHIFT, Gpa
from tests.own_memory import own_memory

MIB = 1 << 20
REGION = range(2 * MIB)
RAM = (range(0x3000, 40 << 20), range(200 << 20, (200 << 20) + 0x70_0000))
"""Three chunks; the first is cut off at both ends, the second has none."""
FIRST = RAM[0].start >> PAGE_SHIFT
STOP = RAM[1].stop >> PAGE_SHIFT
INTERESTING = sorted(
    {
        f + d
        for r in RAM
        for f in (r.start >> PAGE_SHIFT, r.stop >> PAGE_SHIFT)
        for d in range(-3, 4)
    }
    | {100, 101, 4000, 4001, 4003}
)


def is_ram(frame: int) -> bool:
    return any(r.start <= frame << PAGE_SHIFT < r.stop for r in RAM)


class BitmapMachine(RuleBasedStateMachine):
    @initialize(full=st.booleans())
    def start(self, full: bool) -> None:
        _, self.cpu = own_memory(0, REGION.stop)
        self.pages = PageAllocator(self.cpu, REGION, [], Gpa(0))
        self.bitmap = ValidationBitmap(self.cpu, RAM, self.pages)
        self.model = [False] * (STOP + 10)
        if full:
            # Nothing but what was promised is left.
            statistics = self.pages.statistics()
            for _ in range(statistics.free - statistics.promised):
                self.pages.allocate(self.cpu)
        self.full = full

    @rule(
        frame=st.sampled_from([f for f in INTERESTING if f >= 0]),
        npages=st.sampled_from([1, 1, 2, 3, 64, 512, 1792]),
        state=st.booleans(),
    )
    def set_range(self, frame: int, npages: int, state: bool) -> None:
        if not all(map(is_ram, range(frame, frame + npages))):
            with pytest.raises(ValueError, match="not RAM"):
                self.bitmap.set(self.cpu, frame << PAGE_SHIFT, npages, state)
            return
        self.bitmap.set(self.cpu, frame << PAGE_SHIFT, npages, state)
        self.model[frame : frame + npages] = [state] * npages

    @rule(
        start=st.sampled_from([5, 300, 5000]),
        step=st.sampled_from([2, 3, 7]),
        count=st.integers(1, 90),
        state=st.booleans(),
    )
    def set_comb(self, start: int, step: int, count: int, state: bool) -> None:
        for frame in range(start, start + step * count, step):
            self.bitmap.set(self.cpu, frame << PAGE_SHIFT, 1, state)
            self.model[frame] = state

    @rule(state=st.booleans())
    def set_all(self, state: bool) -> None:
        for r in RAM:
            frame, npages = r.start >> PAGE_SHIFT, len(r) >> PAGE_SHIFT
            self.bitmap.set(self.cpu, r.start, npages, state)
            self.model[frame : frame + npages] = [state] * npages

    @invariant()
    def states_are_the_models(self) -> None:
        bits = self.bitmap.bits(self.cpu, 0, len(self.model))
        assert bits == int("".join("01"[state] for state in reversed(self.model)), 2)
        for frame in INTERESTING:
            if frame < 0:
                continue
            expected = self.model[frame] if frame < len(self.model) else False
            assert self.bitmap.is_validated(self.cpu, frame << PAGE_SHIFT) == expected
            part = self.model[frame : frame + 3]
            assert self.bitmap.all_validated(self.cpu, frame << PAGE_SHIFT, len(part)) == all(part)
            assert self.bitmap.any_validated(self.cpu, frame << PAGE_SHIFT, len(part)) == any(part)

    @invariant()
    def runs_cover_everything(self) -> None:
        frame = 0
        while frame < len(self.model):
            state, length = self.bitmap.run(self.cpu, frame, len(self.model) - frame)
            assert length > 0
            assert self.model[frame : frame + length] == [state] * length
            frame += length
            if frame < len(self.model):
                assert self.model[frame] != state, "the longest run"

    @invariant()
    def no_more_than_one_bit_a_page(self) -> None:
        by_kind = self.pages.statistics().by_kind
        used = by_kind[PageKind.VALIDATION] - 1
        assert used <= 2
        assert by_kind.get(PageKind.SLAB, 0) <= 1
        if not self.full:
            edges = sum(a != b for a, b in zip(self.model, self.model[1:], strict=False))
            if edges <= MAX_RUN_EDGES // 2:
                assert used == 0, "few runs are kept as runs"


BitmapMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
TestBitmap = BitmapMachine.TestCase


def test_uniform_chunks_take_no_memory() -> None:
    _, cpu = own_memory(0, REGION.stop)
    pages = PageAllocator(cpu, REGION, [], Gpa(0))
    ram = (range(8 << 30),)
    bitmap = ValidationBitmap(cpu, ram, pages)
    bitmap.set(cpu, 0, (8 << 30) >> PAGE_SHIFT, True)
    statistics = pages.statistics()
    assert statistics.by_kind[PageKind.VALIDATION] == 1
    assert PageKind.SLAB not in statistics.by_kind
    assert statistics.promised == (8 << 30) // (CHUNK_PAGES << PAGE_SHIFT)
    assert bitmap.run(cpu, 0, 1 << 40) == (True, (8 << 30) >> PAGE_SHIFT)


def test_too_little_memory_for_the_worst_case() -> None:
    _, cpu = own_memory(0, REGION.stop)
    pages = PageAllocator(cpu, REGION, [], Gpa(0))
    with pytest.raises(OutOfMemory):
        ValidationBitmap(cpu, (range(64 << 30),), pages)
