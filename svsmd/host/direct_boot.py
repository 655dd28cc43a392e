# SPDX-License-Identifier: MIT
"""Loads a kernel without firmware: the pages of the launch and the state of the boot CPU.

Spec: Linux Documentation/arch/x86/boot.rst, "64-bit boot protocol"; Documentation/arch/x86/amd-
memory-encryption.rst (CC blob). The guest enters its kernel ELF in long mode with paging on, all of
the first 4 GiB mapped one to one as private memory, RSI = boot_params, interrupts off. A bzImage is
either unpacked here, and the ELF inside loaded at its link addresses, or loaded as it is: then its
own decompressor runs in the guest, and finds a random place for the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.config import format_size
from svsmd.host.acpi_tables import build_acpi_tables, facs
from svsmd.host.boot_params import (
    DEFAULT_CMDLINE_SIZE,
    DEFAULT_INITRD_ADDR_MAX,
    E820Entry,
    E820Type,
    cc_setup_page,
    e820_map,
    zero_page,
)
from svsmd.host.bzimage import (
    ENTRY_64,
    BzImage,
    decompress_payload,
    is_bzimage,
    parse_bzimage,
)
from svsmd.host.elf_loader import ElfImage, Segment, load_elf
from svsmd.host.layout import (
    DIRECT_BOOT_LAYOUT,
    GIB,
    HIGH_MEMORY_BASE,
    LEGACY_HOLE_BASE,
    MIB,
    MMIO_HOLE_BASE,
    DirectBootLayout,
    SvsmRegion,
    low_ram_top,
)
from svsmd.host.linux_support import check_linux
from svsmd.host.loader_error import LoaderError
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa

_FOR_KERNELS: Final = range(HIGH_MEMORY_BASE, MMIO_HOLE_BASE)
"""Where a kernel may lie if there is memory enough."""
IDENTITY_MAPPED: Final = 4 * GIB
"""Bytes that the boot page tables map."""

BOOT_CS: Final = 0x10
"""`__BOOT_CS` of the boot protocol: flat, execute/read, 64-bit."""
BOOT_DS: Final = 0x18
"""`__BOOT_DS` of the boot protocol: flat, read/write."""
_GDT: Final = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
_CODE_ATTRIB: Final = 0xA9B
"""Segment attributes as VMSA and VMCB pack them (24593, appendix B): G, L, P, S, ER, accessed."""
_DATA_ATTRIB: Final = 0xC93
"""G, D, P, S, RW, accessed."""

CR0_PE_MP_ET_NE_WP_AM_PG: Final = 0x8005_0033
CR4_PAE_OSFXSR_OSXMMEXCPT: Final = 0x620
EFER_LME_LMA_SVME: Final = 0x1500
"""SVME is what VMRUN wants in the VMSA of any guest (24593, 15.5.1)."""
RFLAGS_RESERVED: Final = 0x2

_PTE_P_RW: Final = 0x3
_PTE_P_RW_PS: Final = 0x83


@dataclass(frozen=True, slots=True)
class LaunchRange:
    """Whole pages with content: *data* (a multiple of 4 KiB) at the page *gpa*."""

    gpa: Gpa
    data: bytes

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.gpa + len(self.data)


@dataclass(frozen=True, slots=True)
class SegmentState:
    """A segment register as the VMSA has it."""

    selector: int
    attrib: int
    limit: int = 0xFFFF_FFFF
    base: int = 0


@dataclass(frozen=True, slots=True)
class EntryState:
    """Registers of the boot CPU at the kernel's entry; all that is not named is as after INIT."""

    rip: int
    rsp: int
    rsi: int
    cr3: int
    gdt_base: int
    gdt_limit: int = 8 * len(_GDT) - 1
    cs: SegmentState = SegmentState(BOOT_CS, _CODE_ATTRIB)
    ds: SegmentState = SegmentState(BOOT_DS, _DATA_ATTRIB)
    """ES and SS as well."""
    cr0: int = CR0_PE_MP_ET_NE_WP_AM_PG
    cr4: int = CR4_PAE_OSFXSR_OSXMMEXCPT
    efer: int = EFER_LME_LMA_SVME
    rflags: int = RFLAGS_RESERVED


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """What the launch of a direct boot consists of."""

    ranges: tuple[LaunchRange, ...]
    """Sorted by address, disjoint."""
    zero_ranges: tuple[range, ...]
    """Whole pages that the kernel expects to be zero (.bss), outside `ranges`."""
    entry: EntryState
    cpuid_gpa: Gpa
    """The guest's CPUID page."""
    secrets_gpa: Gpa
    """The guest's secrets page (its copy, if there is an SVSM)."""
    e820: tuple[E820Entry, ...]


@dataclass(frozen=True, slots=True)
class _Kernel:
    image: ElfImage
    setup_header: bytes
    initrd_addr_max: int
    cmdline_size: int


