# SPDX-License-Identifier: MIT
"""The VMCB of an SNP guest: what is left of it to the host (24593, appendix B, tables B-1, B-4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from svsmd.snp.types import Vmpl


class LastNpf(NamedTuple):
    """A nested page fault that ended a VMRUN: EXITINFO2, EXITINFO1, and what only we know.

    `row` is the row of docs/access-checks.md, `rip` the linear address of the instruction.
    """

    gpa: int
    error_code: int
    row: str
    rip: int
    tick: int


@dataclass(slots=True)
class Vmcb:
    """Control block of one VMPL of one vCPU.

    The register state is not here but in the VMSA that `vmsa_spa` names.
    """

    vmsa_spa: int
    """Page of the VMSA (offset 0x108, VMSA_PTR)."""
    ghcb_msr: int = 0
    """Value of the guest's GHCB MSR C001_0130 (offset 0x0A0)."""
    v_irq: int | None = None
    """Vector to be delivered when the guest takes interrupts; None once it was delivered."""
    v_tpr: int = 0
    """The guest's CR8, 0 to 15 (offset 0x060, V_TPR). The host decides what it lets through."""
    v_nmi: bool = False
    """An NMI is to be delivered; False once it was."""
    intercept_rdtsc: bool = False
    """RDTSC and RDTSCP end as #VC in the guest."""
    guest_interrupt_mask: bool = False
    """RFLAGS.IF of the guest at the last #VMEXIT (offset 0x068, bit 1).

    The host of an SEV-ES guest learns of it in no other way.
    """
    loaded_vmpl: Vmpl = Vmpl.VMPL0
    """VMPL of the VMSA that the last VMRUN loaded."""
    vcpu: int = 0
    """Number of the vCPU, as its host counts them. Hardware does not know it: it is for whoever
    looks at the machine from outside."""
    last_npf: LastNpf | None = None
    """The last nested page fault (offsets 0x078 and 0x080, EXITINFO1 and EXITINFO2)."""
