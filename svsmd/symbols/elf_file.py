# SPDX-License-Identifier: MIT
"""An ELF file that holds symbols and debugging information, and none of the program itself.

It is of a program that may lie anywhere: a debugger moves all of it by what lies between the entry
point that it has and the one that the file names.

Spec: System V ABI, ELF-64 object files; gABI, symbol table, program header.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from svsmd.host.bzimage import ELF_MAGIC
from svsmd.symbols.image import EHDR, ELFCLASS64_LITTLE, EM_X86_64, SHDR, SHT_NOBITS, Section
from svsmd.symbols.kallsyms import ABSOLUTE, Symbol

ET_DYN: Final = 3
PT_LOAD: Final = 1
PF_RWX: Final = 7
SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHN_ABS: Final = 0xFFF1
STB_LOCAL: Final = 0
STB_GLOBAL: Final = 1
STB_WEAK: Final = 2
STT_OBJECT: Final = 1
STT_FUNC: Final = 2

_PHDR: Final = struct.Struct("<IIQQQQQQ")
_SYM: Final = struct.Struct("<IBBHQQ")
_ALIGNMENT: Final = 8
_CURRENT: Final = 1
_BINDINGS: Final = dict.fromkeys("WwVv", STB_WEAK)


def elf_file(
    memory: Sequence[Section], symbols: Sequence[Symbol], contents: Mapping[str, bytes]
) -> bytes:
    """The bytes of the file.

    Args:
        memory: where what the symbols name lies, without its contents; its first byte is the entry
            point.
        symbols: in ascending order of address.
        contents: other sections by name: debugging information.
    """
    memory = sorted(memory, key=lambda section: section.address)
    symbol_table, first_global, strings = _symbol_table(memory, symbols)
    parts = [*contents.items(), (".symtab", symbol_table), (".strtab", strings)]
    section_names = [*(section.name for section in memory), *dict(parts), ".shstrtab"]
    names = b"\0" + b"".join(name.encode() + b"\0" for name in section_names)
    parts.append((".shstrtab", names))

    body = bytearray(EHDR.size + _PHDR.size)
    start = min((section.address for section in memory), default=0)
    end = max((section.end for section in memory), default=0)
    _PHDR.pack_into(
        body, EHDR.size, PT_LOAD, PF_RWX, len(body), start, start, 0, end - start, _ALIGNMENT
    )
    headers = [bytes(SHDR.size)]
    name_at = 1
    for section in memory:
        headers.append(
            SHDR.pack(
                name_at, SHT_NOBITS, section.flags, section.address, len(body), section.size,
                0, 0, 1, 0,
            )
        )  # fmt: skip
        name_at += len(section.name) + 1
    for name, data in parts:
        body += bytes(-len(body) % _ALIGNMENT)
        kind, link, info, entry = SHT_PROGBITS, 0, 0, 0
        if name == ".symtab":
            kind, link, info, entry = SHT_SYMTAB, len(headers) + 1, first_global, _SYM.size
        elif name in (".strtab", ".shstrtab"):
            kind = SHT_STRTAB
        headers.append(
            SHDR.pack(name_at, kind, 0, 0, len(body), len(data), link, info, _ALIGNMENT, entry)
        )
        name_at += len(name) + 1
        body += data
    body += bytes(-len(body) % _ALIGNMENT)
    ident = ELF_MAGIC + ELFCLASS64_LITTLE + bytes([_CURRENT])
    EHDR.pack_into(
        body, 0, ident, ET_DYN, EM_X86_64, _CURRENT, start, EHDR.size, len(body), 0,
        EHDR.size, _PHDR.size, 1, SHDR.size, len(headers), len(headers) - 1,
    )  # fmt: skip
    return bytes(body) + b"".join(headers)


def find_symbol(file: bytes, name: str) -> int | None:
    """The address of a symbol of that name in what `elf_file` has made; None if there is none."""
    offset = EHDR.unpack_from(file)[6]
    headers = list(struct.iter_unpack(SHDR.format, memoryview(file)[offset:]))
    table = next(header for header in headers if header[1] == SHT_SYMTAB)
    strings, symbols = headers[table[6]][4], table[4]
    place = file.find(b"\0" + name.encode() + b"\0", strings)
    rows = struct.iter_unpack(_SYM.format, memoryview(file)[symbols : symbols + table[5]])
    return next((row[4] for row in rows if place >= 0 and row[0] == place + 1 - strings), None)


def _symbol_table(memory: Sequence[Section], symbols: Sequence[Symbol]) -> tuple[bytes, int, bytes]:
    """The table, the number of its first symbol that is not local, and the names."""
    starts = [section.address for section in memory]
    local_rows = [bytes(_SYM.size)]
    other_rows: list[bytes] = []
    names, places = bytearray(b"\0"), {"": 0}
    this, following = -1, -1
    # From the last one on: a symbol goes as far as the next one. And of several names for one
    # address, gdb takes the one whose text comes last, the kernel the first one of its table.
    for address, type_, name, _ in reversed(symbols):
        if address != this:
            this, following = address, this
        if name not in places:
            places[name] = len(names)
            names += name.encode() + b"\0"
        binding = _BINDINGS.get(type_, STB_GLOBAL if type_.isupper() else STB_LOCAL)
        place = bisect_right(starts, address) - 1
        if type_ == ABSOLUTE or place < 0:
            row = _SYM.pack(places[name], binding << 4 | STT_OBJECT, 0, SHN_ABS, address, 0)
        else:
            section = memory[place]
            kind = STT_FUNC if section.executable else STT_OBJECT
            end = section.end if following < 0 else min(section.end, following)
            size = max(end - address, 0)
            row = _SYM.pack(places[name], binding << 4 | kind, 0, place + 1, address, size)
        (other_rows if binding else local_rows).append(row)
    return b"".join(local_rows + other_rows), len(local_rows), bytes(names)
