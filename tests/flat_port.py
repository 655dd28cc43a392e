# SPDX-License-Identifier: MIT
"""The least that code with page tables of its own needs of VMPL0: memory, and pages of it."""

from __future__ import annotations

from svsmd.core.access import zero_own
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.core.port import PRIVATE_MAP
from svsmd.snp.types import PAGE_SIZE, Gpa, PageSize

MEMORY = range(0x10_0000, 0x14_0000)
"""GPAs."""


class FlatPort:
    """Loads and stores at PRIVATE_MAP; nothing else is expected."""

    def __init__(self) -> None:
        self.memory = bytearray(len(MEMORY))

    def snapshot(self) -> bytes:
        return bytes(self.memory)

    @staticmethod
    def _offset(gva: int, n: int) -> int:
        gpa = gva - PRIVATE_MAP
        assert MEMORY.start <= gpa <= gpa + n <= MEMORY.stop
        return gpa - MEMORY.start

    def read(self, gva: int, n: int, /) -> bytes:
        offset = self._offset(gva, n)
        return bytes(self.memory[offset : offset + n])

    def write(self, gva: int, data: bytes, /) -> None:
        offset = self._offset(gva, len(data))
        self.memory[offset : offset + len(data)] = data

    def zero(self, gva: int, n: int, /) -> None:
        self.write(gva, bytes(n))

    def charge(self, ticks: int, /) -> None:
        assert ticks >= 0

    def pvalidate(self, gva: int, size: PageSize, validate: bool, /) -> tuple[int, bool]:
        raise NotImplementedError

    def rmpadjust(self, gva: int, size: PageSize, attributes: int, /) -> int:
        raise NotImplementedError

    def rdmsr(self, index: int, /) -> int:
        raise NotImplementedError

    def write_cr3(self, value: int, /) -> None:
        raise NotImplementedError

    def invlpg(self, gva: int, /) -> None:
        raise NotImplementedError

    def read_cr2(self) -> int:
        raise NotImplementedError

    def rdtsc(self) -> int:
        raise NotImplementedError

    def rdrand(self) -> int:
        raise NotImplementedError

    def flush_tlb(self) -> None:
        raise NotImplementedError


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