def build_direct_boot(
    kernel: bytes,
    initrd: bytes | None,
    cmdline: str,
    memory: Sequence[range],
    ncpus: int,
    svsm: SvsmRegion | None,
    layout: DirectBootLayout = DIRECT_BOOT_LAYOUT,
    *,
    self_decompressing: bool = False,
    unpack: Callable[[bytes], bytes] = decompress_payload,
) -> DirectBoot:
    """The launch of *kernel*, a bzImage or a plain ELF.

    :param memory: guest-physical RAM; one range starts at 0.
    :param svsm: memory that belongs to an SVSM; None for a guest at VMPL0.
    :param self_decompressing: a bzImage's own decompressor is to run in the guest.
    :param unpack: does what `decompress_payload` does.
    :raises LoaderError: anything that cannot work, in one line.
    """
    ram_top = low_ram_top(memory)
    top = svsm.base if svsm is not None else ram_top
    loaded = _load_kernel(kernel, self_decompressing, unpack, under_svsm=svsm is not None)
    _check_room(loaded.image.end, len(initrd or b""), top, ram_top - top)
    command_line = _command_line(cmdline, loaded.cmdline_size, layout)
    initrd_range = _place_initrd(initrd or b"", loaded, top)
    e820 = e820_map(memory, _carved(layout, svsm))

    pieces: list[tuple[int, bytes | memoryview]] = [
        (
            layout.boot_params,
            zero_page(
                setup_header=loaded.setup_header,
                command_line=layout.command_line,
                initrd=initrd_range,
                setup_data=layout.setup_data,
                acpi_rsdp=layout.acpi,
                e820=e820,
            ),
        ),
        (layout.command_line, command_line),
        (layout.setup_data, cc_setup_page(layout.setup_data, layout.secrets, layout.cpuid)),
        (layout.gdt, struct.pack(f"<{len(_GDT)}Q", *_GDT)),
        (layout.acpi, build_acpi_tables(layout.acpi, layout.acpi_size, layout.facs, ncpus)),
        (layout.facs, facs()),
        (layout.page_tables, identity_page_tables(layout.page_tables, layout.page_tables_size)),
        (layout.stack, bytes(layout.stack_size)),
    ]
    pieces += [(segment.paddr, segment.data) for segment in loaded.image.segments]
    if initrd:
        pieces.append((initrd_range.start, initrd))
    ranges = page_ranges(pieces)
    return DirectBoot(
        ranges=ranges,
        zero_ranges=_zero_ranges(loaded.image, ranges),
        entry=EntryState(
            rip=loaded.image.entry,
            rsp=layout.stack_top,
            rsi=layout.boot_params,
            cr3=layout.page_tables | C_BIT,
            gdt_base=layout.gdt,
        ),
        cpuid_gpa=layout.cpuid,
        secrets_gpa=layout.secrets,
        e820=e820,
    )


def identity_page_tables(base: Gpa, size: int) -> bytes:
    """Page tables at *base*: the first 4 GiB one to one, 2 MiB pages, private (C-bit set)."""
    directories = IDENTITY_MAPPED // GIB
    tables = bytearray(PAGE_SIZE * (2 + directories))
    if len(tables) > size:
        raise ValueError(f"the boot page tables need {len(tables)} bytes, the layout has {size}")
    pdpt, first_directory = base + PAGE_SIZE, base + 2 * PAGE_SIZE
    struct.pack_into("<Q", tables, 0, pdpt | C_BIT | _PTE_P_RW)
    for index in range(directories):
        entry = (first_directory + PAGE_SIZE * index) | C_BIT | _PTE_P_RW
        struct.pack_into("<Q", tables, PAGE_SIZE + 8 * index, entry)
    leaves = [
        address | C_BIT | _PTE_P_RW_PS for address in range(0, IDENTITY_MAPPED, HUGE_PAGE_SIZE)
    ]
    struct.pack_into(f"<{len(leaves)}Q", tables, 2 * PAGE_SIZE, *leaves)
    return bytes(tables)


def page_ranges(pieces: Iterable[tuple[int, bytes | memoryview]]) -> tuple[LaunchRange, ...]:
    """Disjoint *pieces* of memory as whole pages: padded with zeros, merged where pages meet."""
    result: list[LaunchRange] = []
    run: list[bytes | memoryview] = []
    start = end = 0
    for address, data in sorted((p for p in pieces if p[1]), key=lambda piece: piece[0]):
        if run and (address & -PAGE_SIZE) > end:
            result.append(_padded(start, run, end))
            run = []
        if not run:
            start = end = address & -PAGE_SIZE
        run += bytes(address - end), data
        end = address + len(data)
    if run:
        result.append(_padded(start, run, end))
    return tuple(result)


def _padded(start: int, run: list[bytes | memoryview], end: int) -> LaunchRange:
    return LaunchRange(Gpa(start), b"".join([*run, bytes(-end % PAGE_SIZE)]))


def _load_kernel(
    kernel: bytes, self_decompressing: bool, unpack: Callable[[bytes], bytes], *, under_svsm: bool
) -> _Kernel:
    if is_bzimage(kernel):
        image = parse_bzimage(kernel)
        if self_decompressing:
            loaded = _protected_mode_code(image)
            _check_packed(image, under_svsm)
        else:
            loaded = _load_linux(unpack(image.payload), under_svsm)
        return _Kernel(loaded, image.setup_header, image.initrd_addr_max, image.cmdline_size)
    if self_decompressing:
        raise LoaderError("the kernel is no bzImage: there is nothing that could decompress itself")
    loaded = _load_linux(kernel, under_svsm)
    return _Kernel(loaded, b"", DEFAULT_INITRD_ADDR_MAX, DEFAULT_CMDLINE_SIZE)


