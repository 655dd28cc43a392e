# SPDX-License-Identifier: MIT
"""Where an ELF file has its symbols.

Spec: System V ABI, chapter 4, "Symbol Table".
"""

from __future__ import annotations

import io

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection


def elf_symbols(elf: bytes) -> dict[str, range]:
    """Addresses of each symbol of `.symtab` by its name: from its value on, of its size.

    Raises:
        ELFError: it is no ELF file.
        KeyError: it has no such table.
    """
    table = ELFFile(io.BytesIO(elf)).get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise KeyError(".symtab")
    return {
        symbol.name: range(symbol["st_value"], symbol["st_value"] + symbol["st_size"])
        for symbol in table.iter_symbols()
    }
