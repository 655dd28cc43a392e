# SPDX-License-Identifier: MIT
"""The launch: what is measured, in which order, and in which state memory is left."""

from __future__ import annotations

import dataclasses

import pytest

from svsmd.host.launch import (
    LaunchError,
    LaunchPlan,
    LaunchRange,
    LaunchVmsa,
    assign_the_rest,
    launch,
)
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.guest_context import GuestState
from svsmd.snp.launch_digest import LaunchDigest, PageType
from svsmd.snp.rmp import Perm, RmpReturn, RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from svsmd.snp.vmsa import SevFeatures, Vmsa
from tests.fake_silicon import MEMORY_SIZE, FakeSilicon, huge

IMAGE = bytes(range(256)) * 32
BASE = Gpa(huge(3))
GRANTED = (Perm.NONE, Perm.READ | Perm.WRITE, Perm.NONE)


def page(number: int) -> Gpa:
    return Gpa(BASE + number * PAGE_SIZE)


PLAN = LaunchPlan(
    ranges=(
        LaunchRange(page(0), PageType.NORMAL, IMAGE),
        LaunchRange(page(2), PageType.ZERO, size=2 * PAGE_SIZE, vmpl_permissions=GRANTED),
        LaunchRange(page(4), PageType.UNMEASURED, b"\xee" * PAGE_SIZE),
        LaunchRange(page(5), PageType.SECRETS, size=PAGE_SIZE),
        LaunchRange(page(6), PageType.CPUID, CpuidPage().tobytes()),
    ),
    vmsas=(LaunchVmsa(page(7), Vmsa().tobytes()),),
)


def with_range(item: LaunchRange) -> LaunchPlan:
    return dataclasses.replace(PLAN, ranges=(*PLAN.ranges, item))


def test_the_digest_is_that_of_the_pages_in_order() -> None:
    expected = LaunchDigest()
    expected.update(PageType.NORMAL, page(0), IMAGE[:PAGE_SIZE])
    expected.update(PageType.NORMAL, page(1), IMAGE[PAGE_SIZE:])
    for number in (2, 3):
        expected.update(PageType.ZERO, page(number), vmpl_permissions=(0, 3, 0))
    expected.update(PageType.UNMEASURED, page(4))
    expected.update(PageType.SECRETS, page(5))
    expected.update(PageType.CPUID, page(6))
    expected.update(PageType.VMSA, page(7), Vmsa().tobytes())
    silicon = FakeSilicon()
    assert launch(silicon, PLAN) == expected.value
    assert silicon.psp.state is GuestState.RUNNING


def test_pages_of_the_plan_are_private_and_valid_with_their_permissions() -> None:
    silicon = FakeSilicon()
    launch(silicon, PLAN)
    for number in range(8):
        entry = silicon.rmp.lookup(page(number))
        assert entry is not None
        assert entry.assigned
        assert entry.validated
        assert not entry.immutable
        assert entry.gpa == page(number)
        assert entry.vmsa == (number == 7)
    zero = silicon.rmp.lookup(page(2))
    assert zero is not None
    assert zero.permissions == (Perm.ALL, *GRANTED)
    assert silicon.memory.read(page(0), len(IMAGE)) == IMAGE


def test_the_tsc_of_the_launch_is_that_of_the_plan() -> None:
    vmsa = Vmsa.reset_state(sev_features=SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC)
    plan = dataclasses.replace(
        PLAN, vmsas=(LaunchVmsa(page(7), vmsa.tobytes()),), desired_tsc_khz=1_500_000
    )
    silicon = FakeSilicon()
    launch(silicon, plan)
    assert Vmsa(silicon.memory.page(page(7))).guest_tsc_scale == 3 << 31


def test_the_rest_is_private_and_not_valid_in_large_pages_where_it_can_be() -> None:
    silicon = FakeSilicon()
    launch(silicon, PLAN)
    for gpa in range(0, MEMORY_SIZE, HUGE_PAGE_SIZE):
        last = silicon.rmp.lookup(gpa + HUGE_PAGE_SIZE - PAGE_SIZE)
        assert last is not None
        assert (last.assigned, last.validated) == (True, False)
        assert last.page_size is (PageSize.SIZE_4K if gpa == BASE else PageSize.SIZE_2M)