def _load_linux(vmlinux: bytes, under_svsm: bool) -> ElfImage:
    loaded = load_elf(vmlinux, (_FOR_KERNELS,))
    check_linux(vmlinux, under_svsm=under_svsm)
    return loaded


def _check_packed(image: BzImage, under_svsm: bool) -> None:
    """`check_linux`, unless only the kernel's own code can unpack it."""
    try:
        vmlinux = decompress_payload(image.payload)
    except LoaderError:
        return
    check_linux(vmlinux, under_svsm=under_svsm)


def _check_room(kernel_end: int, initrd_size: int, top: int, above: int) -> None:
    """LoaderError if *top* is too low for both; so many bytes *above* it are used otherwise."""
    needed = kernel_end + -(-initrd_size // PAGE_SIZE) * PAGE_SIZE
    if needed <= top:
        return
    initrd = f" and the initrd another {_mib(initrd_size)}" if initrd_size else ""
    message = f"the kernel needs {_mib(kernel_end)} of memory{initrd}, there are {_mib(top)}"
    if needed + above > MMIO_HOLE_BASE:
        raise LoaderError(f"{message}; kernel and initrd have to lie below {_mib(MMIO_HOLE_BASE)}")
    # And a bit to run in.
    enough = 1 << (5 * (needed + above) // 4 - 1).bit_length()
    raise LoaderError(f"too little memory: {message}", f"--memory {format_size(enough)}")


def _mib(size: int) -> str:
    return f"{-(-size // MIB)} MiB"


def _protected_mode_code(image: BzImage) -> ElfImage:
    """The bzImage without its real-mode part, as if it were an ELF of one segment."""
    start, size = image.pref_address, max(image.init_size, len(image.protected_mode))
    if not _FOR_KERNELS.start <= start <= start + size <= _FOR_KERNELS.stop:
        raise LoaderError(f"the bzImage wants {_mib(size)} at {start:#x}, where no kernel can be")
    code = Segment(start, start, size, image.protected_mode, executable=True)
    return ElfImage(start + ENTRY_64, (code,))


def _command_line(text: str, longest: int, layout: DirectBootLayout) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        raise LoaderError("the kernel command line is not valid UTF-8") from None
    if b"\0" in data:
        raise LoaderError("the kernel command line has a NUL character in it")
    longest = min(longest, layout.command_line_size - 1)
    if len(data) > longest:
        raise LoaderError(
            f"the kernel command line has {len(data)} bytes; this kernel takes {longest}"
        )
    return data + b"\0"


def _place_initrd(initrd: bytes, kernel: _Kernel, top: int) -> range:
    """The highest page-aligned place below *top* that the kernel accepts; empty for no initrd."""
    if not initrd:
        return range(0)
    end = min(top, (kernel.initrd_addr_max + 1) & -PAGE_SIZE)
    start = (end - len(initrd)) & -PAGE_SIZE
    if start < kernel.image.end:
        raise LoaderError(
            f"the initrd ({_mib(len(initrd))}) does not fit above the kernel and below"
            f" {_mib(end)}, where this kernel wants it"
        )
    return range(start, start + len(initrd))


def _carved(layout: DirectBootLayout, svsm: SvsmRegion | None) -> list[E820Entry]:
    """What of the address space is not the kernel's own RAM."""
    carved = [
        # Page 0 and the real-mode BIOS area: a kernel looks there for firmware that is not there.
        E820Entry(0, layout.boot_params, E820Type.RESERVED),
        E820Entry(layout.cpuid, PAGE_SIZE, E820Type.RESERVED),
        E820Entry(layout.secrets, PAGE_SIZE, E820Type.RESERVED),
        E820Entry(layout.acpi, layout.acpi_size, E820Type.ACPI),
        E820Entry(layout.facs, PAGE_SIZE, E820Type.NVS),
        E820Entry(LEGACY_HOLE_BASE, HIGH_MEMORY_BASE - LEGACY_HOLE_BASE, E820Type.RESERVED),
    ]
    if svsm is not None:
        carved.append(E820Entry(svsm.base, svsm.size, E820Type.RESERVED))
    return carved


def _zero_ranges(image: ElfImage, ranges: Sequence[LaunchRange]) -> tuple[range, ...]:
    """Pages of the image's memory that no launch range covers."""
    result: list[range] = []
    for segment in image.segments:
        start = segment.paddr & -PAGE_SIZE
        if result:
            start = max(start, result[-1].stop)
        end = -(-segment.end // PAGE_SIZE) * PAGE_SIZE
        for launched in ranges:
            if launched.end <= start or launched.gpa >= end:
                continue
            if launched.gpa > start:
                result.append(range(start, launched.gpa))
            start = launched.end
        if start < end:
            result.append(range(start, end))
    return tuple(result)
