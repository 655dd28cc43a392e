# SPDX-License-Identifier: MIT
"""Stage 2 on the real engine, whatever the host has done to the SVSM's region before.

The rule: the kernel starts only if every page of the region (but the GHCB) was measured, or was
made valid by stage 2 and by nobody else. A measured page that is gone faults when it is looked at.
"""

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.core.hypervisor import SvsmReason
from svsmd.core.launch_info import LaunchInfo
from svsmd.snp.rmp import GUEST_ASID, RmpReturn, RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from tests.boot_machine import Boot

PAGES = 1024
OFFSETS = st.one_of(st.integers(0, PAGES - 1), st.sampled_from((0x1FF, 0x200, 0x3FF)))


@settings(max_examples=25, deadline=None)
@given(
    smashed=st.booleans(),
    valid=st.lists(OFFSETS, max_size=2),
    replaced=st.sampled_from((None, "svsm_kernel", "svsm_core_digest")),
)
def test_no_page_is_taken_on_trust(smashed: bool, valid: list[int], replaced: str | None) -> None:
    boot = Boot()
    base, rmp = boot.region.base, boot.machine.silicon.rmp
    info = LaunchInfo.from_page(boot.read(boot.region.launch_info, PAGE_SIZE))
    launched = {
        page
        for v in info.validated
        for page in range(v.gpa, v.gpa + v.npages * PAGE_SIZE, PAGE_SIZE)
    }
    if smashed:
        assert rmp.psmash(Spa(base + HUGE_PAGE_SIZE)) is RmpReturn.SUCCESS
    attacked = False
    for page in valid:
        gpa = base + page * PAGE_SIZE
        if gpa != info.svsm_ghcb:
            rmp.firmware_update(Spa(gpa), validated=True)
            attacked |= gpa not in launched
    taken: int | None = None if replaced is None else getattr(info, replaced)
    if taken is not None:
        assert taken in launched
        for update in (
            RmpUpdate(),
            RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(taken), GUEST_ASID),
        ):
            assert rmp.rmpupdate(Spa(taken), update) is RmpReturn.SUCCESS
    if attacked:
        assert boot.ends()[0] is SvsmReason.VALIDATION
        return
    if taken == info.svsm_kernel:
        assert boot.ends()[0] is SvsmReason.EXCEPTION
        return
    launch = boot.to_the_core()
    for gpa in range(base, boot.region.end, PAGE_SIZE):
        entry = rmp.lookup(gpa)
        assert entry is not None
        if gpa == launch.ghcb:
            assert not entry.assigned
        elif gpa != taken:
            assert entry.assigned
            assert entry.validated
