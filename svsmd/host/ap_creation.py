# SPDX-License-Identifier: MIT
"""AP creation: the guest says which VMSA a vCPU runs, and the host checks before it believes.

A host sees nothing of a VMSA. That the page is one, the RMP says; that its contents can be loaded,
VMRUN finds out.

Spec: 56421, 4.1.9 (SNP_AP_CREATION); 24593, 15.36.12 (VMSA pages).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from svsmd.host.vcpu import Vcpu, World
from svsmd.snp.bits import Bits, Register64
from svsmd.snp.ghcb import Ghcb, GhcbError, GhcbInputError
from svsmd.snp.rmp import GUEST_ASID, Rmp
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_MASK, Vmpl
from svsmd.snp.vmsa import SevFeatures


class ApCreationRequest(IntEnum):
    """SW_EXITINFO1[15:0] (56421, 4.1.9)."""

    CREATE_ON_INIT = 0
    CREATE = 1
    DESTROY = 2


class ApCreationInfo1(Register64):
    """SW_EXITINFO1 of SNP_AP_CREATION."""

    REQUEST = Bits(15, 0)
    VMPL = Bits(19, 16)
    RESERVED = Bits(31, 20)
    APIC_ID = Bits(63, 32)


class ApCreation:
    """Applies SNP_AP_CREATION to `vcpus` of a guest that was launched with `sev_features`."""

    def __init__(self, rmp: Rmp, vcpus: Sequence[Vcpu], sev_features: SevFeatures) -> None:
        self._rmp: Final = rmp
        self._sev_features: Final = sev_features
        self._vcpus: Final = {vcpu.apic_id: vcpu for vcpu in vcpus}

    def handle(self, caller: World, ghcb: Ghcb, info_1: int, vmsa_gpa: int) -> None:
        """Do what SW_EXITINFO1 asks for; `vmsa_gpa` is SW_EXITINFO2.

        INVALID_INPUT: reserved bits, an unknown request, APIC ID or VMPL, a VMPL that is more
        privileged than the caller's, other SEV_FEATURES (RAX) than at the launch, or a page that is
        no VMSA page of this guest. A VMSA at the start of 2 MiB is refused too: processors with the
        RMP erratum on such pages would take faults on their neighbours.
        """
        info = ApCreationInfo1(info_1)
        target = self._vcpus.get(info.APIC_ID)
        if target is None or info.RESERVED or not caller.vmpl <= info.VMPL < len(Vmpl):
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"AP creation: {info}")
        vmpl = Vmpl(info.VMPL)
        match info.REQUEST:
            case ApCreationRequest.CREATE_ON_INIT:
                self._check(ghcb, vmsa_gpa)
                target.start_on_init(vmpl, vmsa_gpa)
            case ApCreationRequest.CREATE:
                self._check(ghcb, vmsa_gpa)
                target.start(vmpl, vmsa_gpa)
            case ApCreationRequest.DESTROY:
                target.destroy(vmpl)
            case _:
                raise GhcbInputError(GhcbError.INVALID_INPUT, f"AP creation: {info}")

    def _check(self, ghcb: Ghcb, vmsa_gpa: int) -> None:
        features = ghcb.rax
        if features != self._sev_features:
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"SEV features {features:#x}")
        entry = self._rmp.lookup(vmsa_gpa)
        if (
            vmsa_gpa & PAGE_MASK
            or not vmsa_gpa % HUGE_PAGE_SIZE
            or entry is None
            or not entry.vmsa
            or entry.asid != GUEST_ASID
        ):
            raise GhcbInputError(GhcbError.INVALID_INPUT, f"{vmsa_gpa:#x} is no VMSA page")
