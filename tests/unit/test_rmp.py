# SPDX-License-Identifier: MIT
"""RMPUPDATE, PSMASH, PVALIDATE, RMPADJUST and RMPQUERY: every return code, fault and effect."""

from __future__ import annotations

import mmap
import re
from pathlib import Path
from typing import Final

import pytest

from svsmd.snp import access
from svsmd.snp.access import Access, AccessKind
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, Vector
from svsmd.snp.rmp import (
    GUEST_ASID,
    Perm,
    Rmp,
    RmpEntry,
    RmpReturn,
    RmpUpdate,
)
from svsmd.snp.types import Gpa, PageSize, Spa, Vmpl

DOC: Final = Path(__file__).parents[2] / "docs" / "access-checks.md"

SMALL, HUGE = PageSize.SIZE_4K, PageSize.SIZE_2M
V0, V1, V2, V3 = Vmpl
OK = RmpReturn.SUCCESS

PAGE: Final = 0x1000
REGION: Final = Spa(0x40_0000)
"""A 2 MiB aligned address in the middle of the RAM below."""
RAM: Final = (range(0x80_0000), range(1 << 32, (1 << 32) + 0x20_3000))
TAIL: Final = Spa((1 << 32) + 0x20_0000)
"""A 2 MiB aligned address of which RAM has three pages."""

RWX: Final = 0xF00
READ_ONLY: Final = 0x100
VMSA: Final = 0x1_0000

# EXITINFO1 as numbers. The second one was seen on hardware.
NPF_RMP: Final = 0x4_8000_0005
NPF_SIZEM: Final = 0xC_8000_0005


class Changes(list[tuple[int, int]]):
    """What `on_change` was told."""

    def __call__(self, first_page: int, npages: int) -> None:
        self.append((first_page, npages))


@pytest.fixture
def changes() -> Changes:
    return Changes()


@pytest.fixture
def rmp(changes: Changes) -> Rmp:
    return Rmp(RAM, changes)


def assign(rmp: Rmp, spa: int, size: PageSize = SMALL, *, immutable: bool = False) -> None:
    new = RmpUpdate(True, size, immutable, Gpa(spa), GUEST_ASID)
    assert rmp.rmpupdate(Spa(spa), new) == OK


def own(rmp: Rmp, spa: int, size: PageSize = SMALL) -> None:
    """A page that the guest has validated."""
    assign(rmp, spa, size)
    assert rmp.pvalidate(Spa(spa), Gpa(spa), V0, size, True) == (OK, False)


def entry(rmp: Rmp, spa: int) -> RmpEntry:
    found = rmp.lookup(spa)
    assert found is not None
    return found


def pvalidate(rmp: Rmp, spa: int, size: PageSize, validate: bool = True) -> tuple[RmpReturn, bool]:
    return rmp.pvalidate(Spa(spa), Gpa(spa), V0, size, validate)


def rmpadjust(
    rmp: Rmp, spa: int, attributes: int, *, vmpl: Vmpl = V0, size: PageSize = SMALL
) -> RmpReturn:
    return rmp.rmpadjust(Spa(spa), Gpa(spa), vmpl, size, attributes)


# Covered pages ------------------------------------------------------------------------------------


