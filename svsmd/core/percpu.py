# SPDX-License-Identifier: MIT
"""What the core keeps for each vCPU.

Spec: 58019 (SVSM), section 4 (calling areas belong to vCPUs).
"""

from __future__ import annotations

from dataclasses import dataclass

from svsmd.core.port import Port
from svsmd.snp.types import Gpa


@dataclass(slots=True)
class GuestWorld:
    """The guest's side of a vCPU: registers and calling area, both GPAs of pages.

    `vmsa` is a page of the guest, except for the boot CPU's, which is the SVSM's own
    (`svsm_owned`). `caa` changes with SVSM_CORE_REMAP_CA.
    """

    apic_id: int
    vmsa: Gpa
    caa: Gpa
    svsm_owned: bool = False


@dataclass(slots=True)
class PerCpu:
    """One vCPU. `port` is that of its current gate call, so it is only good up to the next yield.

    `ghcb` is the GPA of the SVSM's own GHCB page, registered with the host; `world` is None as long
    as there is no guest to run here.
    """

    apic_id: int
    port: Port
    ghcb: Gpa | None = None
    world: GuestWorld | None = None
