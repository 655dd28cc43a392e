# SPDX-License-Identifier: MIT
"""Reads the loadable segments of an ELF64 x86-64 executable, at their physical addresses.

Spec: System V gABI 4.1 chapter 5 (program header), AMD64 psABI. The file is hostile input: every
number of its headers is checked against the file and against the machine's RAM.
Deviations: none. Section headers, symbols and relocations are not looked at.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.constants import P_FLAGS
from elftools.elf.elffile import ELFFile

from svsmd.host.bzimage import AGAIN, ELF_MAGIC, KINDS
from svsmd.host.loader_error import LoaderError

EHDR_SIZE: Final = 64
PHDR_SIZE: Final = 56
MAX_SEGMENTS: Final = 64
"""Program headers that are looked at; a Linux kernel has five, a hostile file up to 65535."""

_EI_CLASS_64_LSB: Final = b"\x02\x01"
_E_PHOFF: Final = 0x20
_E_PHENTSIZE: Final = 0x36
_E_SHOFF: Final = 0x28
_E_SHNUM: Final = 0x3C
_E_SHSTRNDX: Final = 0x3E
_MACHINE_HINT: Final = "take a kernel for x86-64 (amd64)"
_EXECUTABLE_TYPES: Final = frozenset(("ET_EXEC", "ET_DYN"))


@dataclass(frozen=True, slots=True)
class Segment:
    """One PT_LOAD: *data* at *paddr*, zeros up to *memsz* bytes."""

    paddr: int
    vaddr: int
    memsz: int
    data: bytes | memoryview
    executable: bool

    @property
    def end(self) -> int:
        """First physical address behind the segment."""
        return self.paddr + self.memsz


@dataclass(frozen=True, slots=True)
class ElfImage:
    """A checked executable: *entry* is physical; segments are sorted by address, disjoint."""

    entry: int
    segments: tuple[Segment, ...]

    @property
    def start(self) -> int:
        """Lowest physical address."""
        return self.segments[0].paddr

    @property
    def end(self) -> int:
        """First physical address behind the image."""
        return self.segments[-1].end


def is_elf(data: bytes) -> bool:
    """Whether *data* starts as an ELF file does."""
    return data.startswith(ELF_MAGIC)


def load_elf(data: bytes, memory: Sequence[range]) -> ElfImage:
    """The segments and the entry of the executable in *data*.

    The entry is physical if it lies in the physical addresses of an executable segment (a Linux
    vmlinux), else it is looked up among the virtual addresses (a kernel linked high). What is no
    address of an executable segment is looked up among the others: a Linux of 7.x has its entry in
    .init.text, which lies in the segment of its data.

    :param memory: where segments may lie.
    :raises LoaderError: not an ELF64 x86-64 executable, or any number in it is wrong.
    """
    headers = _program_headers(data)
    loadable = [_segment(data, header, memory) for header in headers]
    segments = sorted((s for s in loadable if s is not None), key=lambda s: s.paddr)
    if not segments:
        raise LoaderError("the kernel ELF has nothing to load")
    for lower, upper in pairwise(segments):
        if lower.end > upper.paddr:
            raise LoaderError(
                f"the kernel ELF's segments at {lower.paddr:#x} and {upper.paddr:#x} overlap"
            )
    entry: int = struct.unpack_from("<Q", data, 0x18)[0]
    return ElfImage(_physical_entry(entry, segments), tuple(segments))


def _program_headers(data: bytes) -> list[Any]:
    if not is_elf(data):
        raise LoaderError("the kernel is neither a bzImage nor an ELF file", KINDS)
    if len(data) < EHDR_SIZE:
        raise LoaderError("the kernel ELF is truncated in its header", AGAIN)
    if data[4:6] != _EI_CLASS_64_LSB:
        raise LoaderError("the kernel ELF is not 64-bit little-endian", _MACHINE_HINT)
    (phoff,) = struct.unpack_from("<Q", data, _E_PHOFF)
    phentsize, phnum = struct.unpack_from("<HH", data, _E_PHENTSIZE)
    if phentsize != PHDR_SIZE:
        raise LoaderError(
            f"the kernel ELF has program headers of {phentsize} bytes, not {PHDR_SIZE}"
        )
    if not 0 < phnum <= MAX_SEGMENTS:
        raise LoaderError(
            f"the kernel ELF has {phnum} program headers (1 to {MAX_SEGMENTS} are fine)"
        )
    if phoff + phnum * PHDR_SIZE > len(data):
        raise LoaderError("the kernel ELF is truncated in its program headers", AGAIN)
    # Without section headers pyelftools does not follow the file's pointers to them: they are of
    # no use for loading, and a hostile file points them anywhere.
    head = bytearray(data[:EHDR_SIZE])
    struct.pack_into("<Q", head, _E_SHOFF, 0)
    struct.pack_into("<HH", head, _E_SHNUM, 0, 0)
    table = bytes(data[phoff : phoff + phnum * PHDR_SIZE])
    struct.pack_into("<Q", head, _E_PHOFF, EHDR_SIZE)
    try:
        elf = ELFFile(io.BytesIO(bytes(head) + table))
        machine, kind = elf["e_machine"], elf["e_type"]
        headers = [
            struct_parse(elf.structs.Elf_Phdr, elf.stream, EHDR_SIZE + index * PHDR_SIZE)
            for index in range(phnum)
        ]
    except ELFError as error:
        raise LoaderError(f"the kernel ELF is malformed: {error}") from None
    if machine != "EM_X86_64":
        raise LoaderError(f"the kernel ELF is for {machine}, not for x86-64", _MACHINE_HINT)
    if kind not in _EXECUTABLE_TYPES:
        raise LoaderError(f"the kernel ELF is no executable (type {kind})", KINDS)
    return headers


def _segment(data: bytes, header: Any, memory: Sequence[range]) -> Segment | None:
    if header["p_type"] != "PT_LOAD" or header["p_memsz"] == 0:
        return None
    offset, filesz, memsz = header["p_offset"], header["p_filesz"], header["p_memsz"]
    paddr, vaddr = header["p_paddr"], header["p_vaddr"]
    if filesz > memsz:
        raise LoaderError(
            f"the kernel ELF's segment at {paddr:#x} has more bytes in the file than in memory"
        )
    if offset + filesz > len(data):
        raise LoaderError(
            f"the kernel ELF is truncated: its segment at {paddr:#x} is not all there", AGAIN
        )
    if all(paddr < ram.start for ram in memory):
        raise LoaderError(
            f"the kernel ELF's segment at {paddr:#x} lies below all memory for kernels",
            "a kernel is linked above 1 MiB; a program of an operating system is none",
        )
    if not any(ram.start <= paddr and paddr + memsz <= ram.stop for ram in memory):
        raise LoaderError(
            f"the kernel ELF's segment at {paddr:#x} ({memsz:#x} bytes) does not fit into memory"
        )
    return Segment(
        paddr=paddr,
        vaddr=vaddr,
        memsz=memsz,
        data=memoryview(data)[offset : offset + filesz],
        executable=bool(header["p_flags"] & P_FLAGS.PF_X),
    )


def _physical_entry(entry: int, segments: Sequence[Segment]) -> int:
    executable = [segment for segment in segments if segment.executable]
    others = [segment for segment in segments if not segment.executable]
    for candidates in (executable, others):
        if any(segment.paddr <= entry < segment.end for segment in candidates):
            return entry
        for segment in candidates:
            if segment.vaddr <= entry < segment.vaddr + segment.memsz:
                return entry - segment.vaddr + segment.paddr
    raise LoaderError(f"the kernel ELF's entry {entry:#x} lies outside its segments")
