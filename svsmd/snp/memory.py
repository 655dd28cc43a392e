# SPDX-License-Identifier: MIT
"""The machine's RAM: plaintext as the memory controller's core side sees it.

One anonymous mapping holds all of it, so that pages that nobody touched cost nothing and the CPU
engine can map it in place. There is no protection here: who may read what is decided by the RMP,
and what the host reads of a private page by `svsmd.snp.memory_encryption`.

Spec: none; the address map is the usual one of a PC, RAM below 3 GiB, MMIO up to 4 GiB, the rest
of the RAM from 4 GiB on.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from svsmd.snp.types import C_BIT_POSITION, HUGE_PAGE_SIZE, PAGE_MASK, PAGE_SIZE, Spa

MIB: Final = 1 << 20
GIB: Final = 1 << 30

MMIO_HOLE_START: Final = 3 * GIB
MMIO_HOLE_END: Final = 4 * GIB

MIN_MEMORY: Final = 16 * MIB
"""Less has no room for an SVSM and a guest."""
MAX_MEMORY: Final = (1 << (C_BIT_POSITION - 1)) - (MMIO_HOLE_END - MMIO_HOLE_START)
"""Half of the address space below the C-bit: the upper half is the engine's own."""


_ZEROS: Final = memoryview(bytearray(HUGE_PAGE_SIZE))
_ZEROS_ADDRESS: Final = ctypes.addressof(ctypes.c_char.from_buffer(_ZEROS))
_memcmp: Final = ctypes.CDLL(None).memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


_PAGEMAP: Final = "/proc/self/pagemap"
_PAGEMAP_ENTRY: Final = 8
_PAGEMAP_FLAGS: Final = 7
"""The byte of an entry that is not zero if the page is there, or swapped out (Linux,
Documentation/admin-guide/mm/pagemap.rst)."""


class NotRam(LookupError):
    """A physical address, or the end of a range, is not RAM."""

    def __init__(self, spa: int, nbytes: int = 1) -> None:
        super().__init__(f"no RAM for {nbytes} bytes at {spa:#x}")
        self.spa: Final = spa


