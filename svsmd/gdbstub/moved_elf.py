# SPDX-License-Identifier: MIT
"""An ELF file as if it had been linked for the address that it was loaded at.

gdb asks nobody where the executables of other inferiors than the first one were loaded. So such a
file is served with its addresses moved: those of entry, segments, sections and symbols. Debug
sections hold addresses, too, in places that only their whole grammar tells; `dwarf_addresses`
knows them.

Spec: System V ABI, chapters 4 and 5.
"""

from __future__ import annotations

import io
import struct
from typing import Final

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from svsmd.gdbstub.dwarf_addresses import DAMAGED, UnsupportedDwarf, address_places

_ENTRY: Final = 24
_TYPE: Final = 16
_ET_EXEC: Final = 2
_ADDRESS: Final = struct.Struct("<Q")
_P_VADDR, _P_PADDR = 16, 24
_SH_TYPE, _SH_ADDR = 4, 16
_ST_VALUE: Final = 8
_SHT_NULL: Final = 0
_UNMOVED_SEGMENTS: Final = ("PT_GNU_STACK",)
_UNMOVED_SYMBOLS: Final = ("SHN_UNDEF", "SHN_ABS", "SHN_COMMON")


def is_position_independent(data: bytes) -> bool:
    """Whether that is a file that may be loaded anywhere."""
    return data[:4] == b"\x7fELF" and data[_TYPE : _TYPE + 2] == b"\x03\x00"


def moved(data: bytes, base: int) -> bytes:
    """A file that was linked for 0, as if it were linked for `base`.

    A file that is damaged comes back as it is: gdb says what is wrong with it. Debug sections that
    cannot be moved are left out, so that nothing wrong is shown.
    """
    out = bytearray(data)
    try:
        file = ELFFile(io.BytesIO(data))
        if file.elfclass != 64 or not file.little_endian:
            return data
        out[_TYPE : _TYPE + 2] = _ET_EXEC.to_bytes(2, "little")
        _add(out, _ENTRY, base)
        _move_segments(out, file, base)
        _move_sections(out, file, base)
        _move_debug_sections(out, file, base)
    except DAMAGED:
        return data
    return bytes(out)


def _add(out: bytearray, at: int, base: int) -> None:
    value = (_ADDRESS.unpack_from(out, at)[0] + base) & (1 << 64) - 1
    _ADDRESS.pack_into(out, at, value)


def _move_segments(out: bytearray, file: ELFFile, base: int) -> None:
    for index, segment in enumerate(file.iter_segments()):
        if segment["p_type"] not in _UNMOVED_SEGMENTS:
            at = file["e_phoff"] + index * file["e_phentsize"]
            _add(out, at + _P_VADDR, base)
            _add(out, at + _P_PADDR, base)


def _move_sections(out: bytearray, file: ELFFile, base: int) -> None:
    for index, section in enumerate(file.iter_sections()):
        if section["sh_flags"] & SH_FLAGS.SHF_ALLOC:
            _add(out, file["e_shoff"] + index * file["e_shentsize"] + _SH_ADDR, base)
        if isinstance(section, SymbolTableSection):
            for number, symbol in enumerate(section.iter_symbols()):
                if symbol["st_shndx"] in _UNMOVED_SYMBOLS or symbol["st_info"]["type"] == "STT_TLS":
                    continue
                _add(out, section["sh_offset"] + number * section["sh_entsize"] + _ST_VALUE, base)


def _move_debug_sections(out: bytearray, file: ELFFile, base: int) -> None:
    dropped = [".gdb_index"]
    try:
        for at in address_places(file):
            _add(out, at, base)
    except UnsupportedDwarf:
        dropped.append(".debug_")
    for index, section in enumerate(file.iter_sections()):
        if section.name.startswith(tuple(dropped)):
            at = file["e_shoff"] + index * file["e_shentsize"] + _SH_TYPE
            out[at : at + 4] = _SHT_NULL.to_bytes(4, "little")
