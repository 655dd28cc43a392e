# SPDX-License-Identifier: MIT
"""Byte code of agent expressions as gdb makes it, and a plain interpreter of it to compare with.

Spec: GDB manual, F.2 Bytecode Descriptions.
"""

from collections.abc import Callable

from svsmd.gdbstub.agent.packet import Options, parse_options
from svsmd.gdbstub.target_xml import REGISTER_NUMBERS, REGISTERS

NAMES = [register.name if register.bitsize <= 64 else None for register in REGISTERS]
MASK = (1 << 64) - 1
ADD, SUB, MUL, DIV_S, DIV_U, REM_S, REM_U, LSH, RSH_S, RSH_U = range(2, 12)
LOG_NOT, AND, OR, XOR, NOT, EQUAL, LESS_S, LESS_U, EXT = range(0x0E, 0x17)
REF8, REF16, REF32, REF64 = range(0x17, 0x1B)
IF_GOTO, GOTO, CONST8, CONST16, CONST32, CONST64, REG, END, DUP, POP = range(0x20, 0x2A)
ZERO_EXT, SWAP = 0x2A, 0x2B
PICK, ROT, PRINTF = 0x32, 0x33, 0x34


def const(value: int) -> bytes:
    """Pushes a number, by the shortest op code."""
    for opcode, size in ((CONST8, 1), (CONST16, 2), (CONST32, 4)):
        if value < 1 << 8 * size:
            return bytes([opcode]) + value.to_bytes(size, "big")
    return bytes([CONST64]) + (value & MASK).to_bytes(8, "big")


def reg(name: str) -> bytes:
    """Pushes a register."""
    return bytes([REG]) + REGISTER_NUMBERS[name].to_bytes(2, "big")


def printf(text: bytes, *arguments: bytes) -> bytes:
    """Prints; arguments are code that pushes one number each."""
    code = b"".join(reversed(arguments)) + const(0) + const(0)
    string = text + b"\0"
    return code + bytes([PRINTF, len(arguments)]) + len(string).to_bytes(2, "big") + string


def tail(*conditions: bytes, commands: tuple[bytes, ...] = ()) -> bytes:
    """What a Z packet has behind the address, END added to each expression."""

    def expressions(codes: tuple[bytes, ...]) -> bytes:
        ended = [code + bytes([END]) for code in codes]
        return b"".join(b"X%x,%b" % (len(code), code.hex().encode()) for code in ended)

    text = b";" + expressions(conditions) if conditions else b""
    return text + (b";cmds:1," + expressions(commands) if commands else b"")


def options(*conditions: bytes, commands: tuple[bytes, ...] = ()) -> Options:
    """tail(), parsed."""
    return parse_options(tail(*conditions, commands=commands)[1:], NAMES)


class Fault(Exception):
    """The interpreter cannot go on."""


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def interpret(code: bytes, register: Callable[[str], int], load: Callable[[int, int], int]) -> int:
    """The value of an expression, op code by op code. `load` may raise `Fault`."""
    stack: list[int] = []
    at = 0

    def operand(nbytes: int) -> int:
        nonlocal at
        at += nbytes
        return int.from_bytes(code[at - nbytes : at], "big")

    while True:
        opcode = operand(1)
        if opcode == END:
            return stack[-1] if stack else 0
        if opcode in (CONST8, CONST16, CONST32, CONST64):
            stack.append(operand(1 << opcode - CONST8))
        elif opcode == REG:
            name = NAMES[operand(2)]
            assert name is not None
            stack.append(register(name))
        elif opcode == DUP:
            stack.append(stack[-1])
        elif opcode == POP:
            stack.pop()
        elif opcode == SWAP:
            stack[-2:] = reversed(stack[-2:])
        elif opcode == ROT:
            a, b, c = stack[-3:]
            stack[-3:] = [c, a, b]
        elif opcode == PICK:
            stack.append(stack[-1 - operand(1)])
        elif opcode == GOTO:
            at = operand(2)
        elif opcode == IF_GOTO:
            target = operand(2)
            if stack.pop():
                at = target
        elif opcode == EXT:
            bits = operand(1)
            value = stack.pop() & (1 << bits) - 1
            stack.append((value - (1 << bits) if value >> bits - 1 else value) & MASK)
        elif opcode == ZERO_EXT:
            stack.append(stack.pop() & (1 << operand(1)) - 1)
        elif REF8 <= opcode <= REF64:
            stack.append(load(stack.pop(), 1 << opcode - REF8))
        elif opcode == LOG_NOT:
            stack.append(int(stack.pop() == 0))
        elif opcode == NOT:
            stack.append(~stack.pop() & MASK)
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(_binary(opcode, a, b) & MASK)


def _binary(opcode: int, a: int, b: int) -> int:
    if opcode in (DIV_S, DIV_U, REM_S, REM_U):
        if b == 0:
            raise Fault
        if opcode in (DIV_S, REM_S):
            a, b = signed(a), signed(b)
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return quotient if opcode in (DIV_S, DIV_U) else a - b * quotient
    match opcode:
        case 0x02:
            return a + b
        case 0x03:
            return a - b
        case 0x04:
            return a * b
        case 0x09:
            return a << b if b < 64 else 0
        case 0x0A:
            return signed(a) >> b if b < 64 else -(a >> 63)
        case 0x0B:
            return a >> b if b < 64 else 0
        case 0x0F:
            return a & b
        case 0x10:
            return a | b
        case 0x11:
            return a ^ b
        case 0x13:
            return int(a == b)
        case 0x14:
            return int(signed(a) < signed(b))
        case 0x15:
            return int(a < b)
    raise AssertionError(f"op code {opcode:#x}")
