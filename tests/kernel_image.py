# SPDX-License-Identifier: MIT
"""Small Linux kernels without a kernel: ELF files with the tables that svsmd/symbols reads.

Written from the formats' definitions, and without the code under test but for its descriptions of
symbols and types.

Spec: Linux scripts/kallsyms.c (`write_src`), Documentation/bpf/btf.rst, asm/orc_types.h.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from svsmd.symbols.btf import Kind, Type
from svsmd.symbols.kallsyms import Symbol

TEXT: Final = 0xFFFF_FFFF_8100_0000
RODATA: Final = 0xFFFF_FFFF_8200_0000
WRITE, ALLOC, EXEC = 1, 2, 4
LAYOUTS: Final = ("6.1", "6.2", "6.5", "6.15", "7.0")
"""Kernel versions at which the tables of symbols took another form."""
ORC_HASHES: Final = {
    "6.4": "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24",
    "6.19": "edfa4d15552fdd2e1d56679728416379f2fe4534",
    "7.0": "137c36ad7627c4dd55932176bb0ecdbd5041fc82",
}
_OLD_REGISTERS: Final = (
    "none", "previous sp", "dx", "di", "bp", "sp", "r10", "r13", "bp indirect", "sp indirect", "ax",
)  # fmt: skip
_NEW_REGISTERS: Final = (
    "none", "ax", "dx", "sp", "bp", "di", "r10", "r13", "previous sp", "sp indirect", "bp indirect",
)  # fmt: skip


class Part(NamedTuple):
    """A section."""

    address: int
    flags: int
    data: bytes


def elf(parts: Mapping[str, Part]) -> bytes:
    """An ELF file with these sections."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*parts, ".shstrtab"))
    body = bytearray(64)
    headers = [bytes(64)]
    for name, part in (*parts.items(), (".shstrtab", Part(0, 0, names))):
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        headers.append(
            struct.pack(
                "<IIQQQQIIQQ", place, 1, part.flags, part.address, len(body), len(part.data),
                0, 0, 8, 0,
            )
        )  # fmt: skip
        body += part.data
    body[:64] = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 0, len(body), 0,
        64, 0, 0, 64, len(headers), len(headers) - 1,
    )  # fmt: skip
    return bytes(body) + b"".join(headers)


def kallsyms(
    symbols: Sequence[Symbol],
    layout: str,
    at: int,
    substrings: Sequence[str] = (),
) -> bytes:
    """The tables of symbols as they are at an address of the kernel.

    Args:
        symbols: in ascending order; the type A is a value relative to nothing.
        layout: one of `LAYOUTS`; from 6.15 on, no symbol is of type A.
        at: where they begin, a multiple of 8.
        substrings: what tokens may stand for.
    """
    alignment = 4 if layout == "7.0" else 8
    out = bytearray()

    def align(to: int = alignment) -> None:
        out.extend(bytes(-len(out) % to))

    def offsets() -> None:
        align()
        base = min((s.address for s in symbols if s.type != "A"), default=0)
        for symbol in symbols:
            if layout == "7.0":
                value = symbol.address - (at + len(out))
            elif symbol.type == "A":
                value = symbol.address
            elif layout == "6.15":
                value = symbol.address - base
            else:
                value = base - 1 - symbol.address
            out.extend(struct.pack("<i", value))
        if layout != "7.0":
            align()
            out.extend(struct.pack("<Q", base))

    texts = [(symbol.type + symbol.name).encode() for symbol in symbols]
    tokens = _tokens(texts, substrings)
    if layout in ("6.1", "6.2"):
        offsets()
    align()
    out += struct.pack("<I", len(symbols))
    align()
    names, markers = bytearray(), []
    for number, text in enumerate(texts):
        if number % 256 == 0:
            markers.append(len(names))
        codes = _encode(text, tokens)
        size = len(codes)
        names += bytes([size]) if size < 128 else bytes([size & 0x7F | 0x80, size >> 7])
        names += codes
    out += names
    align()
    out += struct.pack(f"<{len(markers)}I", *markers)
    if layout == "6.2":
        align()
        out += bytes([7, 8, 9]) * len(symbols)
    align()
    places, table = [], bytearray()
    for token in tokens:
        places.append(len(table))
        table += token + b"\0"
    out += table
    align()
    out += struct.pack("<256H", *places)
    if layout not in ("6.1", "6.2"):
        offsets()
        align()
        out += bytes([7, 8, 9]) * len(symbols)
    return bytes(out)


def _tokens(texts: Sequence[bytes], substrings: Sequence[str]) -> list[bytes]:
    """Each character that is used stands for itself, the other codes for something longer."""
    used = {byte for text in texts for byte in text} | set(b"0123456789")
    tokens = [bytes([code]) if code in used else b"" for code in range(256)]
    longer = iter([*(text.encode() for text in substrings), *(b"zz%d" % n for n in range(256))])
    return [token or next(longer) for token in tokens]


