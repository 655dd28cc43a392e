# SPDX-License-Identifier: MIT
"""Printers of the structures that guests share with their host and their SVSM.

They go by the names of types: those of the demo guest and of the SVSM's stages, and those of Linux.
Fields that say nothing are left out, or not marked valid; `print/r` shows all of them, and
`print/x` has numbers in hex, as ever.

Spec: GDB manual, "Pretty Printing API".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Callable, Union

import gdb
import gdb.printing
import gdb.types

from . import structures
from .catalogue import Catalogue

_PAGE = 0x1000

_Child = tuple[str, Union[int, str]]
_Reader = Callable[[Catalogue, bytes], tuple[str, Iterable[_Child]]]


class _Structure:
    """A value as a title, and the fields that say something."""

    def __init__(self, title: str, fields: Iterable[_Child]) -> None:
        self._title, self._fields = title, fields

    def to_string(self) -> str:
        return self._title

    def children(self) -> Iterator[tuple[str, gdb.Value]]:
        return ((name, gdb.Value(value)) for name, value in self._fields)


def _ghcb(catalogue: Catalogue, data: bytes) -> tuple[str, Iterable[_Child]]:
    return structures.ghcb_title(catalogue, data), structures.ghcb_numbers(catalogue, data)


def _calling_area(catalogue: Catalogue, data: bytes) -> tuple[str, Iterable[_Child]]:
    return "calling area", structures.caa_values(catalogue, data)


def _vmsa(catalogue: Catalogue, data: bytes) -> tuple[str, Iterable[_Child]]:
    return structures.vmsa_title(catalogue, data), structures.vmsa_values(catalogue, data)


TYPES: dict[str, _Reader] = {
    "ghcb": _ghcb,
    "svsm_caa": _calling_area,
    "svsm_ca": _calling_area,
    "sev_es_save_area": _vmsa,
}
"""Printers by the tag of the structure."""


class _Printers(gdb.printing.PrettyPrinter):
    """Finds the printer of a value; `info pretty-printer` lists the types."""

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("svsmd", [gdb.printing.SubPrettyPrinter(name) for name in TYPES])
        self._catalogue = catalogue

    def __call__(self, value: gdb.Value) -> _Structure | None:
        type_ = gdb.types.get_basic_type(value.type)
        if type_.code != gdb.TYPE_CODE_STRUCT or type_.tag not in TYPES:
            return None
        if not any(each.name == type_.tag and each.enabled for each in self.subprinters or ()):
            return None
        # A value that is in no memory was computed, and is shown as it is.
        if value.address is None or value.is_optimized_out:
            return None
        size = min(type_.sizeof, _PAGE)
        data = bytes(gdb.selected_inferior().read_memory(int(value.address), size))
        return _Structure(*TYPES[type_.tag](self._catalogue, data))


def register(catalogue: Catalogue) -> None:
    """Make the printers known to gdb, for all files."""
    gdb.printing.register_pretty_printer(None, _Printers(catalogue), replace=True)
