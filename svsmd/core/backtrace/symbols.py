# SPDX-License-Identifier: MIT
"""Function, file and line of an address, out of an ELF file's symbol table and DWARF.

Nothing is read before the first question: most SVSMs never have one, and DWARF takes long. A file
may be damaged, or a module's that wants to be trouble: what cannot be read is not known, and names
are cut and cleaned before they reach a log.

Spec: none; see `elf_file` and `dwarf_lines`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right

from svsmd.core.backtrace.dwarf_lines import Lines
from svsmd.core.backtrace.elf_file import (
    SHF_COMPRESSED,
    Symbol,
    code_of,
    read_sections,
    read_symbols,
)
from svsmd.core.backtrace.frames import Location


class Symbols:
    """What an ELF file says of its code; `bias` is how far it was loaded from where it was linked.

    Never raises, whatever the bytes are.
    """

    def __init__(self, elf: bytes, bias: int = 0) -> None:
        self._elf = elf
        self._bias = bias
        self._tables: _Tables | None = None

    def lookup(self, address: int) -> Location | None:
        """Where `address` lies; None if the file has no code there."""
        if self._tables is None:
            self._tables = _Tables(self._elf)
        return self._tables.lookup(address - self._bias)


class _Tables:
    def __init__(self, elf: bytes) -> None:
        try:
            sections = read_sections(elf)
        except (ValueError, OverflowError, struct.error):
            sections = []
        self._code = code_of(sections)
        self._symbols = read_symbols(sections, self._code)
        # Not what is compressed: a few bytes can be made to become any number of them.
        data = {s.name: s.data for s in sections if not s.flags & SHF_COMPRESSED}
        parts = (".debug_line", ".debug_line_str", ".debug_str")
        self._lines = Lines(*(data.get(name, memoryview(b"")) for name in parts))

    def lookup(self, address: int) -> Location | None:
        if not any(address in code for code in self._code):
            return None
        file, line = self._lines.lookup(address)
        symbol = self._symbol(address)
        if symbol is None:
            return Location(file=file, line=line)
        return Location(symbol.name, address - symbol.address, file, line)

    def _symbol(self, address: int) -> Symbol | None:
        """The function that the address is in, else the label before it in the same section."""
        code = next(code for code in self._code if address in code)
        index = bisect_right(self._symbols, address, key=lambda symbol: symbol.address)
        label = None
        for symbol in reversed(self._symbols[max(0, index - 64) : index]):
            if symbol.address not in code:
                break
            if symbol.function and address < symbol.address + symbol.size:
                return symbol
            if not symbol.size:
                label = label or symbol
        return label
