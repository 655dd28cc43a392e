# SPDX-License-Identifier: MIT
"""The hypervisor's answers to the GHCB MSR protocol."""

from __future__ import annotations

import pytest

from svsmd.host.ghcb_msr_exits import HV_FEATURES
from svsmd.host.outcome import AllHalted, Crashed, Terminated
from svsmd.host.vcpu import INITIAL_GHCB_MSR
from svsmd.snp import ghcb_msr
from svsmd.snp.cpuid_policy import cpuid
from svsmd.snp.types import C_BIT_POSITION, PAGE_SHIFT
from tests.fake_silicon import GHCB_GPA, MEMORY_SIZE, Rig, huge

REFUSED = ghcb_msr.GHCB_GPA_REFUSED


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_sev_info(rig: Rig) -> None:
    assert rig.world.vmcb.ghcb_msr == INITIAL_GHCB_MSR
    answer = rig.msr_exit(ghcb_msr.SevInfoRequest().encode())
    assert ghcb_msr.parse_sev_info(answer) == (1, 2, C_BIT_POSITION)


@pytest.mark.parametrize("register", ghcb_msr.CpuidRegister)
def test_cpuid(rig: Rig, register: ghcb_msr.CpuidRegister) -> None:
    answer = rig.msr_exit(ghcb_msr.CpuidRequest(0x8000_001F, register).encode())
    assert ghcb_msr.parse_cpuid(answer) == cpuid(0x8000_001F)[register]


def test_the_host_has_no_favourite_page(rig: Rig) -> None:
    answer = rig.msr_exit(ghcb_msr.PreferredGpa().encode())
    assert ghcb_msr.parse_gfn(answer, ghcb_msr.GhcbInfo.PREFERRED_GPA_RESPONSE) == REFUSED


def test_registration_echoes_the_page(rig: Rig) -> None:
    answer = rig.msr_exit(ghcb_msr.RegisterGpa(GHCB_GPA >> PAGE_SHIFT).encode())
    gfn = ghcb_msr.parse_gfn(answer, ghcb_msr.GhcbInfo.REGISTER_GPA_RESPONSE)
    assert gfn << PAGE_SHIFT == GHCB_GPA == rig.world.ghcb_gpa


@pytest.mark.parametrize("gpa", [MEMORY_SIZE, 0xFEE0_0000, (1 << 64) - 4096])
def test_a_page_outside_ram_is_not_registered(rig: Rig, gpa: int) -> None:
    answer = rig.msr_exit(ghcb_msr.RegisterGpa(gpa >> PAGE_SHIFT).encode())
    assert ghcb_msr.parse_gfn(answer, ghcb_msr.GhcbInfo.REGISTER_GPA_RESPONSE) == REFUSED
    assert rig.world.ghcb_gpa is None


def psc(rig: Rig, gpa: int, operation: int) -> int:
    gfn = gpa >> PAGE_SHIFT
    answer = rig.msr_exit(operation << 52 | gfn << 12 | ghcb_msr.GhcbInfo.PSC_REQUEST)
    return ghcb_msr.parse_error(answer, ghcb_msr.GhcbInfo.PSC_RESPONSE)


def test_page_state_change(rig: Rig) -> None:
    page = huge(2) >> PAGE_SHIFT
    assert psc(rig, huge(2), 1) == 0
    assert rig.silicon.rmp.assigned(page)
    assert psc(rig, huge(2), 2) == 0
    assert not rig.silicon.rmp.assigned(page)


@pytest.mark.parametrize(("gpa", "operation"), [(MEMORY_SIZE, 1), (huge(2), 0), (huge(2), 3)])
def test_a_bad_page_state_change_is_an_error(rig: Rig, gpa: int, operation: int) -> None:
    assert psc(rig, gpa, operation) != 0
    assert not rig.silicon.rmp.assigned(huge(2) >> PAGE_SHIFT)


def test_run_vmpl_answers_when_the_caller_runs_again(rig: Rig) -> None:
    guest = rig.world
    rig.msr_exit(ghcb_msr.RunVmpl(0).encode())
    assert rig.world.vmpl == 0
    rig.msr_exit(ghcb_msr.RunVmpl(2).encode())
    assert rig.world is guest
    answer = ghcb_msr.parse_error(guest.vmcb.ghcb_msr, ghcb_msr.GhcbInfo.RUN_VMPL_RESPONSE)
    assert answer == 0


@pytest.mark.parametrize("vmpl", [1, 3, 4, 255])
def test_run_vmpl_without_a_vmsa_is_an_error(rig: Rig, vmpl: int) -> None:
    answer = rig.msr_exit(ghcb_msr.RunVmpl(vmpl).encode())
    assert ghcb_msr.parse_error(answer, ghcb_msr.GhcbInfo.RUN_VMPL_RESPONSE) != 0
    assert rig.world.vmpl == 2


def test_features(rig: Rig) -> None:
    answer = rig.msr_exit(ghcb_msr.HvFeatures().encode())
    assert ghcb_msr.parse_hv_features(answer) == HV_FEATURES


def test_reset_hold_waits(rig: Rig) -> None:
    rig.msr_exit(ghcb_msr.ApResetHold().encode())
    assert rig.hypervisor.step(1 << 40) == AllHalted(None)
    rig.platform.on_sipi(0)
    info = ghcb_msr.GhcbInfo.AP_RESET_HOLD_RESPONSE
    assert ghcb_msr.parse_gfn(rig.world.vmcb.ghcb_msr, info) == 1
    assert rig.vcpu.can_run()


def test_terminate(rig: Rig) -> None:
    rig.msr_exit(ghcb_msr.Terminate(1, 0x42).encode())
    assert rig.hypervisor.step(1 << 40) == Terminated(1, 0x42, vcpu=0, vmpl=2)


@pytest.mark.parametrize("value", [INITIAL_GHCB_MSR, 0x003, 0xFFF, (1 << 64) - 1])
def test_what_is_no_request_ends_the_guest(rig: Rig, value: int) -> None:
    rig.msr_exit(value)
    outcome = rig.hypervisor.step(1 << 40)
    assert isinstance(outcome, Crashed)
    assert f"{value:#x}" in outcome.text
