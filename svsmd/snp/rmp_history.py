# SPDX-License-Identifier: MIT
"""Who changed an RMP entry last: for a debugger, which no other part of the machine asks.

Real hardware keeps nothing of the kind. For each entry there is the last change by each of four
kinds of instructions, 16 bytes each, in a private anonymous mapping: pages whose entries nobody
changed cost no memory. Changes of 2 MiB entries are kept apart, one set of records a region, so
that nothing is copied, and what is told of a page is the later one of its own and its region's.

A record is two words: who, and when. Ticks have 52 bits here, 52 days of machine time; the 12 bits
below are a count of all changes, which tells the order of those that fall on the same tick.

Spec: none.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from enum import IntEnum
from typing import Final, NamedTuple

from svsmd.snp.types import PAGES_PER_HUGE_PAGE

RIP_BITS: Final = 48
"""Canonical addresses: the bits above are copies of the highest."""
VCPU_SHIFT: Final = 48
VMPL_SHIFT: Final = 56
RUNNING: Final = 1 << 58
"""There is a vCPU in the record: the one that executed the instruction, or whose exit the host was
serving."""
_CHANGE_SHIFT: Final = 59

_SLOTS: Final = 4
_WORDS: Final = 2 * _SLOTS
_ORDER_BITS: Final = 12
_ORDER: Final = (1 << _ORDER_BITS) - 1


class RmpChange(IntEnum):
    """What changed an entry (24594; 56860 for the last one)."""

    RMPUPDATE = 1
    PSMASH = 2
    PVALIDATE = 3
    RMPADJUST = 4
    LAUNCH = 5
    """The security processor, by SNP_LAUNCH_UPDATE."""


BY_HOST: Final = frozenset({RmpChange.RMPUPDATE, RmpChange.PSMASH})

_SLOT_OF: Final = (-1, 0, 2, 4, 6, 0)
"""Word of the record by the change's number; LAUNCH shares that of RMPUPDATE, which it follows. A
tuple: to look an enumeration's member up in a dictionary costs as much as all the rest."""


class LastChange(NamedTuple):
    """One record.

    Attributes:
        running: whether `vcpu`, `vmpl` and `rip` mean anything. They are those of who executed the
            instruction, or, for the host's, of whose exit it was serving.
        rip: linear address of the instruction.
        tick: when, in ticks since power-on.
        huge: it changed a 2 MiB entry.
    """

    change: RmpChange
    running: bool
    vcpu: int
    vmpl: int
    rip: int
    tick: int
    huge: bool


class RmpHistory:
    """The last changes of `regions` times 2 MiB of entries.

    `now` and `actor` are set by whoever knows them: the clock, and the low 59 bits of a record's
    first word (`RIP_BITS`, `VCPU_SHIFT`, `VMPL_SHIFT`, `RUNNING`), 0 if no vCPU is loaded.
    """

    def __init__(self, regions: int) -> None:
        self.now: Callable[[], int] = lambda: 0
        self.actor: Callable[[], int] = lambda: 0
        self._pages = _words(regions * PAGES_PER_HUGE_PAGE)
        self._regions = _words(regions)
        self._count = 0

    def note(self, change: RmpChange, page: int, npages: int) -> None:
        """The entry of a page (SPA >> 12), or of the 2 MiB that start there, was changed."""
        if npages == 1:
            words, index = self._pages, page * _WORDS + _SLOT_OF[change]
        else:
            words = self._regions
            index = page // PAGES_PER_HUGE_PAGE * _WORDS + _SLOT_OF[change]
        self._count = count = (self._count + 1) & _ORDER
        words[index] = self.actor() | change << _CHANGE_SHIFT
        words[index + 1] = (self.now() << _ORDER_BITS | count) & 0xFFFF_FFFF_FFFF_FFFF

    def changes(self, page: int) -> list[LastChange]:
        """The last change of each kind of the entry that governs a page, the latest first."""
        found: list[tuple[int, int, bool]] = []
        for words, index, huge in (
            (self._pages, page * _WORDS, False),
            (self._regions, page // PAGES_PER_HUGE_PAGE * _WORDS, True),
        ):
            if index + _WORDS > len(words):
                continue
            for slot in range(index, index + _WORDS, 2):
                if words[slot]:
                    found.append((words[slot + 1], words[slot], huge))
        found.sort(key=lambda record: self._age(record[0]))
        seen: set[int] = set()
        changes = []
        for when, who, huge in found:
            change = who >> _CHANGE_SHIFT
            if change not in seen:
                seen.add(change)
                changes.append(_decode(who, when, huge=huge))
        return changes

    def _age(self, when: int) -> tuple[int, int]:
        return -(when >> _ORDER_BITS), (self._count - when) & _ORDER


def _words(entries: int) -> memoryview:
    """Room for the records of so many entries, not there before it is used."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return memoryview(mmap.mmap(-1, entries * _WORDS * 8, flags=flags)).cast("Q")


def _decode(who: int, when: int, *, huge: bool) -> LastChange:
    rip = who & (1 << RIP_BITS) - 1
    if rip >> (RIP_BITS - 1):
        rip |= 0xFFFF << RIP_BITS
    return LastChange(
        RmpChange(who >> _CHANGE_SHIFT), bool(who & RUNNING), (who >> VCPU_SHIFT) & 0xFF,
        (who >> VMPL_SHIFT) & 3, rip, when >> _ORDER_BITS, huge,
    )  # fmt: skip
