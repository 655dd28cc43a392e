# SPDX-License-Identifier: MIT
"""The least that page tables need of an allocator, and memory for it."""

from __future__ import annotations

from svsmd.core.access import zero_own
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import PAGE_SIZE, Gpa
from tests.own_memory import OwnMemory, own_memory

MEMORY = range(0x10_0000, 0x14_0000)
"""GPAs."""


def memory_for_pages() -> tuple[OwnMemory, PerCpu]:
    """The memory of which the pages are, and a vCPU that reaches it."""
    return own_memory(MEMORY.start, len(MEMORY))


class Pages(PageAllocator):
    """So many pages, and no more; who frees a page twice, or one that is none, is told."""

    def __init__(self, room: int) -> None:
        self._pages = [Gpa(gpa) for gpa in MEMORY[: room * PAGE_SIZE : PAGE_SIZE]]
        self._used: set[Gpa] = set()
        self.failed = False

    @property
    def free_count(self) -> int:
        return len(self._pages)

    @property
    def used_count(self) -> int:
        return len(self._used)

    def contents(self, memory: bytes) -> list[bytes]:
        """Of the pages that are in use."""
        starts = (gpa - MEMORY.start for gpa in sorted(self._used))
        return [memory[start : start + PAGE_SIZE] for start in starts]

    def allocate(self, cpu: PerCpu, order: int = 0, kind: PageKind = PageKind.ANONYMOUS) -> Gpa:
        assert order == 0
        if not self._pages:
            self.failed = True
            raise OutOfMemory(1)
        gpa = self._pages.pop()
        self._used.add(gpa)
        zero_own(cpu, gpa, PAGE_SIZE)
        return gpa

    def free(self, cpu: PerCpu, gpa: Gpa) -> None:
        self._used.remove(gpa)
        self._pages.append(gpa)
