# SPDX-License-Identifier: MIT
"""What svsmd/symbols makes, as pyelftools reads it."""

import io
from typing import Any

from elftools.elf.elffile import ELFFile


class SymbolReader:
    """An ELF file with symbols and debugging information."""

    def __init__(self, data: bytes) -> None:
        self._file: Any = ELFFile(io.BytesIO(data))
        self.dwarf: Any = self._file.get_dwarf_info()

    @property
    def header(self) -> Any:
        """The file header."""
        return self._file.header

    def segments(self) -> list[Any]:
        """The program headers."""
        return list(self._file.iter_segments())

    def sections(self) -> list[Any]:
        """All sections."""
        return list(self._file.iter_sections())

    def section(self, name_or_number: str | int) -> Any:
        """A section; None if there is none of that name."""
        if isinstance(name_or_number, int):
            return self._file.get_section(name_or_number)
        return self._file.get_section_by_name(name_or_number)

    def symbols(self) -> list[Any]:
        """Symbols in the order of the table, without the first one."""
        return list(self.section(".symtab").iter_symbols())[1:]

    def symbol(self, name: str) -> Any:
        """The only symbol of a name."""
        (found,) = self.section(".symtab").get_symbol_by_name(name)
        return found

    def top_entries(self) -> list[Any]:
        """The entries (DIEs) of the only unit, without those within others."""
        (unit,) = self.dwarf.iter_CUs()
        return list(unit.get_top_DIE().iter_children())

    def entries(self) -> dict[str, Any]:
        """The same by name, those that have one."""
        return {
            die.attributes["DW_AT_name"].value.decode(): die
            for die in self.top_entries()
            if "DW_AT_name" in die.attributes
        }

    def call_frames(self) -> list[Any]:
        """The FDEs."""
        return [entry for entry in self.dwarf.CFI_entries() if "initial_location" in entry.header]

    def locations(self, die: Any) -> list[Any]:
        """The location list of an entry."""
        at = die.attributes["DW_AT_location"].value
        return list(self.dwarf.location_lists().get_location_list_at_offset(at, die=die))


def type_of(die: Any) -> Any:
    """The entry of the type of an entry."""
    return die.get_DIE_from_attribute("DW_AT_type")


def value(die: Any, attribute: str) -> Any:
    """The value of an attribute, such as "byte_size"."""
    return die.attributes[f"DW_AT_{attribute}"].value
