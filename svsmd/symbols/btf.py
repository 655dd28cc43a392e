# SPDX-License-Identifier: MIT
"""The types of a kernel and the signatures of its functions, out of its section .BTF.

Spec: Linux Documentation/bpf/btf.rst, include/uapi/linux/btf.h.
Deviations: declaration tags are left out, and of functions the linkage.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from svsmd.symbols.image import SymbolsError

MAGIC: Final = 0xEB9F
VERSION: Final = 1
VOID: Final = 0
"""The number of the type `void`."""
MAX_TYPES: Final = 1 << 20
"""A distribution's kernel has a tenth of that."""


class Kind(IntEnum):
    """Kinds of types, BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class Member(NamedTuple):
    """A member of a structure or union, a parameter of a function, or a value of an enumeration."""

    name: str
    type: int = VOID
    """For parameters, VOID at the end is "..."."""
    offset: int = 0
    """Bits from the beginning of the structure; the value of an enumeration's."""
    bits: int = 0
    """Size of a bit-field; 0 if it is none."""


class Type(NamedTuple):
    """One type; its number is its place in the list of all."""

    kind: Kind
    name: str = ""
    type: int = VOID
    """What it points to, is an array of, names, qualifies, or returns."""
    size: int = 0
    """Bytes; of an array, the number of its elements."""
    members: Sequence[Member] = ()
    flags: int = 0
    """Of an INT: INT_*. Of a FWD: 1 if it is a union."""


MAX_DEPTH: Final = 64
"""Levels of types within types; a distribution's kernel has twenty."""

INT_SIGNED: Final = 1
INT_CHAR: Final = 2
INT_BOOL: Final = 4

_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_NO_TYPES: Final = frozenset({Kind.FUNC, Kind.VAR, Kind.DATASEC, Kind.DECL_TAG})
_BY_VALUE: Final = frozenset(
    {
        Kind.STRUCT, Kind.UNION, Kind.ARRAY, Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST,
        Kind.RESTRICT, Kind.TYPE_TAG,
    }
)  # fmt: skip


class _Damaged(Exception):
    """The section contradicts itself; the text says where."""


def read_btf(data: bytes) -> list[Type]:
    """All types, VOID first.

    Raises:
        SymbolsError: the section is damaged, or of a format that is not known.
    """
    try:
        types = list(_Reader(data).types())
        _check(types)
    except (_Damaged, struct.error) as error:
        raise SymbolsError(f"the kernel's type information is damaged: {error}") from None
    return types


