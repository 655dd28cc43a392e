# SPDX-License-Identifier: MIT
"""The sections of a Linux kernel: of the ELF file itself, or of the one inside a bzImage.

Spec: System V ABI, ELF-64 object files (file header, section header); Linux
arch/x86/boot/compressed/Makefile: the ELF file in a bzImage has lost its symbols, but not its
section headers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from svsmd.host.bzimage import ELF_MAGIC, decompress_payload, is_bzimage, parse_bzimage
from svsmd.host.loader_error import LoaderError

SHF_WRITE: Final = 1
SHF_ALLOC: Final = 2
SHF_EXECINSTR: Final = 4
SHT_NOBITS: Final = 8
EM_X86_64: Final = 62
ELFCLASS64_LITTLE: Final = b"\x02\x01"
EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
"""The file header: e_ident, e_type, e_machine, ... e_shstrndx."""
SHDR: Final = struct.Struct("<IIQQQQIIQQ")
"""A section header: sh_name, sh_type, ... sh_entsize."""
MAX_SECTIONS: Final = 1024
"""A kernel has about fifty."""


class SymbolsError(Exception):
    """A file that symbols cannot be taken from; the text is one line for people."""


@dataclass(frozen=True, slots=True)
class Section:
    """One section that is in memory while the kernel runs."""

    name: str
    address: int
    """Where the kernel was linked to have it; 0 for a per-CPU area of old kernels."""
    size: int
    """In memory, in bytes."""
    flags: int
    """SHF_*."""
    data: bytes
    """Contents; none if it has none in the file (.bss)."""

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size

    @property
    def executable(self) -> bool:
        """Whether it is code; .data, which newer kernels mark as executable as well, is not."""
        return self.flags & (SHF_EXECINSTR | SHF_WRITE) == SHF_EXECINSTR


def read_image(data: bytes) -> Mapping[str, Section]:
    """The sections of a kernel (bzImage or ELF) that are in memory while it runs, by name.

    Raises:
        SymbolsError: it is none, is truncated, or has no section headers.
    """
    if is_bzimage(data):
        try:
            data = decompress_payload(parse_bzimage(data).payload)
        except LoaderError as error:
            raise SymbolsError(str(error)) from None
    if not data.startswith(ELF_MAGIC):
        raise SymbolsError("the kernel is neither a bzImage nor an ELF file")
    return _sections(data)


def _sections(elf: bytes) -> Mapping[str, Section]:
    if len(elf) < EHDR.size:
        raise SymbolsError("the kernel's ELF header is truncated")
    ident, _, machine, _, _, _, offset, _, _, _, _, entry_size, count, names_index = (
        EHDR.unpack_from(elf)
    )
    if ident[4:6] != ELFCLASS64_LITTLE or machine != EM_X86_64:
        raise SymbolsError("the kernel's ELF file is not for x86-64")
    if not count or entry_size != SHDR.size:
        raise SymbolsError("the kernel's ELF file has no section headers")
    if count > MAX_SECTIONS:
        raise SymbolsError(
            f"the kernel's ELF file has {count} sections, 1 to {MAX_SECTIONS} are fine"
        )
    if offset + count * SHDR.size > len(elf):
        raise SymbolsError("the kernel's ELF file is truncated in its section headers")
    headers = [SHDR.unpack_from(elf, offset + index * SHDR.size) for index in range(count)]
    if names_index >= count:
        raise SymbolsError("the kernel's ELF file has no section names")
    names_offset, names_size = headers[names_index][4:6]
    names = elf[names_offset : names_offset + names_size]
    sections = {}
    for name_at, kind, flags, address, at, size, *_ in headers:
        if not flags & SHF_ALLOC or not size:
            continue
        name = names[name_at:].partition(b"\0")[0].decode("ascii", "backslashreplace")
        if kind != SHT_NOBITS and at + size > len(elf):
            raise SymbolsError(f"the kernel's ELF file is truncated in its section {name}")
        if address + size > 1 << 64:
            raise SymbolsError(f"the kernel's section {name} goes on behind the last address")
        data = b"" if kind == SHT_NOBITS else elf[at : at + size]
        sections[name] = Section(name, address, size, flags, data)
    return sections
