# SPDX-License-Identifier: MIT
"""The page table walker in each paging mode (24593, 5.2 to 5.6, 8.4.2)."""

from __future__ import annotations

import pytest

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import GuestFault, Vector
from svsmd.snp.memory import GuestMemory
from svsmd.snp.page_walk import (
    KnownTables,
    PageWalker,
    PagingState,
    Translation,
)
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp, RmpUpdate
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa

P, W, U, A, D, PS, NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
PG, WP, PSE, PAE, SMEP, SMAP = 1 << 31, 1 << 16, 1 << 4, 1 << 5, 1 << 20, 1 << 21
LMA, NXE, AC = 1 << 10, 1 << 11, 1 << 18
READ, WRITE, FETCH = AccessKind.READ, AccessKind.WRITE, AccessKind.FETCH
ROOT, L3, L2, L1 = 0x1000, 0x2000, 0x3000, 0x4000
TARGET = 0x5000

LONG = PagingState(cr0=PG | WP, cr3=ROOT | C_BIT, cr4=PAE, efer=LMA | NXE)
LEGACY_PAE = PagingState(cr0=PG | WP, cr3=ROOT, cr4=PAE, efer=NXE)
LEGACY = PagingState(cr0=PG | WP, cr3=ROOT, cr4=PSE, efer=0)


class Tables:
    """A few validated pages, and a walker of VMPL2 over them."""

    def __init__(self, *, debug: bool = False) -> None:
        self.memory = GuestMemory(16 << 20)
        self.rmp = Rmp(self.memory.ranges)
        for gpa in range(0, 0x8000, PAGE_SIZE):
            state = RmpUpdate(True, page_size=PageSize.SIZE_4K, gpa=Gpa(gpa), asid=GUEST_ASID)
            self.rmp.rmpupdate(Spa(gpa), state)
            self.rmp.firmware_update(Spa(gpa), validated=True, permissions=(Perm.ALL,) * 4)
        access = PhysicalAccess(self.memory, self.rmp, cipher=NoCipher())
        self.walker = PageWalker(access, 2, debug=debug)

    def put(self, where: int, entry: int, size: int = 8) -> None:
        self.memory.write(where, entry.to_bytes(size, "little"))

    def get(self, where: int, size: int = 8) -> int:
        return int.from_bytes(self.memory.read(where, size), "little")

    def long(self, address: int, *, leaf: int = TARGET | C_BIT | P | W | U, above: int = 7) -> None:
        """Map a 4 KiB page by four levels."""
        for table, shift, entry in (
            (ROOT, 39, L3 | C_BIT | above), (L3, 30, L2 | C_BIT | above),
            (L2, 21, L1 | C_BIT | above), (L1, 12, leaf),
        ):  # fmt: skip
            self.put(table + (address >> shift & 0x1FF) * 8, entry)

    def fault(self, state: PagingState, address: int, kind: AccessKind, cpl: int) -> GuestFault:
        with pytest.raises(GuestFault) as caught:
            self.walker.translate(state, address, kind, cpl)
        return caught.value


class NoCipher:
    def encrypt_page(self, spa: int, plaintext: bytes | memoryview) -> bytes:
        raise AssertionError("every page of these tests is private")


def test_without_paging_all_is_private():
    state = PagingState(cr0=0, cr3=0xDEAD_B000, cr4=PAE, efer=0)
    translation = Tables().walker.translate(state, 0x1_0000_2345, WRITE, 0)
    assert translation == Translation(0x2345 | C_BIT, PAGE_SIZE)


@pytest.mark.parametrize("address", [0x40_2345, 0xFFFF_8000_0000_0123])
def test_long_mode(address):
    tables = Tables()
    tables.long(address)
    gpa = TARGET + address % PAGE_SIZE | C_BIT
    assert tables.walker.translate(LONG, address, READ, 3) == Translation(gpa, PAGE_SIZE)
    leaf = L1 + (address >> 12 & 0x1FF) * 8
    assert tables.get(leaf) & (A | D) == A
    tables.walker.translate(LONG, address, WRITE, 3)
    assert tables.get(leaf) & (A | D) == A | D
    for table, shift in ((ROOT, 39), (L3, 30), (L2, 21)):
        assert tables.get(table + (address >> shift & 0x1FF) * 8) & (A | D) == A


def test_a_debugger_marks_nothing_and_is_refused_nothing():
    tables = Tables(debug=True)
    tables.long(0x1000, leaf=TARGET | P | NX, above=P)
    assert tables.walker.translate(LONG, 0x1008, WRITE, 3).gpa == TARGET + 8
    assert tables.get(L1 + 8) & (A | D) == 0


