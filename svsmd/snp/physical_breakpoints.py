# SPDX-License-Identifier: MIT
"""Breakpoints by guest-physical address.

The engine knows linear addresses only. So the pages of such breakpoints are marked: the first time
a block of code of theirs is translated, it is told at which linear address it will run, and the
breakpoints of the page are armed there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.types import C_BIT, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from svsmd.snp.processor import Processor


class PhysicalBreakpoints:
    """All of a processor, and the linear addresses at which they have been seen."""

    def __init__(self, processor: Processor) -> None:
        self._p = processor
        self._by_page: dict[int, list[Breakpoint]] = {}
        self._aliases: dict[int, list[Breakpoint]] = {}
        self._new = False

    def add(self, breakpoint_: Breakpoint) -> None:
        """From the next arm() on it is looked for."""
        self._by_page.setdefault(breakpoint_.address >> PAGE_SHIFT, []).append(breakpoint_)
        self._new = True

    def remove(self, breakpoint_: Breakpoint) -> set[int]:
        """Forgets it; returns the linear addresses at which that changes something."""
        page = breakpoint_.address >> PAGE_SHIFT
        self._by_page[page].remove(breakpoint_)
        if not self._by_page[page]:
            del self._by_page[page]
            self._trap(page, on=False)
        changed = {alias for alias, at in self._aliases.items() if breakpoint_ in at}
        for alias in changed:
            self._aliases[alias].remove(breakpoint_)
            if not self._aliases[alias]:
                del self._aliases[alias]
        return changed

    def all(self) -> Iterator[Breakpoint]:
        """Every one."""
        for breakpoints in self._by_page.values():
            yield from breakpoints

    def at(self, address: int) -> Iterable[Breakpoint]:
        """Those that have been seen at a linear address."""
        return self._aliases.get(address, ())

    @property
    def seen(self) -> bool:
        """Whether some have been seen."""
        return bool(self._aliases)

    def arm(self) -> None:
        """Before a run: code that is translated already is translated anew, and so seen."""
        if self._new:
            self._new = False
            for page in self._by_page:
                self._trap(page, on=True)
            self._p.cpu.flush_code()

    def _trap(self, page: int, *, on: bool) -> None:
        memory, start = self._p.memory, page << PAGE_SHIFT
        if memory.contains(start, PAGE_SIZE):
            self._p.cpu.trap_code_page(memory.offset_of(start) >> PAGE_SHIFT, on)

    def found(self, address: int) -> set[int]:
        """A block that begins at a linear address is about to run for the first time.

        It may run on to the next page. Returns the linear addresses of breakpoints that were not
        known; the block's code is translated anew if there are any.
        """
        processor, cpu = self._p, self._p.cpu
        found = set()
        for start in (address & ~PAGE_MASK, (address | PAGE_MASK) + 1):
            try:
                gpa = processor.translate_for_debugger(start) & ~C_BIT
            except (GuestFault, NestedFault):
                continue
            for breakpoint_ in self._by_page.get(gpa >> PAGE_SHIFT, ()):
                alias = start | breakpoint_.address & PAGE_MASK
                at = self._aliases.setdefault(alias, [])
                if breakpoint_ not in at:
                    at.append(breakpoint_)
                    found.add(alias)
            if found and processor.memory.contains(gpa, PAGE_SIZE):
                cpu.forget_code(processor.memory.offset_of(gpa), PAGE_SIZE)
        cpu.shared.passed_block = address
        return found
