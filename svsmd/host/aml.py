# SPDX-License-Identifier: MIT
"""A tiny emitter of ACPI Machine Language: each function returns one encoded object.

Spec: ACPI 6.5, chapter 20 (AML), 6.4 (resource descriptors), 6.1.5 (`_HID` as EISA id).
Deviations: only what the DSDT of this machine needs; names are single segments.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum, IntFlag
from typing import Final, NewType

Aml = NewType("Aml", bytes)
"""Encoded AML: a term or a list of terms."""
Resource = NewType("Resource", bytes)
"""One encoded resource descriptor."""

_ZERO_OP: Final = b"\x00"
_ONE_OP: Final = b"\x01"
_NAME_OP: Final = b"\x08"
_BYTE_PREFIX: Final = b"\x0a"
_WORD_PREFIX: Final = b"\x0b"
_DWORD_PREFIX: Final = b"\x0c"
_STRING_PREFIX: Final = b"\x0d"
_QWORD_PREFIX: Final = b"\x0e"
_SCOPE_OP: Final = b"\x10"
_BUFFER_OP: Final = b"\x11"
_PACKAGE_OP: Final = b"\x12"
_DEVICE_OP: Final = b"\x5b\x82"

_NAME_SEGMENT: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,3}")
_EISA_ID: Final = re.compile(r"[A-Z]{3}[0-9A-F]{4}")
_MAX_PKG_LENGTH: Final = (1 << 28) - 1


class InterruptFlags(IntFlag):
    """Flags byte of the extended interrupt descriptor (ACPI 6.5, table 6.57)."""

    CONSUMER = 1 << 0
    EDGE = 1 << 1
    ACTIVE_LOW = 1 << 2
    SHARED = 1 << 3


class _Tag(IntEnum):
    """Resource descriptor types (ACPI 6.5, 6.4.2 and 6.4.3), small items with their length."""

    IO_PORT = 0x47
    END = 0x79
    MEMORY_32_FIXED = 0x86
    EXTENDED_INTERRUPT = 0x89


def name_string(path: str) -> bytes:
    """A name of at most four characters, padded with underscores."""
    if not _NAME_SEGMENT.fullmatch(path):
        raise ValueError(f"{path!r} is no AML name")
    return path.ljust(4, "_").encode("ascii")


def package_length(body_size: int) -> bytes:
    """PkgLength (20.2.4): one to four bytes that count themselves and *body_size* bytes."""
    if body_size + 1 < 1 << 6:
        return bytes((body_size + 1,))
    for extra in (1, 2, 3):
        total = body_size + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | total & 0xF,)) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"an AML object of {body_size} bytes exceeds {_MAX_PKG_LENGTH}")


def integer(value: int) -> Aml:
    """An integer of up to 64 bits in its shortest form."""
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{value:#x} is no AML integer")
    if value < 2:
        return Aml(_ONE_OP if value else _ZERO_OP)
    if value < 1 << 8:
        return Aml(_BYTE_PREFIX + struct.pack("<B", value))
    if value < 1 << 16:
        return Aml(_WORD_PREFIX + struct.pack("<H", value))
    if value < 1 << 32:
        return Aml(_DWORD_PREFIX + struct.pack("<I", value))
    return Aml(_QWORD_PREFIX + struct.pack("<Q", value))


def string(text: str) -> Aml:
    """A string of ASCII characters without NUL."""
    return Aml(_STRING_PREFIX + text.encode("ascii") + b"\0")


def eisa_id(text: str) -> Aml:
    """A compressed EISA id such as ``PNP0501``, as an integer."""
    if not _EISA_ID.fullmatch(text):
        raise ValueError(f"{text!r} is no EISA id")
    vendor = 0
    for letter in text[:3]:
        vendor = vendor << 5 | (ord(letter) - ord("A") + 1)
    number = vendor << 16 | int(text[3:], 16)
    return integer(int.from_bytes(number.to_bytes(4, "big"), "little"))


def package(*elements: Aml) -> Aml:
    """A package of at most 255 elements."""
    body = bytes((len(elements),)) + b"".join(elements)
    return Aml(_PACKAGE_OP + package_length(len(body)) + body)


def name(path: str, value: Aml) -> Aml:
    """``Name (path, value)``."""
    return Aml(_NAME_OP + name_string(path) + value)


def scope(path: str, *terms: Aml) -> Aml:
    """``Scope (path) { terms }``."""
    body = name_string(path) + b"".join(terms)
    return Aml(_SCOPE_OP + package_length(len(body)) + body)


def device(path: str, *terms: Aml) -> Aml:
    """``Device (path) { terms }``."""
    body = name_string(path) + b"".join(terms)
    return Aml(_DEVICE_OP + package_length(len(body)) + body)


def io_ports(base: int, count: int) -> Resource:
    """``IO (Decode16, base, base, 1, count)``."""
    return Resource(struct.pack("<BBHHBB", _Tag.IO_PORT, 1, base, base, 1, count))


def memory32_fixed(base: int, size: int) -> Resource:
    """``Memory32Fixed (ReadWrite, base, size)``."""
    return Resource(struct.pack("<BHBII", _Tag.MEMORY_32_FIXED, 9, 1, base, size))


def interrupt(gsi: int, flags: InterruptFlags) -> Resource:
    """``Interrupt (…) { gsi }``: an extended interrupt descriptor."""
    return Resource(struct.pack("<BHBBI", _Tag.EXTENDED_INTERRUPT, 6, flags, 1, gsi))


def resource_template(*resources: Resource) -> Aml:
    """``ResourceTemplate () { resources }``: a buffer that ends in an end tag without checksum."""
    content = b"".join(resources) + bytes((_Tag.END, 0))
    body = integer(len(content)) + content
    return Aml(_BUFFER_OP + package_length(len(body)) + body)
