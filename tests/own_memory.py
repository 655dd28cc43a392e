# SPDX-License-Identifier: MIT
"""Memory of the SVSM for tests of its bookkeeping: a port to plain bytes, no RMP and no CPU."""

from __future__ import annotations

from svsmd.core.percpu import PerCpu
from svsmd.core.port import PRIVATE_MAP
from svsmd.snp.types import PageSize


class OwnMemory:
    """A port to `size` bytes of private memory from GPA `base` on."""

    def __init__(self, base: int, size: int) -> None:
        self.base = base
        self.data = bytearray(size)
        self.stores = 0
        self.ticks = 0

    def _offset(self, gva: int, n: int) -> int:
        offset = gva - PRIVATE_MAP - self.base
        assert 0 <= offset <= offset + n <= len(self.data), f"{gva:#x} is not the SVSM's"
        return offset

    def read(self, gva: int, n: int, /) -> bytes:
        offset = self._offset(gva, n)
        return bytes(self.data[offset : offset + n])

    def write(self, gva: int, data: bytes, /) -> None:
        offset = self._offset(gva, len(data))
        self.data[offset : offset + len(data)] = data
        self.stores += 1

    def zero(self, gva: int, n: int, /) -> None:
        offset = self._offset(gva, n)
        self.data[offset : offset + n] = bytes(n)

    def pvalidate(self, gva: int, size: PageSize, validate: bool, /) -> tuple[int, bool]:
        raise AssertionError("bookkeeping validates nothing")

    def rmpadjust(self, gva: int, size: PageSize, attributes: int, /) -> int:
        raise AssertionError("bookkeeping changes no permissions")

    def rdmsr(self, index: int, /) -> int:
        raise AssertionError("bookkeeping reads no MSR")

    def write_cr3(self, value: int, /) -> None:
        raise AssertionError("bookkeeping changes no page tables")

    def invlpg(self, gva: int, /) -> None:
        raise AssertionError("bookkeeping unmaps nothing")

    def read_cr2(self) -> int:
        raise AssertionError("bookkeeping takes no exceptions")

    def rdtsc(self) -> int:
        return self.ticks

    def rdrand(self) -> int:
        raise AssertionError("bookkeeping needs no randomness")

    def flush_tlb(self) -> None:
        raise AssertionError("bookkeeping flushes no TLB")

    def charge(self, ticks: int, /) -> None:
        assert ticks >= 0
        self.ticks += ticks


def own_memory(base: int, size: int) -> tuple[OwnMemory, PerCpu]:
    """Such memory, and a vCPU that reaches it."""
    memory = OwnMemory(base, size)
    return memory, PerCpu(0, memory)
