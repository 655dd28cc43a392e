# SPDX-License-Identifier: MIT
"""Memory that several processes may map, by mmap() with MAP_SHARED.

An object's pages are zero at first, and made when somebody touches them. Its maker pays for all of
them from the start; besides, a page counts in each process that has it mapped. The object lives as
long as a handle or a mapping does.

Spec: none.
"""

from __future__ import annotations

from typing import Final

from svsmd.core.ipc.objects import IpcObject, Undertaker, Waker
from svsmd.core.memory import PageAllocator, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE, Gpa

SHARED_MEMORY_MAX: Final = 1 << 20
"""Bytes of one object."""


class SharedMemory(IpcObject):
    """`nbytes` of it, in whole pages. Fails with EINVAL (none, or too much), ENOMEM."""

    movable = True
    duplicable = True
    shared = True
    """As the backing of a region: `page` gives the pages themselves."""

    def __init__(
        self,
        waker: Waker,
        undertaker: Undertaker,
        quota: Quota,
        pages: PageAllocator,
        nbytes: int,
    ) -> None:
        if not 0 < nbytes <= SHARED_MEMORY_MAX:
            raise CallFailed(Errno.EINVAL)
        self.npages: Final = (nbytes + PAGE_MASK) // PAGE_SIZE
        super().__init__(waker, undertaker, quota, self.npages)
        self._allocator = pages
        self._pages: dict[int, Gpa] = {}
        self._regions = 0

    def page(self, cpu: PerCpu, index: int) -> Gpa:
        """One page. Raises OutOfMemory."""
        assert index < self.npages, "a region that is longer than its object"
        if index not in self._pages:
            self._pages[index] = self._allocator.allocate(cpu, kind=PageKind.PROCESS)
        return self._pages[index]

    def get(self) -> None:
        """One region more."""
        self._regions += 1

    def put(self, cpu: PerCpu) -> None:
        """One region less."""
        self._regions -= 1
        if self.unused:
            self._undertaker.bury(cpu, self)

    @property
    def unused(self) -> bool:
        """Whether there is neither a handle nor a mapping."""
        return super().unused and not self._regions

    def destroy(self, cpu: PerCpu) -> None:
        """Give the pages back."""
        super().destroy(cpu)
        for gpa in self._pages.values():
            self._allocator.put(cpu, gpa)
        self._pages.clear()
