# SPDX-License-Identifier: MIT
"""Those variables of a kernel whose type is known.

A kernel's type information has the types of its per-CPU variables only. Of some others that people
ask for, this file knows the types, which have not changed for many years.

Spec: Linux include/linux/{jiffies,kernel,init,init_task,module,fs,ioport,smp}.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from svsmd.symbols.btf import VOID, Kind, Type
from svsmd.symbols.dwarf import Op, uleb
from svsmd.symbols.kallsyms import ABSOLUTE, Symbol

TYPES: Final = {
    "jiffies": "long unsigned int",
    "jiffies_64": "long unsigned int",
    "linux_banner": "char []",
    "boot_command_line": "char []",
    "saved_command_line": "char *",
    "system_state": "enum system_states",
    "nr_cpu_ids": "unsigned int",
    "__per_cpu_offset": "long unsigned int []",
    "init_task": "struct task_struct",
    "init_mm": "struct mm_struct",
    "init_net": "struct net",
    "modules": "struct list_head",
    "super_blocks": "struct list_head",
    "iomem_resource": "struct resource",
    "boot_cpu_data": "struct cpuinfo_x86",
}
"""Variables and their types, spelled as in BTF."""
BASIC_TYPES: Final = (
    Type(Kind.VOID),
    Type(Kind.INT, "long unsigned int", size=8),
    Type(Kind.INT, "unsigned int", size=4),
    Type(Kind.INT, "char", size=1),
)
"""For a kernel without type information."""
MAX_ARRAY: Final = 4096
"""Bytes: the size of an array is how far it is to the next symbol, and that may be far off."""


class Variable(NamedTuple):
    """A variable of the kernel."""

    name: str
    type: int
    location: bytes
    """An expression."""


def variables(symbols: Sequence[Symbol], types: list[Type]) -> Iterator[Variable]:
    """The variables among some symbols, which are in ascending order of address.

    Types that they need and that are not there are appended to `types`.
    """
    places: dict[str, tuple[Symbol, int]] = {}
    following = 0
    for symbol in reversed(symbols):
        if not symbol.module:
            places[symbol.name] = symbol, min(max(following - symbol.address, 0), MAX_ARRAY)
        following = symbol.address
    numbers = {type_.name: type_.type for type_ in types if type_.kind is Kind.VAR}
    finder = _TypeFinder(types)
    for name, spelling in TYPES.items():
        if name in places and name not in numbers:
            numbers[name] = finder.find(spelling, places[name][1])
    for name, number in numbers.items():
        if name in places and number != VOID:
            yield Variable(name, number, _location(places[name][0]))


def _location(symbol: Symbol) -> bytes:
    """The address of a variable; of one that each CPU has, what is added to the CPU's GS base."""
    if symbol.type == ABSOLUTE:
        return bytes([Op.CONSTU]) + uleb(symbol.address)
    return bytes([Op.ADDR]) + struct.pack("<Q", symbol.address)


class _TypeFinder:
    """Finds types by their spelling; pointers to them and arrays of them are made."""

    def __init__(self, types: list[Type]) -> None:
        self._types = types
        self._numbers: dict[tuple[Kind, str], int] = {}
        for number, type_ in enumerate(types):
            self._numbers.setdefault((type_.kind, type_.name), number)

    def find(self, spelling: str, size: int) -> int:
        """The number of the type of a variable of so many bytes; VOID if there is none."""
        for suffix, kind in ((" *", Kind.PTR), (" []", Kind.ARRAY)):
            if spelling.endswith(suffix):
                inner = self.find(spelling.removesuffix(suffix), 0)
                if inner == VOID:
                    return VOID
                elements = size // max(self._types[inner].size, 1)
                self._types.append(Type(kind, type=inner, size=elements))
                return len(self._types) - 1
        for prefix, kind in (("struct ", Kind.STRUCT), ("enum ", Kind.ENUM)):
            if spelling.startswith(prefix):
                return self._numbers.get((kind, spelling.removeprefix(prefix)), VOID)
        return self._numbers.get((Kind.INT, spelling), VOID)
