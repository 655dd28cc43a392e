# SPDX-License-Identifier: MIT
"""Small programs that are evaluated at a breakpoint: what decides whether it stops the machine.

A program is a list of instructions for a stack of unsigned 64-bit numbers. Jumps go forward only,
and each instruction meets a stack of one depth however it is reached; both are checked once, when a
program is made. So no program, whoever wrote it, loops, grows or leaves its stack, and evaluating
one takes no more steps than it has instructions.

Programs are evaluated by a Python function made of them, or by native/breakpoints.c, which has the
same instructions; what a program needs that native code has not is Python's. They read registers
and memory and change nothing, so the guest cannot tell whether there is one.

Arithmetic is modulo 2**64. Signed instructions take numbers as two's complement; quotients are
rounded to zero. Shifts by 64 and more give 0, or the sign. Division by zero has no result:
`NoValue`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any, Final, NamedTuple, Protocol

MASK: Final = (1 << 64) - 1
MAX_DEPTH: Final = 64
"""Most numbers on the stack; so many has the one of native code."""
MAX_INSTRUCTIONS: Final = 4096
_SIGN: Final = 1 << 63
_LOAD_SIZES: Final = (1, 2, 4, 8)


class Op(IntEnum):
    """What an instruction does; enum op of native/breakpoints.c.

    In the comments, what is on the stack before and after, its top at the right.
    """

    END = 0  # the value of the program is the top, or 0
    JUMP = 1  # to the instruction of this index
    JUMP_IF = 2  # a -> ; if a is not 0
    CONST = 3  # -> operand
    REGISTER = 4  # -> the register of this index in `Program.registers`
    LOAD = 5  # address -> so many bytes at it
    ADD = 6  # a b -> a + b
    SUB = 7
    MUL = 8
    DIV_SIGNED = 9
    DIV_UNSIGNED = 10
    REM_SIGNED = 11
    REM_UNSIGNED = 12
    SHIFT_LEFT = 13
    SHIFT_RIGHT_SIGNED = 14
    SHIFT_RIGHT = 15
    AND = 16
    OR = 17
    XOR = 18
    EQUAL = 19  # a b -> 1 or 0
    LESS_SIGNED = 20
    LESS_UNSIGNED = 21
    LOGICAL_NOT = 22  # a -> 1 if a is 0, else 0
    NOT = 23
    EXTEND = 24  # a -> a, its sign in this bit's place on the left: 1 to 64 bits
    ZERO_EXTEND = 25  # a -> so many bits of it
    DUPLICATE = 26
    POP = 27
    SWAP = 28
    PICK = 29  # copies the one that lies so far below the top
    ROTATE = 30  # a b c -> c a b
    CALL = 31  # pops operand >> 32 numbers for `Evaluator.call` with operand & 0xFFFF_FFFF


class Instruction(NamedTuple):
    """One instruction."""

    op: Op
    operand: int = 0


class NoValue(Exception):
    """The program cannot be evaluated here and now: unreadable memory, or a division by zero."""


class BadProgram(ValueError):
    """The instructions are no program; the text says why."""


class Evaluator(Protocol):
    """What programs are evaluated against."""

    def register(self, name: str) -> int:
        """Value of a register, 0 to 2**64 - 1. Raises `NoValue`."""
        ...

    def load(self, address: int, nbytes: int) -> int:
        """Little-endian number in memory. Raises `NoValue`."""
        ...

    def call(self, index: int, arguments: Sequence[int]) -> None:
        """What a CALL does; the arguments from the top of the stack down."""
        ...


_EFFECTS: Final[dict[Op, tuple[int, int]]] = {
    Op.END: (0, 0), Op.JUMP: (0, 0), Op.JUMP_IF: (1, 0), Op.CONST: (0, 1), Op.REGISTER: (0, 1),
    Op.LOAD: (1, 1), Op.LOGICAL_NOT: (1, 1), Op.NOT: (1, 1), Op.EXTEND: (1, 1),
    Op.ZERO_EXTEND: (1, 1), Op.DUPLICATE: (1, 2), Op.POP: (1, 0), Op.SWAP: (2, 2),
    Op.ROTATE: (3, 3),
    **{Op(op): (2, 1) for op in range(Op.ADD, Op.LOGICAL_NOT)},
}  # fmt: skip
"""How many numbers an instruction pops and pushes; PICK and CALL depend on their operand."""


def _effect(instruction: Instruction) -> tuple[int, int]:
    op, operand = instruction
    if op is Op.PICK:
        return operand + 1, operand + 2
    if op is Op.CALL:
        return operand >> 32, 0
    return _EFFECTS[op]


@dataclass(frozen=True)
class Program:
    """A checked program.

    Attributes:
        registers: names of registers, which REGISTER refers to.

    Raises:
        BadProgram: it jumps backwards or out of itself, under- or overflows its stack, does not
            end, or has an operand that its instruction does not take.
    """

    instructions: tuple[Instruction, ...]
    registers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.instructions) > MAX_INSTRUCTIONS:
            raise BadProgram(f"more than {MAX_INSTRUCTIONS} instructions")
        self._check_operands()
        _ = self.depths

    def _check_operands(self) -> None:
        for op, operand in self.instructions:
            if not 0 <= operand <= MASK:
                raise BadProgram("an operand is not a number of 64 bits")
            if (
                (op is Op.REGISTER and operand >= len(self.registers))
                or (op is Op.LOAD and operand not in _LOAD_SIZES)
                or (op is Op.EXTEND and not 1 <= operand <= 64)
                or (op is Op.ZERO_EXTEND and operand > 64)
            ):
                raise BadProgram(f"{op.name} does not take {operand}")

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Depth of the stack before each instruction; -1 for what is never reached."""
        count = len(self.instructions)
        depths = [-1] * count

        def reach(index: int, depth: int) -> None:
            if index >= count:
                raise BadProgram("it does not end")
            if depths[index] not in (-1, depth):
                raise BadProgram("an instruction meets stacks of different depths")
            depths[index] = depth

        reach(0, 0)
        for index, instruction in enumerate(self.instructions):
            depth = depths[index]
            if depth < 0:
                continue
            pops, pushes = _effect(instruction)
            if depth < pops:
                raise BadProgram("the stack underflows")
            depth += pushes - pops
            if depth > MAX_DEPTH:
                raise BadProgram("the stack overflows")
            op, operand = instruction
            if op in (Op.JUMP, Op.JUMP_IF):
                if operand <= index:
                    raise BadProgram("it jumps backwards")
                reach(operand, depth)
            if op not in (Op.JUMP, Op.END):
                reach(index + 1, depth)
        return tuple(depths)

    @cached_property
    def calls(self) -> bool:
        """Whether it calls functions, which native code cannot."""
        return any(instruction.op is Op.CALL for instruction in self.instructions)

    def evaluate(self, evaluator: Evaluator) -> int:
        """The program's value, 0 to 2**64 - 1.

        Raises:
            NoValue: it has none.
        """
        return self._function(evaluator.register, evaluator.load, evaluator.call)

    @cached_property
    def _function(self) -> Callable[..., int]:
        """The program as a function, made when it is first needed.

        Jumps go forward, so a block of instructions is run if no jump leads past it: `to` is the
        instruction that the last jump led to.
        """
        starts = {operand for op, operand in self.instructions if op in (Op.JUMP, Op.JUMP_IF)}
        lines = ["def program(register, load, call):", " to = 0"]
        begins = True
        for index, (instruction, depth) in enumerate(
            zip(self.instructions, self.depths, strict=True)
        ):
            if depth < 0:
                begins = True
                continue
            if begins or index in starts:
                lines.append(f" if to <= {index}:")
            lines.extend(f"  {line}" for line in self._python(instruction, depth))
            begins = instruction.op in (Op.JUMP, Op.JUMP_IF, Op.END)
        scope: dict[str, Any] = {"signed": _signed, "div": _divide, "rem": _remainder,
                                 "shl": _shift_left, "sar": _shift_right_signed}  # fmt: skip
        exec(compile("\n".join(lines), "<program>", "exec"), scope)  # of checked instructions only
        function: Callable[..., int] = scope["program"]
        return function

    def _python(self, instruction: Instruction, depth: int) -> Sequence[str]:
        op, operand = instruction
        top, below, push = f"s{depth - 1}", f"s{depth - 2}", f"s{depth}"
        if op in _BINARY:
            return (f"{below} = {_BINARY[op].format(a=below, b=top)}",)
        match op:
            case Op.END:
                return (f"return {top}" if depth else "return 0",)
            case Op.JUMP:
                return (f"to = {operand}",)
            case Op.JUMP_IF:
                return (f"if {top}: to = {operand}",)
            case Op.CONST:
                return (f"{push} = {operand}",)
            case Op.REGISTER:
                return (f"{push} = register({self.registers[operand]!r})",)
            case Op.LOAD:
                return (f"{top} = load({top}, {operand})",)
            case Op.LOGICAL_NOT:
                return (f"{top} = 0 if {top} else 1",)
            case Op.NOT:
                return (f"{top} ^= {MASK}",)
            case Op.EXTEND:
                sign = 1 << operand - 1
                return (f"{top} = (({top} & {2 * sign - 1}) ^ {sign}) - {sign} & {MASK}",)
            case Op.ZERO_EXTEND:
                return (f"{top} &= {(1 << operand) - 1}",)
            case Op.DUPLICATE:
                return (f"{push} = {top}",)
            case Op.POP:
                return ("pass",)
            case Op.SWAP:
                return (f"{below}, {top} = {top}, {below}",)
            case Op.PICK:
                return (f"{push} = s{depth - 1 - operand}",)
            case Op.ROTATE:
                third = f"s{depth - 3}"
                return (f"{third}, {below}, {top} = {top}, {third}, {below}",)
            case _:
                pops = operand >> 32
                popped = "".join(f"s{depth - 1 - i}, " for i in range(pops))
                return (f"call({operand & 0xFFFF_FFFF}, ({popped}))",)


