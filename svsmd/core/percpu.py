# SPDX-License-Identifier: MIT
"""What the core keeps for each vCPU.

Spec: 58019 (SVSM), section 4 (calling areas belong to vCPUs).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svsmd.core.port import Port
from svsmd.snp.types import Gpa, PageSize

if TYPE_CHECKING:
    from svsmd.core.paging.cpu_area import CpuArea
    from svsmd.core.paging.page_table import PageTable


@dataclass(slots=True)
class GuestWorld:
    """The guest's side of a vCPU: registers and calling area, both GPAs of pages.

    `vmsa` is a page of the guest, except for the boot CPU's, which is the SVSM's own
    (`svsm_owned`). `caa` changes with SVSM_CORE_REMAP_CA. `mem_available` is what the calling area
    says, None as long as nothing has been written there.
    """

    apic_id: int
    vmsa: Gpa
    caa: Gpa
    svsm_owned: bool = False
    mem_available: bool | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """Memory that is mapped on one CPU: the GPAs [start, stop) from `gva` on.

    `shared` memory is mapped without the C-bit.
    """

    start: int
    stop: int
    gva: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for temporary mappings in one CPU's address space.

    `entry` is the GPA of its page table entry, `gva` the page that it maps.
    """

    gva: int
    entry: Gpa


def _no_slots() -> dict[PageSize, list[Slot]]:
    return {PageSize.SIZE_4K: [], PageSize.SIZE_2M: []}


@dataclass(slots=True)
class PerCpu:
    """One vCPU. `port` is that of its current gate call, so it is only good up to the next yield.

    `ghcb` is the GPA of the SVSM's own GHCB page, registered with the host; `world` is None as long
    as there is no guest to run here; `area` is None until the core's own page tables are in use.
    `windows` and `slots` are for `svsmd.core.access`: what is mapped now, and free places.
    """

    apic_id: int
    port: Port
    ghcb: Gpa | None = None
    world: GuestWorld | None = None
    area: CpuArea | None = None
    windows: list[Window] = field(default_factory=list)
    slots: dict[PageSize, list[Slot]] = field(default_factory=_no_slots)

    def switch_user(self, table: PageTable | None) -> None:
        """Make the user half of this CPU's address space that of `table`, or empty."""
        if self.area is None:
            raise RuntimeError(f"vCPU {self.apic_id} has no page tables of its own")
        self.area.switch_user(self, table)
