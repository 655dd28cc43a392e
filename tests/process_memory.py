# SPDX-License-Identifier: MIT
"""Memory of processes for tests without a CPU, and an allocator that can be made to fail."""

from __future__ import annotations

from typing import Final

from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import Gpa
from tests.own_memory import OwnMemory

MIB: Final = 1 << 20
REGION: Final = range(4 * MIB, 6 * MIB)


class ProcessMemory(OwnMemory):
    """Own memory of a CPU that runs processes."""

    def __init__(self) -> None:
        super().__init__(0, REGION.stop)
        self.flushed: list[int] = []
        self._randomness = 0

    def invlpg(self, gva: int, /) -> None:
        self.flushed.append(gva)

    def rdrand(self) -> int:
        self._randomness += 1
        return self._randomness << 32 | 0x5EED


class FailingAllocator(PageAllocator):
    """Fails after `left` more allocations, if that is a number."""

    left: int | None = None

    def allocate(self, cpu: PerCpu, order: int = 0, kind: PageKind = PageKind.ANONYMOUS) -> Gpa:
        if self.left is not None:
            if self.left == 0:
                self.left = None
                raise OutOfMemory(1 << order)
            self.left -= 1
        return super().allocate(cpu, order, kind)


def process_memory(free: int = 400) -> tuple[ProcessMemory, PerCpu, FailingAllocator]:
    """A port, a CPU, and an allocator with at most so many free pages."""
    memory = ProcessMemory()
    cpu = PerCpu(0, memory)
    start = max(REGION.start + MIB, REGION.stop - free * 4096)
    reserved = [range(REGION.start, REGION.start + MIB // 2), range(REGION.start + MIB, start)]
    if reserved[1].start == reserved[1].stop:
        reserved.pop()
    info = Gpa(REGION.start + MIB // 2)
    pages = FailingAllocator(cpu, REGION, reserved, info)
    return memory, cpu, pages
