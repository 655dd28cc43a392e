# SPDX-License-Identifier: MIT
"""Function, file and line of an address, out of an ELF file's symbol table and DWARF.

Nothing is read before the first question: most SVSMs never have one, and DWARF takes long. A file
may be damaged, or a module's that wants to be trouble: what cannot be read is not known, and names
are cut and cleaned before they reach a log.

Spec: System V ABI, chapter 4 (symbol table); DWARF 5, 6.1.2 (.debug_aranges), 6.2 (line numbers).
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from elftools.elf.constants import SH_FLAGS
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from svsmd.core.backtrace.frames import Location

MAX_LINE_PROGRAM: Final = 1 << 20
"""Bytes of a compilation unit's line program; one that is longer is left alone."""
MAX_SYMBOLS: Final = 100_000
MAX_NAME: Final = 80
"""Characters of a name in a log."""

_KINDS: Final = ("STT_FUNC", "STT_NOTYPE", "STT_GNU_IFUNC")
_EM_X86_64: Final = "EM_X86_64"
_DWARF_5: Final = 5


class _Symbol(NamedTuple):
    address: int
    function: bool
    """Functions are preferred to labels at the same address, and to labels inside of them."""
    size: int
    name: str


class _Row(NamedTuple):
    address: int
    end: int
    file: str
    line: int


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
        self._code: list[range] = []
        self._symbols: list[_Symbol] = []
        self._dwarf: Any = None
        self._aranges: Any = None
        self._rows: dict[int, list[_Row]] = {}
        # pyelftools raises what it comes across, from KeyError to struct.error.
        try:
            file = ELFFile(io.BytesIO(elf))
            if file["e_machine"] != _EM_X86_64:
                return
            self._code = [
                range(s["sh_addr"], s["sh_addr"] + s["sh_size"])
                for s in file.iter_sections()
                if s["sh_flags"] & SH_FLAGS.SHF_EXECINSTR and s["sh_flags"] & SH_FLAGS.SHF_ALLOC
            ]
            self._symbols = sorted(_function_symbols(file, self._code))
            if file.has_dwarf_info():
                self._dwarf = file.get_dwarf_info()
                self._aranges = self._dwarf.get_aranges()
        except Exception:
            return

    def lookup(self, address: int) -> Location | None:
        if not any(address in code for code in self._code):
            return None
        file, line = self._line(address)
        symbol = self._symbol(address)
        if symbol is None:
            return Location(file=file, line=line)
        return Location(symbol.name, address - symbol.address, file, line)

    def _symbol(self, address: int) -> _Symbol | None:
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

    def _line(self, address: int) -> tuple[str, int]:
        if self._aranges is None:
            return "", 0
        try:
            offset = self._aranges.cu_offset_at_addr(address)
            if offset is None:
                return "", 0
            rows = self._rows.get(offset)
            if rows is None:
                # Whatever comes of it, it is tried once.
                self._rows[offset] = []
                unit = self._dwarf.get_CU_at(offset)
                rows = self._rows[offset] = sorted(_line_rows(self._dwarf, unit))
            index = bisect_right(rows, address, key=lambda row: row.address)
        except Exception:
            return "", 0
        if index and address < rows[index - 1].end:
            return rows[index - 1].file, rows[index - 1].line
        return "", 0


def _function_symbols(file: Any, code: list[range]) -> Iterator[_Symbol]:
    for section in file.iter_sections():
        if not isinstance(section, SymbolTableSection) or section.num_symbols() > MAX_SYMBOLS:
            continue
        for symbol in section.iter_symbols():
            address, kind = symbol["st_value"], symbol["st_info"]["type"]
            if symbol.name and kind in _KINDS and any(address in part for part in code):
                function = kind != "STT_NOTYPE"
                yield _Symbol(address, function, symbol["st_size"], clean(symbol.name))


def _line_rows(dwarf: Any, unit: Any) -> Iterator[_Row]:
    program = dwarf.line_program_for_CU(unit)
    if program is None or program.program_end_offset - program.program_start_offset > (
        MAX_LINE_PROGRAM
    ):
        return
    names = _file_names(program.header)
    previous = None
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if previous is not None and previous.address < state.address:
            file = names.get(previous.file, "")
            yield _Row(previous.address, state.address, file, previous.line)
        previous = None if state.end_sequence else state


def _file_names(header: Any) -> dict[int, str]:
    """Paths by their number in the line program: from 0 on in DWARF 5, else from 1 on."""
    new = header["version"] >= _DWARF_5
    directories = [clean(name) for name in header["include_directory"]]
    if not new:
        directories.insert(0, "")
    names = {}
    for number, entry in enumerate(header["file_entry"], 0 if new else 1):
        name = clean(entry.name)
        index = entry.dir_index
        directory = directories[index] if index < len(directories) else ""
        if directory and directory != "." and not name.startswith("/"):
            name = f"{directory}/{name}"
        names[number] = name.removeprefix("./")
    return names


def clean(name: str | bytes) -> str:
    """A name as it may appear in a log: printable ASCII, and not long."""
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    return "".join(c if " " <= c <= "~" else "?" for c in text[:MAX_NAME])
