# SPDX-License-Identifier: MIT
"""The MMIO space: routes the guest's MMIO exits to the devices.

Spec: GHCB 56421, section 4.1 (MMIO accesses name address and size). Where no device is, reads give
all ones and writes are ignored, as on a bus that nobody answers on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE

MmioRead = Callable[[int, int], int]
"""(offset, size in bytes) -> value."""
MmioWrite = Callable[[int, int, int], None]
"""(offset, size in bytes, value)."""


@dataclass(frozen=True, slots=True)
class _Region:
    base: int
    end: int
    read: MmioRead
    write: MmioWrite


class MmioBus:
    """Page number to device; at most one device in a page."""

    def __init__(self) -> None:
        self._pages: dict[int, _Region] = {}

    def map_region(self, base: int, size: int, read: MmioRead, write: MmioWrite) -> None:
        """Gives *size* bytes from the page-aligned *base* to a device.

        :raises ValueError: unaligned, or a page is taken (a mistake in the wiring).
        """
        if base % PAGE_SIZE or size <= 0:
            raise ValueError(f"no MMIO region of {size} bytes at {base:#x}")
        region = _Region(base, base + size, read, write)
        pages = range(base >> PAGE_SHIFT, (region.end - 1 >> PAGE_SHIFT) + 1)
        if not self._pages.keys().isdisjoint(pages):
            raise ValueError(f"the MMIO region at {base:#x} overlaps another one")
        self._pages.update(dict.fromkeys(pages, region))

    def read(self, gpa: int, size: int) -> int:
        """*size* bytes from *gpa*, little-endian."""
        region = self._pages.get(gpa >> PAGE_SHIFT)
        if region is None or gpa + size > region.end:
            return (1 << (8 * size)) - 1
        return region.read(gpa - region.base, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        """*size* bytes to *gpa*, little-endian."""
        region = self._pages.get(gpa >> PAGE_SHIFT)
        if region is not None and gpa + size <= region.end:
            region.write(gpa - region.base, size, value)
