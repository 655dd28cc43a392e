# SPDX-License-Identifier: MIT
"""Every row of docs/access-checks.md, by its id."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from svsmd.snp.access import (
    HOST_ASID,
    Access,
    AccessKind,
    Ciphertext,
    Done,
    NestedPageFault,
    PageFault,
    VcNotValidated,
    Verdict,
    VmrunRefused,
    check,
    check_vmsa,
)
from svsmd.snp.rmp import GUEST_ASID, Perm, RmpEntry
from svsmd.snp.types import Gpa, PageSize, Vmpl

DOC: Final = Path(__file__).parents[2] / "docs" / "access-checks.md"

GPA: Final = Gpa(0x20_3000)
OTHER_ASID: Final = GUEST_ASID + 1

# Error codes as numbers, so that a wrong bit constant is seen.
P, W, U, ID, RMP = 1, 2, 4, 0x10, 0x8000_0000
FINAL, WALK, ENC, VMPL = 1 << 32, 1 << 33, 1 << 34, 1 << 36
NPF = P | U | RMP

READ, WRITE, FETCH = AccessKind.READ, AccessKind.WRITE, AccessKind.FETCH
TABLE_READ, TABLE_UPDATE = AccessKind.WALK, AccessKind.WALK_UPDATE

FREE: Final = RmpEntry()
MINE: Final = RmpEntry(
    assigned=True,
    validated=True,
    gpa=GPA,
    asid=GUEST_ASID,
    permissions=(Perm.ALL, Perm.NONE, Perm.READ, Perm.NONE),
)


def mine(**fields: object) -> RmpEntry:
    return dataclasses.replace(MINE, **fields)  # type: ignore[arg-type]


def at_vmpl1(granted: Perm) -> RmpEntry:
    return mine(permissions=(Perm.ALL, granted, Perm.NONE, Perm.NONE))


def host(kind: AccessKind, *, cpl: int = 0, size: PageSize = PageSize.SIZE_4K) -> Access:
    return Access(kind, asid=HOST_ASID, cpl=cpl, mapping_size=size)


def shared(kind: AccessKind, *, size: PageSize = PageSize.SIZE_4K) -> Access:
    return Access(kind, c_bit=False, gpa=GPA + 8, mapping_size=size)


def private(
    kind: AccessKind,
    *,
    vmpl: int = 0,
    cpl: int = 0,
    c_bit: bool = True,
    size: PageSize = PageSize.SIZE_4K,
) -> Access:
    return Access(kind, c_bit=c_bit, gpa=GPA + 8, vmpl=Vmpl(vmpl), cpl=cpl, mapping_size=size)


class Row(NamedTuple):
    entry: RmpEntry | None
    access: Access
    verdict: Verdict
    hypervisor_owned: bool | None = None


HUGE: Final = PageSize.SIZE_2M

ROWS: Final[dict[str, list[Row]]] = {
    "AC-01": [
        Row(FREE, host(READ), Done("AC-01")),
        Row(None, host(FETCH), Done("AC-01")),
        Row(FREE, host(READ, size=HUGE), Done("AC-01"), hypervisor_owned=False),
    ],
    "AC-02": [
        Row(MINE, host(READ), Ciphertext("AC-02")),
        Row(MINE, host(FETCH), Ciphertext("AC-02")),
        Row(mine(validated=False), host(READ), Ciphertext("AC-02")),
    ],
    "AC-03": [
        Row(FREE, host(WRITE), Done("AC-03")),
        Row(None, host(WRITE), Done("AC-03")),
        Row(FREE, host(WRITE, size=HUGE), Done("AC-03"), hypervisor_owned=True),
    ],
    "AC-04": [
        Row(MINE, host(WRITE), PageFault("AC-04", P | W | RMP)),
        Row(MINE, host(WRITE, cpl=3), PageFault("AC-04", P | W | U | RMP)),
        Row(mine(asid=0, immutable=True), host(WRITE), PageFault("AC-04", P | W | RMP)),
        # The page itself decides, whatever the caller says of the mapping.
        Row(MINE, host(WRITE), PageFault("AC-04", P | W | RMP), hypervisor_owned=True),
    ],
    "AC-05": [
        Row(FREE, host(WRITE, size=HUGE), PageFault("AC-05", P | W | RMP), hypervisor_owned=False)
    ],
    "AC-06": [
        Row(FREE, host(TABLE_READ), Done("AC-06")),
        Row(None, host(TABLE_UPDATE), Done("AC-06")),
    ],
    "AC-07": [
        Row(MINE, host(TABLE_READ), PageFault("AC-07", P | RMP)),
        Row(MINE, host(TABLE_UPDATE), PageFault("AC-07", P | W | RMP)),
    ],
    "AC-10": [
        Row(FREE, shared(READ), Done("AC-10")),
        Row(None, shared(READ), Done("AC-10")),
    ],
    "AC-11": [
        Row(MINE, shared(READ), Ciphertext("AC-11")),
        Row(mine(asid=OTHER_ASID), shared(READ), Ciphertext("AC-11")),
    ],
    "AC-12": [
        Row(FREE, shared(WRITE), Done("AC-12")),
        Row(None, shared(WRITE), Done("AC-12")),
        Row(FREE, shared(WRITE, size=HUGE), Done("AC-12"), hypervisor_owned=True),
    ],
    "AC-13": [
        Row(MINE, shared(WRITE), NestedPageFault("AC-13", NPF | W | FINAL)),
        Row(mine(asid=OTHER_ASID), shared(WRITE), NestedPageFault("AC-13", NPF | W | FINAL)),
    ],
    "AC-14": [
        Row(
            FREE,
            shared(WRITE, size=HUGE),
            NestedPageFault("AC-14", NPF | W | FINAL),
            hypervisor_owned=False,
        )
    ],
    "AC-20": [
        Row(None, private(READ), NestedPageFault("AC-20", NPF | FINAL | ENC)),
        Row(None, private(WRITE), NestedPageFault("AC-20", NPF | W | FINAL | ENC)),
        Row(None, private(FETCH), NestedPageFault("AC-20", NPF | ID | FINAL | ENC)),
        Row(None, private(TABLE_READ), NestedPageFault("AC-20", NPF | W | WALK | ENC)),
    ],
    "AC-21": [
        Row(FREE, private(READ), NestedPageFault("AC-21", NPF | FINAL | ENC)),
        Row(FREE, private(TABLE_UPDATE), NestedPageFault("AC-21", NPF | W | WALK | ENC)),
    ],
    "AC-22": [
        Row(mine(asid=OTHER_ASID), private(READ), NestedPageFault("AC-22", NPF | FINAL | ENC)),
        Row(
            mine(asid=0, immutable=True),
            private(WRITE),
            NestedPageFault("AC-22", NPF | W | FINAL | ENC),
        ),
    ],
    "AC-23": [
        Row(mine(gpa=GPA + 0x1000), private(READ), NestedPageFault("AC-23", NPF | FINAL | ENC)),
    ],
    "AC-24": [
        Row(mine(immutable=True), private(READ), NestedPageFault("AC-24", NPF | FINAL | ENC)),
    ],
    "AC-25": [
        # SIZEM (bit 35) stays clear: it is for PVALIDATE and RMPADJUST.
        Row(MINE, private(READ, size=HUGE), NestedPageFault("AC-25", NPF | FINAL | ENC)),
        Row(mine(page_size=HUGE), private(READ), NestedPageFault("AC-25", NPF | FINAL | ENC)),
    ],
    "AC-26": [
        Row(mine(validated=False), private(kind), VcNotValidated("AC-26")) for kind in AccessKind
    ],
    "AC-30": [
        Row(
            at_vmpl1(Perm.NONE),
            private(READ, vmpl=1),
            NestedPageFault("AC-30", NPF | FINAL | ENC | VMPL),
        ),
        Row(
            at_vmpl1(Perm.EXECUTE_USER | Perm.EXECUTE_SUPERVISOR),
            private(READ, vmpl=1),
            NestedPageFault("AC-30", NPF | FINAL | ENC | VMPL),
        ),
    ],
    "AC-31": [
        Row(
            at_vmpl1(Perm.READ),
            private(WRITE, vmpl=1),
            NestedPageFault("AC-31", NPF | W | FINAL | ENC | VMPL),
        ),
    ],
    "AC-32": [
        Row(
            at_vmpl1(Perm.WRITE),
            private(WRITE, vmpl=1),
            NestedPageFault("AC-32", NPF | W | FINAL | ENC | VMPL),
        ),
        Row(
            at_vmpl1(Perm.WRITE),
            private(READ, vmpl=1),
            NestedPageFault("AC-32", NPF | FINAL | ENC | VMPL),
        ),
        Row(
            at_vmpl1(Perm.WRITE),
            private(TABLE_UPDATE, vmpl=1),
            NestedPageFault("AC-32", NPF | W | WALK | ENC | VMPL),
        ),
    ],
    "AC-33": [
        Row(
            at_vmpl1(Perm.ALL & ~Perm.EXECUTE_USER),
            private(FETCH, vmpl=1, cpl=3),
            NestedPageFault("AC-33", NPF | ID | FINAL | ENC | VMPL),
        ),
    ],
    "AC-34": [
        Row(
            at_vmpl1(Perm.ALL & ~Perm.EXECUTE_SUPERVISOR),
            private(FETCH, vmpl=1, cpl=cpl),
            NestedPageFault("AC-34", NPF | ID | FINAL | ENC | VMPL),
        )
        for cpl in (0, 1, 2)
    ],
    "AC-35": [
        Row(
            at_vmpl1(Perm.EXECUTE_SUPERVISOR),
            private(TABLE_READ, vmpl=1),
            NestedPageFault("AC-35", NPF | W | WALK | ENC | VMPL),
        ),
    ],
    "AC-36": [
        Row(
            at_vmpl1(Perm.READ),
            private(TABLE_UPDATE, vmpl=1),
            NestedPageFault("AC-36", NPF | W | WALK | ENC | VMPL),
        ),
    ],
    "AC-40": [
        *(Row(MINE, private(kind), Done("AC-40")) for kind in AccessKind),
        Row(MINE, private(READ, vmpl=2), Done("AC-40")),
        Row(MINE, private(TABLE_READ, vmpl=2), Done("AC-40")),
        Row(at_vmpl1(Perm.EXECUTE_USER), private(FETCH, vmpl=1, cpl=3), Done("AC-40")),
        Row(at_vmpl1(Perm.EXECUTE_SUPERVISOR), private(FETCH, vmpl=1, cpl=2), Done("AC-40")),
        Row(mine(page_size=HUGE), private(WRITE, size=HUGE), Done("AC-40")),
    ],
    "AC-41": [
        Row(FREE, private(kind, c_bit=False), NestedPageFault("AC-21", NPF | bits | ENC))
        for kind, bits in ((FETCH, ID | FINAL), (TABLE_READ, W | WALK), (TABLE_UPDATE, W | WALK))
    ]
    + [
        Row(MINE, private(kind, c_bit=False), Done("AC-40"))
        for kind in (FETCH, TABLE_READ, TABLE_UPDATE)
    ],
    "AC-42": [
        Row(mine(vmsa=True), private(WRITE), Done("AC-40")),
        Row(mine(vmsa=True, in_use=True), private(WRITE), Done("AC-40")),
        Row(mine(vmsa=True), private(READ, vmpl=2), Done("AC-40")),
    ],
    "AC-50": [
        # Each entry fails two checks; the one of higher priority speaks.
        Row(
            mine(validated=False, page_size=HUGE),
            private(READ),
            NestedPageFault("AC-25", NPF | FINAL | ENC),
        ),
        Row(
            mine(immutable=True, gpa=Gpa(0)),
            private(READ),
            NestedPageFault("AC-23", NPF | FINAL | ENC),
        ),
    ],
    "AC-51": [
        Row(mine(validated=False), private(WRITE, vmpl=3), VcNotValidated("AC-26")),
    ],
}

VMRUN_ROWS: Final[dict[str, list[tuple[RmpEntry | None, VmrunRefused | None]]]] = {
    "AC-60": [(None, VmrunRefused("AC-60")), (FREE, VmrunRefused("AC-60"))],
    "AC-61": [(mine(vmsa=True, asid=OTHER_ASID), VmrunRefused("AC-61"))],
    "AC-62": [(mine(vmsa=True, immutable=True), VmrunRefused("AC-62"))],
    "AC-63": [(MINE, VmrunRefused("AC-63"))],
    "AC-64": [(mine(vmsa=True, in_use=True), VmrunRefused("AC-64", busy=True))],
    "AC-65": [(mine(vmsa=True), None), (mine(vmsa=True, page_size=HUGE), None)],
}


@pytest.mark.parametrize("row", ROWS)
def test_row(row: str) -> None:
    for case in ROWS[row]:
        verdict = check(case.entry, case.access, hypervisor_owned=case.hypervisor_owned)
        assert verdict == case.verdict, case


@pytest.mark.parametrize("row", VMRUN_ROWS)
def test_vmrun_row(row: str) -> None:
    for entry, refused in VMRUN_ROWS[row]:
        assert check_vmsa(entry) == refused, entry


def test_documented_rows_are_tested_rows() -> None:
    documented = re.findall(r"^\| (AC-\d\d) \|", DOC.read_text(), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == ROWS.keys() | VMRUN_ROWS.keys()


def test_documented_test_names() -> None:
    """Each row names the test that is parametrised with it."""
    named = dict(re.findall(r"^\| (AC-\d\d) \|.*\| `(\w+)` \|$", DOC.read_text(), re.MULTILINE))
    assert named == dict.fromkeys(ROWS, "test_row") | dict.fromkeys(VMRUN_ROWS, "test_vmrun_row")


def test_every_rule_has_a_row_that_reaches_it() -> None:
    """AC-41, 42, 50 and 51 say how rules combine, all other ids are the rule's own verdict."""
    reached = {case.verdict.row for cases in ROWS.values() for case in cases}
    assert reached == ROWS.keys() - {"AC-41", "AC-42", "AC-50", "AC-51"}
