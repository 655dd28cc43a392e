# SPDX-License-Identifier: MIT
"""The zero page (`struct boot_params`), e820 and `setup_data` of the Linux boot protocol.

Spec: Linux Documentation/arch/x86/boot.rst and zero-page.rst; include/uapi/asm/bootparam.h
(offsets); arch/x86/include/asm/sev.h (`cc_blob_sev_info`). Version 2.15 is claimed.
Deviations: none.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from svsmd.snp.types import PAGE_SIZE, Gpa

ACPI_RSDP_ADDR: Final = 0x070
E820_ENTRIES: Final = 0x1E8
SETUP_HEADER: Final = 0x1F1
E820_TABLE: Final = 0x2D0
E820_ENTRY_SIZE: Final = 20
E820_MAX_ENTRIES: Final = 128

# Fields of the setup header that a loader writes, as offsets in boot_params.
BOOT_FLAG: Final = 0x1FE
HEADER_MAGIC: Final = 0x202
VERSION: Final = 0x206
TYPE_OF_LOADER: Final = 0x210
LOADFLAGS: Final = 0x211
RAMDISK_IMAGE: Final = 0x218
RAMDISK_SIZE: Final = 0x21C
CMD_LINE_PTR: Final = 0x228
INITRD_ADDR_MAX: Final = 0x22C
CMDLINE_SIZE: Final = 0x238
SETUP_DATA: Final = 0x250
PREF_ADDRESS: Final = 0x258
INIT_SIZE: Final = 0x260

BOOT_FLAG_MAGIC: Final = 0xAA55
HDRS_MAGIC: Final = b"HdrS"
LOADER_TYPE_UNDEFINED: Final = 0xFF
LOADED_HIGH: Final = 1 << 0

DEFAULT_INITRD_ADDR_MAX: Final = 0x7FFF_FFFF
DEFAULT_CMDLINE_SIZE: Final = 2047
"""`COMMAND_LINE_SIZE` - 1 of x86 kernels, for a plain ELF that has no setup header."""

SETUP_CC_BLOB: Final = 7
CC_BLOB_SEV_MAGIC: Final = 0x45444D41
"""`AMDE` in memory order."""
_SETUP_NODE: Final = struct.Struct("<QII")
_CC_ADDRESS: Final = struct.Struct("<I")
_CC_BLOB: Final = struct.Struct("<IHHQIIQII")
_CC_BLOB_OFFSET: Final = 0x20
"""Where `cc_setup_page` puts the blob behind the node."""


class E820Type(IntEnum):
    """Kinds of e820 ranges (ACPI 6.5, table 15.1)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    """ACPI tables; RAM once they have been read."""
    NVS = 4
    """Memory that ACPI keeps in use."""


@dataclass(frozen=True, slots=True)
class E820Entry:
    """One range of the memory map: *size* bytes from *addr*."""

    addr: int
    size: int
    type: E820Type

    @property
    def end(self) -> int:
        """First address behind the range."""
        return self.addr + self.size


def e820_map(ram: Sequence[range], carved: Sequence[E820Entry]) -> tuple[E820Entry, ...]:
    """The memory map: *ram* with the *carved* entries cut out of it, sorted, neighbours merged.

    Carved entries may lie outside RAM (holes) but must not overlap each other.
    """
    entries = sorted(carved, key=lambda entry: entry.addr)
    result: list[E820Entry] = list(entries)
    for block in ram:
        start = block.start
        for entry in entries:
            if entry.end <= start or entry.addr >= block.stop:
                continue
            if entry.addr > start:
                result.append(E820Entry(start, entry.addr - start, E820Type.RAM))
            start = entry.end
        if start < block.stop:
            result.append(E820Entry(start, block.stop - start, E820Type.RAM))
    result.sort(key=lambda entry: entry.addr)
    merged: list[E820Entry] = []
    for entry in result:
        last = merged[-1] if merged else None
        if last is not None and last.end == entry.addr and last.type == entry.type:
            merged[-1] = E820Entry(last.addr, last.size + entry.size, last.type)
        else:
            merged.append(entry)
    return tuple(merged)


def cc_setup_page(base: Gpa, secrets: Gpa, cpuid: Gpa) -> bytes:
    """The page at *base*: one `setup_data` node of type SETUP_CC_BLOB and the blob itself.

    The node's length covers the blob, so that the kernel's own reservation of the node keeps it.
    """
    page = bytearray(PAGE_SIZE)
    blob = base + _CC_BLOB_OFFSET
    payload_size = _CC_BLOB_OFFSET - _SETUP_NODE.size + _CC_BLOB.size
    _SETUP_NODE.pack_into(page, 0, 0, SETUP_CC_BLOB, payload_size)
    _CC_ADDRESS.pack_into(page, _SETUP_NODE.size, blob)
    _CC_BLOB.pack_into(
        page, _CC_BLOB_OFFSET, CC_BLOB_SEV_MAGIC, 1, 0, secrets, PAGE_SIZE, 0, cpuid, PAGE_SIZE, 0
    )
    return bytes(page)


def zero_page(
    *,
    setup_header: bytes,
    command_line: Gpa,
    initrd: range,
    setup_data: Gpa,
    acpi_rsdp: Gpa,
    e820: Sequence[E820Entry],
) -> bytes:
    """`struct boot_params` as a page.

    *setup_header* is the kernel's own header from offset 0x1F1 on (empty for a plain ELF, which
    gets a header of its own); *initrd* may be empty.
    """
    if len(e820) > E820_MAX_ENTRIES:
        raise ValueError(f"{len(e820)} e820 entries; boot_params has room for {E820_MAX_ENTRIES}")
    page = bytearray(PAGE_SIZE)
    page[SETUP_HEADER : SETUP_HEADER + len(setup_header)] = setup_header
    if not setup_header:
        struct.pack_into("<H", page, BOOT_FLAG, BOOT_FLAG_MAGIC)
        page[HEADER_MAGIC : HEADER_MAGIC + 4] = HDRS_MAGIC
        struct.pack_into("<H", page, VERSION, 0x020F)
        struct.pack_into("<I", page, INITRD_ADDR_MAX, DEFAULT_INITRD_ADDR_MAX)
        struct.pack_into("<I", page, CMDLINE_SIZE, DEFAULT_CMDLINE_SIZE)
    page[TYPE_OF_LOADER] = LOADER_TYPE_UNDEFINED
    page[LOADFLAGS] |= LOADED_HIGH
    struct.pack_into("<II", page, RAMDISK_IMAGE, initrd.start, len(initrd))
    struct.pack_into("<I", page, CMD_LINE_PTR, command_line)
    struct.pack_into("<Q", page, SETUP_DATA, setup_data)
    struct.pack_into("<Q", page, ACPI_RSDP_ADDR, acpi_rsdp)
    page[E820_ENTRIES] = len(e820)
    for index, entry in enumerate(e820):
        offset = E820_TABLE + E820_ENTRY_SIZE * index
        struct.pack_into("<QQI", page, offset, entry.addr, entry.size, entry.type)
    return bytes(page)