@pytest.mark.parametrize("address", [1 << 47, 0xFFFF_0000_0000_0000, 1 << 63])
def test_non_canonical(address):
    fault = Tables().fault(LONG, address, READ, 3)
    assert (fault.vector, fault.error_code) == (Vector.GP, 0)


@pytest.mark.parametrize(
    ("table", "shift", "size"), [(L3, 30, 1 << 30), (L2, 21, 1 << 21)], ids=["1G", "2M"]
)
def test_large_pages(table, shift, size):
    tables = Tables()
    address = size * 3 + 0x12345
    tables.long(address)
    where = table + (address >> shift & 0x1FF) * 8
    tables.put(where, 5 * size | C_BIT | 1 << 12 | PS | P | W)
    translation = tables.walker.translate(LONG, address, READ, 0)
    assert translation == Translation(5 * size + 0x12345 | C_BIT, size)
    tables.put(where, 5 * size | 1 << 13 | PS | P | W)
    assert tables.fault(LONG, address, READ, 0).error_code == 0b1001


@pytest.mark.parametrize(
    ("level", "entry", "state", "code"),
    [
        (ROOT, 0, LONG, 0b0000),
        (L1 + 8, 0, LONG, 0b0000),
        (L1 + 8, TARGET | P | 1 << 40, LONG, 0b1001),
        (L1 + 8, TARGET | P | 1 << 51, LONG, 0b1001),
        (ROOT, L3 | P | PS, LONG, 0b1001),
        (L1 + 8, TARGET | P | NX, LONG._replace(efer=LMA), 0b1001),
    ],
)
def test_not_present_and_reserved(level, entry, state, code):
    tables = Tables()
    tables.long(0x1000)
    tables.put(level, entry)
    fault = tables.fault(state, 0x1008, READ, 0)
    assert (fault.vector, fault.error_code, fault.address) == (Vector.PF, code, 0x1008)


@pytest.mark.parametrize(
    ("leaf", "above", "kind", "cpl", "state", "code"),
    [
        (P | W | U, 7, WRITE, 3, LONG, None),
        (P | W, 7, READ, 3, LONG, 0b00101),
        (P | W | U, P | W, READ, 3, LONG, 0b00101),
        (P | U, 7, WRITE, 3, LONG, 0b00111),
        (P | U, 7, WRITE, 3, LONG._replace(cr0=PG), 0b00111),
        (P | W | U, P | U, WRITE, 0, LONG, 0b00011),
        (P, P, WRITE, 0, LONG._replace(cr0=PG), None),
        (P | W | NX, 7, FETCH, 0, LONG, 0b10001),
        (P | W, 7 | NX, FETCH, 0, LONG, 0b10001),
        (P | W | NX, 7, READ, 0, LONG, None),
        (P | U, 7, FETCH, 0, LONG, None),
        (P | U, 7, FETCH, 0, LONG._replace(cr4=PAE | SMEP), 0b10001),
        (P | U, P, FETCH, 0, LONG._replace(cr4=PAE | SMEP), None),
        (P | U, 7, FETCH, 3, LONG._replace(cr4=PAE | SMEP), None),
        (P | U, 7, READ, 0, LONG._replace(cr4=PAE | SMAP), 0b00001),
        (P | U, 7, READ, 0, LONG._replace(cr4=PAE | SMAP, rflags=AC), None),
        (P | U, 7, FETCH, 0, LONG._replace(cr4=PAE | SMAP), None),
        (0, 7, FETCH, 3, LONG._replace(efer=LMA), 0b00100),
        (0, 7, FETCH, 3, LONG, 0b10100),
    ],
)
def test_protection(leaf, above, kind, cpl, state, code):
    tables = Tables()
    tables.long(0x1000, leaf=TARGET | leaf, above=above)
    if code is None:
        assert tables.walker.translate(state, 0x1000, kind, cpl).gpa == TARGET
    else:
        assert tables.fault(state, 0x1000, kind, cpl).error_code == code
        assert not tables.get(L1 + 8) & (A | D)


def test_legacy_pae():
    """Four pointers without rights; the table may lie at any multiple of 32."""
    tables = Tables()
    address = 0xC020_1123
    state = LEGACY_PAE._replace(cr3=ROOT + 0x20)
    pointer = ROOT + 0x20 + 3 * 8
    tables.put(pointer, L2 | P)
    tables.put(L2 + 8, L1 | P | W | U)
    tables.put(L1 + 8, TARGET | C_BIT | P | W | U)
    translation = tables.walker.translate(state, address, WRITE, 3)
    assert translation == Translation(TARGET + 0x123 | C_BIT, PAGE_SIZE, written=True)
    assert tables.get(pointer) == L2 | P
    assert tables.get(L1 + 8) & (A | D) == A | D
    tables.put(L2 + 8, 0x60_0000 | PS | P)
    assert tables.walker.translate(state, address, READ, 0) == Translation(0x60_1123, 1 << 21)
    # Linear addresses have 32 bits here.
    assert tables.walker.translate(state, address | 7 << 32, READ, 0).gpa == 0x60_1123


