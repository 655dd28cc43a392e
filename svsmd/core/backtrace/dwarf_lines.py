# SPDX-License-Identifier: MIT
"""Source file and line of an address, out of the line number programs of .debug_line.

All programs of a file are run, at the first question: they need no other section to be found, and
those of a module take less time than to decode which of them is wanted. A file may be hostile: each
byte is decoded once, `MAX_PROGRAMS` of them at most, and nothing is larger than what it comes from.

Spec: DWARF 5, 6.2 (line number information), 7.5.5 and 7.6 (forms, LEB128), 7.22 (opcodes); the
headers of versions 2 to 4 are those of DWARF 4, 6.2.4.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

from svsmd.core.backtrace.elf_file import clean, text_at

MAX_PROGRAMS: Final = 1 << 20
"""Bytes of line number programs that are run: about a second. What comes later has no lines."""

_DWARF_64: Final = 0xFFFF_FFF0
_VERSIONS: Final = range(2, 6)
_DWARF_5: Final = 5
_LEB128_MAX: Final = 10
"""Bytes of one number of 64 bits."""

_LNS_COPY, _LNS_ADVANCE_PC, _LNS_ADVANCE_LINE, _LNS_SET_FILE = 1, 2, 3, 4
_LNS_CONST_ADD_PC, _LNS_FIXED_ADVANCE_PC = 8, 9
_LNE_END_SEQUENCE, _LNE_SET_ADDRESS = 1, 2
_LNCT_PATH, _LNCT_DIRECTORY_INDEX = 1, 2
_FORM_STRING, _FORM_STRP, _FORM_LINE_STRP = 0x08, 0x0E, 0x1F
_FORM_UDATA, _FORM_BLOCK = 0x0F, 0x09
_FORM_SIZES: Final = {0x0B: 1, 0x05: 2, 0x06: 4, 0x07: 8, 0x1E: 16}
"""DW_FORM_data1 to data16, by form."""


class _Input:
    """A part of a section that is read from its beginning to its end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, nbytes: int) -> memoryview:
        if nbytes > len(self.data) - self.at:
            raise ValueError("the section ends")
        self.at += nbytes
        return self.data[self.at - nbytes : self.at]

    def number(self, nbytes: int) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def leb128(self, *, signed: bool = False) -> int:
        value = 0
        for shift in range(0, 7 * _LEB128_MAX, 7):
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value - (1 << shift + 7) if signed and byte & 0x40 else value
        raise ValueError("a number that is too long")

    def string(self) -> bytes:
        start = self.at
        while self.number(1):
            pass
        return bytes(self.data[start : self.at - 1])


