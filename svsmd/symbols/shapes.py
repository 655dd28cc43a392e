# SPDX-License-Identifier: MIT
"""The shapes that the entries of debugging information have: DWARF's abbreviations.

Each constant is the code of one, with which an entry of that shape begins; its attributes follow in
the order in which they are given here.

Spec: DWARF 5: 7.5.3 (abbreviations), 7.5.6 (forms), appendix A (attributes by tag).
"""

from __future__ import annotations

from typing import Final

from svsmd.symbols.btf import Kind
from svsmd.symbols.dwarf import At, Form, Tag, uleb

TABLE: Final[list[bytes]] = []
"""What the section .debug_abbrev consists of, but for its end."""


def _abbreviation(tag: Tag, *attributes: tuple[At, Form], children: bool = False) -> int:
    """Declares a shape of entries; its code."""
    code = len(TABLE) + 1
    pairs = b"".join(uleb(attribute) + uleb(form) for attribute, form in attributes)
    TABLE.append(uleb(code) + uleb(tag) + bytes([children]) + pairs + b"\0\0")
    return code


_NAME: Final = At.NAME, Form.STRP
_TYPE: Final = At.TYPE, Form.REF4
_SIZE: Final = At.BYTE_SIZE, Form.DATA4
_PLACE: Final = At.DATA_MEMBER_LOCATION, Form.DATA4
_RANGE: Final = (At.LOW_PC, Form.ADDR), (At.HIGH_PC, Form.DATA4)

UNIT: Final = _abbreviation(
    Tag.COMPILE_UNIT, (At.PRODUCER, Form.STRP), (At.LANGUAGE, Form.DATA1), _NAME,
    (At.LOW_PC, Form.ADDR), (At.HIGH_PC, Form.DATA8), children=True,
)  # fmt: skip
BASE: Final = _abbreviation(Tag.BASE_TYPE, _NAME, _SIZE, (At.ENCODING, Form.DATA1))
ARRAY: Final = _abbreviation(Tag.ARRAY_TYPE, _TYPE, children=True)
RANGE_OF: Final = _abbreviation(Tag.SUBRANGE_TYPE, (At.COUNT, Form.DATA4))
RANGE_OPEN: Final = _abbreviation(Tag.SUBRANGE_TYPE)
MEMBER: Final = _abbreviation(Tag.MEMBER, _NAME, _TYPE, _PLACE)
UNNAMED_MEMBER: Final = _abbreviation(Tag.MEMBER, _TYPE, _PLACE)
BIT_FIELD: Final = _abbreviation(
    Tag.MEMBER, _NAME, _TYPE, (At.BIT_SIZE, Form.DATA1), (At.DATA_BIT_OFFSET, Form.DATA4)
)
ENUMERATOR: Final = _abbreviation(Tag.ENUMERATOR, _NAME, (At.CONST_VALUE, Form.SDATA))
PARAMETER_TYPE: Final = _abbreviation(Tag.FORMAL_PARAMETER, _TYPE)
PARAMETER: Final = _abbreviation(Tag.FORMAL_PARAMETER, _NAME, _TYPE)
LOCATED_PARAMETER: Final = _abbreviation(
    Tag.FORMAL_PARAMETER, _NAME, _TYPE, (At.LOCATION, Form.SEC_OFFSET)
)
MORE_PARAMETERS: Final = _abbreviation(Tag.UNSPECIFIED_PARAMETERS)
FUNCTION: Final = _abbreviation(Tag.SUBPROGRAM, _NAME, *_RANGE, children=True)
VOID_FUNCTION: Final = _abbreviation(
    Tag.SUBPROGRAM, _NAME, *_RANGE, (At.PROTOTYPED, Form.FLAG_PRESENT), children=True
)
TYPED_FUNCTION: Final = _abbreviation(
    Tag.SUBPROGRAM, _NAME, *_RANGE, (At.PROTOTYPED, Form.FLAG_PRESENT), _TYPE, children=True
)
INLINE_FUNCTION: Final = _abbreviation(Tag.SUBPROGRAM, _NAME, (At.INLINE, Form.DATA1))
INLINED: Final = _abbreviation(
    Tag.INLINED_SUBROUTINE,
    (At.ABSTRACT_ORIGIN, Form.REF4),
    *_RANGE,
    (At.CALL_FILE, Form.DATA1),
    (At.CALL_LINE, Form.DATA1),
)
VARIABLE: Final = _abbreviation(Tag.VARIABLE, _NAME, _TYPE, (At.LOCATION, Form.EXPRLOC))
SIGNATURE: Final = _abbreviation(
    Tag.SUBROUTINE_TYPE, (At.PROTOTYPED, Form.FLAG_PRESENT), _TYPE, children=True
)
VOID_SIGNATURE: Final = _abbreviation(
    Tag.SUBROUTINE_TYPE, (At.PROTOTYPED, Form.FLAG_PRESENT), children=True
)
AGGREGATES: Final = {
    kind: (
        _abbreviation(tag, _NAME, _SIZE, children=True), _abbreviation(tag, _SIZE, children=True),
    )
    for kind, tag in (
        (Kind.STRUCT, Tag.STRUCTURE_TYPE), (Kind.UNION, Tag.UNION_TYPE),
        (Kind.ENUM, Tag.ENUMERATION_TYPE),
    )
}  # fmt: skip
"""With a name, and without one."""
FORWARDS: Final = tuple(
    _abbreviation(tag, _NAME, (At.DECLARATION, Form.FLAG_PRESENT))
    for tag in (Tag.STRUCTURE_TYPE, Tag.UNION_TYPE)
)
REFERENCES: Final = {
    kind: (_abbreviation(tag, *more, _TYPE), _abbreviation(tag, *more))
    for kind, tag, more in (
        (Kind.PTR, Tag.POINTER_TYPE, ()), (Kind.TYPEDEF, Tag.TYPEDEF, (_NAME,)),
        (Kind.VOLATILE, Tag.VOLATILE_TYPE, ()), (Kind.CONST, Tag.CONST_TYPE, ()),
        (Kind.RESTRICT, Tag.RESTRICT_TYPE, ()),
    )
}  # fmt: skip
"""To a type, and to void."""
