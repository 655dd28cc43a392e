# SPDX-License-Identifier: MIT
"""Runs of mappings against the silicon's own walk, page by page, of random page tables."""

from __future__ import annotations

import itertools
import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.page_tables import (
    ALL,
    MAX_TABLES,
    NX,
    C,
    P,
    PageTables,
    Run,
    U,
    W,
    canonical,
)
from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.memory import GuestMemory, NotRam
from svsmd.snp.page_walk import PageWalker, PagingState, Translation
from svsmd.snp.types import C_BIT, PAGE_SIZE

MEMORY = GuestMemory(16 << 20)
ROOT = 0x10_0000
TABLES = 24
INDEXES = (0, 1, 2, 255, 256, 510, 511)
A_D, PS, NXE, LMA, LME = 0x60, 0x80, 1 << 11, 1 << 10, 1 << 8
LONG = PagingState(0x8001_0011, ROOT | C_BIT, 0x20, LME | LMA | NXE)
PAE = PagingState(0x8001_0011, ROOT, 0x20, NXE)
LEGACY = PagingState(0x8001_0011, ROOT, 0x10, 0)


class RawAccess:
    """Memory without an RMP."""

    def read_u64(self, _vmpl: int, gpa: int, _kind: AccessKind) -> int:
        try:
            return MEMORY.read_u64(gpa & ~C_BIT)
        except NotRam:
            raise NestedFault(gpa & ~C_BIT, 0, "no RAM") from None

    def write(self, _vmpl: int, _gpa: int, _data: bytes, _kind: AccessKind) -> None:
        """Accessed and Dirty bits, which nobody looks at here."""


def fill(seed: int, state: PagingState) -> None:
    """Tables with few entries of all kinds, some of which lead back to tables above them."""
    rng = random.Random(seed)
    width = 8 if state.cr4 & 0x20 else 4
    for number in range(TABLES):
        page = bytearray(PAGE_SIZE)
        for index in rng.sample(INDEXES, rng.randint(1, len(INDEXES))):
            for at in range(index, min(index + rng.choice((1, 1, 3)), PAGE_SIZE // width)):
                table = ROOT + rng.randrange(TABLES) * PAGE_SIZE
                entry = rng.choice((table, table, rng.randrange(8) << 30))
                entry |= A_D | rng.choice((P, P, P, 0)) | rng.choice((0, W)) | rng.choice((0, U))
                entry |= rng.choice((0, 0, PS))
                if width == 8:
                    entry |= rng.choice((0, C_BIT)) | rng.choice((0, 0, 1 << 63))
                entry &= (1 << 8 * width) - 1
                page[at * width : (at + 1) * width] = entry.to_bytes(width, "little")
        MEMORY.write(ROOT + number * PAGE_SIZE, page)


def walk(state: PagingState, gva: int) -> int:
    """Attributes of a page, by what the silicon allows; 0 if it is not mapped."""
    walker = PageWalker(RawAccess(), 0)  # type: ignore[arg-type]
    mapped = PageWalker(RawAccess(), 0, debug=True)  # type: ignore[arg-type]
    try:
        found: Translation = mapped.translate(state, gva, AccessKind.READ, 0)
    except (GuestFault, NestedFault):
        return 0

    def allowed(kind: AccessKind, cpl: int) -> bool:
        try:
            walker.translate(state, gva, kind, cpl)
        except (GuestFault, NestedFault):
            return False
        return True

    attributes = P | (C if found.gpa & C_BIT else 0)
    attributes |= W if allowed(AccessKind.WRITE, 0) else 0
    attributes |= U if allowed(AccessKind.READ, 3) else 0
    return attributes | (0 if allowed(AccessKind.FETCH, 0) else NX)


def sane(state: PagingState) -> None:
    """Take out what the walker refuses as reserved: the runs do not look at that."""
    width = 8 if state.cr4 & 0x20 else 4
    for at in range(ROOT, ROOT + TABLES * PAGE_SIZE, width):
        entry = int.from_bytes(MEMORY.read(at, width), "little")
        # PS is PAT in a page table, and not allowed at the top; large pages have to be aligned.
        if entry & PS:
            entry &= ~(0x3FFF_F000 & ~0xFFF) if width == 8 else ~0x3F_F000
            MEMORY.write(at, entry.to_bytes(width, "little"))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((LONG, PAE, LEGACY)), st.randoms())
def test_runs_are_what_walks_find(seed: int, state: PagingState, rng: random.Random) -> None:
    fill(seed, state)
    sane(state)
    if state is PAE:  # its four pointers have no rights, and reserved bits instead
        for pointer in range(ROOT, ROOT + 32, 8):
            MEMORY.write_u64(pointer, MEMORY.read_u64(pointer) & ~(1 << 63 | PS | 0x66))
    if state is LONG:
        for index in range(512):
            MEMORY.write_u64(ROOT + 8 * index, MEMORY.read_u64(ROOT + 8 * index) & ~PS)
    tables = PageTables(MEMORY, state)
    runs: list[Run] = []
    for run in tables.runs(ALL):
        runs.append(run)
        if len(runs) == 100:
            break
    for before, after in itertools.pairwise(runs):
        assert before.start < before.end <= after.start
        assert before.end < after.start or before.attributes != after.attributes
    limit = runs[-1].end if runs else 1 << 48 if state is LONG else 1 << 32
    probes = {run.start for run in runs} | {run.end - PAGE_SIZE for run in runs}
    probes |= {run.end for run in runs} | {run.start - PAGE_SIZE for run in runs if run.start}
    probes |= {rng.randrange(limit) & -PAGE_SIZE for _ in range(50)}
    for run in rng.sample(runs, min(10, len(runs))):
        probes.add(rng.randrange(run.start, run.end) & -PAGE_SIZE)
    for gva in sorted(probe for probe in probes if probe < limit):
        said = next((r.attributes for r in runs if r.start <= gva < r.end), 0)
        linear = canonical(gva) if state is LONG else gva
        assert said == walk(state, linear), f"{linear:#x}"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from((LONG, PAE, LEGACY)), st.integers(0, ALL))
