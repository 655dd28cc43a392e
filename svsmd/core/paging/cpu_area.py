# SPDX-License-Identifier: MIT
"""The address space of one CPU at VMPL0, and the area in it that no other CPU can reach.

The area lies at the same addresses on every CPU, `PERCPU_MAP` and up (offsets: layout.h), and its
pages are mapped nowhere else: the control page with descriptor tables and TSS, the stacks, the GHCB
page, and the slots for temporary mappings. Pages that are not mapped lie around each stack, so that
one that overflows faults.

Spec: none; the map is in docs/architecture.md.
"""

from __future__ import annotations

from typing import Final

from svsmd.core.memory import PageKind
from svsmd.core.page_entry import PageFlags
from svsmd.core.paging.kernel_maps import KernelMaps
from svsmd.core.paging.page_table import PageTable
from svsmd.core.percpu import PerCpu, Slot, Window
from svsmd.core.port import PERCPU_MAP
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize

CONTROL: Final = PERCPU_MAP
"""One page: self pointer, GDT, TSS. The CPU's GS base (SVSM_PERCPU_MAP)."""
FPU: Final = CONTROL + 0x20
"""FXSAVE area (SVSM_CPU_FPU)."""
FPU_SIZE: Final = 512
GHCB_GPA: Final = CONTROL + 0x2C0
"""GPA of the GHCB page, for the native code (SVSM_CPU_GHCB_GPA)."""
IST_STACK: Final = range(PERCPU_MAP + 0x2000, PERCPU_MAP + 0x3000)
"""For exceptions that may come when the other stack is in no state to be used (SVSM_CPU_IST)."""
STACK: Final = range(PERCPU_MAP + 0x4000, PERCPU_MAP + 0x6000)
"""The stack of the native code (SVSM_CPU_STACK)."""
GHCB: Final = PERCPU_MAP + 0x7000
"""The CPU's GHCB page, C=0 (SVSM_CPU_GHCB)."""
SLOTS: Final = PERCPU_MAP + 0x10_0000
SLOT_COUNT: Final = 32
"""Temporary mappings of 4 KiB."""
HUGE_SLOTS: Final = PERCPU_MAP + HUGE_PAGE_SIZE
HUGE_SLOT_COUNT: Final = 8
"""Temporary mappings of 2 MiB."""


class CpuArea:
    """Page tables with a new area, built by `cpu` for itself or another one. Raises OutOfMemory."""

    def __init__(self, cpu: PerCpu, maps: KernelMaps) -> None:
        self.tables: Final = PageTable(cpu, maps.pages)
        for subtree in (maps.own, maps.image):
            self.tables.attach(cpu, subtree)
        for gva in (CONTROL, *_pages_of(IST_STACK), *_pages_of(STACK)):
            page = maps.allocate_apart(cpu, PageKind.PER_CPU)
            self.tables.map(cpu, gva, page, PageFlags.WRITE)
        entry = self.tables.entry_gpa
        self._slots = {
            size: [
                Slot(gva, entry(cpu, gva, size))
                for gva in range(first, first + count * size.nbytes, size.nbytes)
            ]
            for size, first, count in (
                (PageSize.SIZE_4K, SLOTS, SLOT_COUNT),
                (PageSize.SIZE_2M, HUGE_SLOTS, HUGE_SLOT_COUNT),
            )
        }

    @property
    def cr3(self) -> int:
        """CR3 of the CPU."""
        return self.tables.cr3

    def enter(self, cpu: PerCpu) -> None:
        """From now on `cpu` runs on these tables."""
        cpu.area = self
        cpu.windows.clear()
        cpu.slots = {size: list(slots) for size, slots in self._slots.items()}

    def map_ghcb(self, cpu: PerCpu, gpa: Gpa) -> None:
        """Map the CPU's GHCB page, which is shared already."""
        self.tables.map(cpu, GHCB, gpa, PageFlags.WRITE | PageFlags.SHARED)
        cpu.windows.append(Window(gpa, gpa + PAGE_SIZE, GHCB, shared=True))

    def set_user_ghcb(self, cpu: PerCpu, gpa: Gpa) -> None:
        """Let the GHCB MSR name this page while `cpu`, the CPU of this area, is at CPL 3."""
        cpu.port.write(GHCB_GPA, gpa.to_bytes(8, "little"))

    def switch_user(self, cpu: PerCpu, table: PageTable | None) -> None:
        """Make the user half that of `table`, or empty; `cpu` is the CPU of this area.

        Raises ValueError if `table` is not one of 3 levels for the addresses from 0 on.
        """
        if table is not None and (table.levels, table.base) != (3, 0):
            raise ValueError(f"no user half has {table.levels} levels from {table.base:#x} on")
        self.tables.detach(cpu, 0)
        if table is not None:
            self.tables.attach(cpu, table)
        cpu.port.write_cr3(self.cr3)


def _pages_of(addresses: range) -> range:
    return addresses[::PAGE_SIZE]