def _encode(text: bytes, tokens: Sequence[bytes]) -> bytes:
    """The longest token at each place."""
    codes = {token: code for code, token in enumerate(tokens)}
    longest = max(map(len, tokens))
    out = bytearray()
    at = 0
    while at < len(text):
        sizes = range(min(longest, len(text) - at), 0, -1)
        size = next(size for size in sizes if text[at : at + size] in codes)
        out.append(codes[text[at : at + size]])
        at += size
    return bytes(out)


class Orc(NamedTuple):
    """One row of the unwind tables."""

    address: int
    kind: str
    """unknown, end, call, regs or iret."""
    sp: str = "sp"
    """A name of the registers above."""
    sp_offset: int = 8
    bp: str = "none"
    bp_offset: int = 0


def orc(rows: Sequence[Orc], version: str, ip_at: int, at: int) -> dict[str, Part]:
    """The sections of the unwind tables of a version: "6.1", "6.4", "6.19" or "7.0"."""
    registers = _NEW_REGISTERS if version == "7.0" else _OLD_REGISTERS
    ips, entries = bytearray(), bytearray()
    for row in rows:
        ips += struct.pack("<i", row.address - (ip_at + len(ips)))
        known = row.kind not in ("unknown", "end")
        sp, bp = (registers.index(row.sp), registers.index(row.bp)) if known else (0, 0)
        if version == "6.1":
            kind = {"call": 0, "regs": 1, "iret": 2}.get(row.kind, 0)
            flags = kind << 8 | (row.kind == "end") << 10
        else:
            flags = ("unknown", "end", "call", "regs", "iret").index(row.kind) << 8
            flags |= (row.kind in ("regs", "iret")) << 11
        entries += struct.pack("<hhH", row.sp_offset, row.bp_offset, flags | bp << 4 | sp)
    parts = {
        ".orc_unwind_ip": Part(ip_at, ALLOC, bytes(ips)),
        ".orc_unwind": Part(at, ALLOC, bytes(entries)),
    }
    if version in ORC_HASHES:
        parts[".orc_header"] = Part(at - 0x100, ALLOC, bytes.fromhex(ORC_HASHES[version]))
    return parts


def read_rows(ips: bytes, ip_at: int, entries: bytes, version: str) -> list[Orc]:
    """The rows of the unwind tables of a version, in their order."""
    registers = _NEW_REGISTERS if version == "7.0" else _OLD_REGISTERS
    rows = []
    fields = struct.iter_unpack("<hhH", entries)
    for place, ((offset,), (sp_offset, bp_offset, flags)) in enumerate(
        zip(struct.iter_unpack("<i", ips), fields, strict=True)
    ):
        if version != "6.1":
            kind = ("unknown", "end", "call", "regs", "iret")[flags >> 8 & 7]
        elif flags & 15:
            kind = ("call", "regs", "iret")[flags >> 8 & 3]
        else:
            kind = "end" if flags >> 10 & 1 else "unknown"
        sp, bp = registers[flags & 15], registers[flags >> 4 & 15]
        rows.append(Orc(ip_at + 4 * place + offset, kind, sp, sp_offset, bp, bp_offset))
    return rows


def btf(types: Sequence[Type]) -> bytes:
    """The section .BTF with these types, of which the first one is void."""
    strings = bytearray(b"\0")
    places = {"": 0}

    def name(text: str) -> int:
        if text not in places:
            places[text] = len(strings)
            strings.extend(text.encode() + b"\0")
        return places[text]

    out = bytearray()
    for type_ in types[1:]:
        members = type_.members
        fields = any(member.bits for member in members)
        flag = type_.flags & 1 if type_.kind is Kind.FWD else fields
        if type_.kind is Kind.ENUM:
            flag = any(member.offset < 0 for member in members)
        info = flag << 31 | type_.kind << 24 | len(members)
        sized = type_.kind in (Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.FLOAT)
        out += struct.pack("<III", name(type_.name), info, type_.size if sized else type_.type)
        match type_.kind:
            case Kind.INT:
                out += struct.pack("<I", type_.flags << 24 | type_.size * 8)
            case Kind.ARRAY:
                out[-4:] = bytes(4)
                out += struct.pack("<III", type_.type, 1, type_.size)
            case Kind.STRUCT | Kind.UNION:
                for member in members:
                    offset = member.offset | member.bits << 24
                    out += struct.pack("<III", name(member.name), member.type, offset)
            case Kind.ENUM:
                for member in members:
                    out += struct.pack("<II", name(member.name), member.offset & 0xFFFFFFFF)
            case Kind.FUNC_PROTO:
                for member in members:
                    out += struct.pack("<II", name(member.name), member.type)
            case Kind.VAR | Kind.DECL_TAG:
                out += bytes(4)
            case _:
                pass
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(out), len(out), len(strings))
    return header + bytes(out) + bytes(strings)
