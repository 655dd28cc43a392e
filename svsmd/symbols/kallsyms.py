# SPDX-License-Identifier: MIT
"""The kernel's own table of its symbols, kallsyms, out of its image.

A kernel carries the name and address of nearly everything in it, compressed: a name is a string of
tokens, and each of the 256 tokens stands for some characters. Nothing in an image says where the
tables are, so they are found by their structure. The token of a digit is the digit itself, which
makes ten bytes with a NUL behind each; the table of 16-bit indices behind the tokens proves them
right. All other tables lie round these two, in one of these orders:

    6.1     offsets, relative base, number, names, markers, tokens, indices
    6.1.y   offsets, relative base, number, names, markers, order of names, tokens, indices
    6.12    number, names, markers, tokens, indices, offsets, relative base, order of names
    7.2     number, names, markers, tokens, indices, offsets, order of names

An offset counts from the relative base upwards, or downwards with the values of per-CPU symbols
among them, or (7.2) from its own place.

Spec: Linux scripts/kallsyms.c (`write_src`), kernel/kallsyms.c (`kallsyms_sym_address`).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Final, NamedTuple

from svsmd.symbols.image import Section, SymbolsError

TOKENS: Final = 256
MARKER_STEP: Final = 256
"""Each marker is the place of so many names behind its predecessor."""
MAX_SYMBOLS: Final = 1 << 20
"""A distribution's kernel has a fifth of that."""
MAX_NAME: Final = 512
"""KSYM_NAME_LEN."""
ABSOLUTE: Final = "A"
"""Type of a symbol whose value is no address: an offset in the per-CPU area, until 6.14."""
TEXT_START: Final = "_stext"
"""The symbol at the beginning of the section .text."""

_ALIGNMENTS: Final = (4, 8)
_MAX_BLOCK: Final = MARKER_STEP * (MAX_NAME + 2) + max(_ALIGNMENTS)
"""Most bytes between the last marked name and the markers."""
_MAX_TRIES: Final = 1000
"""Of each table that may be there; a bound against files that are made to take for ever."""
_U32: Final = 0xFFFF_FFFF
_ABSOLUTES: Final = range(1 << 31)
_DIGITS: Final = re.compile(b"".join(b"%d\0" % digit for digit in range(10)))
_FIRST_DIGIT: Final = ord("0")
_INDICES: Final = struct.Struct(f"<{TOKENS}H")
_LINE: Final = re.compile(r"([0-9a-f]{1,16}) ([A-Za-z]) (\S+)(?:\s+\[(\S+)\])?")


class Symbol(NamedTuple):
    """One symbol."""

    address: int
    """Its value: an address, or if the type is `ABSOLUTE` any number."""
    type: str
    """One letter, as nm(1) prints it: capital if the symbol is global."""
    name: str
    module: str = ""
    """The module that it is in; empty for the kernel itself."""


@dataclass(frozen=True, slots=True)
class _Tokens:
    start: int
    """Offset in the section where the token table begins."""
    end: int
    """Offset behind the table of indices."""
    texts: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class _Names:
    start: int
    """Offset in the section of the number of symbols."""
    texts: Sequence[str]
    """Type letter and name of each symbol, in one."""