def test_ram_is_covered_and_starts_unassigned(rmp: Rmp) -> None:
    assert entry(rmp, 0) == RmpEntry()
    assert entry(rmp, TAIL + 2 * PAGE) == RmpEntry()
    assert rmp.lookup(0x80_0000) is None
    assert rmp.lookup(TAIL + 3 * PAGE) is None
    assert rmp.lookup(1 << 60) is None
    assert rmp.lookup(-PAGE) is None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_memory_of_a_large_machine_costs_nothing() -> None:
    before = resident_bytes()
    rmp = Rmp([range(3 << 30), range(4 << 30, 25 << 30)])
    last = (25 << 30) - PAGE
    assign(rmp, last)
    assert entry(rmp, last).gpa == last
    assert not rmp.assigned((25 << 30) // PAGE)
    # One look at each page of the table, which has 100 MiB.
    for page in range((4 << 30) // PAGE, (25 << 30) // PAGE, mmap.PAGESIZE // 16):
        assert page == last // PAGE or not rmp.permissions(page, 0)
    assert resident_bytes() - before < 8 << 20


# RMPUPDATE ----------------------------------------------------------------------------------------


def test_rmpupdate_assigns(rmp: Rmp, changes: Changes) -> None:
    new = RmpUpdate(True, SMALL, True, Gpa(0x12_3000), 7)
    assert rmp.rmpupdate(REGION, new) == OK
    assert entry(rmp, REGION) == RmpEntry(
        assigned=True,
        immutable=True,
        gpa=Gpa(0x12_3000),
        asid=7,
        permissions=(Perm.ALL, Perm.NONE, Perm.NONE, Perm.NONE),
    )
    assert changes == [(REGION // PAGE, 1)]
    assert entry(rmp, REGION + PAGE) == RmpEntry()


def test_rmpupdate_huge_is_one_entry(rmp: Rmp, changes: Changes) -> None:
    assign(rmp, REGION, HUGE)
    assert changes == [(REGION // PAGE, 512)]
    inside = entry(rmp, REGION + 511 * PAGE)
    assert inside.page_size is HUGE
    assert inside.gpa == REGION + 511 * PAGE
    assert entry(rmp, REGION + 512 * PAGE) == RmpEntry()
    assert entry(rmp, REGION - PAGE) == RmpEntry()


def test_rmpupdate_takes_back(rmp: Rmp, changes: Changes) -> None:
    own(rmp, REGION, HUGE)
    changes.clear()
    assert rmp.rmpupdate(REGION, RmpUpdate(page_size=HUGE)) == OK
    assert entry(rmp, REGION) == entry(rmp, REGION + PAGE) == RmpEntry()
    assert changes == [(REGION // PAGE, 512)]
    # Nothing is left of the size: 4 KiB pages can be assigned at once.
    assign(rmp, REGION)


def test_rmpupdate_resets_validated_vmsa_and_permissions(rmp: Rmp, changes: Changes) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, 2 | RWX | VMSA) == OK
    changes.clear()
    assign(rmp, REGION)  # the state it has already
    after = entry(rmp, REGION)
    assert not after.validated
    assert not after.vmsa
    assert after.permissions == (Perm.ALL, Perm.NONE, Perm.NONE, Perm.NONE)
    assert changes == [(REGION // PAGE, 1)]


@pytest.mark.parametrize(
    ("spa", "new"),
    [
        (REGION + 1, RmpUpdate(True, SMALL)),
        (REGION + PAGE, RmpUpdate(True, HUGE)),
        (REGION, RmpUpdate(False, immutable=True)),
        (REGION, RmpUpdate(False, asid=1)),
        (0x80_0000, RmpUpdate(True, SMALL)),
        (1 << 60, RmpUpdate(True, HUGE)),
        (TAIL, RmpUpdate(True, HUGE)),
    ],
)
def test_rmpupdate_fail_input(rmp: Rmp, changes: Changes, spa: int, new: RmpUpdate) -> None:
    assert rmp.rmpupdate(Spa(spa), new) == RmpReturn.FAIL_INPUT
    assert not changes


def test_rmpupdate_fail_permission(rmp: Rmp, changes: Changes) -> None:
    assign(rmp, REGION, immutable=True)
    changes.clear()
    assert rmp.rmpupdate(REGION, RmpUpdate()) == RmpReturn.FAIL_PERMISSION
    assert not changes


@pytest.mark.parametrize("size", PageSize)
def test_rmpupdate_fail_inuse(rmp: Rmp, size: PageSize) -> None:
    own(rmp, REGION, size)
    rmp.set_in_use(Spa(REGION + size.nbytes - PAGE), True)
    assert rmp.is_in_use(Spa(REGION + size.nbytes - PAGE))
    assert rmp.rmpupdate(REGION, RmpUpdate(page_size=size)) == RmpReturn.FAIL_INUSE
    rmp.set_in_use(Spa(REGION + size.nbytes - PAGE), False)
    assert rmp.rmpupdate(REGION, RmpUpdate(page_size=size)) == OK


def test_rmpupdate_fail_overlap(rmp: Rmp) -> None:
    assign(rmp, REGION, HUGE)
    for page in (0, 1, 511):
        for new in (RmpUpdate(), RmpUpdate(True, gpa=Gpa(REGION), asid=1)):
            spa = Spa(REGION + page * PAGE)
            assert rmp.rmpupdate(spa, new) == RmpReturn.FAIL_OVERLAP


def test_rmpupdate_huge_over_small_fails_until_the_last_is_gone(rmp: Rmp) -> None:
    assign(rmp, REGION + 5 * PAGE)
    assign(rmp, REGION + 5 * PAGE)
    for assigned in (False, True):
        new = RmpUpdate(assigned, HUGE)
        assert rmp.rmpupdate(REGION, new) == RmpReturn.FAIL_OVERLAP
    assert rmp.rmpupdate(Spa(REGION + 5 * PAGE), RmpUpdate()) == OK
    assign(rmp, REGION, HUGE)


def test_an_update_that_changes_nothing_is_silent(rmp: Rmp, changes: Changes) -> None:
    assert rmp.rmpupdate(REGION, RmpUpdate()) == OK
    assert rmp.rmpupdate(REGION, RmpUpdate(page_size=HUGE)) == OK
    assert not changes


# PSMASH -------------------------------------------------------------------------------------------


def test_psmash_copies_everything(rmp: Rmp, changes: Changes) -> None:
    own(rmp, REGION, HUGE)
    assert rmpadjust(rmp, REGION, 1 | RWX, size=HUGE) == OK
    before = [entry(rmp, REGION + i * PAGE) for i in range(512)]
    changes.clear()
    assert rmp.psmash(REGION) == OK
    assert changes == [(REGION // PAGE, 512)]
    for i, old in enumerate(before):
        new = entry(rmp, REGION + i * PAGE)
        assert new.page_size is SMALL
        assert (new.gpa, new.validated, new.permissions, new.asid) == (
            REGION + i * PAGE,
            True,
            old.permissions,
            GUEST_ASID,
        )
    assert entry(rmp, REGION + 512 * PAGE) == RmpEntry()
    # They live on their own now.
    assert rmp.rmpupdate(Spa(REGION + PAGE), RmpUpdate()) == OK
    assert entry(rmp, REGION).assigned
    assert rmp.rmpupdate(REGION, RmpUpdate(page_size=HUGE)) == RmpReturn.FAIL_OVERLAP


def test_psmash_failures(rmp: Rmp, changes: Changes) -> None:
    assert rmp.psmash(Spa(REGION + PAGE)) == RmpReturn.FAIL_INPUT
    assert rmp.psmash(Spa(1 << 40)) == RmpReturn.FAIL_INPUT
    assert rmp.psmash(REGION) == RmpReturn.FAIL_BADADDR
    assign(rmp, REGION)
    assert rmp.psmash(REGION) == RmpReturn.FAIL_BADADDR
    assign(rmp, 0, HUGE, immutable=True)
    assert rmp.psmash(Spa(0)) == RmpReturn.FAIL_PERMISSION
    own(rmp, 0x20_0000, HUGE)
    rmp.set_in_use(Spa(0x20_1000), True)
    changes.clear()
    assert rmp.psmash(Spa(0x20_0000)) == RmpReturn.FAIL_INUSE
    assert not changes


# PVALIDATE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", PageSize)
def test_pvalidate_sets_and_rescinds(rmp: Rmp, changes: Changes, size: PageSize) -> None:
    assign(rmp, REGION, size)
    changes.clear()
    assert pvalidate(rmp, REGION, size, False) == (OK, True)
    assert not changes
    assert pvalidate(rmp, REGION, size, True) == (OK, False)
    assert entry(rmp, REGION + size.nbytes - PAGE).validated
    assert changes == [(REGION // PAGE, size.npages)]
    assert pvalidate(rmp, REGION, size, True) == (OK, True)
    assert rmpadjust(rmp, REGION, 2 | RWX, size=size) == OK
    assert pvalidate(rmp, REGION, size, False) == (OK, False)
    rescinded = entry(rmp, REGION)
    assert rescinded.assigned
    assert not rescinded.validated
    assert rescinded.permissions[2] == Perm.ALL


@pytest.mark.parametrize("vmpl", [V1, V2, V3])
def test_pvalidate_outside_vmpl0_is_gp(rmp: Rmp, vmpl: Vmpl) -> None:
    assign(rmp, REGION)
    with pytest.raises(GuestFault) as caught:
        rmp.pvalidate(REGION, Gpa(REGION), vmpl, SMALL, True)
    assert (caught.value.vector, caught.value.error_code) == (Vector.GP, 0)
    assert not entry(rmp, REGION).validated


def test_pvalidate_huge_on_small_is_sizemismatch(rmp: Rmp) -> None:
    assign(rmp, REGION)
    assert pvalidate(rmp, REGION, HUGE) == (RmpReturn.FAIL_SIZEMISMATCH, False)
    assign(rmp, 0, HUGE)
    assert rmp.pvalidate(Spa(0), Gpa(0), V0, HUGE, True, mapping_size=SMALL) == (
        RmpReturn.FAIL_SIZEMISMATCH,
        False,
    )


def test_pvalidate_misaligned_huge_is_fail_input(rmp: Rmp) -> None:
    assign(rmp, REGION, HUGE)
    assert pvalidate(rmp, REGION + PAGE, HUGE) == (RmpReturn.FAIL_INPUT, False)


def test_pvalidate_of_a_running_vmsa_is_inuse(rmp: Rmp) -> None:
    own(rmp, REGION)
    rmp.set_in_use(REGION, True)
    assert pvalidate(rmp, REGION, SMALL, False) == (RmpReturn.FAIL_INUSE, False)
    assert entry(rmp, REGION).validated


# RMPADJUST ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", PageSize)
def test_rmpadjust_sets_the_target_alone(rmp: Rmp, changes: Changes, size: PageSize) -> None:
    own(rmp, REGION, size)
    changes.clear()
    assert rmpadjust(rmp, REGION, 2 | RWX, size=size) == OK
    assert changes == [(REGION // PAGE, size.npages)]
    expected = (Perm.ALL, Perm.NONE, Perm.ALL, Perm.NONE)
    assert entry(rmp, REGION + size.nbytes - PAGE).permissions == expected
    assert rmpadjust(rmp, REGION, 2 | RWX, size=size) == OK
    assert len(changes) == 1
    assert rmpadjust(rmp, REGION, 2 | READ_ONLY, size=size) == OK
    assert entry(rmp, REGION).permissions[2] == Perm.READ


@pytest.mark.parametrize(("vmpl", "target"), [(V0, 0), (V1, 0), (V1, 1), (V2, 1), (V3, 3)])
def test_rmpadjust_needs_a_greater_target(rmp: Rmp, vmpl: Vmpl, target: int) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, target, vmpl=vmpl) == RmpReturn.FAIL_PERMISSION


def test_rmpadjust_cannot_grant_what_the_caller_lacks(rmp: Rmp) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, 1 | READ_ONLY) == OK
    assert rmpadjust(rmp, REGION, 2 | READ_ONLY, vmpl=V1) == OK
    assert rmpadjust(rmp, REGION, 2 | RWX, vmpl=V1) == RmpReturn.FAIL_PERMISSION
    assert entry(rmp, REGION).permissions[2] == Perm.READ
    # Permissions that a higher level lost are not withdrawn below it.
    assert rmpadjust(rmp, REGION, 1) == OK
    assert entry(rmp, REGION).permissions[2] == Perm.READ


def test_rmpadjust_vmsa_is_vmpl0s_alone(rmp: Rmp) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, 1 | RWX | VMSA) == OK
    assert entry(rmp, REGION).vmsa
    # Ignored from any other level, in both directions.
    assert rmpadjust(rmp, REGION, 2, vmpl=V1) == OK
    assert entry(rmp, REGION).vmsa
    assert rmpadjust(rmp, REGION, 1 | RWX) == OK
    assert not entry(rmp, REGION).vmsa
    assert rmpadjust(rmp, REGION, 2 | VMSA, vmpl=V1) == OK
    assert not entry(rmp, REGION).vmsa


@pytest.mark.parametrize("attributes", [4, 0xFF, 1 | 1 << 12, 1 | 1 << 17, 1 | 1 << 63])
def test_rmpadjust_fail_input(rmp: Rmp, attributes: int) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, attributes) == RmpReturn.FAIL_INPUT


def test_rmpadjust_misaligned_huge_is_fail_input(rmp: Rmp) -> None:
    own(rmp, REGION, HUGE)
    assert rmpadjust(rmp, REGION + PAGE, 1, size=HUGE) == RmpReturn.FAIL_INPUT


def test_rmpadjust_huge_on_small_is_sizemismatch(rmp: Rmp) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, 1, size=HUGE) == RmpReturn.FAIL_SIZEMISMATCH


def test_rmpadjust_of_a_running_vmsa_is_inuse(rmp: Rmp) -> None:
    own(rmp, REGION)
    assert rmpadjust(rmp, REGION, 1 | VMSA) == OK
    rmp.set_in_use(REGION, True)
    assert rmpadjust(rmp, REGION, 1) == RmpReturn.FAIL_INUSE
    assert entry(rmp, REGION).vmsa


def test_rmpadjust_of_an_unvalidated_page_is_vc(rmp: Rmp) -> None:
    assign(rmp, REGION)
    with pytest.raises(GuestFault) as caught:
        rmpadjust(rmp, REGION, 1)
    assert (caught.value.vector, caught.value.error_code) == (Vector.VC, PAGE_NOT_VALIDATED)


# RMPQUERY -----------------------------------------------------------------------------------------


def test_rmpquery(rmp: Rmp) -> None:
    own(rmp, REGION, HUGE)
    assert rmpadjust(rmp, REGION, 2 | READ_ONLY, size=HUGE) == OK
    spa, gpa = Spa(REGION + 3 * PAGE), Gpa(REGION + 3 * PAGE)
    assert rmp.rmpquery(spa, gpa, V2, 2) == (OK, Perm.READ, False, HUGE)
    assert rmp.rmpquery(spa, gpa, V0, 0) == (OK, Perm.ALL, False, HUGE)
    assert rmp.rmpquery(spa, gpa, V2, 1).code == RmpReturn.FAIL_PERMISSION
    assert rmp.rmpquery(spa, gpa, V2, 4).code == RmpReturn.FAIL_INPUT
    own(rmp, 0)
    assert rmpadjust(rmp, 0, 1 | VMSA) == OK
    assert rmp.rmpquery(Spa(0), Gpa(0), V0, 1) == (OK, Perm.NONE, True, SMALL)
    assign(rmp, 0)
    with pytest.raises(GuestFault):
        rmp.rmpquery(Spa(0), Gpa(0), V0, 1)


# Nested faults of the guest's instructions --------------------------------------------------------

OTHER: Final = Spa(0x3000)
FIRMWARE: Final = Spa(0x4000)
INSTRUCTION_ROWS: Final[dict[str, tuple[int, int, PageSize | None, int]]] = {
    # row: (spa, gpa, size of the nested mapping, EXITINFO1)
    "RI-20": (0x80_0000, 0x80_0000, None, NPF_RMP),
    "RI-21": (0x5000, 0x5000, None, NPF_RMP),
    "RI-22": (OTHER, OTHER, None, NPF_RMP),
    "RI-23": (REGION + PAGE, REGION, None, NPF_RMP),
    "RI-24": (FIRMWARE, FIRMWARE, None, NPF_RMP),
    "RI-25": (REGION + PAGE, REGION + PAGE, None, NPF_SIZEM),
}


@pytest.mark.parametrize("row", INSTRUCTION_ROWS)
def test_instruction_row(rmp: Rmp, row: str) -> None:
    own(rmp, REGION, HUGE)
    assert rmp.rmpupdate(OTHER, RmpUpdate(True, gpa=Gpa(OTHER), asid=GUEST_ASID + 1)) == OK
    assign(rmp, FIRMWARE, immutable=True)
    spa, gpa, mapping, error_code = INSTRUCTION_ROWS[row]
    for instruction in (
        lambda: rmp.pvalidate(Spa(spa), Gpa(gpa), V0, SMALL, True, mapping_size=mapping),
        lambda: rmp.rmpadjust(Spa(spa), Gpa(gpa), V0, SMALL, 1, mapping_size=mapping),
    ):
        with pytest.raises(NestedFault) as caught:
            instruction()
        assert (caught.value.gpa, caught.value.error_code, caught.value.row) == (
            gpa,
            error_code,
            row,
        )


def test_small_operand_on_a_huge_mapping_is_sizem(rmp: Rmp) -> None:
    own(rmp, REGION)
    with pytest.raises(NestedFault) as caught:
        rmp.pvalidate(REGION, Gpa(REGION), V0, SMALL, True, mapping_size=HUGE)
    assert caught.value.error_code == NPF_SIZEM


def test_documented_rows_are_tested_rows() -> None:
    documented = re.findall(r"^\| (RI-\d\d) \|.*\| `(\w+)` \|$", DOC.read_text(), re.MULTILINE)
    rows = [row for row, _ in documented]
    assert len(rows) == len(set(rows))
    parametrised = {row for row, test in documented if test == "test_instruction_row"}
    assert parametrised == INSTRUCTION_ROWS.keys()
    assert not {test for _, test in documented} - globals().keys()


# Fast paths, security processor -------------------------------------------------------------------


def test_permissions_agrees_with_the_access_checks(rmp: Rmp) -> None:
    own(rmp, REGION, HUGE)
    own(rmp, 0)
    assign(rmp, PAGE)
    assign(rmp, 2 * PAGE, immutable=True)
    rmp.firmware_update(Spa(2 * PAGE), validated=True)
    for attributes in (1 | READ_ONLY, 2 | 0x200, 3 | 0xE00):
        assert rmpadjust(rmp, 0, attributes) == OK
        assert rmpadjust(rmp, REGION, attributes, size=HUGE) == OK
    kinds = {
        Perm.READ: (AccessKind.READ, 0),
        Perm.WRITE: (AccessKind.WRITE, 0),
        Perm.EXECUTE_USER: (AccessKind.FETCH, 3),
        Perm.EXECUTE_SUPERVISOR: (AccessKind.FETCH, 0),
    }
    for spa in (0, PAGE, 2 * PAGE, 3 * PAGE, REGION, REGION + 7 * PAGE, 0x80_0000):
        found = rmp.lookup(spa)
        size = found.page_size if found else SMALL
        for gpa in (spa, spa + PAGE):
            for asid in (GUEST_ASID, 2):
                for vmpl in Vmpl:
                    allowed = Perm.NONE
                    for perm, (kind, cpl) in kinds.items():
                        wanted = Access(kind, asid, True, gpa, vmpl, cpl, size)
                        if access.check(found, wanted) == access.Done("AC-40"):
                            allowed |= perm
                    assert rmp.permissions(spa // PAGE, vmpl, gpa // PAGE, asid) == allowed
                    if gpa == spa and asid == GUEST_ASID:
                        assert rmp.permissions(spa // PAGE, vmpl) == allowed


def test_hypervisor_owned_looks_at_the_whole_mapping(rmp: Rmp) -> None:
    assign(rmp, REGION + PAGE)
    assert rmp.hypervisor_owned(REGION, SMALL)
    assert not rmp.hypervisor_owned(REGION, HUGE)
    assert not rmp.hypervisor_owned(REGION + PAGE, SMALL)
    assert rmp.hypervisor_owned(0, HUGE)
    assign(rmp, 0, HUGE)
    assert not rmp.hypervisor_owned(PAGE, SMALL)
    assert not rmp.hypervisor_owned(PAGE, HUGE)
    assert rmp.hypervisor_owned(1 << 45, HUGE)
    assert rmp.hypervisor_owned(0x80_0000, SMALL)


def test_in_use_is_seen_and_is_no_change(rmp: Rmp, changes: Changes) -> None:
    rmp.set_in_use(REGION, True)
    assert entry(rmp, REGION) == RmpEntry(in_use=True)
    rmp.set_in_use(REGION, False)
    rmp.set_in_use(REGION, False)
    assert entry(rmp, REGION) == RmpEntry()
    assert not changes


def test_firmware_update(rmp: Rmp, changes: Changes) -> None:
    assign(rmp, REGION, immutable=True)
    assign(rmp, 0, HUGE, immutable=True)
    changes.clear()
    rmp.firmware_update(
        REGION, validated=True, immutable=False, vmsa=True, permissions=(15, 1, 3, 0)
    )
    launched = entry(rmp, REGION)
    assert (launched.validated, launched.immutable, launched.vmsa) == (True, False, True)
    assert launched.permissions == (Perm.ALL, Perm.READ, Perm.READ | Perm.WRITE, Perm.NONE)
    assert launched.asid == GUEST_ASID
    rmp.firmware_update(Spa(5 * PAGE), immutable=False)
    assert not entry(rmp, 0).immutable
    assert changes == [(REGION // PAGE, 1), (0, 512)]
    with pytest.raises(ValueError, match="not assigned"):
        rmp.firmware_update(Spa(0x20_0000), validated=True)


def test_faults_say_what_they_are() -> None:
    assert str(GuestFault(14, 2, 0x1234)) == "vector 14 error 0x2 at 0x1234"
    assert str(GuestFault(6)) == "vector 6"
    assert str(NestedFault(0x1000, 5, "RI-20")).endswith("EXITINFO1 0x5 (RI-20)")
