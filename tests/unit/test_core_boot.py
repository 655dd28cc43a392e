# SPDX-License-Identifier: MIT
"""Boot of the core: what is validated, granted, copied and started, and what makes it panic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from svsmd.core.boot import pieces
from svsmd.core.gate import GateReason
from svsmd.core.guest_memory import subtract
from svsmd.core.hypervisor import SVSM_REASON_SET, SvsmReason
from svsmd.snp import ghcb_msr
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.ghcb_msr import HvFeature
from svsmd.snp.rmp import Perm, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa
from svsmd.snp.vmsa import Efer, SevFeatures
from tests.fake_vmpl0 import (
    CPU_START,
    ENTRY,
    GUEST_CAA,
    GUEST_CPUID,
    GUEST_SECRETS,
    GUEST_VMPL,
    INFO,
    KERNEL,
    KERNEL_BYTE,
    KERNEL_LAUNCH,
    KEYS,
    LAUNCH_INFO,
    MIB,
    RAM_SIZE,
    SVSM_BASE,
    SVSM_GHCB,
    SVSM_SECRETS,
    TSC_OFFSET,
    TSC_SCALE,
    FakeVmpl0,
)

SNP, SECURE_TSC = SevFeatures.SNP_ACTIVE, SevFeatures.SECURE_TSC


@pytest.fixture
def machine() -> FakeVmpl0:
    return FakeVmpl0()


def boot_ends(machine: FakeVmpl0) -> str:
    """Boot into a panic; returns its message."""
    return ends(machine, 0)


def ap_start_ends(machine: FakeVmpl0) -> str:
    """The second vCPU starts into a panic."""
    return ends(machine, 1)


def ends(machine: FakeVmpl0, vcpu: int) -> str:
    assert machine.run(vcpu) == "end"
    assert machine.terminated == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.PANIC)
    assert machine.core.panicked
    return next(line for line in machine.core.log.lines if line.startswith("panic"))


def test_boot_gives_the_guest_its_memory_and_nothing_else(machine: FakeVmpl0) -> None:
    machine.checks.append(machine.check_security)
    machine.boot()
    for gpa in range(0, SVSM_BASE, PAGE_SIZE):
        entry = machine.rmp.lookup(gpa)
        assert entry is not None
        assert entry.validated
        assert entry.permissions == (Perm.ALL, Perm.NONE, Perm.ALL, Perm.NONE)
    caa = machine.rmp.lookup(GUEST_CAA)
    assert caa is not None
    assert caa.permissions[GUEST_VMPL] == Perm.ALL


def test_boot_uses_large_pages_where_the_host_does(machine: FakeVmpl0) -> None:
    machine.boot()
    entry = machine.rmp.lookup(6 * MIB)
    assert entry is not None
    assert entry.page_size is PageSize.SIZE_2M
    validated = [gpa for what, gpa in machine.ports[0].log if what == "validate"]
    assert validated.count(6 * MIB) == 1
    assert 6 * MIB + PAGE_SIZE not in validated


def test_boot_falls_back_to_small_pages(machine: FakeVmpl0) -> None:
    machine.rmp.psmash(Spa(6 * MIB))
    machine.checks.append(machine.check_security)
    machine.boot()
    entry = machine.rmp.lookup(8 * MIB - PAGE_SIZE)
    assert entry is not None
    assert entry.validated
    assert entry.page_size is PageSize.SIZE_4K


def test_measured_pages_keep_their_contents_and_others_are_zeroed(machine: FakeVmpl0) -> None:
    machine.put(8 * MIB, b"stale secret of somebody")
    machine.boot()
    assert machine.get(KERNEL, 4) == KERNEL_BYTE * 4
    assert machine.get(8 * MIB, 16) == bytes(16)
    log = machine.ports[0].log
    assert log.index(("zero", 8 * MIB)) < log.index(("grant", 8 * MIB))


def test_secrets_page_of_the_guest_lacks_the_keys_of_vmpls_above(machine: FakeVmpl0) -> None:
    machine.boot()
    secrets = SecretsPage.copy_of(machine.get(GUEST_SECRETS, PAGE_SIZE))
    assert secrets.vmpck(0) == secrets.vmpck(1) == bytes(32)
    assert secrets.vmpck(2) == KEYS[64:96]
    assert secrets.vmpck(3) == KEYS[96:128]
    assert secrets.svsm_base == SVSM_BASE
    assert secrets.svsm_size == 4 * MIB
    assert secrets.svsm_caa == GUEST_CAA
    assert secrets.svsm_max_version == 1
    assert secrets.svsm_guest_vmpl == GUEST_VMPL
    assert machine.get(SVSM_SECRETS + 0x20, 128) == KEYS


def test_cpuid_page_of_the_guest_says_that_there_is_an_svsm(machine: FakeVmpl0) -> None:
    machine.boot()
    page = CpuidPage.copy_of(machine.get(GUEST_CPUID, PAGE_SIZE))
    assert page.lookup(0x8000_001F).eax == 0x1A | 1 << 28


def test_guest_starts_where_the_launch_info_says(machine: FakeVmpl0) -> None:
    machine.boot()
    gpa = machine.vmsas[0, GUEST_VMPL]
    vmsa = machine.vmsa(gpa)
    assert (vmsa.rip, vmsa.rsp, vmsa.rsi, vmsa.cr3) == (ENTRY.rip, ENTRY.rsp, ENTRY.rsi, ENTRY.cr3)
    assert vmsa.gdtr.base == ENTRY.gdtr_base
    assert vmsa.gdtr.limit == ENTRY.gdtr_limit
    assert vmsa.vmpl == GUEST_VMPL
    assert vmsa.efer & Efer.SVME
    entry = machine.rmp.lookup(gpa)
    assert entry is not None
    assert entry.vmsa
    assert not any(entry.permissions[1:])


def test_other_vcpus_of_the_svsm_are_started_and_wait(machine: FakeVmpl0) -> None:
    machine.boot()
    vmsa = machine.vmsa(machine.vmsas[1, 0])
    assert vmsa.rip == CPU_START
    assert vmsa.cr3 != machine.ports[0].cr3
    assert SVSM_BASE | C_BIT <= vmsa.cr3 < RAM_SIZE | C_BIT
    assert (vmsa.rax, vmsa.rcx, vmsa.rbx) == (vmsa.cr3, vmsa.cr4, GateReason.AP)
    assert vmsa.vmpl == 0
    assert vmsa.efer & Efer.NXE
    assert vmsa.tsc_aux == 1


def test_every_vmsa_has_the_features_and_the_tsc_of_the_first_one() -> None:
    machine = FakeVmpl0(sev_features=SNP | SECURE_TSC)
    machine.boot()
    assert sorted(machine.vmsas) == [(0, GUEST_VMPL), (1, 0)]
    for gpa in machine.vmsas.values():
        vmsa = machine.vmsa(gpa)
        assert vmsa.sev_features == SNP | SECURE_TSC
        assert (vmsa.guest_tsc_scale, vmsa.guest_tsc_offset) == (TSC_SCALE, TSC_OFFSET)
    assert set(machine.features_named) == {SNP | SECURE_TSC}


def test_without_secure_tsc_no_vmsa_says_anything_of_a_tsc(machine: FakeVmpl0) -> None:
    machine.boot()
    for gpa in machine.vmsas.values():
        vmsa = machine.vmsa(gpa)
        assert vmsa.sev_features == SNP
        assert vmsa.guest_tsc_scale == vmsa.guest_tsc_offset == 0
    assert set(machine.features_named) == {SNP}


@pytest.mark.parametrize("feature", [SevFeatures.VTOM, SevFeatures.SECURE_AVIC, 1 << 61])
def test_sev_feature_that_the_svsm_does_not_know_is_a_panic(feature: int) -> None:
    machine = FakeVmpl0(sev_features=SevFeatures(SNP | feature))
    assert "more than this SVSM supports" in boot_ends(machine)


def test_launch_info_that_names_another_vmsa_is_a_panic() -> None:
    wrong = replace(INFO, svsm_vmsa=Gpa(KERNEL))
    machine = FakeVmpl0(info=wrong, sev_features=SNP | SECURE_TSC)
    assert "is not the one that runs" in boot_ends(machine)


def test_boot_cpu_uses_the_ghcb_of_stage_2_and_others_get_one(machine: FakeVmpl0) -> None:
    machine.boot()
    shared = []
    for gpa in range(SVSM_BASE, SVSM_BASE + 4 * MIB, PAGE_SIZE):
        entry = machine.rmp.lookup(gpa)
        assert entry is not None
        if not entry.assigned:
            shared.append(gpa)
        else:
            assert entry.validated
    assert shared == sorted(machine.ghcbs.values())
    assert machine.ghcbs[0] == SVSM_GHCB
    assert len(shared) == 2


def test_the_svsms_own_region_is_not_validated_again(machine: FakeVmpl0) -> None:
    machine.boot()
    assert all(gpa < SVSM_BASE for what, gpa in machine.ports[0].log if what == "validate")


@pytest.mark.parametrize(("offset", "value"), [(0, 0), (8, 2), (0x20, 1), (0x50, MIB), (0x28, 1)])
def test_kernel_launch_of_another_stage_2_is_a_panic(offset: int, value: int) -> None:
    machine = FakeVmpl0()
    machine.put(KERNEL_LAUNCH + offset, value.to_bytes(8, "little"))
    assert "kernel launch" in boot_ends(machine)


def test_page_that_is_valid_already_is_a_panic(machine: FakeVmpl0) -> None:
    machine.rmp.firmware_update(Spa(8 * MIB), validated=True)
    assert "valid already" in boot_ends(machine)


def test_measured_page_that_the_host_swapped_is_a_panic(machine: FakeVmpl0) -> None:
    machine.rmp.rmpupdate(Spa(KERNEL), RmpUpdate())
    machine.rmp.rmpupdate(Spa(KERNEL), RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(KERNEL), 1))
    assert "RMPADJUST" in boot_ends(machine)


@pytest.mark.parametrize("missing", [HvFeature.SNP_MULTI_VMPL, HvFeature.SNP_AP_CREATION])
def test_hypervisor_without_a_needed_feature_is_a_panic(missing: HvFeature) -> None:
    machine = FakeVmpl0(features=HvFeature(0x3FF & ~int(missing)))
    assert "lacks features" in boot_ends(machine)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (ghcb_msr.GhcbInfo.PSC_REQUEST, "breaks the GHCB protocol"),
        (ghcb_msr.GhcbInfo.REGISTER_GPA_REQUEST, "breaks the GHCB protocol"),
    ],
)
def test_hypervisor_that_does_not_answer_is_a_panic(info: ghcb_msr.GhcbInfo, message: str) -> None:
    machine = FakeVmpl0(answer=lambda request: request if request & 0xFFF == info else None)
    assert machine.run(0) == "guest"
    assert message in ap_start_ends(machine)


def test_refused_ghcb_is_a_panic() -> None:
    refusal = ghcb_msr.register_gpa_response(ghcb_msr.GHCB_GPA_REFUSED)
    request = ghcb_msr.GhcbInfo.REGISTER_GPA_REQUEST
    machine = FakeVmpl0(answer=lambda value: refusal if value & 0xFFF == request else None)
    assert machine.run(0) == "guest"
    assert "refuses the GHCB" in ap_start_ends(machine)


def test_panic_wipes_the_keys(machine: FakeVmpl0) -> None:
    machine.rmp.firmware_update(Spa(8 * MIB), validated=True)
    boot_ends(machine)
    assert machine.get(SVSM_SECRETS + 0x20, 128) == bytes(128)
    assert any("wiped" in line for line in machine.core.log.lines)
    # Every vCPU that comes afterwards, and this one again, asks for the same.
    machine.terminated = None
    assert machine.run(0) == "end"
    machine.terminated = None
    assert machine.run(1) == "end"


def test_bad_launch_info_is_a_panic(machine: FakeVmpl0) -> None:
    machine.put(LAUNCH_INFO, b"garbage!")
    assert "launch info" in boot_ends(machine)


def test_vcpu_that_nobody_started_is_a_panic(machine: FakeVmpl0) -> None:
    assert machine.run(1) == "end"


def test_exception_of_the_native_part_is_a_panic(machine: FakeVmpl0) -> None:
    machine.boot()
    call = machine.calls[0]
    call.rbx = 14
    machine.core.exception_entry(call)
    assert machine.core.panicked
    request = ghcb_msr.parse_request(call.rdx << 32 | call.rax)
    assert request == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.EXCEPTION)
    assert machine.get(SVSM_SECRETS + 0x20, 128) == bytes(128)


def test_memory_that_the_host_takes_from_the_svsm_is_a_panic(machine: FakeVmpl0) -> None:
    machine.rmp.psmash(Spa(LAUNCH_INFO & -(2 * MIB)))
    machine.rmp.rmpupdate(Spa(LAUNCH_INFO), RmpUpdate())
    assert "is gone" in boot_ends(machine)


def test_one_vcpu_is_enough() -> None:
    machine = FakeVmpl0(info=replace(INFO, cpu_count=1))
    machine.boot()
    assert list(machine.vmsas) == [(0, GUEST_VMPL)]


def test_subtract() -> None:
    assert subtract([range(10)], [range(3, 5)]) == (range(3), range(5, 10))
    assert subtract([range(10)], [range(20)]) == ()
    assert subtract([range(10), range(20, 30)], [range(5, 25)]) == (range(5), range(25, 30))
    assert subtract([range(10)], []) == (range(10),)
    assert subtract([range(10)], [range(12, 15)]) == (range(10),)
    assert subtract([range(5, 10)], [range(2)]) == (range(5, 10),)


def test_pieces() -> None:
    assert list(pieces(range(2 * MIB - PAGE_SIZE, 4 * MIB + PAGE_SIZE))) == [
        (2 * MIB - PAGE_SIZE, PageSize.SIZE_4K),
        (2 * MIB, PageSize.SIZE_2M),
        (4 * MIB, PageSize.SIZE_4K),
    ]
