# SPDX-License-Identifier: MIT
"""Slab caches: objects of one size, out of pages of the page allocator.

A slab is one page: a header of 64 bytes with a bit for each object in use, then the objects. So a
stray write into a free object harms no list, and to free what is not in use is noticed, and is a
panic. A slab with nothing in use goes back to the page allocator.

Spec: none; the C twin is `svsmd/core/native/page_info.h`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from svsmd.core.access import load_own, store_own, zero_own
from svsmd.core.gate import SvsmPanic
from svsmd.core.memory.allocator import PageAllocator
from svsmd.core.memory.page_info import POISON, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa

OBJECT_ALIGNMENT: Final = 16
HEADER_SIZE: Final = 64
MAX_OBJECT_SIZE: Final = (PAGE_SIZE - HEADER_SIZE) // 2
"""Larger ones are pages."""
MAX_OBJECTS: Final = (PAGE_SIZE - HEADER_SIZE) // OBJECT_ALIGNMENT

_HEADER: Final = struct.Struct("<IHH32s24x")
"""Magic, size of an object, how many there are, and a bit for each that is in use."""
_MAGIC: Final = int.from_bytes(b"SLAB", "little")
assert _HEADER.size == HEADER_SIZE
assert MAX_OBJECTS <= 32 * 8


@dataclass(frozen=True, slots=True)
class SlabStatistics:
    """How many pages a cache has, how many objects fit in, and how many are in use."""

    name: str
    size: int
    slabs: int
    capacity: int
    used: int


class SlabCache:
    """Objects of `size` bytes, rounded up to 16. `name` is for reports and panics."""

    def __init__(self, pages: PageAllocator, size: int, name: str) -> None:
        size = -(-size // OBJECT_ALIGNMENT) * OBJECT_ALIGNMENT
        if not 0 < size <= MAX_OBJECT_SIZE:
            raise ValueError(f"no slab has objects of {size} bytes")
        self.name: Final = name
        self.size: Final = size
        self.capacity: Final = (PAGE_SIZE - HEADER_SIZE) // size
        """Objects in one page."""
        self._pages = pages
        self._used: dict[Gpa, int] = {}
        """Objects in use, by slab."""
        self._partial: dict[Gpa, None] = {}
        """Slabs that have free ones, in the order in which they are used."""

    def allocate(self, cpu: PerCpu) -> Gpa:
        """One object, zero. Raises OutOfMemory."""
        slab = next(iter(self._partial), None)
        if slab is None:
            slab = self._pages.allocate(cpu, 0, PageKind.SLAB)
            self._used[slab] = 0
            self._partial[slab] = None
            self._store_bits(cpu, slab, 0)
        bits = self._load_bits(cpu, slab)
        index = (~bits & (bits + 1)).bit_length() - 1
        self._store_bits(cpu, slab, bits | 1 << index)
        self._used[slab] += 1
        if self._used[slab] == self.capacity:
            del self._partial[slab]
        gpa = self._object(slab, index)
        if self._pages.poison:
            self._check_poison(cpu, gpa)
        zero_own(cpu, gpa, self.size)
        return gpa

    def free(self, cpu: PerCpu, gpa: Gpa) -> None:
        """Give an object back; panics if it is not one that is in use."""
        slab = Gpa(gpa & ~PAGE_MASK)
        index, rest = divmod((gpa & PAGE_MASK) - HEADER_SIZE, self.size)
        if slab not in self._used or rest or not 0 <= index < self.capacity:
            raise SvsmPanic(f"{gpa:#x} is no object of {self.name}")
        bits = self._load_bits(cpu, slab)
        if not bits >> index & 1:
            raise SvsmPanic(f"object {gpa:#x} of {self.name} is free already")
        self._used[slab] -= 1
        if not self._used[slab]:
            del self._used[slab]
            self._partial.pop(slab, None)
            self._pages.free(cpu, slab)
            return
        if self._pages.poison:
            store_own(cpu, gpa, bytes([POISON]) * self.size)
        self._store_bits(cpu, slab, bits & ~(1 << index))
        self._partial[slab] = None

    def statistics(self) -> SlabStatistics:
        """How things are now."""
        slabs = len(self._used)
        return SlabStatistics(
            self.name, self.size, slabs, slabs * self.capacity, sum(self._used.values())
        )

    def _object(self, slab: Gpa, index: int) -> Gpa:
        return Gpa(slab + HEADER_SIZE + index * self.size)

    def _check_poison(self, cpu: PerCpu, gpa: Gpa) -> None:
        """An object that was never used is zero, one that was freed is poison."""
        data = load_own(cpu, gpa, self.size)
        if data.strip(bytes([data[0]])) or data[0] not in (0, POISON):
            raise SvsmPanic(f"object {gpa:#x} of {self.name} was written to while it was free")

    def _load_bits(self, cpu: PerCpu, slab: Gpa) -> int:
        magic, size, capacity, raw = _HEADER.unpack(load_own(cpu, slab, HEADER_SIZE))
        if (magic, size, capacity) != (_MAGIC, self.size, self.capacity):
            raise SvsmPanic(f"the header of slab {slab:#x} of {self.name} is overwritten")
        return int.from_bytes(raw, "little")

    def _store_bits(self, cpu: PerCpu, slab: Gpa, bits: int) -> None:
        raw = bits.to_bytes(32, "little")
        store_own(cpu, slab, _HEADER.pack(_MAGIC, self.size, self.capacity, raw))
