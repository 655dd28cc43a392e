# SPDX-License-Identifier: MIT
"""VMSA, GHCB page and calling area: titles, fields that say something, and lines of text.

Spec: 24593, table B-4 (VMSA); 56421, 2.3 (GHCB); 58019, 4 (calling area).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Union

from .catalogue import Catalogue, Field

_SEGMENT_SIZE = 16
_NUMBER_SIZE = 8
_COLUMNS = 3
_SHOWN_BYTES = 32
_WORD = 8

Value = tuple[str, Union[int, str]]


def _field(catalogue: Catalogue, structure: str, name: str) -> Field:
    return next(field for field in catalogue.structures[structure] if field.name == name)


def _value(field: Field, data: bytes) -> int | str:
    """A number, or text for what is longer."""
    if field.size <= _NUMBER_SIZE:
        return field.number(data)
    if field.size == _SEGMENT_SIZE:
        return _segment_text(field.read(data))
    return _bytes_text(field.read(data))


def _segment_text(data: bytes) -> str:
    """Selector, attributes, limit and base of a segment register (24593, table B-2)."""
    selector, attributes = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little")
    limit, base = int.from_bytes(data[4:8], "little"), int.from_bytes(data[8:], "little")
    return f"{selector:#06x} base {base:#x} limit {limit:#x} attributes {attributes:#x}"


def _bytes_text(data: bytes, most: int = _SHOWN_BYTES) -> str:
    shown = data[:most]
    more = "" if len(shown) == len(data) else f" ... ({len(data)} bytes)"
    return shown.hex(" ", 8) + more


# -- VMSA -----------------------------------------------------------------------------------


def vmsa_title(catalogue: Catalogue, data: bytes) -> str:
    """Where it stands."""
    rip, cpl, vmpl = (_field(catalogue, "vmsa", n).number(data) for n in ("rip", "cpl", "vmpl"))
    return f"VMSA of VMPL{vmpl}, rip {rip:#x} at CPL {cpl}"


def vmsa_values(catalogue: Catalogue, data: bytes, everything: bool = False) -> Iterator[Value]:
    """Fields that are not 0, or all that `data` has."""
    for field in catalogue.structures["vmsa"]:
        if field.offset + field.size <= len(data) and (everything or field.number(data)):
            yield field.name, _value(field, data)


def vmsa_lines(catalogue: Catalogue, data: bytes, everything: bool) -> Iterator[str]:
    """The same, with names of bits, short numbers in columns."""
    cells: list[str] = []
    for name, value in vmsa_values(catalogue, data, everything):
        if isinstance(value, str):
            yield f"  {name:17} {value}"
        elif name in catalogue.flags:
            yield f"  {name:17} {value:#x} [{catalogue.flag_names(name, value)}]"
        else:
            cells.append(f"{name:17} {value:<#18x}")
    for first in range(0, len(cells), _COLUMNS):
        yield "  " + " ".join(cells[first : first + _COLUMNS]).rstrip()


# -- GHCB -----------------------------------------------------------------------------------


def ghcb_numbers(catalogue: Catalogue, data: bytes) -> Iterator[tuple[str, int]]:
    """The fields that are marked valid."""
    bitmap = _field(catalogue, "ghcb", "valid_bitmap")
    valid = bitmap.number(data)
    for field in catalogue.structures["ghcb"]:
        if field.offset < bitmap.offset and valid >> field.offset // _WORD & 1:
            yield field.name, field.number(data)


def ghcb_title(catalogue: Catalogue, data: bytes) -> str:
    """Version, usage, and the exit if it says which."""
    version = _field(catalogue, "ghcb", "protocol_version").number(data)
    usage = _field(catalogue, "ghcb", "ghcb_usage").number(data)
    code = dict(ghcb_numbers(catalogue, data)).get("sw_exit_code")
    name = "" if code is None else f", {catalogue.exits.get(code, f'exit {code:#x}')}"
    return f"GHCB version {version}, usage {usage:#x}{name}"


def ghcb_lines(catalogue: Catalogue, data: bytes) -> Iterator[str]:
    """What is marked valid, and the beginning of the buffer if there is anything in it."""
    yield f"  {ghcb_title(catalogue, data)}"
    for name, value in ghcb_numbers(catalogue, data):
        yield f"  {name:17} {value:#x}"
    buffer = _field(catalogue, "ghcb", "shared_buffer").read(data)
    if any(buffer):
        yield f"  {'shared_buffer':17} {_bytes_text(buffer)}"


# -- calling area ---------------------------------------------------------------------------


def caa_values(catalogue: Catalogue, data: bytes) -> Iterator[Value]:
    """Its flags, and the beginning of the buffer if there is anything in it."""
    for field in catalogue.structures["caa"]:
        if field.size == 1 or any(field.read(data)):
            yield field.name, _value(field, data)


def caa_lines(catalogue: Catalogue, data: bytes) -> Iterator[str]:
    """The same as lines."""
    return (f"  {name:17} {value}" for name, value in caa_values(catalogue, data))