def test_a_large_range_has_large_pages_and_the_same_digest() -> None:
    expected = LaunchDigest()
    for number in range(-1, 513):
        expected.update(PageType.ZERO, page(number))
    expected.update(PageType.VMSA, huge(1), Vmsa().tobytes())
    item = LaunchRange(page(-1), PageType.ZERO, size=HUGE_PAGE_SIZE + 2 * PAGE_SIZE)
    vmsas = (LaunchVmsa(Gpa(huge(1)), Vmsa().tobytes()),)
    silicon = FakeSilicon()
    assert launch(silicon, LaunchPlan((item,), vmsas)) == expected.value
    for number, size in ((-1, PageSize.SIZE_4K), (0, PageSize.SIZE_2M), (512, PageSize.SIZE_4K)):
        entry = silicon.rmp.lookup(page(number))
        assert entry is not None
        assert (entry.page_size, entry.validated) == (size, True)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (with_range(LaunchRange(Gpa(BASE + 8), PageType.NORMAL, IMAGE)), "whole pages"),
        (with_range(LaunchRange(page(9), PageType.NORMAL, IMAGE[:-1])), "whole pages"),
        (with_range(LaunchRange(page(9), PageType.ZERO)), "whole pages"),
        (with_range(LaunchRange(page(1), PageType.ZERO, size=PAGE_SIZE)), "overlaps"),
        (with_range(LaunchRange(Gpa(MEMORY_SIZE - PAGE_SIZE), PageType.NORMAL, IMAGE)), "RAM"),
        (with_range(LaunchRange(page(9), PageType.SECRETS, bytes(PAGE_SIZE))), "contents"),
        (with_range(LaunchRange(page(9), PageType.NORMAL, size=PAGE_SIZE)), "contents"),
        (dataclasses.replace(PLAN, vmsas=(LaunchVmsa(page(9), bytes(8192)),)), "one page"),
        (dataclasses.replace(PLAN, policy=0), "LAUNCH_START: POLICY_FAILURE"),
        (dataclasses.replace(PLAN, desired_tsc_khz=-1), "LAUNCH_START: INVALID_PARAM"),
        (dataclasses.replace(PLAN, host_data=b""), "LAUNCH_FINISH: INVALID_PARAM"),
        (
            with_range(LaunchRange(page(9), PageType.CPUID, b"\xff" * PAGE_SIZE)),
            "LAUNCH_UPDATE of the CPUID page",
        ),
    ],
)
def test_a_plan_that_cannot_be_launched_says_why(plan: LaunchPlan, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        launch(FakeSilicon(), plan)


def test_what_was_shared_is_assigned_again_and_nothing_else_changes() -> None:
    silicon = FakeSilicon()
    launch(silicon, PLAN)
    shared, kept = (Gpa(huge(1)), PageSize.SIZE_2M), (Gpa(huge(5)), PageSize.SIZE_2M)
    small = Gpa(huge(2) + 7 * PAGE_SIZE)
    assert silicon.rmp.psmash(Spa(huge(2))) is RmpReturn.SUCCESS
    for gpa, size in (shared, kept, (small, PageSize.SIZE_4K)):
        assert silicon.rmp.rmpupdate(Spa(gpa), RmpUpdate(page_size=size)) is RmpReturn.SUCCESS
    assign_the_rest(silicon, [range(huge(5)), range(huge(5), huge(5))])
    for gpa, size in (shared, (small, PageSize.SIZE_4K)):
        entry = silicon.rmp.lookup(gpa)
        assert entry is not None
        assert (entry.assigned, entry.validated, entry.page_size) == (True, False, size)
    measured = silicon.rmp.lookup(page(0))
    assert measured is not None
    assert measured.validated
    outside = silicon.rmp.lookup(kept[0])
    assert outside is not None
    assert not outside.assigned
