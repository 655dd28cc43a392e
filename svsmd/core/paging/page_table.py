# SPDX-License-Identifier: MIT
"""Page tables of VMPL0, in memory of the SVSM.

A `PageTable` is a tree of tables: a PML4 with all below it, or a page directory pointer table for
512 GiB, which PML4s of several CPUs may share. Tables that become empty are freed, except the root.

Nothing here flushes a TLB. After `unmap` and `protect`, and before it yields, the caller executes
INVLPG (`Port.invlpg`) where only its own CPU has the tables, or else flushes all TLBs
(`access.flush_tlb`): up to then a CPU may still use what was there, tables that are freed included.

Spec: 24593, 5.3 and 5.4 (long-mode translation, entries), 15.34.5 (C-bit).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from svsmd.core.access import load_own, store_own
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.page_entry import (
    ADDRESS,
    LARGE,
    Mapping,
    PageFlags,
    decode_leaf,
    leaf_entry,
    table_entry,
)
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize

ENTRIES: Final = 512
"""Of a table."""
SUBTREE_SIZE: Final = 1 << 39
"""Bytes that one entry of a PML4 stands for."""

_ENTRY: Final = struct.Struct("<Q")
_USER_HALF: Final = 1 << 47
_TOP: Final = 1 << 64


class AlreadyMapped(Exception):
    """Something is mapped there, or in a part of it."""


class NotMapped(Exception):
    """Nothing is mapped there."""


class PageTable:
    """One tree of tables; `levels` is 4 (PML4), or 3 for the 512 GiB from `base` on.

    Raises:
        OutOfMemory: there is no page for the root.
        ValueError: `levels` or `base` is none of these.
    """

    def __init__(self, cpu: PerCpu, pages: PageAllocator, levels: int = 4, base: int = 0) -> None:
        if levels not in (3, 4) or base % SUBTREE_SIZE or (levels == 4 and base):
            raise ValueError(f"no page table has {levels} levels from {base:#x} on")
        self.levels: Final = levels
        self.base: Final = base
        self._pages = pages
        self._attached: set[int] = set()
        self.tables = 1
        """How many tables it has, of a page each."""
        self.root: Final = pages.allocate(cpu, 0, PageKind.PAGE_TABLE)
        """GPA of the topmost table."""

    @property
    def cr3(self) -> int:
        """CR3 for these tables (a PML4)."""
        return self.root | C_BIT

    # Mappings --------------------------------------------------------------------------------

    def map(
        self,
        cpu: PerCpu,
        gva: int,
        gpa: int,
        flags: PageFlags,
        size: PageSize = PageSize.SIZE_4K,
    ) -> None:
        """Map one page; after an exception nothing has changed.

        Raises:
            AlreadyMapped: see there.
            OutOfMemory: there is no page for a table.
            ValueError: an address is not that of a page, or not one of this tree, or the flags are
                not allowed there.
        """
        self._check(gva, gpa, flags, size)
        value = leaf_entry(gpa, flags, size)
        stop = _leaf_level(size)
        where, level, entry = self._walk(cpu, gva, stop)
        if entry:
            raise AlreadyMapped(f"{gva:#x}")
        made: list[Gpa] = []
        try:
            # From the leaf upwards, so that the last store makes all of it appear at once.
            for below in range(stop, level):
                table = self._pages.allocate(cpu, 0, PageKind.PAGE_TABLE)
                made.append(table)
                self._put(cpu, table + _offset(gva, below), value)
                value = table_entry(table, user=gva < _USER_HALF)
        except OutOfMemory:
            for table in made:
                self._pages.free(cpu, table)
            raise
        self.tables += len(made)
        self._put(cpu, where[-1], value)

    def map_range(self, cpu: PerCpu, gva: int, gpa: int, npages: int, flags: PageFlags) -> None:
        """Map adjoining pages of 4 KiB; all or, after an exception, none. Raises as `map`."""
        done = 0
        try:
            while done < npages:
                first, target = gva + done * PAGE_SIZE, gpa + done * PAGE_SIZE
                self.map(cpu, first, target, flags)
                done += 1
                # The others of the same table, in one go.
                more = min(npages - done, ENTRIES - 1 - (first >> PAGE_SHIFT) % ENTRIES)
                if not more:
                    continue
                self._check(first + more * PAGE_SIZE, target, flags, PageSize.SIZE_4K)
                where, _, _ = self._walk(cpu, first, 1)
                rest = where[-1] + _ENTRY.size
                if any(load_own(cpu, rest, more * _ENTRY.size)):
                    raise AlreadyMapped(f"{first:#x}, {more + 1} pages")
                leaves = (leaf_entry(target + n * PAGE_SIZE, flags) for n in range(1, more + 1))
                store_own(cpu, rest, b"".join(map(_ENTRY.pack, leaves)))
                done += more
        except (AlreadyMapped, OutOfMemory, ValueError):
            for page in range(done):
                self.unmap(cpu, gva + page * PAGE_SIZE)
            raise

    def unmap(self, cpu: PerCpu, gva: int) -> Mapping:
        """Take away the mapping of the page that `gva` lies in, and tables that become empty.

        Returns what was there. Raises NotMapped, or ValueError for an address of another tree.
        """
        self._check(gva & ~PAGE_MASK, 0, PageFlags.READ, PageSize.SIZE_4K)
        where, level, entry = self._walk(cpu, gva, 1)
        if not entry:
            raise NotMapped(f"{gva:#x}")
        self._put(cpu, where[-1], 0)
        while len(where) > 1:
            table = Gpa(where.pop() & ~PAGE_MASK)
            if any(load_own(cpu, table, PAGE_SIZE)):
                break
            self._put(cpu, where[-1], 0)
            self._pages.free(cpu, table)
            self.tables -= 1
        return decode_leaf(entry, level)

    def protect(self, cpu: PerCpu, gva: int, flags: PageFlags) -> None:
        """Give the page that `gva` lies in other flags.

        Raises:
            NotMapped: see there.
            ValueError: as for `map`.
        """
        self._check(gva & ~PAGE_MASK, 0, flags, PageSize.SIZE_4K)
        where, level, entry = self._walk(cpu, gva, 1)
        if not entry:
            raise NotMapped(f"{gva:#x}")
        old = decode_leaf(entry, level)
        self._put(cpu, where[-1], leaf_entry(old.gpa, flags, old.size))

    def lookup(self, cpu: PerCpu, gva: int) -> Mapping | None:
        """What is mapped at `gva`, attached trees included, or None."""
        if not self._covers(gva):
            return None
        _, level, entry = self._walk(cpu, gva, 1)
        return decode_leaf(entry, level) if entry else None

    def leaves(self, cpu: PerCpu, start: int, stop: int) -> list[int]:
        """GVAs in [start, stop), ascending, of the pages that are mapped there.

        Takes as long as there are tables, however long the range is. Only for a tree of 3 levels;
        ValueError otherwise.
        """
        if self.levels != 3:
            raise ValueError("a PML4 has too many leaves")
        return list(self._leaves(cpu, self.root, self.levels, self.base, start, stop))

    def _leaves(
        self, cpu: PerCpu, table: int, level: int, base: int, start: int, stop: int
    ) -> Iterator[int]:
        span = PAGE_SIZE << 9 * (level - 1)
        first = max(start - base, 0) // span
        last = min(-(-(stop - base) // span), ENTRIES)
        if first >= last:
            return
        where = table + first * _ENTRY.size
        raw = load_own(cpu, where, (last - first) * _ENTRY.size)
        for index, (entry,) in enumerate(_ENTRY.iter_unpack(raw), first):
            gva = base + index * span
            if not entry:
                continue
            if level == 1 or entry & LARGE:
                yield gva
            else:
                yield from self._leaves(cpu, entry & ADDRESS, level - 1, gva, start, stop)

    def entry_gpa(self, cpu: PerCpu, gva: int, size: PageSize = PageSize.SIZE_4K) -> Gpa:
        """Where the entry lies that maps, or could map, a page of this size at `gva`.

        Raises NotMapped if there is no table for it.
        """
        stop = _leaf_level(size)
        where, level, _ = self._walk(cpu, gva, stop)
        if level != stop:
            raise NotMapped(f"{gva:#x}")
        return Gpa(where[-1])

    # Trees -----------------------------------------------------------------------------------

    def attach(self, cpu: PerCpu, subtree: PageTable) -> None:
        """Let a PML4 use a tree of 3 levels, which keeps its owner.

        Raises AlreadyMapped if something is mapped in its 512 GiB.
        """
        where = self._slot(subtree.base)
        if self._get(cpu, where):
            raise AlreadyMapped(f"{subtree.base:#x}")
        self._attached.add(where)
        self._put(cpu, where, table_entry(subtree.root, user=subtree.base < _USER_HALF))

    def detach(self, cpu: PerCpu, base: int) -> None:
        """Undo `attach` of the tree from `base` on, if one is attached."""
        where = self._slot(base)
        if where in self._attached:
            self._attached.remove(where)
            self._put(cpu, where, 0)

    def free(self, cpu: PerCpu) -> None:
        """Give the tables back, not what they map, and not attached trees. No CPU uses them."""
        self._free(cpu, self.root, self.levels)

    def _free(self, cpu: PerCpu, table: Gpa, level: int) -> None:
        if level > 1:
            entries = _ENTRY.iter_unpack(load_own(cpu, table, PAGE_SIZE))
            for index, (entry,) in enumerate(entries):
                where = table + index * _ENTRY.size
                if entry and not entry & LARGE and where not in self._attached:
                    self._free(cpu, Gpa(entry & ADDRESS), level - 1)
        self._pages.free(cpu, table)

    # Entries ---------------------------------------------------------------------------------

    def _slot(self, gva: int) -> int:
        if self.levels != 4:
            raise ValueError("only a PML4 has trees attached")
        return self.root + _offset(gva, 4)

    def _covers(self, gva: int) -> bool:
        if self.levels == 4:
            return 0 <= gva < _USER_HALF or _TOP - _USER_HALF <= gva < _TOP
        return self.base <= gva < self.base + SUBTREE_SIZE

    def _check(self, gva: int, gpa: int, flags: PageFlags, size: PageSize) -> None:
        if (gva | gpa) % size.nbytes or not self._covers(gva) or gpa & ~ADDRESS:
            raise ValueError(f"{gva:#x} cannot be mapped to {gpa:#x}")
        if flags & PageFlags.USER and gva >= _USER_HALF:
            raise ValueError(f"{gva:#x} is not in the user half")
        if self.levels == 4 and self._slot(gva) in self._attached:
            raise ValueError(f"{gva:#x} belongs to an attached tree")

    def _walk(self, cpu: PerCpu, gva: int, stop: int) -> tuple[list[int], int, int]:
        """GPAs of the entries for `gva` from the root down, to that of level `stop` at most.

        Also the level of the last one, and what it holds: 0, a leaf, or at `stop` a table.
        """
        table: int = self.root
        level = self.levels
        where: list[int] = []
        while True:
            where.append(table + _offset(gva, level))
            entry = self._get(cpu, where[-1])
            if level == stop or not entry or entry & LARGE:
                return where, level, entry
            table = entry & ADDRESS
            level -= 1

    @staticmethod
    def _get(cpu: PerCpu, where: int) -> int:
        (entry,) = _ENTRY.unpack(load_own(cpu, where, _ENTRY.size))
        return int(entry)

    @staticmethod
    def _put(cpu: PerCpu, where: int, entry: int) -> None:
        store_own(cpu, where, _ENTRY.pack(entry))


def _leaf_level(size: PageSize) -> int:
    return 2 if size is PageSize.SIZE_2M else 1


def _offset(gva: int, level: int) -> int:
    """Of the entry for `gva` in its table of this level."""
    return (gva >> (PAGE_SHIFT + 9 * (level - 1))) % ENTRIES * _ENTRY.size