def _aligned(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def read_kallsyms(sections: Mapping[str, Section]) -> list[Symbol]:
    """All symbols of a kernel image, in the order of its table: by address.

    Raises:
        SymbolsError: there is no table in it, or one that contradicts itself.
    """
    rodata = sections.get(".rodata")
    if rodata is None or not rodata.data:
        raise SymbolsError("the kernel has no section .rodata")
    for tokens in _token_tables(rodata.data):
        names = _find_names(rodata.data, tokens)
        if names is None:
            continue
        addresses = _find_addresses(sections, tokens, names)
        if addresses is None:
            raise SymbolsError("the kernel's symbol table has no addresses that fit its names")
        return [
            Symbol(address, text[0], text[1:])
            for address, text in zip(addresses, names.texts, strict=True)
        ]
    raise SymbolsError("the kernel has no symbol table (CONFIG_KALLSYMS), or one of unknown format")


def _token_tables(data: bytes) -> Iterator[_Tokens]:
    """What looks like the table of tokens with its indices."""
    for match in islice(_DIGITS.finditer(data), _MAX_TRIES):
        # What lies before the first token may end in any byte, so that begins where the indices
        # say; the second one begins behind a NUL.
        second = match.start()
        for _ in range(_FIRST_DIGIT - 1):
            second = data.rfind(b"\0", 0, max(second - 1, 0)) + 1
        texts = data[second : second + TOKENS * MAX_NAME].split(b"\0", TOKENS - 1)[: TOKENS - 1]
        places = list(accumulate((len(text) + 1 for text in texts), initial=second))
        end = places.pop()
        for alignment in _ALIGNMENTS:
            at = _aligned(end, alignment)
            if at + _INDICES.size > len(data) or len(places) != TOKENS - 1:
                break
            first_index, *indices = _INDICES.unpack_from(data, at)
            start = second - indices[0]
            first = data[start : second - 1]
            if (
                not first_index
                and 0 <= start < second
                and b"\0" not in first
                and places == [start + index for index in indices]
            ):
                yield _Tokens(start, at + _INDICES.size, [first, *texts])
                break


def _find_names(data: bytes, tokens: _Tokens) -> _Names | None:
    """The names that lie before their tokens.

    Their number is the word that fits: so many names behind it end where the markers begin, whose
    place follows from the number as well, and the markers agree with the names.
    """
    words = memoryview(data)[: tokens.start & ~3].cast("I")
    tries = 0
    for index in range(len(words) - 1, -1, -1):
        count = words[index]
        at = index * 4
        # A name has two bytes at least.
        if not 0 < count <= min(MAX_SYMBOLS, (tokens.start - at) // 2):
            continue
        for first, markers in _places_of(at, count, tokens.start):
            marked = -(-count // MARKER_STEP)
            last = words[markers // 4 + marked - 1]
            if words[markers // 4] or not 0 < markers - first - last <= _MAX_BLOCK:
                continue
            tries += 1
            if tries > _MAX_TRIES:
                return None
            spans = _name_spans(data[first:markers], count, words[markers // 4 :][:marked])
            if spans is None:
                continue
            texts = _texts(data[first:markers], spans, tokens.texts)
            if texts is not None:
                return _Names(at, texts)
    return None


def _places_of(at: int, count: int, end: int) -> Iterator[tuple[int, int]]:
    """Where names and markers may begin, if their number is at `at` and the tokens at `end`."""
    markers_size = 4 * -(-count // MARKER_STEP)
    for alignment in _ALIGNMENTS:
        if at % alignment or end % alignment:
            continue
        first = _aligned(at + 4, alignment)
        # Newer kernels have the order of the names before the tokens, 3 bytes a name.
        for order_size in (0, 3 * count):
            # What is rounded up twice from there on may begin in one of two places.
            highest = (end - order_size - markers_size) // alignment * alignment
            for markers in (highest, highest - alignment):
                behind = _aligned(markers + markers_size, alignment) + order_size
                if markers > first and _aligned(behind, alignment) == end:
                    yield first, markers


def _name_spans(block: bytes, count: int, markers: Sequence[int]) -> list[tuple[int, int]] | None:
    """Where in `block` the tokens of each name are; None if these are no names.

    A name is its length, one byte or two, and so many tokens. The block has nothing but padding
    behind the last one.
    """
    spans = []
    at, size = 0, len(block)
    for number in range(count):
        if not number % MARKER_STEP and markers[number // MARKER_STEP] != at:
            return None
        if at + 2 > size:
            return None
        length = block[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | block[at] << 7
            at += 1
        if not length or at + length > size:
            return None
        spans.append((at, at + length))
        at += length
    return spans if size - at < max(_ALIGNMENTS) and not any(block[at:]) else None


def _texts(
    block: bytes, spans: Iterable[tuple[int, int]], tokens: Sequence[bytes]
) -> list[str] | None:
    """The names, each with its type before it; None if there is one that cannot be a name."""
    texts = []
    for start, end in spans:
        text = b"".join([tokens[token] for token in block[start:end]])
        if not 2 <= len(text) <= MAX_NAME or not text.isascii() or not chr(text[0]).isalpha():
            return None
        texts.append(text.decode())
    return texts


def _find_addresses(
    sections: Mapping[str, Section], tokens: _Tokens, names: _Names
) -> list[int] | None:
    """The addresses of the names; None if no table in one of the known places makes sense."""
    rodata, text = sections[".rodata"], sections.get(".text")
    starts = [place for place, name in enumerate(names.texts) if name[1:] == TEXT_START]
    if text is None or not starts:
        return None
    image = range(
        text.address,
        1 + max(section.end for section in sections.values() if section.address >= text.address),
    )
    for addresses in _address_tables(rodata, tokens, names):
        in_image = all(
            address in (_ABSOLUTES if name[0] == ABSOLUTE else image)
            for address, name in zip(addresses, names.texts, strict=True)
        )
        if in_image and addresses[starts[0]] == text.address and addresses == sorted(addresses):
            return addresses
    return None


def _address_tables(rodata: Section, tokens: _Tokens, names: _Names) -> Iterator[list[int]]:
    """Whatever may be the addresses, in each of the places and formats that there have been."""
    count = len(names.texts)
    size = 4 * count
    data = rodata.data
    for alignment in _ALIGNMENTS:
        before = (names.start - 8) // alignment * alignment
        behind = _aligned(tokens.end, alignment)
        for at, base_at in (
            ((before - size) // alignment * alignment, before),
            (behind, _aligned(behind + size, 8)),
        ):
            if at < 0 or at + size > len(data):
                continue
            offsets = struct.unpack_from(f"<{count}i", data, at)
            if base_at + 8 <= len(data):
                (base,) = struct.unpack_from("<Q", data, base_at)
                # A negative offset is one from the base; others are what is relative to nothing.
                yield [offset if offset >= 0 else base - 1 - offset for offset in offsets]
                yield [base + (offset & _U32) for offset in offsets]
            yield [rodata.address + at + 4 * n + offset for n, offset in enumerate(offsets)]


def parse_proc_kallsyms(text: str) -> list[Symbol]:
    """The symbols of a running kernel and its modules: all lines of its /proc/kallsyms, or some.

    Raises:
        SymbolsError: a line is not of that format, or the kernel has hidden the addresses.
    """
    symbols = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise SymbolsError(f"line {number} of the symbols is not one of /proc/kallsyms")
        address, type_, name, module = match.groups()
        symbols.append(Symbol(int(address, 16), type_, name, module or ""))
    if not any(symbol.address for symbol in symbols):
        raise SymbolsError("the symbols have no addresses: read /proc/kallsyms as root")
    return sorted(symbols, key=lambda symbol: symbol.address)
