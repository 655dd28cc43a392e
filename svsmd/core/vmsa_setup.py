# SPDX-License-Identifier: MIT
"""VMSAs that the SVSM writes itself: the guest's boot CPU, and its own other CPUs.

Spec: 24593 (APM vol. 2), appendix B; Linux Documentation/arch/x86/boot.rst (64-bit boot protocol).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from svsmd.core.gate import GateReason
from svsmd.core.launch_info import EntryState
from svsmd.snp.types import Vmpl
from svsmd.snp.vmsa import Efer, SevFeatures, Vmsa

SUPPORTED_SEV_FEATURES: Final = SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC
"""What this SVSM can run with. Its guests have the same: Linux refuses to run with vTOM, #VC
reflection, restricted or alternate injection (its snp_check_features)."""

_SVSM_CS: Final = 0x08
_SVSM_DS: Final = 0x10


@dataclass(frozen=True, slots=True)
class SevState:
    """What the VMSAs of all vCPUs and VMPLs have in common.

    Attributes:
        features: SEV_FEATURES.
        tsc_scale: GUEST_TSC_SCALE, and `tsc_offset` GUEST_TSC_OFFSET; 0 without Secure TSC.
    """

    features: SevFeatures
    tsc_scale: int = 0
    tsc_offset: int = 0

    def apply(self, vmsa: Vmsa) -> None:
        """Write it to a VMSA."""
        vmsa.sev_features = self.features
        vmsa.guest_tsc_scale = self.tsc_scale
        vmsa.guest_tsc_offset = self.tsc_offset


def guest_boot_vmsa(entry: EntryState, vmpl: Vmpl, sev: SevState) -> bytes:
    """The guest's boot CPU at its first instruction: 64-bit mode, as the payload's loader wants."""
    vmsa = Vmsa.long_mode_start(
        entry.rip,
        entry.rsp,
        entry.cr3,
        entry.rsi,
        vmpl=vmpl,
        gdt_base=entry.gdtr_base,
        gdt_limit=entry.gdtr_limit,
    )
    sev.apply(vmsa)
    return vmsa.tobytes()


def svsm_ap_vmsa(start: int, cr3: int, cr4: int, apic_id: int, sev: SevState) -> bytes:
    """Another CPU of the SVSM at `start` (svsm_cpu_start of the native image, GVA).

    It comes there as the boot CPU does, with the values of CR3 and CR4 to load, and the reason for
    its first gate call. TSC_AUX tells the gate which vCPU comes: the boot CPU's is 0, as
    LAUNCH_UPDATE has left it.
    """
    vmsa = Vmsa.long_mode_start(
        start, 0, cr3, vmpl=Vmpl.VMPL0, code_selector=_SVSM_CS, data_selector=_SVSM_DS
    )
    vmsa.rax, vmsa.rcx, vmsa.rbx = cr3, cr4, GateReason.AP
    vmsa.cr4 = cr4
    # The SVSM's page tables have no-execute bits.
    vmsa.efer |= Efer.NXE
    sev.apply(vmsa)
    vmsa.tsc_aux = apic_id
    return vmsa.tobytes()
