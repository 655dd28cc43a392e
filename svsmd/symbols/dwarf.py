# SPDX-License-Identifier: MIT
"""Numbers of DWARF, and how it writes numbers.

Spec: DWARF Debugging Information Format, version 5: 7.6 (LEB128), 7.7.1 (expressions), 7.24 (call
frame instructions); System V ABI, AMD64 supplement, figure 3.36 (register numbers).
"""

from __future__ import annotations

from enum import IntEnum


class Reg(IntEnum):
    """DWARF's numbers of registers."""

    RAX = 0
    RDX = 1
    RCX = 2
    RBX = 3
    RSI = 4
    RDI = 5
    RBP = 6
    RSP = 7
    R8 = 8
    R9 = 9
    R10 = 10
    R11 = 11
    R12 = 12
    R13 = 13
    R14 = 14
    R15 = 15
    RIP = 16
    RFLAGS = 49
    CS = 51
    SS = 52


class Cfa(IntEnum):
    """Call frame instructions. The first two have an operand in their low six bits."""

    ADVANCE_LOC = 0x40
    OFFSET = 0x80
    ADVANCE_LOC1 = 0x02
    ADVANCE_LOC2 = 0x03
    ADVANCE_LOC4 = 0x04
    UNDEFINED = 0x07
    SAME_VALUE = 0x08
    DEF_CFA = 0x0C
    DEF_CFA_EXPRESSION = 0x0F
    EXPRESSION = 0x10
    OFFSET_EXTENDED_SF = 0x11
    VAL_EXPRESSION = 0x16


class Op(IntEnum):
    """Operations of expressions."""

    ADDR = 0x03
    DEREF = 0x06
    CONSTU = 0x10
    CONSTS = 0x11
    PLUS = 0x22
    PLUS_UCONST = 0x23
    REG0 = 0x50
    BREG0 = 0x70
    PIECE = 0x93
    CALL_FRAME_CFA = 0x9C


def uleb(value: int) -> bytes:
    """An unsigned number in LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def sleb(value: int) -> bytes:
    """A signed number in LEB128."""
    out = bytearray()
    while not -0x40 <= value < 0x40:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value & 0x7F)
    return bytes(out)


def breg(register: Reg, offset: int) -> bytes:
    """The operation that pushes a register's value plus an offset; for registers 0 to 31."""
    return bytes([Op.BREG0 + register]) + sleb(offset)


def plus(offset: int) -> bytes:
    """Operations that add a number to what is on the stack."""
    if offset >= 0:
        return bytes([Op.PLUS_UCONST]) + uleb(offset)
    return bytes([Op.CONSTS]) + sleb(offset) + bytes([Op.PLUS])


def block(expression: bytes) -> bytes:
    """An expression behind its length."""
    return uleb(len(expression)) + expression


class Tag(IntEnum):
    """Tags of entries."""

    ARRAY_TYPE = 0x01
    ENUMERATION_TYPE = 0x04
    FORMAL_PARAMETER = 0x05
    MEMBER = 0x0D
    POINTER_TYPE = 0x0F
    COMPILE_UNIT = 0x11
    STRUCTURE_TYPE = 0x13
    SUBROUTINE_TYPE = 0x15
    TYPEDEF = 0x16
    UNION_TYPE = 0x17
    UNSPECIFIED_PARAMETERS = 0x18
    INLINED_SUBROUTINE = 0x1D
    SUBRANGE_TYPE = 0x21
    BASE_TYPE = 0x24
    CONST_TYPE = 0x26
    ENUMERATOR = 0x28
    SUBPROGRAM = 0x2E
    VARIABLE = 0x34
    VOLATILE_TYPE = 0x35
    RESTRICT_TYPE = 0x37


class At(IntEnum):
    """Attributes."""

    LOCATION = 0x02
    NAME = 0x03
    BYTE_SIZE = 0x0B
    LOW_PC = 0x11
    HIGH_PC = 0x12
    LANGUAGE = 0x13
    CONST_VALUE = 0x1C
    INLINE = 0x20
    BIT_SIZE = 0x0D
    PRODUCER = 0x25
    PROTOTYPED = 0x27
    ABSTRACT_ORIGIN = 0x31
    COUNT = 0x37
    DATA_MEMBER_LOCATION = 0x38
    DECLARATION = 0x3C
    ENCODING = 0x3E
    CALL_FILE = 0x58
    CALL_LINE = 0x59
    TYPE = 0x49
    DATA_BIT_OFFSET = 0x6B


class Form(IntEnum):
    """Forms of attributes."""

    ADDR = 0x01
    DATA4 = 0x06
    DATA8 = 0x07
    DATA1 = 0x0B
    SDATA = 0x0D
    STRP = 0x0E
    REF4 = 0x13
    SEC_OFFSET = 0x17
    EXPRLOC = 0x18
    FLAG_PRESENT = 0x19


class Ate(IntEnum):
    """Encodings of base types."""

    BOOLEAN = 0x02
    FLOAT = 0x04
    SIGNED = 0x05
    SIGNED_CHAR = 0x06
    UNSIGNED = 0x07
    UNSIGNED_CHAR = 0x08


class Lle(IntEnum):
    """Kinds of entries of location lists."""

    END_OF_LIST = 0x00
    OFFSET_PAIR = 0x04
