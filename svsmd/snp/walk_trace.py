# SPDX-License-Identifier: MIT
"""One page walk with all that it saw, for whoever has to explain it; nothing changes for the guest.

It is the walk of `PageWalker` itself, so that what is explained is what the silicon does.

Spec: 24593, 5.2 to 5.6; docs/access-checks.md for the pages of the tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.page_walk import CR0_PG, CR4_PAE, EFER_LMA, PageWalker, PagingState, Translation
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.types import C_BIT

_LONG: Final = ("PML4E", "PDPTE", "PDE", "PTE")
_A: Final = 1 << 5
_D: Final = 1 << 6


class TracedEntry(NamedTuple):
    """An entry that a walk has read.

    Attributes:
        level: its name, such as "PDE".
        gpa: where it is, without the C-bit.
        value: None if its page could not be read.
        nbytes: of the entry, 8 or 4.
    """

    level: str
    gpa: int
    value: int | None
    nbytes: int = 8


@dataclass(slots=True)
class WalkTrace:
    """How a walk went: what it read, and the `translation`, or the `fault` that it ended with."""

    entries: list[TracedEntry] = field(default_factory=list)
    translation: Translation | None = None
    fault: GuestFault | NestedFault | None = None
    updating: bool = False
    """The fault is that of setting a bit of the last entry."""


class _TracingWalker(PageWalker):
    def __init__(
        self, access: PhysicalAccess, vmpl: int, trace: WalkTrace, names: tuple[str, ...], *,
        debug: bool,
    ) -> None:  # fmt: skip
        super().__init__(access, vmpl, debug=debug)
        self._trace = trace
        self._names = names

    def _entry(self, gpa: int) -> int:
        entries = self._trace.entries
        entries.append(TracedEntry(self._names[len(entries)], gpa, None))
        value = super()._entry(gpa)
        entries[-1] = entries[-1]._replace(value=value)
        return value

    def _short_entry(self, where: int) -> int:
        value = super()._short_entry(where)
        entries = self._trace.entries
        entries[-1] = entries[-1]._replace(gpa=where, value=value, nbytes=4)
        return value

    def _mark(self, where: int, entry: int, *, dirty: bool, size: int = 8) -> None:
        """The checks of a walk that sets a bit, without setting it."""
        if self._debug or entry | _A | (_D if dirty else 0) == entry:
            return
        self._trace.updating = True
        self._access.resolve(self._vmpl, where | C_BIT, AccessKind.WALK_UPDATE)
        self._trace.updating = False


def trace_walk(
    access: PhysicalAccess, vmpl: int, state: PagingState, address: int, kind: AccessKind,
    cpl: int, *, debug: bool = False,
) -> WalkTrace:  # fmt: skip
    """Walks to a linear address as `PageWalker.translate` does, with no effect and no exception.

    Args:
        debug: permissions do not matter, as for a debugger.
    """
    trace = WalkTrace()
    if not state.cr0 & CR0_PG:
        names: tuple[str, ...] = ()
    elif not state.cr4 & CR4_PAE:
        names = _LONG[2:]
    else:
        names = _LONG if state.efer & EFER_LMA else _LONG[1:]
    walker = _TracingWalker(access, vmpl, trace, names, debug=debug)
    try:
        trace.translation = walker.translate(state, address, kind, cpl)
    except (GuestFault, NestedFault) as fault:
        trace.fault = fault
    return trace
