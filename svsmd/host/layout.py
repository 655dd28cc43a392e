# SPDX-License-Identifier: MIT
"""Guest-physical layout of a direct boot: the one place that says what lies where.

Spec: Linux Documentation/arch/x86/boot.rst (64-bit boot protocol) leaves these addresses to the
loader; ACPI 6.5, 5.2.5 (the RSDP is found through boot_params); SVSM 58019, section 4 (the SVSM
and its calling areas lie in guest memory).

Low memory, every item private and part of the launch::

    0x10000 boot_params          0x14000 secrets page
    0x11000 command line         0x15000 GDT
    0x12000 setup_data, CC blob  0x16000 ACPI tables (8 KiB)
    0x13000 CPUID page           0x18000 FACS
                                 0x20000 page tables    0x37000 stack

The kernel lies at its own physical addresses from 1 MiB up, the initrd ends below the SVSM region,
and the SVSM region is the top of the RAM below the MMIO hole: 4 MiB or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.host.loader_error import LoaderError
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30

MMIO_HOLE_BASE: Final = 3 * GIB
"""RAM below 4 GiB ends here at the latest; what is left of it continues at `MMIO_HOLE_END`."""
MMIO_HOLE_END: Final = 4 * GIB
VIRTIO_MMIO_BASE: Final = 0xFEB0_0000
IOAPIC_BASE: Final = 0xFEC0_0000
LOCAL_APIC_BASE: Final = 0xFEE0_0000

LEGACY_HOLE_BASE: Final = 0xA_0000
"""VGA and option ROMs: not RAM for the guest."""
HIGH_MEMORY_BASE: Final = MIB
"""The lowest address where a kernel may be loaded."""

SVSM_REGION_SIZE: Final = 4 * MIB
"""The least; it grows with the number of CPUs and with RAM."""
_SVSM_PAGES_PER_CPU: Final = 10
"""Its area, page tables, VMSA and GHCB (`svsmd.core`)."""
_SVSM_SHARED_PAGES: Final = 64
"""Pages that it shares with the host, with room for what aligned blocks leave unused."""
SVSM_IMAGE_MAX_SIZE: Final = 512 * KIB


def ram_ranges(size: int) -> tuple[range, ...]:
    """Guest-physical RAM of a machine with *size* bytes: below, and if it is larger above the hole.

    :raises LoaderError: *size* is not a positive multiple of 2 MiB.
    """
    if size <= 0 or size % HUGE_PAGE_SIZE:
        raise LoaderError(f"memory size {size} is not a positive multiple of 2 MiB")
    low = range(min(size, MMIO_HOLE_BASE))
    if size <= MMIO_HOLE_BASE:
        return (low,)
    return (low, range(MMIO_HOLE_END, MMIO_HOLE_END + size - MMIO_HOLE_BASE))


def low_ram_top(memory: Sequence[range]) -> int:
    """End of the RAM that starts at 0."""
    for ram in memory:
        if ram.start == 0:
            return ram.stop
    raise LoaderError("the machine has no memory at address 0")


@dataclass(frozen=True, slots=True)
class SvsmRegion:
    """Memory of the SVSM: *size* bytes from *base*, aligned to 2 MiB."""

    base: Gpa
    size: int = SVSM_REGION_SIZE

    LAUNCH_INFO_OFFSET = 0x8_0000
    CPUID_OFFSET = 0x8_1000
    SECRETS_OFFSET = 0x8_2000
    VMSA_OFFSET = 0x8_3000
    CAA_OFFSET = 0x8_4000
    GHCB_OFFSET = 0x8_5000
    ARCHIVE_OFFSET = 0x8_6000
    OWN_SIZE = 0x10_0000
    """What it takes without archive and what grows with the machine."""

    @classmethod
    def at_top_of(
        cls, memory: Sequence[range], ncpus: int = 1, archive_size: int = 0
    ) -> SvsmRegion:
        """The region of a machine with this RAM and so many CPUs: the top of low memory.

        *archive_size* are the bytes of the modules' archive.

        :raises LoaderError: there is no room for it above 1 MiB.
        """
        # At most one bit for each page of RAM says whether it is validated, in whole pages.
        bitmap = sum(-(-len(ram) // (PAGE_SIZE * 8)) + 2 * PAGE_SIZE for ram in memory)
        pages = ncpus * _SVSM_PAGES_PER_CPU + _SVSM_SHARED_PAGES
        needed = cls.OWN_SIZE + archive_size + bitmap + pages * PAGE_SIZE
        # Page information: 16 bytes for each page of the region.
        needed += needed // 128
        size = max(SVSM_REGION_SIZE, (needed + HUGE_PAGE_SIZE - 1) & -HUGE_PAGE_SIZE)
        base = (low_ram_top(memory) - size) & -HUGE_PAGE_SIZE
        if base < HIGH_MEMORY_BASE:
            raise LoaderError(
                f"too little memory: the SVSM alone takes {size // MIB} MiB above the first 1 MiB",
                "--memory 64M",
            )
        return cls(Gpa(base), size)

    @property
    def end(self) -> int:
        """First address behind the region."""
        return self.base + self.size

    @property
    def image(self) -> Gpa:
        """Stages of the boot, kernel and digest page, at most `SVSM_IMAGE_MAX_SIZE` bytes."""
        return self.base

    @property
    def launch_info(self) -> Gpa:
        """Launch-info page (measured)."""
        return Gpa(self.base + self.LAUNCH_INFO_OFFSET)

    @property
    def cpuid(self) -> Gpa:
        """The SVSM's own CPUID page, filled by the security processor."""
        return Gpa(self.base + self.CPUID_OFFSET)

    @property
    def secrets(self) -> Gpa:
        """The SVSM's own secrets page, filled by the security processor."""
        return Gpa(self.base + self.SECRETS_OFFSET)

    @property
    def vmsa(self) -> Gpa:
        """VMSA of the boot CPU at VMPL0."""
        return Gpa(self.base + self.VMSA_OFFSET)

    @property
    def caa(self) -> Gpa:
        """First calling area of the guest's boot CPU: the one page that the guest may touch."""
        return Gpa(self.base + self.CAA_OFFSET)

    @property
    def ghcb(self) -> Gpa:
        """GHCB of the boot CPU: not launched, shared by stage 2."""
        return Gpa(self.base + self.GHCB_OFFSET)

    @property
    def archive(self) -> Gpa:
        """The modules' archive; what lies behind it the SVSM gives out to itself."""
        return Gpa(self.base + self.ARCHIVE_OFFSET)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectBootLayout:
    """Where a direct boot puts the loader's own pages (guest-physical addresses)."""

    boot_params: Gpa
    command_line: Gpa
    command_line_size: int
    setup_data: Gpa
    """`setup_data` node with the address of the CC blob, the blob behind it. In RAM as e820 sees
    it: the kernel maps the list as it maps RAM, and reserves its nodes itself."""
    cpuid: Gpa
    secrets: Gpa
    gdt: Gpa
    acpi: Gpa
    acpi_size: int
    facs: Gpa
    page_tables: Gpa
    page_tables_size: int
    stack: Gpa
    stack_size: int

    @property
    def stack_top(self) -> int:
        """Initial RSP."""
        return self.stack + self.stack_size


DIRECT_BOOT_LAYOUT: Final = DirectBootLayout(
    boot_params=Gpa(0x1_0000),
    command_line=Gpa(0x1_1000),
    command_line_size=PAGE_SIZE,
    setup_data=Gpa(0x1_2000),
    cpuid=Gpa(0x1_3000),
    secrets=Gpa(0x1_4000),
    gdt=Gpa(0x1_5000),
    acpi=Gpa(0x1_6000),
    acpi_size=2 * PAGE_SIZE,
    facs=Gpa(0x1_8000),
    page_tables=Gpa(0x2_0000),
    page_tables_size=16 * PAGE_SIZE,
    stack=Gpa(0x3_7000),
    stack_size=PAGE_SIZE,
)
