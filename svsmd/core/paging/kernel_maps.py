# SPDX-License-Identifier: MIT
"""The parts of the address space that all CPUs of the SVSM share: its image, and its own memory.

Its own memory is the SVSM's region without the image, which is mapped elsewhere already, and
without the pages that are somebody's alone: areas of CPUs, VMSAs, what the host or the guest sees.

Spec: none; the map is in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from svsmd.core.access import flush_tlb
from svsmd.core.memory import PageAllocator, PageKind
from svsmd.core.page_entry import PageFlags
from svsmd.core.paging.page_table import SUBTREE_SIZE, PageTable
from svsmd.core.percpu import PerCpu
from svsmd.core.port import IMAGE_MAP, PRIVATE_MAP
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Where the parts of the native image end, as GVAs from `IMAGE_MAP` on, whole pages.

    Text is executed, read-only data read, and the rest, up to `end`, written.
    """

    text_end: int
    rodata_end: int
    end: int


class KernelMaps:
    """The two shared trees. Raises OutOfMemory.

    Args:
        own: what is mapped as the SVSM's own, GPAs in bytes.
        base: where the image lies.
    """

    def __init__(
        self,
        cpu: PerCpu,
        pages: PageAllocator,
        own: Iterable[range],
        image: ImageLayout,
        base: int,
    ) -> None:
        self.pages: Final = pages
        self.own: Final = PageTable(cpu, pages, 3, PRIVATE_MAP)
        self.image: Final = PageTable(cpu, pages, 3, IMAGE_MAP // SUBTREE_SIZE * SUBTREE_SIZE)
        self._map_image(cpu, base, image)
        for part in own:
            self.map_own(cpu, part.start, len(part) >> PAGE_SHIFT)

    def _map_image(self, cpu: PerCpu, base: int, image: ImageLayout) -> None:
        start = IMAGE_MAP
        for end, flags in (
            (image.text_end, PageFlags.EXECUTE),
            (image.rodata_end, PageFlags.READ),
            (image.end, PageFlags.WRITE),
        ):
            npages = (end - start) >> PAGE_SHIFT
            self.image.map_range(cpu, start, base + start - IMAGE_MAP, npages, flags)
            start = end

    def map_own(self, cpu: PerCpu, gpa: int, npages: int) -> None:
        """Map pages as the SVSM's own. Raises OutOfMemory; then none is mapped."""
        self.own.map_range(cpu, PRIVATE_MAP + gpa, gpa, npages, PageFlags.WRITE)

    def unmap_own(self, cpu: PerCpu, gpa: int, npages: int) -> None:
        """The opposite; whoever calls this flushes the TLBs."""
        for page in range(gpa, gpa + npages * PAGE_SIZE, PAGE_SIZE):
            self.own.unmap(cpu, PRIVATE_MAP + page)

    def allocate_apart(self, cpu: PerCpu, kind: PageKind, order: int = 0) -> Gpa:
        """2**order pages, zeroed, that are not mapped as the SVSM's own. Raises OutOfMemory."""
        gpa = self.pages.allocate(cpu, order, kind)
        self.unmap_own(cpu, gpa, 1 << order)
        flush_tlb(cpu)
        return gpa

    def free_apart(self, cpu: PerCpu, gpa: Gpa, order: int = 0) -> None:
        """Give back what `allocate_apart` has given. Raises OutOfMemory: then they stay apart."""
        self.map_own(cpu, gpa, 1 << order)
        self.pages.free(cpu, gpa)
