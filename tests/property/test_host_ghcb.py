# SPDX-License-Identifier: MIT
"""Whatever a guest leaves in its GHCB and its GHCB MSR, the hypervisor has an answer."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svsmd.host.outcome import Continue, Crashed, PoweredOff, Reset, Terminated
from svsmd.snp.exits import Exit, Vmgexit
from svsmd.snp.ghcb import SHARED_BUFFER_OFFSET, Ghcb, GhcbError, GhcbExit, GhcbResponse
from svsmd.snp.ghcb_msr import GhcbInfo
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE
from svsmd.snp.vmcb import Vmcb
from tests.fake_silicon import GHCB_GPA, MEMORY_SIZE, Rig

U64 = (1 << 64) - 1
ALL_VALID = b"\xff" * 16

numbers = st.one_of(
    st.integers(0, U64),
    st.integers(0, 0x1000),
    st.sampled_from(
        [
            GHCB_GPA,
            GHCB_GPA + SHARED_BUFFER_OFFSET,
            GHCB_GPA + PAGE_SIZE - 16,
            MEMORY_SIZE - PAGE_SIZE,
            MEMORY_SIZE,
            0xFEC0_0000,
            U64 - PAGE_SIZE + 1,
        ]
    ),
)
codes = st.one_of(st.sampled_from(list(GhcbExit)).map(int), st.integers(0, U64))
msr_values = st.one_of(
    st.integers(0, U64),
    st.tuples(st.sampled_from(list(GhcbInfo)), st.integers(0, U64)).map(
        lambda pair: pair[0] | pair[1] & ~0xFFF
    ),
    st.integers(0, 1 << 30).map(lambda gpa: gpa & ~0xFFF),
)


def step(rig: Rig, msr: int) -> object:
    """Do one VMGEXIT with `msr` in the GHCB MSR."""

    def guest(vmcb: Vmcb) -> Exit:
        vmcb.ghcb_msr = msr
        return Vmgexit()

    rig.silicon.script.append(guest)
    return rig.hypervisor.step(rig.silicon.clock.now + 1)


def check(rig: Rig, outcome: object) -> None:
    assert isinstance(outcome, Continue | PoweredOff | Reset | Terminated | Crashed)
    if isinstance(outcome, Continue) and not rig.silicon.rmp.assigned(GHCB_GPA >> PAGE_SHIFT):
        ghcb = rig.ghcb
        assert ghcb.sw_exit_info_1 in GhcbResponse.__members__.values()
        if ghcb.sw_exit_info_1 == GhcbResponse.MALFORMED_INPUT:
            assert ghcb.sw_exit_info_2 in GhcbError.__members__.values()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.large_base_example])
@given(
    page=st.binary(min_size=PAGE_SIZE, max_size=PAGE_SIZE),
    code=st.none() | st.sampled_from(list(GhcbExit)),
)
def test_any_page(page: bytes, code: GhcbExit | None) -> None:
    rig = Rig()
    rig.register_ghcb()
    ghcb = rig.ghcb
    ghcb.memory[:] = page
    if code is not None:
        # Past the header, which random bytes hardly ever get right.
        ghcb.set_request(code, ghcb.get(Ghcb.sw_exit_info_1) or 0)
    check(rig, step(rig, GHCB_GPA))


@settings(max_examples=600, deadline=None)
@given(
    code=codes,
    info_1=numbers,
    info_2=numbers,
    scratch=numbers,
    registers=st.lists(numbers, min_size=4, max_size=4),
    buffer=st.binary(max_size=64),
    valid=st.one_of(st.just(ALL_VALID), st.binary(min_size=16, max_size=16)),
)
def test_any_event_with_any_operands(
    code: int,
    info_1: int,
    info_2: int,
    scratch: int,
    registers: list[int],
    buffer: bytes,
    valid: bytes,
) -> None:
    rig = Rig(certificates=b"certificate" * 1000)
    rig.register_ghcb()
    ghcb: Ghcb = rig.ghcb
    ghcb.set_request(code, info_1, info_2)
    ghcb.sw_scratch = scratch
    ghcb.rax, ghcb.rbx, ghcb.rcx, ghcb.rdx = registers
    ghcb.memory[SHARED_BUFFER_OFFSET : SHARED_BUFFER_OFFSET + len(buffer)] = buffer
    ghcb.valid_bitmap = valid
    check(rig, step(rig, GHCB_GPA))


@settings(max_examples=500, deadline=None)
@given(values=st.lists(msr_values, min_size=1, max_size=4))
def test_any_msr_values(values: list[int]) -> None:
    rig = Rig()
    for value in values:
        outcome = step(rig, value)
        assert isinstance(outcome, Continue | Terminated | Crashed) or not rig.vcpu.can_run()
