# SPDX-License-Identifier: MIT
"""What the SVSM asks its hypervisor for, by the GHCB MSR protocol and by its own GHCB pages.

The answers come from the host: each is checked, and one that breaks the protocol where the SVSM
cannot do without it is a panic.

Spec: 56421 (GHCB), 2.3.1 (MSR protocol), 4.1 (IOIO_PROT, MSR_PROT), 4.1.9 (SNP AP creation).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from svsmd.core.access import flush_tlb, load_shared, mapped, pvalidate, revoke, store_shared
from svsmd.core.gate import Handler, SvsmPanic, Vmgexit
from svsmd.core.memory import PageKind
from svsmd.core.paging.kernel_maps import KernelMaps
from svsmd.core.percpu import PerCpu
from svsmd.snp import ghcb_msr
from svsmd.snp.bits import Bits, Register64
from svsmd.snp.ghcb import (
    Ghcb,
    GhcbExit,
    GhcbInputError,
    GhcbResponse,
    IoioInfo,
)
from svsmd.snp.ghcb_msr import GhcbInfo, HvFeature, MsrPscOperation, Terminate, UnexpectedResponse
from svsmd.snp.rmp import RmpReturn
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Vmpl

SVSM_REASON_SET: Final = 2
"""Reason code set of this SVSM (56421, table 1: sets other than 0 belong to the guest's software).

Linux has taken 1; a log that shows set 2 therefore speaks of the SVSM.
"""


class SvsmReason(IntEnum):
    """Reason codes of `SVSM_REASON_SET`; those from 3 on are of the boot (SVSM_REASON_*)."""

    PANIC = 0
    """The SVSM's log says why."""
    EXCEPTION = 1
    """The native part at VMPL0 took an exception."""
    PAYLOAD = 2
    """The host restarts the guest with other pages than those that were measured at launch."""
    LAUNCH = 3
    """Stage 1: launch info, CPUID page and SEV_STATUS do not fit together."""
    GHCB = 4
    """Stage 2 cannot agree on a GHCB with the host, and so has no log."""
    STAGE2 = 5
    """Stage 2 panicked; its log says why."""
    VALIDATION = 6
    """Stage 2: a page of the SVSM's region is not as the host has to leave it."""


MSR_WRITE: Final = 1
"""SW_EXITINFO1 of SVM_EXIT_MSR: WRMSR, not RDMSR (56421, 4.1)."""

REQUIRED_FEATURES: Final = HvFeature.SNP | HvFeature.SNP_AP_CREATION | HvFeature.SNP_MULTI_VMPL


class ApCreationRequest(IntEnum):
    """SW_EXITINFO1[15:0] of SNP_AP_CREATION."""

    CREATE_ON_INIT = 0
    """Name the VMSA that the VMPL of a vCPU has, without starting it."""
    CREATE = 1
    DESTROY = 2


class ApCreationInfo1(Register64):
    """SW_EXITINFO1 of SNP_AP_CREATION."""

    REQUEST = Bits(15, 0)
    VMPL = Bits(19, 16)
    APIC_ID = Bits(63, 32)


def terminate_request(reason: SvsmReason) -> int:
    """GHCB MSR value that ends the machine with a reason of ours."""
    return Terminate(SVSM_REASON_SET, reason).encode()


def check_features(features: HvFeature) -> None:
    """Panic unless the hypervisor has all that the SVSM cannot do without."""
    if features & REQUIRED_FEATURES != REQUIRED_FEATURES:
        raise SvsmPanic(f"the hypervisor lacks features: it has {features:#x}")


def make_shared(cpu: PerCpu, gpa: int) -> Handler[None]:
    """Give a validated page of the SVSM, which is not mapped, to the host: rescind it, share it."""
    with mapped(cpu, gpa):
        if (yield from revoke(cpu, gpa, PageSize.SIZE_4K, Vmpl.VMPL1)) != RmpReturn.SUCCESS:
            raise SvsmPanic(f"RMPADJUST fails on page {gpa:#x} of the SVSM")
        if (yield from pvalidate(cpu, gpa, PageSize.SIZE_4K, False)) != (RmpReturn.SUCCESS, False):
            raise SvsmPanic(f"PVALIDATE cannot rescind page {gpa:#x} of the SVSM")
    flush_tlb(cpu)
    request = ghcb_msr.PageStateChange(gpa >> PAGE_SHIFT, MsrPscOperation.SHARED)
    answer = yield Vmgexit(request.encode())
    try:
        error = ghcb_msr.parse_error(answer, GhcbInfo.PSC_RESPONSE)
    except UnexpectedResponse as unexpected:
        raise SvsmPanic(f"the hypervisor breaks the GHCB protocol: {unexpected}") from unexpected
    if error:
        raise SvsmPanic(f"the hypervisor does not share page {gpa:#x}: error {error:#x}")


def set_up_ghcb(cpu: PerCpu, maps: KernelMaps) -> Handler[None]:
    """Give this vCPU a GHCB page: shared, mapped in its area, cleared and registered."""
    if cpu.area is None:
        raise SvsmPanic(f"vCPU {cpu.apic_id} has no area")
    gpa = maps.allocate_apart(cpu, PageKind.GHCB)
    yield from make_shared(cpu, gpa)
    cpu.area.map_ghcb(cpu, gpa)
    yield from store_shared(cpu, gpa, bytes(PAGE_SIZE))
    gfn = gpa >> PAGE_SHIFT
    answer = yield Vmgexit(ghcb_msr.RegisterGpa(gfn).encode())
    try:
        registered = ghcb_msr.parse_gfn(answer, GhcbInfo.REGISTER_GPA_RESPONSE)
    except UnexpectedResponse as error:
        raise SvsmPanic(f"the hypervisor breaks the GHCB protocol: {error}") from error
    if registered != gfn:
        raise SvsmPanic(f"the hypervisor refuses the GHCB at {gpa:#x}")
    cpu.area.set_user_ghcb(cpu, gpa)
    cpu.ghcb = gpa


def ap_creation(
    cpu: PerCpu, request: ApCreationRequest, apic_id: int, vmpl: int, vmsa: Gpa, sev_features: int
) -> Handler[bool]:
    """SNP_AP_CREATION; returns whether the hypervisor did it."""
    ghcb = Ghcb()
    info_1 = ApCreationInfo1.of(REQUEST=request, VMPL=vmpl, APIC_ID=apic_id)
    ghcb.set_request(GhcbExit.SNP_AP_CREATION, info_1, vmsa)
    ghcb.rax = sev_features
    return (yield from _ask(cpu, ghcb)) is not None


def port_out(cpu: PerCpu, port: int, value: int) -> Handler[bool]:
    """OUT of 32 bits; returns whether the hypervisor did it."""
    ghcb = Ghcb()
    access = IoioInfo(port, is_in=False, string=False, rep=False, size=4, address_size=0, segment=0)
    ghcb.set_request(GhcbExit.SVM_EXIT_IOIO, access.encode())
    ghcb.rax = value
    return (yield from _ask(cpu, ghcb)) is not None


def write_msr(cpu: PerCpu, msr: int, value: int) -> Handler[bool]:
    """WRMSR of 64 bits; returns whether the hypervisor did it, or says so."""
    ghcb = Ghcb()
    ghcb.set_request(GhcbExit.SVM_EXIT_MSR, MSR_WRITE)
    ghcb.rcx = msr
    ghcb.rax = value & 0xFFFF_FFFF
    ghcb.rdx = value >> 32
    return (yield from _ask(cpu, ghcb)) is not None


def _ask(cpu: PerCpu, ghcb: Ghcb) -> Handler[Ghcb | None]:
    """Have the hypervisor handle an event; returns its answer, or None if it did not."""
    if cpu.ghcb is None:
        raise SvsmPanic(f"vCPU {cpu.apic_id} has no GHCB")
    yield from store_shared(cpu, cpu.ghcb, ghcb.tobytes())
    yield Vmgexit(ghcb_msr.GhcbGpa(cpu.ghcb).encode())
    # One copy, so that the host cannot change the answer while it is looked at.
    answer = Ghcb.copy_of((yield from load_shared(cpu, cpu.ghcb, PAGE_SIZE)))
    # A program at CPL 3 that executes VMGEXIT gets nothing of this done again.
    bitmap = Ghcb.valid_bitmap
    yield from store_shared(cpu, cpu.ghcb + bitmap.offset, bytes(bitmap.size))
    try:
        done = answer.sw_exit_info_1 & 0xFFFF_FFFF == GhcbResponse.NO_ACTION
    except GhcbInputError:
        return None
    return answer if done else None
