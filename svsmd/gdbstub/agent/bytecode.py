# SPDX-License-Identifier: MIT
"""The byte code of agent expressions, and the programs that it becomes.

A program that gdb makes is short and has forward jumps only. Byte code that jumps backwards, jumps
into the middle of an instruction, or meets a stack of another depth at some place is refused when
it comes; what is accepted ends, within its stack.

Spec: GDB manual, F.2 Bytecode Descriptions; the numbers are those given there. Deviations: floating
point has no encoding in practice and is refused; trace state variables and everything that records
trace frames belong to tracepoints, which this stub does not have, and are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.gdbstub.agent.printf import BadFormat, Format
from svsmd.snp.predicate import BadProgram, Instruction, Op, Program

MAX_BYTES: Final = 4096
"""Longest expression."""

_SIMPLE: Final[Mapping[int, tuple[Op, int]]] = {
    0x02: (Op.ADD, 0), 0x03: (Op.SUB, 0), 0x04: (Op.MUL, 0),
    0x05: (Op.DIV_SIGNED, 0), 0x06: (Op.DIV_UNSIGNED, 0),
    0x07: (Op.REM_SIGNED, 0), 0x08: (Op.REM_UNSIGNED, 0),
    0x09: (Op.SHIFT_LEFT, 0), 0x0A: (Op.SHIFT_RIGHT_SIGNED, 0), 0x0B: (Op.SHIFT_RIGHT, 0),
    0x0E: (Op.LOGICAL_NOT, 0), 0x0F: (Op.AND, 0), 0x10: (Op.OR, 0), 0x11: (Op.XOR, 0),
    0x12: (Op.NOT, 0), 0x13: (Op.EQUAL, 0),
    0x14: (Op.LESS_SIGNED, 0), 0x15: (Op.LESS_UNSIGNED, 0),
    0x17: (Op.LOAD, 1), 0x18: (Op.LOAD, 2), 0x19: (Op.LOAD, 4), 0x1A: (Op.LOAD, 8),
    0x27: (Op.END, 0), 0x28: (Op.DUPLICATE, 0), 0x29: (Op.POP, 0), 0x2B: (Op.SWAP, 0),
    0x33: (Op.ROTATE, 0),
}  # fmt: skip
_WITH_OPERAND: Final[Mapping[int, tuple[Op, int]]] = {
    0x16: (Op.EXTEND, 1), 0x2A: (Op.ZERO_EXTEND, 1), 0x32: (Op.PICK, 1),
    0x20: (Op.JUMP_IF, 2), 0x21: (Op.JUMP, 2),
    0x22: (Op.CONST, 1), 0x23: (Op.CONST, 2), 0x24: (Op.CONST, 4), 0x25: (Op.CONST, 8),
    0x26: (Op.REGISTER, 2),
}  # fmt: skip
"""And the bytes of the operand, big-endian."""
_PRINTF: Final = 0x34
_REFUSED: Final[Mapping[int, str]] = {
    0x01: "float", 0x0C: "trace", 0x0D: "trace_quick", 0x1B: "ref_float", 0x1C: "ref_double",
    0x1D: "ref_long_double", 0x1E: "l_to_d", 0x1F: "d_to_l", 0x2C: "getv", 0x2D: "setv",
    0x2E: "tracev", 0x2F: "tracenz", 0x30: "trace16",
}  # fmt: skip


class BadExpression(ValueError):
    """The bytes are no expression that this stub evaluates; the text says why, in one line."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression.

    Attributes:
        formats: what the program's calls print.
    """

    program: Program
    formats: tuple[Format, ...] = ()


class _Decoder:
    """Reads the op codes in their order, once."""

    def __init__(self, code: bytes, registers: Sequence[str | None]) -> None:
        self._code = code
        self._numbers = registers
        self._at = 0
        self.instructions: list[Instruction] = []
        self.registers: list[str] = []
        self.formats: list[Format] = []
        self.starts: dict[int, int] = {}
        """Indices of the instructions by the offset of their op codes."""

    def _take(self, nbytes: int) -> bytes:
        taken = self._code[self._at : self._at + nbytes]
        if len(taken) < nbytes:
            raise BadExpression("the expression ends within an instruction")
        self._at += nbytes
        return taken

    def decode(self) -> None:
        """All of the code."""
        while self._at < len(self._code):
            self.starts[self._at] = len(self.instructions)
            (opcode,) = self._take(1)
            if opcode in _SIMPLE:
                self.instructions.append(Instruction(*_SIMPLE[opcode]))
            elif opcode in _WITH_OPERAND:
                op, nbytes = _WITH_OPERAND[opcode]
                self._with_operand(op, int.from_bytes(self._take(nbytes), "big"))
            elif opcode == _PRINTF:
                self._printf()
            else:
                name = _REFUSED.get(opcode, f"{opcode:#04x}")
                raise BadExpression(f"op code {name} is not supported")

    def _with_operand(self, op: Op, operand: int) -> None:
        if op is Op.REGISTER:
            name = self._numbers[operand] if operand < len(self._numbers) else None
            if name is None:
                raise BadExpression(f"register {operand} is not there, or has more than 64 bits")
            if name not in self.registers:
                self.registers.append(name)
            operand = self.registers.index(name)
        elif op in (Op.EXTEND, Op.ZERO_EXTEND):
            operand = min(operand, 64)  # of more bits than there are, all stay
        self.instructions.append(Instruction(op, operand))

    def _printf(self) -> None:
        """Function and channel on the top mean nothing here; then the arguments, the first one
        first."""
        count, length = self._take(1)[0], int.from_bytes(self._take(2), "big")
        text = self._take(length)
        if not text.endswith(b"\0"):
            raise BadExpression("a format string without an end")
        try:
            format_ = Format.parse(text[:-1])
        except BadFormat as error:
            raise BadExpression(str(error)) from None
        if format_.arguments != count:
            raise BadExpression(f"a format string for {format_.arguments} arguments with {count}")
        self.instructions += [Instruction(Op.POP), Instruction(Op.POP)]
        self.instructions.append(Instruction(Op.CALL, count << 32 | len(self.formats)))
        self.formats.append(format_)

    def resolved(self) -> tuple[Instruction, ...]:
        """The instructions, with jumps to instructions."""
        resolved = []
        for op, operand in self.instructions:
            if op in (Op.JUMP, Op.JUMP_IF):
                if operand not in self.starts:
                    raise BadExpression("a jump to where no instruction begins")
                resolved.append(Instruction(op, self.starts[operand]))
            else:
                resolved.append(Instruction(op, operand))
        return tuple(resolved)


def parse_expression(code: bytes, registers: Sequence[str | None]) -> Expression:
    """Makes a program of byte code.

    Args:
        registers: names by gdb's number; None for what has more than 64 bits.

    Raises:
        BadExpression: it is malformed, has an op code that is not supported, or is too long.
    """
    if len(code) > MAX_BYTES:
        raise BadExpression(f"an expression of more than {MAX_BYTES} bytes")
    decoder = _Decoder(code, registers)
    decoder.decode()
    try:
        program = Program(decoder.resolved(), tuple(decoder.registers))
    except BadProgram as error:
        raise BadExpression(str(error)) from None
    return Expression(program, tuple(decoder.formats))