class GuestMemory:
    """RAM of `size_bytes`, zeroed, at system physical addresses [0, 3 GiB) and from 4 GiB on.

    The size is a multiple of 2 MiB, 16 MiB at least; ValueError says what is wrong with another.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes < MIN_MEMORY:
            raise ValueError(
                f"memory of {size_bytes} bytes is too small: {MIN_MEMORY >> 20} MiB at least"
            )
        if size_bytes % HUGE_PAGE_SIZE:
            raise ValueError(f"memory of {size_bytes} bytes is not a multiple of 2 MiB")
        if size_bytes > MAX_MEMORY:
            raise ValueError(
                f"memory of {size_bytes} bytes is too large: {MAX_MEMORY >> 30} GiB at most"
            )
        try:
            mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise ValueError(
                f"memory of {size_bytes >> 20} MiB is more than this computer has: {error.strerror}"
            ) from error
        self.size: Final = size_bytes
        low = min(size_bytes, MMIO_HOLE_START)
        high = size_bytes - low
        ranges = [range(low)]
        if high:
            ranges.append(range(MMIO_HOLE_END, MMIO_HOLE_END + high))
        self.ranges: Final = tuple(ranges)
        """RAM by system physical address, ascending."""
        self.buffer: Final = memoryview(mapping)
        """All of the RAM, live and without holes: index with `offset_of`."""
        self.address: Final = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        """Host virtual address of `buffer`; valid as long as this object lives."""
        self._low_end = low
        self._high_end = MMIO_HOLE_END + high

    def contains(self, spa: int, nbytes: int = 1) -> bool:
        """Whether all of [spa, spa + nbytes) is RAM; false for less than one byte."""
        return nbytes > 0 and (
            0 <= spa <= self._low_end - nbytes or MMIO_HOLE_END <= spa <= self._high_end - nbytes
        )

    def offset_of(self, spa: int, nbytes: int = 1) -> int:
        """Return where `spa` is in `buffer`; `NotRam` unless `nbytes` from there on are RAM."""
        if 0 <= spa <= self._low_end - nbytes:
            return spa
        if MMIO_HOLE_END <= spa <= self._high_end - nbytes:
            return spa - (MMIO_HOLE_END - MMIO_HOLE_START)
        raise NotRam(spa, nbytes)

    def spa_of(self, offset: int) -> Spa:
        """Return the address of byte `offset` of `buffer`, the inverse of `offset_of`."""
        if not 0 <= offset < self.size:
            raise IndexError(f"RAM has {self.size:#x} bytes, not {offset:#x}")
        if offset < MMIO_HOLE_START:
            return Spa(offset)
        return Spa(offset + (MMIO_HOLE_END - MMIO_HOLE_START))

    def read(self, spa: int, nbytes: int) -> bytes:
        """Return a copy of `nbytes` of RAM; `NotRam` if not all of them are."""
        offset = self.offset_of(spa, nbytes)
        return bytes(self.buffer[offset : offset + nbytes])

    def write(self, spa: int, data: bytes | bytearray | memoryview) -> None:
        """Write RAM; `NotRam`, with nothing written, if not all of it is."""
        offset = self.offset_of(spa, len(data))
        self.buffer[offset : offset + len(data)] = data

    def read_u64(self, spa: int) -> int:
        """Return the little-endian quadword at `spa`, at any alignment."""
        offset = self.offset_of(spa, 8)
        return int.from_bytes(self.buffer[offset : offset + 8], "little")

    def write_u64(self, spa: int, value: int) -> None:
        """Write the little-endian quadword at `spa`; OverflowError if it has more than 64 bits."""
        offset = self.offset_of(spa, 8)
        self.buffer[offset : offset + 8] = value.to_bytes(8, "little")

    def zero(self, spa: int, nbytes: int) -> None:
        """Clear RAM; pages that are zero already are not written, and so stay free.

        `NotRam`, with nothing cleared, if not all of it is RAM.
        """
        start = self.offset_of(spa, nbytes)
        end = start + nbytes
        while start < end:
            stop = min(end, (start // HUGE_PAGE_SIZE + 1) * HUGE_PAGE_SIZE)
            # To ask takes longer than to compare one page.
            whole = stop - start == HUGE_PAGE_SIZE
            if not (whole and self._is_untouched(start)) and not self._is_zero(start, stop):
                self._zero_pages(start, stop)
            start = stop

    def _is_zero(self, start: int, stop: int) -> bool:
        # memcmp: comparing memoryviews goes byte by byte.
        return not _memcmp(self.address + start, _ZEROS_ADDRESS, stop - start)

    def _is_untouched(self, start: int) -> bool:
        """Whether no page of the 2 MiB from `start` on was ever used; false if that is not known.

        Reading such a page would give it an entry in this process' page tables: a boot clears all
        RAM, and nearly all of it is still as the kernel below has made it.
        """
        first, count = (self.address + start) // PAGE_SIZE, HUGE_PAGE_SIZE // PAGE_SIZE
        try:
            # Opened each time: it is of the process that has opened it, and there may be forks.
            with open(_PAGEMAP, "rb", buffering=0) as pagemap:
                pagemap.seek(first * _PAGEMAP_ENTRY)
                entries = pagemap.read(count * _PAGEMAP_ENTRY)
        except OSError:
            return False
        flags = entries[_PAGEMAP_FLAGS::_PAGEMAP_ENTRY]
        return len(flags) == count and not flags.strip(b"\0")

    def _zero_pages(self, start: int, end: int) -> None:
        while start < end:
            stop = min(end, (start // PAGE_SIZE + 1) * PAGE_SIZE)
            if not self._is_zero(start, stop):
                self.buffer[start:stop] = _ZEROS[: stop - start]
            start = stop

    def view(self, spa: int, nbytes: int) -> memoryview:
        """Return `nbytes` of live RAM; `NotRam` if not all of them are."""
        offset = self.offset_of(spa, nbytes)
        return self.buffer[offset : offset + nbytes]

    def page(self, spa: int) -> memoryview:
        """Return the live 4 KiB page that starts at `spa`; ValueError if no page starts there."""
        if spa & PAGE_MASK:
            raise ValueError(f"{spa:#x} is not the start of a page")
        return self.view(spa, PAGE_SIZE)
