# SPDX-License-Identifier: MIT
"""Sections and symbols of an ELF file that may be damaged, or made to be trouble.

Whatever the file says, the work is bounded: sections and symbols are counted, names are cut, and
nothing is looked for beyond that.

Spec: System V ABI, chapter 4 (sections, string table, symbol table).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

MAX_SECTIONS: Final = 256
"""A file with more of them is left alone."""
MAX_SYMBOLS: Final = 100_000
"""Of all tables of a file; the others are left out."""
MAX_NAME: Final = 80
"""Characters of a name in a log."""

SHF_COMPRESSED: Final = 1 << 11
_SHF_ALLOC: Final = 1 << 1
_SHF_EXECINSTR: Final = 1 << 2
_SHT_SYMTAB, _SHT_NOBITS, _SHT_DYNSYM = 2, 8, 11
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_EM_X86_64: Final = 62
_IDENTITY: Final = b"\x7fELF\x02\x01"  # ELFCLASS64, ELFDATA2LSB

_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")


class Section(NamedTuple):
    """One section header; `data` is empty where the file has none."""

    name: str
    kind: int
    flags: int
    address: int
    size: int
    link: int
    data: memoryview


class Symbol(NamedTuple):
    """A function or a label. Of those at one address functions come last, and large ones."""

    address: int
    function: bool
    size: int
    name: str


def read_sections(elf: bytes) -> list[Section]:
    """All sections. Raises ValueError, OverflowError or struct.error for a file that is none."""
    header = _HEADER.unpack_from(elf)
    machine, offset, size, count, names_at = (header[i] for i in (2, 6, 11, 12, 13))
    if not header[0].startswith(_IDENTITY) or machine != _EM_X86_64:
        raise ValueError("no ELF file for x86-64")
    if size != _SECTION.size or count > MAX_SECTIONS:
        raise ValueError(f"{count} sections with headers of {size} bytes")
    headers = [_SECTION.unpack_from(elf, offset + n * size) for n in range(count)]
    whole = memoryview(elf)
    contents = [
        whole[0:0] if kind == _SHT_NOBITS else whole[start : start + nbytes]
        for _, kind, _, _, start, nbytes, *_ in headers
    ]
    names = contents[names_at] if names_at < count else whole[0:0]
    return [
        Section(text_at(names, name), kind, flags, address, nbytes, link, data)
        for (name, kind, flags, address, _, nbytes, link, *_), data in zip(
            headers, contents, strict=True
        )
    ]


def code_of(sections: Sequence[Section]) -> list[range]:
    """Addresses of what is executed."""
    code = _SHF_ALLOC | _SHF_EXECINSTR
    return [range(s.address, s.address + s.size) for s in sections if s.flags & code == code]


def read_symbols(sections: Sequence[Section], code: Sequence[range]) -> list[Symbol]:
    """Functions and labels of the code, ascending."""
    entries = (
        (names, entry)
        for table in sections
        if table.kind in (_SHT_SYMTAB, _SHT_DYNSYM) and table.link < len(sections)
        for names in (sections[table.link].data,)
        for entry in _entries(table.data)
    )
    symbols = []
    for names, (name, info, _, _, address, size) in islice(entries, MAX_SYMBOLS):
        kind = info & 0xF
        if kind in (_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC) and any(address in p for p in code):
            text = text_at(names, name)
            if text:
                symbols.append(Symbol(address, kind != _STT_NOTYPE, size, text))
    return sorted(symbols)


def _entries(data: memoryview) -> Iterator[tuple[int, ...]]:
    return _SYMBOL.iter_unpack(data[: len(data) - len(data) % _SYMBOL.size])


def text_at(strings: memoryview, offset: int) -> str:
    """The string at an offset of a string table, as `clean` leaves it; empty behind its end."""
    return clean(bytes(strings[offset : offset + MAX_NAME]).partition(b"\0")[0])


def clean(name: bytes) -> str:
    """A name as it may appear in a log: printable ASCII, and not long."""
    text = name[:MAX_NAME].decode("ascii", "replace")
    return "".join(c if " " <= c <= "~" else "?" for c in text)
