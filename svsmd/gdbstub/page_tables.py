# SPDX-License-Identifier: MIT
"""Everything that page tables map, in order, read a table at a time and bounded.

A walk for one address is the silicon's (`svsmd.snp.walk_trace`); this is for lists of all of them.
Tables may be hostile: one that leads to itself maps 256 TiB. So a scan stops after `MAX_TABLES`
tables and says so.

Spec: 24593, 5.2 (legacy), 5.3 (long mode).
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from svsmd.snp.memory import GuestMemory
from svsmd.snp.page_walk import CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA, PagingState
from svsmd.snp.types import C_BIT_POSITION, PAGE_SIZE

P: Final = 1 << 0
W: Final = 1 << 1
U: Final = 1 << 2
NX: Final = 1 << 3
C: Final = 1 << 4
"""Attributes of a run: those of the entries that lead to it, and the C-bit of its leaf."""
ALL: Final = P | W | U | NX | C

MAX_TABLES: Final = 1 << 15
"""Tables that one scan looks at; a Linux guest has some hundreds."""

_FRAME: Final = (1 << C_BIT_POSITION) - PAGE_SIZE
_PS: Final = 1 << 7
_ENTRIES: Final = 512
_SHORT_ENTRIES: Final = 1024
_LONG: Final = struct.Struct(f"<{_ENTRIES}Q")
_SHORT: Final = struct.Struct(f"<{_SHORT_ENTRIES}I")
_NOTHING: Final = bytes(PAGE_SIZE)
_EQUAL_BYTES: Final = re.compile(rb"(.)\1*", re.DOTALL)

# One byte of each entry, mapped to what it has to say.
_LOW: Final = bytes(low & (P | W | U) if low & P else 0 for low in range(256))
_PRESENT: Final = bytes(0xFF if low & P else 0 for low in range(256))
_C_BYTE: Final = C_BIT_POSITION // 8
_C_OF_BYTE: Final = bytes(C if byte >> C_BIT_POSITION % 8 & 1 else 0 for byte in range(256))
_NX_OF_BYTE: Final = bytes(NX if byte & 0x80 else 0 for byte in range(256))


class Leaf(NamedTuple):
    """An entry that maps a page: where, how many bytes, and the entry itself."""

    gva: int
    size: int
    entry: int


class Run(NamedTuple):
    """Linear addresses [start, end), without the sign extension, that are mapped alike."""

    start: int
    end: int
    attributes: int


class PageTables:
    """The tables that `state` names, in `memory`."""

    def __init__(self, memory: GuestMemory, state: PagingState) -> None:
        self._memory = memory
        self._state = state
        self._left = MAX_TABLES
        self._attributes: dict[int, bytes] = {}
        self.truncated = False
        """Whether the last scan has stopped before the end."""

    @property
    def paging(self) -> bool:
        """Whether there are tables at all."""
        return bool(self._state.cr0 & CR0_PG)

    # -- leaves -----------------------------------------------------------------------------

    def leaves(self) -> Iterator[Leaf]:
        """Every entry that maps a page, by ascending address."""
        self._left, self.truncated = MAX_TABLES, False
        state = self._state
        if not state.cr4 & CR4_PAE:
            yield from self._short_leaves()
        elif state.efer & EFER_LMA:
            yield from self._leaves(state.cr3 & _FRAME, 39, 0)
        else:
            for index, pointer in enumerate(self._pointers()):
                if pointer & P:
                    yield from self._leaves(pointer & _FRAME, 21, index << 30)

    def _leaves(self, table: int, shift: int, base: int) -> Iterator[Leaf]:
        raw = self._read(table)
        if raw is None:
            return
        for index, entry in enumerate(_LONG.unpack(raw)):
            if not entry & P:
                continue
            gva = base + (index << shift)
            if shift == 12 or (shift < 39 and entry & _PS):
                yield Leaf(gva, 1 << shift, entry)
            else:
                yield from self._leaves(entry & _FRAME, shift - 9, gva)

    def _short_leaves(self) -> Iterator[Leaf]:
        for index, entry in enumerate(self._short_table(self._state.cr3 & 0xFFFF_F000)):
            if not entry & P:
                continue
            gva = index << 22
            if self._is_big(entry):
                yield Leaf(gva, 1 << 22, entry)
                continue
            for inner, leaf in enumerate(self._short_table(entry & 0xFFFF_F000)):
                if leaf & P:
                    yield Leaf(gva + (inner << 12), PAGE_SIZE, leaf)

    # -- runs -------------------------------------------------------------------------------

    def runs(self, attributes: int) -> Iterator[Run]:
        """What is mapped, neighbours that agree in these attributes being one."""
        start = end = last = 0
        for run in self._pieces(attributes):
            if run.start == end and run.attributes == last:
                end = run.end
                continue
            if end > start:
                yield Run(start, end, last)
            start, end, last = run
        if end > start:
            yield Run(start, end, last)

    def _pieces(self, attributes: int) -> Iterator[Run]:
        self._left, self.truncated = MAX_TABLES, False
        state = self._state
        if not state.cr4 & CR4_PAE:
            yield from self._short_pieces(attributes)
        elif state.efer & EFER_LMA:
            yield from self._table_pieces(state.cr3 & _FRAME, 39, 0, ALL & ~NX, attributes)
        else:
            for index, pointer in enumerate(self._pointers()):
                if pointer & P:
                    table, base = pointer & _FRAME, index << 30
                    yield from self._table_pieces(table, 21, base, ALL & ~NX, attributes)

    def _table_pieces(
        self, table: int, shift: int, base: int, above: int, wanted: int
    ) -> Iterator[Run]:
        """`above`: what the levels above allow (P, W, U, C), and their NX."""
        if shift == 12:
            yield from self._leaf_pieces(table, base, above, wanted)
            return
        raw = self._read(table)
        if raw is None:
            return
        for index, entry in enumerate(_LONG.unpack(raw)):
            if not entry & P:
                continue
            own = entry & (P | W | U)
            if entry >> 63:
                own |= NX
            gva = base + (index << shift)
            combined = _combine(own | C, above)
            if shift < 39 and entry & _PS:
                if not entry >> C_BIT_POSITION & 1:
                    combined &= ~C
                yield Run(gva, gva + (1 << shift), combined & wanted)
            else:
                yield from self._table_pieces(entry & _FRAME, shift - 9, gva, combined, wanted)

    def _leaf_pieces(self, table: int, base: int, above: int, wanted: int) -> Iterator[Run]:
        own = self._attributes.get(table)
        if own is None:
            raw = self._read(table)
            own = self._attributes[table] = b"" if raw is None else _leaf_attributes(raw)
        elif not self._count():
            return
        for match in _EQUAL_BYTES.finditer(own.translate(_translation(above, wanted))):
            attributes = match[0][0]
            if attributes:
                start, end = match.span()
                yield Run(base + start * PAGE_SIZE, base + end * PAGE_SIZE, attributes)

    def _short_pieces(self, wanted: int) -> Iterator[Run]:
        """32-bit tables have neither NX nor C: all is private."""
        for index, entry in enumerate(self._short_table(self._state.cr3 & 0xFFFF_F000)):
            if not entry & P:
                continue
            gva = index << 22
            above = entry & (P | W | U) | C
            if self._is_big(entry):
                yield Run(gva, gva + (1 << 22), above & wanted)
                continue
            for inner, leaf in enumerate(self._short_table(entry & 0xFFFF_F000)):
                if leaf & P:
                    at = gva + (inner << 12)
                    yield Run(at, at + PAGE_SIZE, (leaf & (P | W | U) | C) & above & wanted)

    # -- tables -----------------------------------------------------------------------------

    def _count(self) -> bool:
        """One table more; False if there were enough."""
        if not self._left:
            self.truncated = True
            return False
        self._left -= 1
        return True

    def _read(self, table: int) -> bytes | None:
        """A table; None if it has no entries, is no RAM, or too many were read already."""
        if not self._memory.contains(table, PAGE_SIZE) or not self._count():
            return None
        raw = self._memory.read(table, PAGE_SIZE)
        return None if raw == _NOTHING else raw

    def _pointers(self) -> tuple[int, ...]:
        """The four of legacy PAE."""
        table = self._state.cr3 & 0xFFFF_FFE0
        if not self._memory.contains(table, 32):
            return ()
        return struct.unpack("<4Q", self._memory.read(table, 32))

    def _short_table(self, table: int) -> tuple[int, ...]:
        raw = self._read(table)
        return () if raw is None else _SHORT.unpack(raw)

    def _is_big(self, entry: int) -> bool:
        return bool(entry & _PS and self._state.cr4 & CR4_PSE)


def canonical(address: int) -> int:
    """A 48-bit address with its sign extension."""
    return address | 0xFFFF << 48 if address >> 47 & 1 else address


def _leaf_attributes(raw: bytes) -> bytes:
    """One byte of attributes for each entry of a page table; 0 is not mapped."""
    size = len(raw) // 8
    low = raw[::8]
    bits = int.from_bytes(low.translate(_LOW))
    bits |= int.from_bytes(raw[_C_BYTE::8].translate(_C_OF_BYTE))
    bits |= int.from_bytes(raw[7::8].translate(_NX_OF_BYTE))
    return (bits & int.from_bytes(low.translate(_PRESENT))).to_bytes(size)


def _combine(own: int, above: int) -> int:
    """Rights are those that all levels give; NX is set if one level sets it."""
    return own & above & ~NX | (own | above) & NX


@functools.cache
def _translation(above: int, wanted: int) -> bytes:
    """Attributes of an entry to those of its page, below what the levels above say."""
    return bytes(_combine(own, above) & wanted if own & P else 0 for own in range(256))
