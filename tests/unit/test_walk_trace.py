# SPDX-License-Identifier: MIT
"""Traced walks: what they saw in each paging mode, with the walker's own end and no effects."""

from __future__ import annotations

import pytest

from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.rmp import RmpUpdate
from svsmd.snp.types import C_BIT, Spa
from svsmd.snp.walk_trace import TracedEntry, WalkTrace, trace_walk
from tests.unit.test_page_walk import (
    L1,
    L2,
    L3,
    LEGACY,
    LEGACY_PAE,
    LONG,
    PS,
    READ,
    ROOT,
    TARGET,
    WRITE,
    A,
    D,
    NoCipher,
    P,
    Tables,
    U,
    W,
)

PAE_ADDRESS = 0xC020_1123


class Traced(Tables):
    """The tables, with traces of VMPL2."""

    def trace(self, state: object, address: int, kind: object = READ, cpl: int = 0, *,
              debug: bool = False) -> WalkTrace:  # fmt: skip
        access = PhysicalAccess(self.memory, self.rmp, cipher=NoCipher())
        return trace_walk(access, 2, state, address, kind, cpl, debug=debug)  # type: ignore[arg-type]


def filled() -> Traced:
    """The same page by tables of each kind, each in another place of the address space."""
    tables = Traced()
    tables.long(0x1000)
    return tables


def test_long_mode() -> None:
    tables = filled()
    trace = tables.trace(LONG, 0x1234)
    leaf = TARGET | C_BIT | P | W | U
    assert trace.entries == [
        TracedEntry("PML4E", ROOT, L3 | C_BIT | 7),
        TracedEntry("PDPTE", L3, L2 | C_BIT | 7),
        TracedEntry("PDE", L2, L1 | C_BIT | 7),
        TracedEntry("PTE", L1 + 8, leaf),
    ]
    assert trace.fault is None
    assert trace.translation == tables.walker.translate(LONG, 0x1234, READ, 0)
    tables.put(L2, 0x20_0000 | C_BIT | PS | P)
    assert [entry.level for entry in tables.trace(LONG, 0x1234).entries] == [
        "PML4E", "PDPTE", "PDE",
    ]  # fmt: skip


def test_legacy_pae() -> None:
    tables = Traced()
    pointer = ROOT + 3 * 8
    tables.put(pointer, L2 | P)
    tables.put(L2 + 8, L1 | P | W | U)
    tables.put(L1 + 8, TARGET | C_BIT | P | W | U)
    trace = tables.trace(LEGACY_PAE, PAE_ADDRESS)
    assert [(e.level, e.gpa, e.nbytes) for e in trace.entries] == [
        ("PDPTE", pointer, 8), ("PDE", L2 + 8, 8), ("PTE", L1 + 8, 8),
    ]  # fmt: skip
    assert trace.translation is not None
    assert trace.translation.gpa == TARGET + 0x123 | C_BIT


@pytest.mark.parametrize("index", [3, 4])
def test_32_bit_tables(index: int) -> None:
    """Entries of 4 bytes, of which two share a quadword."""
    tables = Traced()
    address = index << 22 | 0x3456
    tables.put(ROOT + index * 4, L2 | P | W | U, size=4)
    tables.put(L2 + 3 * 4, TARGET | P | W, size=4)
    trace = tables.trace(LEGACY, address)
    assert trace.entries == [
        TracedEntry("PDE", ROOT + index * 4, L2 | P | W | U, 4),
        TracedEntry("PTE", L2 + 3 * 4, TARGET | P | W, 4),
    ]
    assert trace.translation is not None
    assert trace.translation.gpa == TARGET + 0x456 | C_BIT


def test_no_paging_and_no_address() -> None:
    tables = filled()
    trace = tables.trace(LONG._replace(cr0=0), 0x1234)
    assert trace.entries == []
    assert trace.translation is not None
    trace = tables.trace(LONG, 1 << 47)
    assert (trace.entries, trace.translation) == ([], None)
    assert isinstance(trace.fault, GuestFault)


@pytest.mark.parametrize(("state", "kind", "cpl"), [(LONG, WRITE, 3), (LONG, READ, 0)])
def test_nothing_is_marked(state: object, kind: object, cpl: int) -> None:
    tables = filled()
    before = tables.memory.read(ROOT, 0x5000)
    trace = tables.trace(state, 0x1234, kind, cpl)
    assert trace.translation is not None
    assert tables.memory.read(ROOT, 0x5000) == before
    tables.walker.translate(state, 0x1234, kind, cpl)  # type: ignore[arg-type]
    assert tables.get(L1 + 8) & (A | D), "the walker itself does"


def test_where_it_ends() -> None:
    tables = filled()
    tables.put(L2, 0)
    trace = tables.trace(LONG, 0x1234)
    assert [entry.value for entry in trace.entries][-1] == 0
    assert isinstance(trace.fault, GuestFault)
    assert not trace.updating
    tables = filled()
    tables.rmp.rmpupdate(Spa(L2), RmpUpdate())
    trace = tables.trace(LONG, 0x1234)
    assert trace.entries[-1] == TracedEntry("PDE", L2, None)
    assert isinstance(trace.fault, NestedFault)


def test_a_bit_that_cannot_be_set() -> None:
    tables = filled()
    tables.rmp.firmware_update(Spa(L1), permissions=(15, 15, 1, 15))
    trace = tables.trace(LONG, 0x1234)
    assert trace.updating
    assert isinstance(trace.fault, NestedFault)
    assert trace.fault.row == "AC-36"
    # A debugger's walk sets none.
    assert tables.trace(LONG, 0x1234, debug=True).translation is not None
