# SPDX-License-Identifier: MIT
"""The SVSM's own memory: pages of its region that it hands out to itself.

Spec: none; the region's layout is `svsmd/core/native/layout.h`. A VMSA must not begin at a multiple
of 2 MiB: an erratum of real parts, that COCONUT-SVSM and Linux step round too.
"""

from __future__ import annotations

from typing import Final

from svsmd.core.gate import SvsmPanic
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa

DYNAMIC_OFFSET: Final = 0x10_0000
"""Offset in the region from which on the core allocates."""


class RegionPages:
    """Hands out the pages of [start, stop), in bytes, once each and in ascending order."""

    def __init__(self, start: int, stop: int) -> None:
        self._next = start
        self._stop = stop

    def allocate(self, npages: int) -> Gpa:
        """The GPA of `npages` adjoining pages; panics when there are not enough."""
        if self._next % HUGE_PAGE_SIZE == 0:
            self._next += PAGE_SIZE
        gpa = self._next
        self._next += npages * PAGE_SIZE
        if self._next > self._stop:
            raise SvsmPanic("the SVSM region is too small for this machine")
        return Gpa(gpa)