def test_legacy_32_bit():
    tables = Tables()
    address = 0x00C0_3456
    tables.put(ROOT + 3 * 4, L2 | P | W | U, size=4)
    tables.put(L2 + 3 * 4, TARGET | P | W, size=4)
    translation = tables.walker.translate(LEGACY, address, WRITE, 0)
    assert translation == Translation(TARGET + 0x456 | C_BIT, PAGE_SIZE)
    assert tables.get(ROOT + 3 * 4, 4) & (A | D) == A
    assert tables.get(L2 + 3 * 4, 4) & (A | D) == A | D
    assert tables.get(ROOT + 4 * 4, 4) == tables.get(ROOT + 2 * 4, 4) == 0  # neighbours
    assert tables.fault(LEGACY, address, READ, 3).error_code == 0b101
    assert tables.fault(LEGACY, address + PAGE_SIZE, READ, 3).error_code == 0b100
    assert tables.fault(LEGACY, 0x0100_0000, WRITE, 0).error_code == 0b010


def test_legacy_4_mib_pages():
    tables = Tables()
    tables.put(ROOT + 4, 0x0880_0000 | PS | P | W, size=4)
    translation = tables.walker.translate(LEGACY, 0x0041_2345, WRITE, 0)
    assert translation == Translation(0x0881_2345 | C_BIT, 4 << 20)
    assert tables.get(ROOT + 4, 4) & (A | D) == A | D
    # Without CR4.PSE the bit means nothing, and a table is read at 136 MiB, where no RAM is.
    with pytest.raises(Exception, match="no RAM"):
        tables.walker.translate(LEGACY._replace(cr4=0), 0x0041_2345, READ, 0)


def test_a_table_that_is_not_validated_is_vc_at_the_linear_address():
    tables = Tables()
    tables.long(0x1000)
    tables.rmp.firmware_update(Spa(L2), validated=False)
    fault = tables.fault(LONG, 0x1008, READ, 0)
    assert (fault.vector, fault.error_code, fault.address) == (Vector.VC, 0x404, 0x1008)


@pytest.mark.parametrize(
    ("leaf", "kind", "written"),
    [
        (P | W, READ, False),
        (P | W | D, READ, True),
        (P | D, READ, False),
        (P | W, WRITE, True),
    ],
)
def test_translation_says_whether_it_serves_writes(leaf, kind, written):
    tables, address = Tables(), 0x40_2345
    tables.long(address, leaf=TARGET | C_BIT | leaf)
    assert tables.walker.translate(LONG, address, kind, 0).written is written


def test_known_page_tables_are_used():
    """What is kept of a former walk stands for the levels above, with their rights."""
    tables, address = Tables(), 0x40_2345
    tables.long(address)
    known = KnownTables()
    first = tables.walker.translate(LONG, address, READ, 0, known)
    assert len(known) == 1
    found = known.find(LONG.cr3, address)
    assert found is not None
    upper = ROOT + (address >> 39 & 511) * 8
    tables.put(upper, 0)
    assert tables.walker.translate(LONG, address, READ, 0, known) == first
    with pytest.raises(GuestFault):
        tables.walker.translate(LONG, address, READ, 0)
    without_rights = KnownTables()
    without_rights.add(LONG.cr3, address, found._replace(allowed=0), ())
    with pytest.raises(GuestFault):
        tables.walker.translate(LONG, address, READ, 3, without_rights)


@pytest.mark.parametrize(
    ("gpa", "nbytes", "forgotten"),
    [(0, 8, True), (7, 1, True), (-8, 9, True), (8, 8, False), (-8, 8, False), (1 << 30, 8, False)],
)
def test_known_page_tables_follow_memory(gpa: int, nbytes: int, forgotten: bool):
    tables, address = Tables(), 0x40_2345
    tables.long(address)
    known = KnownTables()
    tables.walker.translate(LONG, address, READ, 0, known)
    entry = ROOT + (address >> 39 & 511) * 8
    known.memory_written(entry + gpa, nbytes)
    assert (known.find(LONG.cr3, address) is None) == forgotten


@pytest.mark.parametrize(
    ("page", "npages", "forgotten"), [(0, 1, True), (-1, 1, False), (-1, 2, True)]
)
def test_known_page_tables_follow_the_rmp(page: int, npages: int, forgotten: bool):
    tables, address = Tables(), 0x40_2345
    tables.long(address)
    known = KnownTables()
    tables.walker.translate(LONG, address, READ, 0, known)
    known.rmp_changed((ROOT >> 12) + page, npages)
    assert (known.find(LONG.cr3, address) is None) == forgotten
