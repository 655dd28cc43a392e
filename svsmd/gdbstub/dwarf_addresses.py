# SPDX-License-Identifier: MIT
"""Where in a file's debug sections addresses of the program are.

Spec: DWARF 5: 2.5 (expressions), 2.6.2 (location lists), 2.17.3 (range lists), 6.1.2 (aranges),
6.2 (line number programs), 6.4 (frames), 7.27 (address table).
Deviations: only DWARF 5 of 64-bit programs, in its 32-bit format, not compressed, not split.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE, AttributeValue
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile

DAMAGED: Final = (
    ELFError, DWARFError, struct.error,
    ValueError, LookupError, ArithmeticError, TypeError, AttributeError,
)  # fmt: skip
"""What elftools and this module raise for damaged files."""
_VERSION: Final = 5
_SIZE: Final = 8
_LONG_FORMAT: Final = 0xFFFF_FFF0
_UNIT_LENGTH: Final = struct.Struct("<I")
_LIST_FORMS: Final = ("DW_FORM_sec_offset", "DW_FORM_loclistx", "DW_FORM_rnglistx")
_LOCATIONS: Final = frozenset((
    "DW_AT_location", "DW_AT_frame_base", "DW_AT_data_member_location", "DW_AT_return_addr",
    "DW_AT_static_link", "DW_AT_string_length", "DW_AT_use_location", "DW_AT_vtable_elem_location",
))  # fmt: skip
_NOT_SERVED: Final = (".debug_info.dwo", ".debug_types", ".debug_loc", ".debug_ranges")
_SET_ADDRESS: Final = 2
_FIXED_ADVANCE_PC: Final = 9
_CIE: Final = 0xFFFF_FFFF


class UnsupportedDwarf(Exception):
    """Debug sections that this module cannot read, or damaged ones."""


def address_places(file: ELFFile) -> list[int]:
    """Offsets in the file of 8-byte addresses in its debug sections. Raises UnsupportedDwarf."""
    sections = {s.name: s for s in file.iter_sections() if s.name.startswith(".debug_")}
    if any(s["sh_flags"] & SH_FLAGS.SHF_COMPRESSED for s in sections.values()) or any(
        name in sections for name in _NOT_SERVED
    ):
        raise UnsupportedDwarf
    data = {name: section.data() for name, section in sections.items()}
    found: dict[str, set[int]] = {name: set() for name in data}
    try:
        if ".debug_info" in data:
            _Units(file, data, found).read()
        for name, places in (
            (".debug_line", _line_places), (".debug_aranges", _arange_places),
            (".debug_addr", _table_places), (".debug_frame", _frame_places),
        ):  # fmt: skip
            if name in data:
                found[name].update(places(data[name]))
    except DAMAGED as error:
        raise UnsupportedDwarf from error
    return [
        sections[name]["sh_offset"] + place for name, places in found.items() for place in places
    ]


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """Value of an ULEB128, and where it ends; an SLEB128 ends there too."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