class _Sequence:
    """Rows of one run of code, ascending; the last address is the end."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self.addresses = array("Q")
        self.rows = array("I")
        """File and line of each address, one behind the other."""

    def add(self, address: int, file: int, line: int) -> None:
        self.addresses.append(address & (1 << 64) - 1)
        self.rows.extend((file & 0xFFFF_FFFF, line & 0xFFFF_FFFF))

    @property
    def is_sound(self) -> bool:
        """Whether it covers something, and can be searched."""
        a = self.addresses
        return a[0] < a[-1] and all(a[n - 1] <= a[n] for n in range(1, len(a)))


class Lines:
    """What .debug_line says; the other sections have the names. Never raises."""

    def __init__(self, line: memoryview, line_str: memoryview, strings: memoryview) -> None:
        self._tables = {_FORM_LINE_STRP: line_str, _FORM_STRP: strings}
        self._sequences: list[_Sequence] = []
        self._left = MAX_PROGRAMS
        units = _Input(line)
        try:
            while units.at < len(line):
                length = units.number(4)
                if length >= _DWARF_64:
                    break
                self._read_unit(_Input(units.take(length)))
        except ValueError:
            pass
        self._sequences = [s for s in self._sequences if s.is_sound]
        self._sequences.sort(key=lambda s: s.addresses[0])

    def lookup(self, address: int) -> tuple[str, int]:
        """File and line of an address; empty and 0 if they are not known."""
        index = bisect_right(self._sequences, address, key=lambda s: s.addresses[0])
        if not index or address >= self._sequences[index - 1].addresses[-1]:
            return "", 0
        found = self._sequences[index - 1]
        row = bisect_right(found.addresses, address) - 1
        file, line = found.rows[2 * row], found.rows[2 * row + 1]
        return (found.files[file], line) if file < len(found.files) else ("", line)

    # Units -----------------------------------------------------------------------------------

    def _read_unit(self, unit: _Input) -> None:
        try:
            version = unit.number(2)
            if version not in _VERSIONS:
                return
            if version == _DWARF_5:
                unit.take(2)  # sizes of an address and of a segment selector
            header = _Input(unit.take(unit.number(4)))
            self._left -= len(unit.data) - unit.at
            if self._left < 0:
                return
            # Instructions per operation are a matter of VLIW machines.
            shortest = header.number(2 if version >= 4 else 1) & 0xFF
            header.take(1)  # default_is_stmt
            line_base = int.from_bytes(header.take(1), "little", signed=True)
            line_range, opcode_base = header.number(1), header.number(1)
            lengths = bytes(header.take(max(0, opcode_base - 1)))
            read_files = self._files if version == _DWARF_5 else _old_files
            files = read_files(header)
            if line_range:
                self._run(unit, files, shortest, line_base, line_range, lengths)
        except ValueError:
            return  # the next one may be better

    def _files(self, header: _Input) -> list[str]:
        """Paths by number, from 0 on."""
        directories = [name for name, _ in self._entries(header)]
        return [_join(directories, index, name) for name, index in self._entries(header)]

    def _entries(self, header: _Input) -> list[tuple[str, int]]:
        """Name and directory of what is listed."""
        formats = [(header.leb128(), header.leb128()) for _ in range(header.number(1))]
        entries = []
        for _ in range(header.leb128()):
            start, name, directory = header.at, "", 0
            for content, form in formats:
                value = self._value(header, form)
                if content == _LNCT_PATH and isinstance(value, str):
                    name = value
                elif content == _LNCT_DIRECTORY_INDEX and isinstance(value, int):
                    directory = value
            if header.at == start:
                raise ValueError("entries without contents")
            entries.append((name, directory))
        return entries

    def _value(self, header: _Input, form: int) -> str | int | None:
        if form == _FORM_STRING:
            return clean(header.string())
        if form in self._tables:
            return text_at(self._tables[form], header.number(4))
        if form == _FORM_UDATA:
            return header.leb128()
        if form == _FORM_BLOCK:
            header.take(header.leb128())
            return None
        if form in _FORM_SIZES:
            return header.number(_FORM_SIZES[form])
        raise ValueError(f"form {form:#x}")

    def _run(
        self,
        program: _Input,
        files: Sequence[str],
        shortest: int,
        line_base: int,
        line_range: int,
        lengths: bytes,
    ) -> None:
        opcode_base = len(lengths) + 1
        sequence = _Sequence(files)
        address, file, line = 0, 1, 1
        while program.at < len(program.data):
            opcode = program.number(1)
            if opcode >= opcode_base:
                steps, more = divmod(opcode - opcode_base, line_range)
                address += steps * shortest
                line += line_base + more
                sequence.add(address, file, line)
            elif opcode == 0:
                extended = _Input(program.take(program.leb128()))
                code = extended.number(1)
                if code == _LNE_SET_ADDRESS:
                    address = extended.number(8)
                elif code == _LNE_END_SEQUENCE:
                    sequence.add(address, 0, 0)
                    self._sequences.append(sequence)
                    sequence = _Sequence(files)
                    address, file, line = 0, 1, 1
            elif opcode == _LNS_COPY:
                sequence.add(address, file, line)
            elif opcode == _LNS_ADVANCE_PC:
                address += program.leb128() * shortest
            elif opcode == _LNS_ADVANCE_LINE:
                line += program.leb128(signed=True)
            elif opcode == _LNS_SET_FILE:
                file = program.leb128()
            elif opcode == _LNS_CONST_ADD_PC:
                address += (255 - opcode_base) // line_range * shortest
            elif opcode == _LNS_FIXED_ADVANCE_PC:
                address += program.number(2)
            else:
                for _ in range(lengths[opcode - 1]):
                    program.leb128()


def _old_files(header: _Input) -> list[str]:
    """Paths by number, from 1 on, before DWARF 5."""
    directories, files = [""], [""]
    while name := header.string():
        directories.append(clean(name))
    while name := header.string():
        files.append(_join(directories, header.leb128(), clean(name)))
        header.leb128()  # time of its last change
        header.leb128()  # size
    return files


def _join(directories: Sequence[str], index: int, name: str) -> str:
    directory = directories[index] if index < len(directories) else ""
    if directory and directory != "." and not name.startswith("/"):
        name = f"{directory}/{name}"
    return name.removeprefix("./")