class _Reader:
    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise _Damaged("it has no header")
        magic, version, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(
            data
        )
        if magic != MAGIC or version != VERSION:
            raise _Damaged(f"magic number {magic:#x}, version {version}")
        if max(types + types_size, strings + strings_size) + header > len(data):
            raise _Damaged("it is truncated")
        self._types = data[header + types :][:types_size]
        self._strings = data[header + strings :][:strings_size]
        self._names: dict[int, str] = {0: ""}

    def _name(self, at: int) -> str:
        name = self._names.get(at)
        if name is None:
            end = self._strings.find(b"\0", at)
            if end < 0:
                raise _Damaged(f"a name is at {at:#x}")
            name = self._names[at] = self._strings[at:end].decode("ascii", "backslashreplace")
        return name

    def types(self) -> Iterator[Type]:
        yield Type(Kind.VOID)
        data, name = self._types, self._name
        at, number = 0, 0
        while at < len(data):
            number += 1
            if number >= MAX_TYPES:
                raise _Damaged("it has too many types")
            name_at, info, size = _TYPE.unpack_from(data, at)
            at += _TYPE.size
            flag, count = info >> 31, info & 0xFFFF
            try:
                kind = Kind(info >> 24 & 0x1F)
            except ValueError:
                raise _Damaged(f"type {number} is of an unknown kind") from None
            match kind:
                case Kind.INT:
                    (word,) = struct.unpack_from("<I", data, at)
                    at += 4
                    yield Type(kind, name(name_at), size=size, flags=word >> 24 & 0xF)
                case Kind.ARRAY:
                    element, _, length = struct.unpack_from("<III", data, at)
                    at += 12
                    yield Type(kind, type=element, size=length)
                case Kind.STRUCT | Kind.UNION:
                    members = []
                    for member, type_, offset in self._table("<III", at, count):
                        bits = offset >> 24 if flag else 0
                        offset = offset & 0xFFFFFF if flag else offset
                        members.append(Member(name(member), type_, offset, bits))
                    at += 12 * count
                    yield Type(kind, name(name_at), size=size, members=members)
                case Kind.ENUM:
                    form = "<Ii" if flag else "<II"
                    values = [Member(name(n), offset=v) for n, v in self._table(form, at, count)]
                    at += 8 * count
                    yield Type(kind, name(name_at), size=size, members=values)
                case Kind.ENUM64:
                    form = "<Iq" if flag else "<IQ"
                    values = [Member(name(n), offset=v) for n, v in self._table(form, at, count)]
                    at += 12 * count
                    yield Type(Kind.ENUM, name(name_at), size=size, members=values)
                case Kind.FUNC_PROTO:
                    parameters = [Member(name(n), t) for n, t in self._table("<II", at, count)]
                    at += 8 * count
                    yield Type(kind, type=size, members=parameters)
                case Kind.FWD:
                    yield Type(kind, name(name_at), flags=flag)
                case Kind.FLOAT:
                    yield Type(kind, name(name_at), size=size)
                case Kind.DECL_TAG:
                    at += 4
                    yield Type(kind)
                case Kind.VAR:
                    at += 4
                    yield Type(kind, name(name_at), type=size)
                case Kind.DATASEC:
                    at += 12 * count
                    yield Type(kind, name(name_at))
                case _:
                    yield Type(kind, name(name_at), type=size)

    def _table(self, form: str, at: int, count: int) -> Iterator[tuple[int, ...]]:
        size = struct.calcsize(form) * count
        if at + size > len(self._types):
            raise _Damaged("its last type is truncated")
        return struct.iter_unpack(form, self._types[at : at + size])


def _check(types: Sequence[Type]) -> None:
    """References lead to types, and debuggers that follow them come to an end."""
    for number, type_ in enumerate(types):
        for other in (type_.type, *(member.type for member in type_.members)):
            if other >= len(types):
                raise _Damaged(f"type {number} refers to type {other} of {len(types)}")
            kind = types[other].kind
            if kind in _NO_TYPES or (type_.kind is Kind.FUNC and kind is not Kind.FUNC_PROTO):
                raise _Damaged(f"type {number} refers to type {other}, which is of the wrong kind")
    # What contains itself is infinitely large, and what refers to itself without a structure or a
    # union on the way has an infinitely long name.
    _check_depth(types, lambda type_: type_.kind in _BY_VALUE)
    _check_depth(types, lambda type_: type_.kind not in (Kind.STRUCT, Kind.UNION))


def _check_depth(types: Sequence[Type], goes_on: Callable[[Type], bool]) -> None:
    depths = [0] * len(types)  # 0: not yet known; -1: on the way from the root
    for root in range(len(types)):
        path = [root]
        while path:
            number = path[-1]
            type_ = types[number]
            below = {type_.type, *(m.type for m in type_.members)} if goes_on(type_) else set()
            below.discard(VOID)
            if depths[number] == 0:
                depths[number] = -1
                if any(depths[other] < 0 for other in below):
                    raise _Damaged(f"type {number} contains itself")
                path += [other for other in below if depths[other] == 0]
                continue
            if depths[number] < 0:
                depths[number] = 1 + max((depths[other] for other in below), default=0)
                if depths[number] > MAX_DEPTH:
                    raise _Damaged(f"type {number} is nested too deeply")
            path.pop()