class _Units:
    """Addresses in .debug_info and in the lists that it refers to."""

    def __init__(self, file: ELFFile, data: dict[str, bytes], found: dict[str, set[int]]) -> None:
        self._dwarf = file.get_dwarf_info(relocate_dwarf_sections=False)
        self._data = data
        self._found = found
        self._lists: set[tuple[str, int]] = set()

    def read(self) -> None:
        """Go through all entries."""
        for unit in self._dwarf.iter_CUs():
            if (unit["version"], unit["address_size"]) != (_VERSION, _SIZE):
                raise UnsupportedDwarf
            for entry in unit.iter_DIEs():
                self._read_entry(unit, entry)

    def _read_entry(self, unit: CompileUnit, entry: DIE) -> None:
        for name, attribute in entry.attributes.items():
            match attribute.form:
                case "DW_FORM_addr":
                    self._found[".debug_info"].add(attribute.offset)
                case "DW_FORM_exprloc":
                    self._read_block(unit, attribute)
                case form if form in _LIST_FORMS and name in _LOCATIONS:
                    self._read_list(unit, ".debug_loclists", attribute.value)
                case form if form in _LIST_FORMS and name == "DW_AT_ranges":
                    self._read_list(unit, ".debug_rnglists", attribute.value)

    def _read_block(self, unit: CompileUnit, attribute: AttributeValue) -> None:
        _, start = _uleb(self._data[".debug_info"], attribute.offset)
        self._read_expression(unit, ".debug_info", start, len(attribute.value))

    def _read_expression(self, unit: CompileUnit, section: str, start: int, size: int) -> None:
        expression = list(self._data[section][start : start + size])
        for op in DWARFExprParser(unit.structs).parse_expr(expression):
            if op.op_name == "DW_OP_addr":
                self._found[section].add(start + op.offset + 1)
            elif op.op_name in ("DW_OP_entry_value", "DW_OP_GNU_entry_value") and any(
                inner.op_name == "DW_OP_addr" for inner in op.args[0]
            ):
                raise UnsupportedDwarf

    def _read_list(self, unit: CompileUnit, section: str, at: int) -> None:
        if (section, at) in self._lists:
            return
        self._lists.add((section, at))
        kinds = _LOCATION_KINDS if section == ".debug_loclists" else _RANGE_KINDS
        data = self._data[section]
        while data[at]:
            operands, has_expression = kinds[data[at]]
            at += 1
            for operand in operands:
                if operand == "a":
                    self._found[section].add(at)
                    at += _SIZE
                else:
                    _, at = _uleb(data, at)
            if has_expression:
                size, at = _uleb(data, at)
                self._read_expression(unit, section, at, size)
                at += size


# Entries of lists by kind (DWARF 5, 7.7.3 and 7.25): `a` is an address, `u` a number; whether an
# expression follows.
_RANGE_KINDS: Final = {
    1: ("u", False), 2: ("uu", False), 3: ("uu", False), 4: ("uu", False),
    5: ("a", False), 6: ("aa", False), 7: ("au", False),
}  # fmt: skip
_LOCATION_KINDS: Final = {
    1: ("u", False), 2: ("uu", True), 3: ("uu", True), 4: ("uu", True), 5: ("", True),
    6: ("a", False), 7: ("aa", True), 8: ("au", True),
}  # fmt: skip


def _contributions(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each part of a section starts behind its length, and ends."""
    at = 0
    while at < len(data):
        (length,) = _UNIT_LENGTH.unpack_from(data, at)
        at += _UNIT_LENGTH.size
        if length >= _LONG_FORMAT or at + length > len(data):
            raise UnsupportedDwarf
        yield at, at + length
        at += length


def _line_places(data: bytes) -> Iterator[int]:
    for start, end in _contributions(data):
        version, size, segments, header = struct.unpack_from("<HBBI", data, start)
        if (version, size, segments) != (_VERSION, _SIZE, 0):
            raise UnsupportedDwarf
        at = start + 8 + header
        # Behind the header's length: four bytes and line_range, then opcode_base and lengths.
        opcode_base = data[start + 13]
        lengths = data[start + 14 : start + 13 + opcode_base]
        while at < end:
            opcode = data[at]
            at += 1
            if opcode == 0:
                length, at = _uleb(data, at)
                if data[at] == _SET_ADDRESS and length == 1 + _SIZE:
                    yield at + 1
                at += length
            elif opcode == _FIXED_ADVANCE_PC:
                at += 2
            elif opcode < opcode_base:
                for _ in range(lengths[opcode - 1]):
                    _, at = _uleb(data, at)


def _arange_places(data: bytes) -> Iterator[int]:
    for start, end in _contributions(data):
        size, segments = data[start + 6], data[start + 7]
        if (size, segments) != (_SIZE, 0):
            raise UnsupportedDwarf
        first = start - _UNIT_LENGTH.size + 2 * _SIZE  # aligned to pairs, from its length on
        for at in range(first, end - 2 * _SIZE + 1, 2 * _SIZE):
            if any(data[at : at + 2 * _SIZE]):
                yield at


def _table_places(data: bytes) -> Iterator[int]:
    for start, end in _contributions(data):
        if data[start + 2 : start + 4] != bytes((_SIZE, 0)):
            raise UnsupportedDwarf
        yield from range(start + 4, end - _SIZE + 1, _SIZE)


def _frame_places(data: bytes) -> Iterator[int]:
    for start, _ in _contributions(data):
        if _UNIT_LENGTH.unpack_from(data, start)[0] != _CIE:
            yield start + _UNIT_LENGTH.size
