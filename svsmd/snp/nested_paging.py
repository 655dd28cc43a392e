# SPDX-License-Identifier: MIT
"""Nested page tables: a cache of what the RMP lets each VMPL do.

Each VMPL has its own root. Root entry 1 is the private alias of guest-physical memory (C=1), entry
0 the shared one (C=0). While the guest's paging is off all its accesses are private (24593,
15.34.10), so for that there is a second root whose entry 0 is the private alias. A leaf is there
only if silicon has checked the access against the RMP (docs/access-checks.md); everything else is
absent, faults, and is decided again. So dropping a leaf is always right, and a change of an RMP
entry drops the leaves of its page.

No leaf carries NX: the engine reads guest page tables through these leaves, and dies on NX there.

Spec: 24593, 15.25 (nested paging), 5.3 (long-mode page translation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from svsmd.snp.types import C_BIT, HUGE_PAGE_SHIFT, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_HUGE_PAGE

PRESENT: Final = 1 << 0
WRITABLE: Final = 1 << 1
USER: Final = 1 << 2
ACCESSED: Final = 1 << 5
DIRTY: Final = 1 << 6
HUGE: Final = 1 << 7
WATCHED: Final = 1 << 9
"""Not used by the processor (24593, 5.4); native/watchpoints.c sees it."""
_TABLE: Final = PRESENT | WRITABLE | USER
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_ENTRIES: Final = 512
VMPL_COUNT: Final = 4


class NestedTables:
    """The nested tables of all VMPLs, in a pool of host-private memory.

    Args:
        pool: the host-private memory, as 64-bit words; its length bounds all tables together.
        base: its address in the engine's physical memory.
        on_reset: called when the pool was full and all leaves were dropped; the engine's TLB must
            not remember any of them, since unmap() no longer knows them.
    """

    def __init__(self, pool: memoryview, base: int, on_reset: Callable[[], None]) -> None:
        self._pool = pool
        self._base = base
        self._on_reset = on_reset
        self._capacity = len(pool) // _ENTRIES
        self._used = 0
        # (vmpl, alias, 2 MiB region) -> index in the pool of the word of its page directory entry
        self._directory_entry: dict[tuple[int, int, int], int] = {}
        self._leaf_table: dict[tuple[int, int, int], int] = {}
        self._regions: dict[int, set[tuple[int, int, int]]] = {}
        self._upper: dict[tuple[int, int], int] = {}
        self.roots: list[int] = []
        self.unpaged_roots: list[int] = []
        self._build()

    def reset(self) -> None:
        """Drops every leaf."""
        self._build()
        self._on_reset()

    def _build(self) -> None:
        for index in range(self._used):
            self._clear_table(index)
        self._used = 0
        self._directory_entry.clear()
        self._leaf_table.clear()
        self._regions.clear()
        self._upper.clear()
        paged = [self._allocate() for _ in range(VMPL_COUNT)]
        unpaged = [self._allocate() for _ in range(VMPL_COUNT)]
        self.roots = [self._base + t * PAGE_SIZE for t in paged]
        self.unpaged_roots = [self._base + t * PAGE_SIZE for t in unpaged]
        for with_c_bit, without in zip(paged, unpaged, strict=True):
            self._child(with_c_bit * _ENTRIES + 1)
            self._pool[without * _ENTRIES] = self._pool[with_c_bit * _ENTRIES + 1]

    def _clear_table(self, index: int) -> None:
        start = index * _ENTRIES
        self._pool[start : start + _ENTRIES] = _EMPTY

    def _allocate(self) -> int:
        index = self._used
        self._used += 1
        return index

    def _child(self, word: int) -> int:
        """The table that the entry at `word` points to, made if it is not there."""
        entry = self._pool[word]
        if entry & PRESENT:
            return ((entry & _ADDRESS) - self._base) // PAGE_SIZE
        table = self._allocate()
        self._pool[word] = (self._base + table * PAGE_SIZE) | _TABLE
        return table

    def _directory_word(self, vmpl: int, alias: int, region: int) -> int:
        key = (vmpl, alias, region)
        word = self._directory_entry.get(key)
        if word is None:
            pointers = self._child(vmpl * _ENTRIES + alias)
            directory = self._child(pointers * _ENTRIES + (region >> 9))
            word = directory * _ENTRIES + (region & 0x1FF)
            self._directory_entry[key] = word
            self._regions.setdefault(region, set()).add(key)
        return word

    def map_page(
        self, vmpl: int, gpa: int, spa: int, *, writable: bool, watched: bool = False
    ) -> None:
        """Adds the 4 KiB leaf of `gpa` (with its C-bit); `watched`: accesses are looked at."""
        if self._used + 3 > self._capacity:
            self.reset()
        alias, gpa = (1, gpa ^ C_BIT) if gpa & C_BIT else (0, gpa)
        region = gpa >> HUGE_PAGE_SHIFT
        key = (vmpl, alias, region)
        table = self._leaf_table.get(key)
        if table is None:
            word = self._directory_word(vmpl, alias, region)
            if self._pool[word] & HUGE:
                self._pool[word] = 0
            table = self._leaf_table[key] = self._child(word)
        flags = PRESENT | USER | ACCESSED | DIRTY | (WRITABLE if writable else 0)
        if watched:
            flags |= WATCHED
        page = (gpa >> PAGE_SHIFT) & 0x1FF
        self._pool[table * _ENTRIES + page] = (spa & _ADDRESS) | flags

    def map_huge_page(self, vmpl: int, gpa: int, spa: int, *, writable: bool) -> None:
        """Adds the 2 MiB leaf around `gpa` (with its C-bit), unless 4 KiB leaves stand there."""
        if self._used + 3 > self._capacity:
            self.reset()
        alias, gpa = (1, gpa ^ C_BIT) if gpa & C_BIT else (0, gpa)
        region = gpa >> HUGE_PAGE_SHIFT
        key = (vmpl, alias, region)
        if key in self._leaf_table:
            self.map_page(vmpl, gpa | (C_BIT if alias else 0), spa, writable=writable)
            return
        word = self._directory_word(vmpl, alias, region)
        flags = PRESENT | USER | ACCESSED | DIRTY | HUGE | (WRITABLE if writable else 0)
        self._pool[word] = (spa >> HUGE_PAGE_SHIFT << HUGE_PAGE_SHIFT) | flags

    def unmap(self, first_page: int, npages: int) -> bool:
        """Drops the leaves of guest-physical pages in every VMPL and alias.

        Returns:
            Whether there was one, so that the engine's TLB may hold it too.
        """
        dropped = False
        end = first_page + npages
        page = first_page
        while page < end:
            region = page // PAGES_PER_HUGE_PAGE
            stop = min(end, (region + 1) * PAGES_PER_HUGE_PAGE)
            for key in self._regions.get(region, ()):
                word = self._directory_entry[key]
                entry = self._pool[word]
                if entry & HUGE:
                    self._pool[word] = 0
                    dropped = True
                elif entry:
                    start = self._leaf_table[key] * _ENTRIES + page % PAGES_PER_HUGE_PAGE
                    leaves = self._pool[start : start + stop - page]
                    empty = _EMPTY[: stop - page]
                    if leaves != empty:
                        leaves[:] = empty
                        dropped = True
            page = stop
        return dropped


_EMPTY: Final = memoryview(bytearray(PAGE_SIZE)).cast("Q")
