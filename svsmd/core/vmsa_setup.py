# SPDX-License-Identifier: MIT
"""VMSAs that the SVSM writes itself: the guest's boot CPU, and its own other CPUs.

Spec: 24593 (APM vol. 2), appendix B; Linux Documentation/arch/x86/boot.rst (64-bit boot protocol).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from svsmd.core.launch_info import EntryState
from svsmd.core.port import PRIVATE_MAP
from svsmd.snp.types import PAGE_SIZE, Gpa, Vmpl
from svsmd.snp.vmsa import Cr4, Efer, SevFeatures, Vmsa

SUPPORTED_SEV_FEATURES: Final = SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC
"""What this SVSM can run with. Its guests have the same: Linux refuses to run with vTOM, #VC
reflection, restricted or alternate injection (its snp_check_features)."""

CPU_AREA_SIZE: Final = 4 * PAGE_SIZE
"""Area of one CPU at VMPL0: descriptor tables, TSS and stacks (SVSM_CPU_SIZE of layout.h)."""

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


def svsm_ap_vmsa(
    ap_start: int, page_tables: int, cpu_area: Gpa, apic_id: int, sev: SevState
) -> bytes:
    """Another CPU of the SVSM at `ap_start` (svsm_ap_start of the native image, GVA).

    `page_tables` is the boot CPU's CR3; `cpu_area` has `CPU_AREA_SIZE` bytes, zeroed, and becomes
    its GS base with the stack at its end. TSC_AUX tells the gate which vCPU comes: the boot CPU's
    is 0, as LAUNCH_UPDATE has left it.
    """
    base = PRIVATE_MAP + cpu_area
    vmsa = Vmsa.long_mode_start(
        ap_start,
        base + CPU_AREA_SIZE,
        page_tables,
        vmpl=Vmpl.VMPL0,
        code_selector=_SVSM_CS,
        data_selector=_SVSM_DS,
    )
    # The SVSM's page tables have no-execute bits; its C code may use SSE.
    vmsa.efer |= Efer.NXE
    vmsa.cr4 |= Cr4.OSFXSR
    sev.apply(vmsa)
    vmsa.tsc_aux = apic_id
    vmsa.gs = vmsa.gs._replace(base=base)
    return vmsa.tobytes()
