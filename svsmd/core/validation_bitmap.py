# SPDX-License-Identifier: MIT
"""Which pages of RAM are validated and accepted, in the SVSM's memory.

PVALIDATE's CF tells the same, but only by changing it, and a host that maps a page anew is only
noticed by who remembers. So the core asks here first, and never validates a page twice.

RAM is cut into chunks of 128 MiB, and a directory has 8 bytes for each:

====  =============  =====================================================================
low 2 bits  form     where the state is
====  =============  =====================================================================
0     none           no page is validated
1     all            all pages are
2     runs           at the address: a count, and the pages at which the state changes, 16
                     bits each, ascending; page 0 begins as not validated
3     bits           at the address: a page with one bit for each
====  =============  =====================================================================

A chunk is kept as runs as long as there are few enough of them, so it never takes more than one bit
a page. The page allocator has promised a page for each chunk: noting a state finds memory always.

Spec: none; 24593, 15.36.6 (page validation) has the reason.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

from svsmd.core.access import load_own, store_own
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind, SlabCache
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa

CHUNK_PAGES: Final = PAGE_SIZE * 8
"""Pages of a chunk: as many as a page has bits."""
RUNS_SIZE: Final = 128
"""Bytes of a chunk kept as runs."""
MAX_RUN_EDGES: Final = RUNS_SIZE // 2 - 1
_FEW_RUN_EDGES: Final = MAX_RUN_EDGES // 2
"""A chunk of bits becomes runs when it has no more edges: less than it can have, so that it does
not change to and fro."""

_ENTRY: Final = struct.Struct("<Q")
_FORM_MASK: Final = 0xF
_ALL_BITS: Final = (1 << CHUNK_PAGES) - 1


class _Form(IntEnum):
    NONE = 0
    ALL = 1
    RUNS = 2
    BITS = 3


class ValidationBitmap:
    """The state of each page of `ranges`, which are RAM in bytes, whole pages; at first, none is
    validated. Raises OutOfMemory if `pages` has too little."""

    def __init__(self, cpu: PerCpu, ranges: Sequence[range], pages: PageAllocator) -> None:
        self._ranges = tuple(ranges)
        self._pages = pages
        self._runs = SlabCache(pages, RUNS_SIZE, "validation runs")
        self.stop: Final = max((r.stop for r in ranges), default=0) >> PAGE_SHIFT
        """The frame behind the last page of RAM."""
        nbytes = -(-self.stop // CHUNK_PAGES) * _ENTRY.size
        order = max(-(-nbytes // PAGE_SIZE) - 1, 0).bit_length()
        self._directory = pages.allocate(cpu, order, PageKind.VALIDATION)
        pages.promise(cpu, self._chunks_with_ram())

    def _chunks_with_ram(self) -> int:
        size = CHUNK_PAGES << PAGE_SHIFT
        return len({c for r in self._ranges for c in range(r.start // size, -(-r.stop // size))})

    # What callers use ------------------------------------------------------------------------

    def is_validated(self, cpu: PerCpu, gpa: int) -> bool:
        """Whether the page that `gpa` lies in is validated; False for what is not RAM."""
        frame = gpa >> PAGE_SHIFT
        if not 0 <= frame < self.stop:
            return False
        form, where = self._entry(cpu, frame // CHUNK_PAGES)
        page = frame % CHUNK_PAGES
        if form is _Form.BITS:
            return bool(load_own(cpu, where + (page >> 3), 1)[0] >> (page & 7) & 1)
        return bool(bisect_right(self._edges(cpu, form, where), page) & 1)

    def all_validated(self, cpu: PerCpu, gpa: int, npages: int) -> bool:
        """Whether `npages` pages from `gpa` on are RAM and validated."""
        frame = gpa >> PAGE_SHIFT
        return self.bits(cpu, frame, npages) == (1 << npages) - 1

    def any_validated(self, cpu: PerCpu, gpa: int, npages: int) -> bool:
        """Whether one of `npages` pages from `gpa` on is validated."""
        return self.bits(cpu, gpa >> PAGE_SHIFT, npages) != 0

    def set(self, cpu: PerCpu, gpa: int, npages: int, validated: bool) -> None:
        """Note the state of `npages` pages from `gpa` on, all inside one range of RAM."""
        stop = gpa + (npages << PAGE_SHIFT)
        if not any(r.start <= gpa and stop <= r.stop for r in self._ranges):
            raise ValueError(f"{npages} pages from {gpa:#x} are not RAM")
        for chunk, first, last in _cut(gpa >> PAGE_SHIFT, npages):
            self._set(cpu, chunk, first, last, validated)

    def bits(self, cpu: PerCpu, frame: int, npages: int) -> int:
        """Bit i says whether page `frame` + i is validated; 0 for what is not RAM."""
        result, shift = 0, 0
        for chunk, first, last in _cut(frame, npages):
            if chunk * CHUNK_PAGES < self.stop:
                part = self._chunk_bits(cpu, *self._entry(cpu, chunk)) >> first
                result |= (part & ((1 << (last - first)) - 1)) << shift
            shift += last - first
        return result

    def run(self, cpu: PerCpu, frame: int, npages: int) -> tuple[bool, int]:
        """Whether page `frame` is validated, and how many from it on are the same, of `npages` that
        are looked at. What is not RAM is not validated."""
        state: bool | None = None
        length = 0
        for chunk, first, last in _cut(frame, npages):
            bits = 0
            if chunk * CHUNK_PAGES < self.stop:
                bits = self._chunk_bits(cpu, *self._entry(cpu, chunk))
            here = bool(bits >> first & 1)
            if state is None:
                state = here
            elif here != state:
                break
            others = ((~bits if here else bits) & ((1 << last) - 1)) >> first
            if others:
                return here, length + (others & -others).bit_length() - 1
            length += last - first
        return bool(state), length

    # Chunks ----------------------------------------------------------------------------------

    def _entry(self, cpu: PerCpu, chunk: int) -> tuple[_Form, Gpa]:
        raw = load_own(cpu, self._directory + chunk * _ENTRY.size, _ENTRY.size)
        (entry,) = _ENTRY.unpack(raw)
        return _Form(entry & _FORM_MASK), Gpa(entry & ~_FORM_MASK)

    def _store_entry(self, cpu: PerCpu, chunk: int, form: _Form, where: int = 0) -> None:
        store_own(cpu, self._directory + chunk * _ENTRY.size, _ENTRY.pack(where | form))

    def _edges(self, cpu: PerCpu, form: _Form, where: Gpa) -> list[int]:
        """The pages of a chunk at which the state changes, ascending."""
        match form:
            case _Form.NONE:
                return []
            case _Form.ALL:
                return [0]
            case _Form.RUNS:
                count, *edges = struct.unpack(
                    f"<{RUNS_SIZE // 2}H", load_own(cpu, where, RUNS_SIZE)
                )
                return edges[:count]
            case _Form.BITS:
                raise AssertionError("bits are not taken apart")

    def _chunk_bits(self, cpu: PerCpu, form: _Form, where: Gpa) -> int:
        if form is _Form.BITS:
            return int.from_bytes(load_own(cpu, where, PAGE_SIZE), "little")
        return _bits_of(self._edges(cpu, form, where))

    def _set(self, cpu: PerCpu, chunk: int, first: int, last: int, validated: bool) -> None:
        form, where = self._entry(cpu, chunk)
        if form is _Form.BITS:
            mask = ((1 << (last - first)) - 1) << first
            bits = self._chunk_bits(cpu, form, where)
            bits = bits | mask if validated else bits & ~mask
            if (bits ^ bits << 1).bit_count() > _FEW_RUN_EDGES + 1:
                store_own(cpu, where, bits.to_bytes(PAGE_SIZE, "little"))
                return
            edges = _edges_of(bits)
        else:
            edges = _with_range(self._edges(cpu, form, where), first, last, validated)
        self._keep(cpu, chunk, form, where, edges)

    def _keep(self, cpu: PerCpu, chunk: int, form: _Form, where: Gpa, edges: Sequence[int]) -> None:
        """Write a chunk in the smallest form that has room for its edges; `where` is the old."""
        if edges in ([], [0]):
            self._store_entry(cpu, chunk, _Form.ALL if edges else _Form.NONE)
            self._free(cpu, form, where)
            return
        new_form, to = form, where
        if len(edges) > MAX_RUN_EDGES:
            if form is not _Form.BITS:
                new_form, to = _Form.BITS, self._pages.allocate(cpu, 0, PageKind.VALIDATION)
        elif form is not _Form.RUNS:
            try:
                new_form, to = _Form.RUNS, self._runs.allocate(cpu)
            except OutOfMemory:
                if form is not _Form.BITS:
                    new_form, to = _Form.BITS, self._pages.allocate(cpu, 0, PageKind.VALIDATION)
        if new_form is _Form.BITS:
            store_own(cpu, to, _bits_of(edges).to_bytes(PAGE_SIZE, "little"))
        else:
            raw = struct.pack(f"<{len(edges) + 1}H", len(edges), *edges)
            store_own(cpu, to, raw.ljust(RUNS_SIZE, b"\0"))
        if new_form is not form:
            self._store_entry(cpu, chunk, new_form, to)
            self._free(cpu, form, where)

    def _free(self, cpu: PerCpu, form: _Form, where: Gpa) -> None:
        if form is _Form.RUNS:
            self._runs.free(cpu, where)
        elif form is _Form.BITS:
            self._pages.free(cpu, where)


def _cut(frame: int, npages: int) -> Iterator[tuple[int, int, int]]:
    """The parts of a range that lie in one chunk each: its number, and pages in it."""
    stop = frame + npages
    while frame < stop:
        chunk, first = divmod(frame, CHUNK_PAGES)
        last = min(CHUNK_PAGES, first + stop - frame)
        yield chunk, first, last
        frame += last - first


def _bits_of(edges: Sequence[int]) -> int:
    bits = 0
    for edge in edges:
        bits ^= _ALL_BITS >> edge << edge
    return bits


def _edges_of(bits: int) -> list[int]:
    changes = (bits ^ bits << 1) & _ALL_BITS
    edges = []
    while changes:
        lowest = changes & -changes
        edges.append(lowest.bit_length() - 1)
        changes ^= lowest
    return edges


def _with_range(edges: Sequence[int], first: int, last: int, state: bool) -> list[int]:
    """The edges after pages `first` to `last` - 1 have got this state."""
    before = [edge for edge in edges if edge < first]
    after = [edge for edge in edges if edge > last]
    behind = bool((len(edges) - len(after)) & 1)
    if bool(len(before) & 1) != state:
        before.append(first)
    if behind != state and last < CHUNK_PAGES:
        before.append(last)
    return before + after