def test_fewer_attributes_only_merge(seed: int, state: PagingState, wanted: int) -> None:
    """What is asked for decides what is one; leaves say the same as runs."""
    fill(seed, state)
    fine = PageTables(MEMORY, state).runs(ALL)
    coarse = PageTables(MEMORY, state).runs(wanted | P)
    pages: dict[int, int] = {}
    for _, run in zip(range(200), fine, strict=False):
        pages[run.start] = run.attributes & (wanted | P)
    if not pages:
        assert next(coarse, None) is None
        return
    for run in coarse:
        for start in [start for start in pages if run.start <= start < run.end]:
            assert pages.pop(start) == run.attributes
        if not pages or run.start > max(pages):
            break
    assert not pages


def test_tables_that_lead_to_themselves_come_to_an_end() -> None:
    for flags in (P | W | U, P | W):
        entries = [ROOT | flags | (C_BIT if index % 2 else 0) for index in range(512)]
        MEMORY.write(ROOT, b"".join(entry.to_bytes(8, "little") for entry in entries))
        tables = PageTables(MEMORY, LONG)
        began = time.monotonic()
        count = sum(1 for _ in tables.runs(P | W | U))
        assert count == 1
        assert tables.truncated
        assert sum(1 for _, _ in zip(range(10_000), tables.leaves(), strict=False)) == 10_000
        assert time.monotonic() - began < 20
    assert MAX_TABLES < 1 << 20


def test_no_ram_for_a_table() -> None:
    for cr3 in (16 << 20, 0xFF_FFFF_F000):
        for state in (LONG, PAE, LEGACY):
            tables = PageTables(MEMORY, state._replace(cr3=cr3))
            assert not list(tables.runs(ALL))
            assert not list(tables.leaves())
            assert not tables.truncated
