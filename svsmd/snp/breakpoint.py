# SPDX-License-Identifier: MIT
"""An execution breakpoint: where it is, and what has to be so for it to stop the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from svsmd.snp.predicate import Program
from svsmd.snp.types import C_BIT, PAGE_MASK

ROOT_MASK: Final = (C_BIT - 1) & ~PAGE_MASK
"""Of CR3, the address of the page table: without PCID and C-bit."""


@dataclass(slots=True, eq=False)
class Breakpoint:
    """A breakpoint; any number of them may be at one address.

    It is hit when the instruction there is about to be executed in its world and one of its
    conditions holds, or it has none. A condition that has no value (`NoValue`) holds: who set it
    shall see that.

    Attributes:
        address: linear address; with `physical`, guest-physical without the C-bit, in whatever
            address space its code is executed.
        conditions: programs; one of them being not 0 is enough.
        vmpl: it is hit at this VMPL only.
        root: it is hit in this address space only: CR3 & `ROOT_MASK`.
        accepts: it is hit only if this returns true; asked while the world that is about to execute
            the instruction is loaded. The fields above cost less.
        on_hit: called at each hit; returns whether the machine is to stop. Without, it stops.
        hits, evaluations: how often it was hit, and its conditions were evaluated; see
            `DebugSupport.count_evaluations`.
    """

    address: int
    conditions: tuple[Program, ...] = ()
    vmpl: int | None = None
    root: int | None = None
    accepts: Callable[[], bool] | None = None
    on_hit: Callable[[], bool] | None = None
    physical: bool = False
    hits: int = 0
    evaluations: int = 0
