# SPDX-License-Identifier: MIT
"""DWARF for a kernel: its types, the signatures of its functions, some variables.

There are no lines and no local variables, since a kernel's image knows nothing of them. Arguments
are known at the beginning of a function only, where they still are in the registers of the calling
convention; for a caller's frame debuggers say that they have been optimized out.

While an interrupt is served, a kernel calls on another stack. gdb takes a caller whose stack is
lower than that of what it calls for a sign of damage, unless one of the two is an inlined function.
So the instructions that run on the other stack are given as an inlined function, `stack_switch`.

Spec: DWARF 5: 2.6 (locations), 3 (programs), 4 (data), 5 (types), 7 (encoding); System V ABI, AMD64
supplement, 3.2.3 (parameters).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from svsmd.symbols import shapes
from svsmd.symbols.btf import INT_BOOL, INT_CHAR, INT_SIGNED, VOID, Kind, Type
from svsmd.symbols.dwarf import Ate, Lle, Op, Reg, block, plus, sleb, uleb
from svsmd.symbols.functions import Function
from svsmd.symbols.variables import Variable

PRODUCER: Final = "svsmd tools/kernel_symbols.py"
DWARF_VERSION: Final = 5
DW_UT_COMPILE: Final = 1
DW_LANG_C11: Final = 0x1D
DW_INL_INLINED: Final = 1
STACK_SWITCH: Final = "stack_switch"
"""Name of the function that is said to be inlined where the stack is another one."""

_UNIT_HEADER: Final = struct.Struct("<IHBBI")
_LISTS_HEADER: Final = struct.Struct("<IHBBI")
_WORD: Final = 8
_I64: Final = 1 << 63
_U64: Final = 1 << 64
_ARGUMENTS: Final = (Reg.RDI, Reg.RSI, Reg.RDX, Reg.RCX, Reg.R8, Reg.R9)
_MAX_IN_REGISTERS: Final = 2 * _WORD
_PASSED: Final = frozenset({Kind.INT, Kind.ENUM, Kind.STRUCT, Kind.UNION})
_QUALIFIERS: Final = frozenset(
    {Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG}
)


def debug_info(
    types: Sequence[Type],
    functions: Iterable[Function],
    variables: Iterable[Variable],
    text: range,
) -> dict[str, bytes]:
    """The contents of the sections for one kernel, by name.

    Args:
        types: VOID first; those that are no types (FUNC, VAR and the like) are passed over.
        functions: in any order.
        variables: in any order.
        text: from the first address of code to the last.
    """
    writer = _Writer(types, text)
    writer.add_types()
    for function in functions:
        writer.add_function(function)
    for variable in variables:
        writer.add_variable(variable)
    return writer.end()


class _Writer:
    def __init__(self, types: Sequence[Type], text: range) -> None:
        self._types = types
        self._text = text
        self._info = bytearray(_UNIT_HEADER.size)
        self._strings, self._places = bytearray(b"\0"), {"": 0}
        self._lists = bytearray(_LISTS_HEADER.pack(0, DWARF_VERSION, _WORD, 0, 0))
        self._entries = [0] * len(types)
        self._references: list[tuple[int, int]] = []
        self._stack_switch = 0
        self._info += struct.pack(
            "<BIBIQQ", shapes.UNIT, self._string(PRODUCER), DW_LANG_C11, self._string("vmlinux"),
            text.start, len(text),
        )  # fmt: skip

    def end(self) -> dict[str, bytes]:
        """The sections; nothing can be added any more."""
        info, lists = self._info, self._lists
        info.append(0)
        for at, number in self._references:
            struct.pack_into("<I", info, at, self._entries[number])
        _UNIT_HEADER.pack_into(info, 0, len(info) - 4, DWARF_VERSION, DW_UT_COMPILE, _WORD, 0)
        struct.pack_into("<I", lists, 0, len(lists) - 4)
        return {
            ".debug_info": bytes(info),
            ".debug_abbrev": b"".join(shapes.TABLE) + b"\0",
            ".debug_str": bytes(self._strings),
            ".debug_loclists": bytes(lists),
        }

    def _string(self, text: str) -> int:
        place = self._places.get(text)
        if place is None:
            place = self._places[text] = len(self._strings)
            self._strings += text.encode() + b"\0"
        return place

    def _reference(self, number: int) -> None:
        """A reference to a type, which may be still to come."""
        while self._types[number].kind is Kind.TYPE_TAG:
            number = self._types[number].type
        self._references.append((len(self._info), number))
        self._info += bytes(4)

    def _is_void(self, number: int) -> bool:
        while self._types[number].kind is Kind.TYPE_TAG:
            number = self._types[number].type
        return number == VOID

    # -- types ------------------------------------------------------------------------------

    def add_types(self) -> None:
        """An entry for each type."""
        for number, type_ in enumerate(self._types):
            self._entries[number] = len(self._info)
            self._add_type(type_)

    def _add_type(self, type_: Type) -> None:
        info, kind, name = self._info, type_.kind, self._string(type_.name)
        match kind:
            case Kind.INT | Kind.FLOAT:
                info += struct.pack("<BIIB", shapes.BASE, name, type_.size, _encoding(type_))
            case Kind.STRUCT | Kind.UNION | Kind.ENUM:
                named, unnamed = shapes.AGGREGATES[kind]
                info += struct.pack("<BI", named, name) if type_.name else bytes([unnamed])
                info += struct.pack("<I", type_.size)
                if kind is Kind.ENUM:
                    for value in type_.members:
                        info += struct.pack("<BI", shapes.ENUMERATOR, self._string(value.name))
                        info += sleb((value.offset + _I64) % _U64 - _I64)
                else:
                    self._add_members(type_)
                info.append(0)
            case Kind.FWD:
                info += struct.pack("<BI", shapes.FORWARDS[type_.flags & 1], name)
            case Kind.ARRAY:
                info.append(shapes.ARRAY)
                self._reference(type_.type)
                if type_.size:
                    info += struct.pack("<BI", shapes.RANGE_OF, type_.size)
                else:
                    info.append(shapes.RANGE_OPEN)
                info.append(0)
            case Kind.FUNC_PROTO:
                self._begin_signature(type_)
                for parameter in type_.members:
                    if parameter.type == VOID:
                        info.append(shapes.MORE_PARAMETERS)
                    else:
                        info.append(shapes.PARAMETER_TYPE)
                        self._reference(parameter.type)
                info.append(0)
            case _ if kind in shapes.REFERENCES:
                typed, void = shapes.REFERENCES[kind]
                is_void = self._is_void(type_.type)
                info.append(void if is_void else typed)
                if kind is Kind.TYPEDEF:
                    info += struct.pack("<I", name)
                if not is_void:
                    self._reference(type_.type)
            case _:
                pass

    def _add_members(self, type_: Type) -> None:
        info = self._info
        for name, type_number, offset, bits in type_.members:
            if bits:
                info += struct.pack("<BI", shapes.BIT_FIELD, self._string(name))
                self._reference(type_number)
                info += struct.pack("<BI", bits, offset)
                continue
            if name:
                info += struct.pack("<BI", shapes.MEMBER, self._string(name))
            else:
                info.append(shapes.UNNAMED_MEMBER)
            self._reference(type_number)
            info += struct.pack("<I", offset // 8)

    def _begin_signature(self, type_: Type) -> None:
        is_void = self._is_void(type_.type)
        self._info.append(shapes.VOID_SIGNATURE if is_void else shapes.SIGNATURE)
        if not is_void:
            self._reference(type_.type)

    # -- functions and variables ------------------------------------------------------------

    def add_function(self, function: Function) -> None:
        """An entry for a function, with its parameters."""
        info, signature = self._info, self._types[function.signature]
        if function.switched and not self._stack_switch:
            self._stack_switch = len(info)
            name = self._string(STACK_SWITCH)
            info += struct.pack("<BIB", shapes.INLINE_FUNCTION, name, DW_INL_INLINED)
        returns = function.signature != VOID and not self._is_void(signature.type)
        if returns:
            shape = shapes.TYPED_FUNCTION
        else:
            shape = shapes.VOID_FUNCTION if function.signature else shapes.FUNCTION
        info += struct.pack(
            "<BIQI", shape, self._string(function.name), function.start, function.size
        )
        if returns:
            self._reference(signature.type)
        if function.signature != VOID:
            self._add_parameters(function, signature)
        for start, end in function.switched:
            info += struct.pack(
                "<BIQIBB", shapes.INLINED, self._stack_switch, start, end - start, 0, 0
            )
        info.append(0)

    def _add_parameters(self, function: Function, signature: Type) -> None:
        info = self._info
        start = function.start - self._text.start
        where = bytes([Lle.OFFSET_PAIR]) + uleb(start) + uleb(start + function.prologue)
        for parameter, location in zip(signature.members, self._arguments(signature), strict=True):
            if parameter.type == VOID:
                info.append(shapes.MORE_PARAMETERS)
                continue
            shape = shapes.LOCATED_PARAMETER if location and function.prologue else shapes.PARAMETER
            info += struct.pack("<BI", shape, self._string(parameter.name))
            self._reference(parameter.type)
            if shape == shapes.LOCATED_PARAMETER:
                info += struct.pack("<I", len(self._lists))
                self._lists += where + block(location) + bytes([Lle.END_OF_LIST])

    def _arguments(self, signature: Type) -> Iterator[bytes]:
        """Where a caller puts the arguments; no bytes where that is not known."""
        free = list(_ARGUMENTS)
        on_stack = 0
        known = True
        for parameter in signature.members:
            size = self._argument_size(parameter.type)
            words = -(-size // _WORD)
            known = known and size > 0
            if not known:
                yield b""
            elif size <= _MAX_IN_REGISTERS and words <= len(free):
                registers, free = free[:words], free[words:]
                yield _in_registers(registers, size)
            else:
                yield bytes([Op.CALL_FRAME_CFA]) + plus(on_stack)
                on_stack += words * _WORD

    def _argument_size(self, number: int) -> int:
        """Bytes of an argument; 0 if it is none that the kernel's code has."""
        type_ = self._types[number]
        while type_.kind in _QUALIFIERS:
            type_ = self._types[type_.type]
        if type_.kind is Kind.PTR:
            return _WORD
        return type_.size if type_.kind in _PASSED else 0

    def add_variable(self, variable: Variable) -> None:
        """An entry for a variable."""
        self._info += struct.pack("<BI", shapes.VARIABLE, self._string(variable.name))
        self._reference(variable.type)
        self._info += block(variable.location)


def _in_registers(registers: Sequence[Reg], size: int) -> bytes:
    names = [bytes([Op.REG0 + register]) for register in registers]
    if len(names) == 1:
        return names[0]
    low, high = names
    return low + bytes([Op.PIECE]) + uleb(_WORD) + high + bytes([Op.PIECE]) + uleb(size - _WORD)


def _encoding(type_: Type) -> Ate:
    if type_.kind is Kind.FLOAT:
        return Ate.FLOAT
    if type_.flags & INT_BOOL:
        return Ate.BOOLEAN
    character = type_.flags & INT_CHAR or "char" in type_.name
    if type_.flags & INT_SIGNED:
        return Ate.SIGNED_CHAR if character else Ate.SIGNED
    return Ate.UNSIGNED_CHAR if character else Ate.UNSIGNED
