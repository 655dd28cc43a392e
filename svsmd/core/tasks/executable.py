# SPDX-License-Identifier: MIT
"""Executables: what of an ELF file is loaded where, after its headers have been checked.

Static executables, at the addresses of their segments or, static-PIE, at a base of the core's
choice; the latter relocate themselves. Nothing in the file is trusted.

Spec: System V ABI, chapters 4 and 5 (object files, program loading); its AMD64 supplement, 3.4
(process initialization).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from elftools.common.exceptions import ELFParseError
from elftools.common.utils import struct_parse
from elftools.construct.lib.container import Container
from elftools.elf.structs import ELFStructs

from svsmd.core.tasks.address_space import MMAP_TOP, USER_START, Access
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

PIE_BASE: Final = 0x10_0000_0000
"""Where a static-PIE executable is loaded, plus what the loader likes."""
SEGMENTS_MAX: Final = 16
_ENTRY_SIZE: Final = 56
_PF_X, _PF_W, _PF_R = 1, 2, 4


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """Pages to be mapped at `start`: `data` and zeros behind it, `size` bytes in whole pages."""

    start: int
    size: int
    access: Access
    data: bytes


@dataclass(frozen=True, slots=True)
class Executable:
    """A checked file. Addresses are those at which it is loaded.

    `bias` is how far that is from where it was linked; `headers` is where its program headers are
    in memory (AT_PHDR), 0 if they are not loaded; `end` is the first address behind its segments,
    where the heap begins.
    """

    bias: int
    entry: int
    headers: int
    header_count: int
    segments: tuple[LoadSegment, ...]
    end: int


def read_executable(data: bytes, pie_base: int = PIE_BASE) -> Executable:
    """Check a file. Fails with ENOEXEC."""
    try:
        return _read(data, pie_base)
    except ELFParseError as error:
        raise CallFailed(Errno.ENOEXEC) from error


def _check(condition: bool) -> None:
    if not condition:
        raise CallFailed(Errno.ENOEXEC)


def _read(data: bytes, pie_base: int) -> Executable:
    stream, structs = io.BytesIO(data), ELFStructs(little_endian=True, elfclass=64)
    structs.create_basic_structs()
    # Only headers that loading needs are looked at; sections are the debugger's.
    structs.create_advanced_structs()
    header = struct_parse(structs.Elf_Ehdr, stream, 0)
    identity = header["e_ident"]
    _check(bytes(identity["EI_MAG"]) == b"\x7fELF" and identity["EI_CLASS"] == "ELFCLASS64")
    _check(identity["EI_DATA"] == "ELFDATA2LSB" and header["e_machine"] == "EM_X86_64")
    _check(header["e_type"] in ("ET_EXEC", "ET_DYN") and header["e_version"] == "EV_CURRENT")
    count, offset = header["e_phnum"], header["e_phoff"]
    _check(0 < count <= SEGMENTS_MAX and header["e_phentsize"] == _ENTRY_SIZE)
    _check(offset + count * _ENTRY_SIZE <= len(data))
    base = pie_base if header["e_type"] == "ET_DYN" else 0
    programs = [
        struct_parse(structs.Elf_Phdr, stream, offset + index * _ENTRY_SIZE)
        for index in range(count)
    ]
    # An interpreter would have to be trusted with the loading of the rest.
    _check(not any(p["p_type"] == "PT_INTERP" for p in programs))
    stack = [p for p in programs if p["p_type"] == "PT_GNU_STACK"]
    _check(not any(p["p_flags"] & _PF_X for p in stack))
    loads = [p for p in programs if p["p_type"] == "PT_LOAD" and p["p_memsz"]]
    _check(bool(loads))
    segments = tuple(_segment(data, base, p) for p in loads)
    previous = USER_START
    for segment in segments:
        _check(segment.start >= previous)
        previous = segment.start + segment.size
    _check(previous <= MMAP_TOP)
    entry = base + header["e_entry"]
    _check(any(s.access & Access.EXECUTE and s.start <= entry < s.start + s.size for s in segments))
    headers = next(
        (
            base + p["p_vaddr"] + offset - p["p_offset"]
            for p in loads
            if p["p_offset"] <= offset
            and offset + count * _ENTRY_SIZE <= p["p_offset"] + p["p_filesz"]
        ),
        0,
    )
    return Executable(base, entry, headers, count, segments, previous)


def _segment(data: bytes, base: int, program: Container) -> LoadSegment:
    """One PT_LOAD."""
    address, offset = base + program["p_vaddr"], program["p_offset"]
    in_file, in_memory = program["p_filesz"], program["p_memsz"]
    _check(in_file <= in_memory <= MMAP_TOP and offset + in_file <= len(data))
    _check(address & PAGE_MASK == offset & PAGE_MASK and address < MMAP_TOP)
    flags = program["p_flags"]
    _check(bool(flags & _PF_R) and flags & (_PF_W | _PF_X) != _PF_W | _PF_X)
    access = Access.READ
    access |= Access.WRITE if flags & _PF_W else Access.NONE
    access |= Access.EXECUTE if flags & _PF_X else Access.NONE
    lead = address & PAGE_MASK
    size = -(-(lead + in_memory) // PAGE_SIZE) * PAGE_SIZE
    # What lies in the file before the segment, in its first page, is of no concern to it.
    return LoadSegment(address - lead, size, access, bytes(lead) + data[offset : offset + in_file])