def _signed(value: int) -> int:
    return value - (value >> 63 << 64)


def _divide(a: int, b: int) -> int:
    """Rounded to zero; signs and modulus are the caller's."""
    if not b:
        raise NoValue("division by zero")
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def _remainder(a: int, b: int) -> int:
    """It has the dividend's sign."""
    return a - b * _divide(a, b)


def _shift_left(a: int, b: int) -> int:
    return a << b & MASK if b < 64 else 0


def _shift_right_signed(a: int, b: int) -> int:
    return _signed(a) >> min(b, 63) & MASK


_BINARY: Final = {
    Op.ADD: f"{{a}} + {{b}} & {MASK}",
    Op.SUB: f"{{a}} - {{b}} & {MASK}",
    Op.MUL: f"{{a}} * {{b}} & {MASK}",
    Op.DIV_SIGNED: f"div(signed({{a}}), signed({{b}})) & {MASK}",
    Op.DIV_UNSIGNED: "div({a}, {b})",
    Op.REM_SIGNED: f"rem(signed({{a}}), signed({{b}})) & {MASK}",
    Op.REM_UNSIGNED: "rem({a}, {b})",
    Op.SHIFT_LEFT: "shl({a}, {b})",
    Op.SHIFT_RIGHT_SIGNED: "sar({a}, {b})",
    Op.SHIFT_RIGHT: "{a} >> {b} if {b} < 64 else 0",
    Op.AND: "{a} & {b}",
    Op.OR: "{a} | {b}",
    Op.XOR: "{a} ^ {b}",
    Op.EQUAL: "1 if {a} == {b} else 0",
    Op.LESS_SIGNED: f"1 if {{a}} ^ {_SIGN} < {{b}} ^ {_SIGN} else 0",
    Op.LESS_UNSIGNED: "1 if {a} < {b} else 0",
}
"""Of the two on the top; operators bind as in C but for comparisons, which come last."""
