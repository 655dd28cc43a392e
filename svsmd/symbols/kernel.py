# SPDX-License-Identifier: MIT
"""All that a kernel's image tells a debugger, as one ELF file.

Spec: none of its own; what is read is in image.py, kallsyms.py, orc.py and btf.py, what is written
in elf_file.py, call_frames.py and debug_info.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from svsmd.symbols.btf import Type, read_btf
from svsmd.symbols.call_frames import Landings, debug_frame
from svsmd.symbols.debug_info import debug_info
from svsmd.symbols.elf_file import elf_file
from svsmd.symbols.functions import functions
from svsmd.symbols.image import SHF_ALLOC, SHF_EXECINSTR, Section, SymbolsError
from svsmd.symbols.kallsyms import ABSOLUTE, Symbol, read_kallsyms
from svsmd.symbols.orc import Row, read_orc
from svsmd.symbols.variables import BASIC_TYPES, variables

TEXT: Final = "_text"
"""The symbol at the beginning of a kernel."""
KERNEL_ADDRESSES: Final = range(0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_C000_0000)
"""Where a kernel may be; its modules follow (Documentation/arch/x86/x86_64/mm.rst)."""

_MODULES: Final = ".modules"
_PAGE: Final = 1 << 12


@dataclass(frozen=True, slots=True)
class SymbolFile:
    """What was made of a kernel."""

    data: bytes
    """An ELF file."""
    missing: Sequence[str]
    """What it has not, each a line for people; empty if all is there."""


def symbol_file(
    sections: Mapping[str, Section],
    *,
    text: int | None = None,
    running: Sequence[Symbol] = (),
) -> SymbolFile:
    """The symbols, call frames and types of a kernel.

    Args:
        sections: of its image.
        text: where its symbol `_text` is at run time, if not where it was linked to have it.
        running: symbols of the running kernel, `_text` among them, and of its modules.

    Raises:
        SymbolsError: the image has no symbols, or they contradict the other arguments.
    """
    start = sections.get(".text")
    if start is None or not start.executable:
        raise SymbolsError("the kernel has no section .text")
    linked = read_kallsyms(sections)
    if running:
        text = _text(linked, running)
    slide = 0 if text is None else text - start.address
    memory = {
        section.name: replace(section, address=section.address + slide)
        for section in sections.values()
        if section.address >= start.address
    }
    end = max(section.end for section in memory.values())
    if slide % _PAGE or start.address + slide not in KERNEL_ADDRESSES:
        raise SymbolsError(f"no kernel begins at {start.address + slide:#x}")
    if end > KERNEL_ADDRESSES.stop:
        raise SymbolsError(f"no kernel ends at {end:#x}")
    symbols = [
        symbol if symbol.type == ABSOLUTE else symbol._replace(address=symbol.address + slide)
        for symbol in linked
    ]
    symbols += (symbol for symbol in running if symbol.module)
    symbols.sort(key=lambda symbol: symbol.address)
    return _Maker(memory, symbols).make()


def _text(linked: Sequence[Symbol], running: Sequence[Symbol]) -> int:
    """Where `_text` is in a running kernel, which has to be the one of an image."""
    places: dict[str, set[int]] = {}
    for symbol in linked:
        places.setdefault(symbol.name, set()).add(symbol.address)
    text = next((s.address for s in running if s.name == TEXT and not s.module), None)
    if text is None or TEXT not in places:
        raise SymbolsError(f"the list of symbols or the kernel has no {TEXT}")
    slide = text - max(places[TEXT])
    for symbol in running:
        place = symbol.address - (0 if symbol.type == ABSOLUTE else slide)
        if not symbol.module and place not in places.get(symbol.name, ()):
            raise SymbolsError(f"the list of symbols is of another kernel: {symbol.name} differs")
    return text


class _Maker:
    def __init__(self, memory: Mapping[str, Section], symbols: Sequence[Symbol]) -> None:
        self._memory = memory
        self._symbols = symbols
        self._missing: list[str] = []
        self._code = [section for section in memory.values() if section.executable]
        self._text = range(
            min(section.address for section in self._code),
            max(section.end for section in self._code),
        )

    def make(self) -> SymbolFile:
        """The file."""
        rows, types = self._rows(), self._types()
        contents: dict[str, bytes] = {}
        if rows:
            landings = Landings.below(self._text.start)
            contents[".debug_frame"] = debug_frame(rows, self._text.stop, landings)
        known = list(variables(self._symbols, types))  # completes the types
        found = functions(self._code, self._symbols, types, rows)
        contents |= debug_info(types, found, known, self._text)
        memory = [*self._memory.values(), *self._modules()]
        return SymbolFile(elf_file(memory, self._symbols, contents), tuple(self._missing))

    def _rows(self) -> list[tuple[int, Row]]:
        try:
            return read_orc(self._memory, self._text)
        except SymbolsError as error:
            self._missing.append(f"no call frames: {error}")
            return []

    def _types(self) -> list[Type]:
        section = self._memory.get(".BTF")
        try:
            if section is None:
                raise SymbolsError("the kernel has no type information (CONFIG_DEBUG_INFO_BTF)")
            return read_btf(section.data)
        except SymbolsError as error:
            self._missing.append(f"no types: {error}")
            return list(BASIC_TYPES)

    def _modules(self) -> Iterator[Section]:
        """A section round the symbols of what a running kernel has loaded."""
        addresses = [symbol.address for symbol in self._symbols if symbol.module]
        if addresses:
            start = min(addresses)
            size = max(addresses) + _PAGE - start
            yield Section(_MODULES, start, size, SHF_ALLOC | SHF_EXECINSTR, b"")
