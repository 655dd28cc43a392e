# SPDX-License-Identifier: MIT
"""Conditions and commands of Z packets: what is taken, what is refused, what is printed."""

import pytest

from svsmd.gdbstub.agent import bytecode
from svsmd.gdbstub.agent.bytecode import BadExpression, Expression, parse_expression
from svsmd.gdbstub.agent.commands import MAX_OUTPUT, Console, run_commands
from svsmd.gdbstub.agent.packet import MAX_EXPRESSIONS, NO_OPTIONS, parse_options
from svsmd.gdbstub.agent.printf import BadFormat, Format
from svsmd.snp.predicate import MAX_DEPTH, NoValue
from tests.agent_code import (
    ADD,
    DIV_S,
    DUP,
    END,
    EQUAL,
    GOTO,
    IF_GOTO,
    LESS_S,
    NAMES,
    PICK,
    POP,
    REF8,
    REF64,
    REM_S,
    SUB,
    SWAP,
    const,
    options,
    printf,
    reg,
    tail,
)
from tests.fake_target import COUNTER, FakeMachine, FakeView

MINUS_ONE = const((1 << 64) - 1)
SMALLEST = const(1 << 63)
MINUS = (1 << 64) - 1


def parse(code: bytes) -> Expression:
    return parse_expression(code, NAMES)


def value(code: bytes) -> int:
    return parse(code + bytes([END])).program.evaluate(FakeView(FakeMachine(), 1))


def test_what_gdb_13_sends() -> None:
    """`break X if $rsp == 5`, and a dprintf with two arguments."""
    parsed = parse_options(b"X9,2600072a4022051327", NAMES)
    ((condition,), commands) = parsed.conditions, parsed.commands
    assert not commands
    assert condition.program.registers == ("rsp",)
    assert condition.program.evaluate(FakeView(FakeMachine(), 1)) == 0
    parsed = options(commands=(printf(rb"%d %s\n", const(7), const(0x2000)),))
    assert parsed.commands[0].formats[0].arguments == 2
    assert not parsed.conditions


@pytest.mark.parametrize(
    ("code", "result"),
    [
        (const(5) + const(3) + bytes([SWAP, SUB]), (1 << 64) - 2),
        (MINUS_ONE + const(1) + bytes([ADD]), 0),
        (SMALLEST + MINUS_ONE + bytes([DIV_S]), 1 << 63),
        (SMALLEST + MINUS_ONE + bytes([REM_S]), 0),
        (MINUS_ONE + const(0) + bytes([LESS_S]), 1),
        (const(1) + const(2) + const(3) + bytes([PICK, 2, EQUAL]), 0),
        (reg("eflags"), 2),
        (const(0x1000) + bytes([REF8]), 0x48),
        (b"", 0),
    ],
)
def test_values(code: bytes, result: int) -> None:
    assert value(code) == result


@pytest.mark.parametrize(
    "code",
    [
        b"",
        bytes([0x22]),
        bytes([0x25, 1, 2]),
        const(1),  # does not end
        bytes([ADD, END]),  # underflows
        const(1) + bytes([SWAP, END]),
        bytes([POP, END]),
        const(1) + bytes([PICK, 1, END]),
        bytes([GOTO, 0, 0, END]),  # for ever
        bytes([GOTO, 0, 1, END]),  # into an instruction
        bytes([GOTO, 0, 9, END]),  # out of the code
        bytes([GOTO, 0, 4, END]),  # to its end
        const(1) + const(1) + bytes([IF_GOTO, 0, 8, DUP, END]),  # two depths
        b"".join(const(1) for _ in range(MAX_DEPTH + 1)) + bytes([END]),
        bytes([0x26, 0xFF, 0xFF, END]),  # no such register
        reg("xmm0") + bytes([END]),
        reg("st0") + bytes([END]),
        bytes([0x16, 0, END]),
        bytes([0x2C, 0, 1, END]),
        bytes([0x2D, 0, 1, END]),
        bytes([0x2E, 0, 1, END]),
        const(1) + bytes([0x0C, END]),
        bytes([0x01, END]),
        bytes([0x00, END]),
        bytes([0xFF, END]),
        bytes([0x34, 0, 0, 1, 0x41, END]),  # a format without an end
        const(0) + const(0) + bytes([0x34, 0, 0, 0, END]),
        const(0) + const(0) + bytes([0x34, 1, 0, 1, 0, END]),  # arguments that are not there
        printf(b"%d") + bytes([END]),
        printf(b"%n", const(1)) + bytes([END]),
        bytes([END]) * (bytecode.MAX_BYTES + 1),
    ],
)
def test_refused(code: bytes) -> None:
    with pytest.raises(BadExpression, match=r"^[^\n]+$"):
        parse(code)


def test_what_is_never_reached_does_not_matter() -> None:
    code = const(3) + bytes([GOTO, 0, 6, POP, END])
    assert parse(code).program.evaluate(FakeView(FakeMachine(), 1)) == 3


@pytest.mark.parametrize(
    "text",
    [
        b"X",
        b"X1",
        b"X1,",
        b"X2,27",
        b"X1,2",
        b"X1,zz",
        b"X1,2 7",
        b"Y1,27",
        b"X1,27,X1,27",
        b"X00000000000000001,27",
        b"cmds:",
        b"cmds:1",
        b"cmds:1X1,27",
        b"X1,27" * (MAX_EXPRESSIONS + 1),
        tail(printf(b"a condition prints"))[1:],
    ],
)
def test_malformed_options(text: bytes) -> None:
    with pytest.raises(BadExpression):
        parse_options(text, NAMES)


def test_several_expressions() -> None:
    parsed = options(const(1), const(2), commands=(printf(b"a"), printf(b"b")))
    assert len(parsed.conditions) == len(parsed.commands) == 2
    assert parse_options(b"", NAMES) == NO_OPTIONS


@pytest.mark.parametrize(
    ("source", "arguments", "text"),
    [
        (b"plain", (), b"plain"),
        (rb"\t\"\\\101\x"[:-2], (), b'\t"\\A'),
        (b"100%%|", (), b"100%|"),
        (b"%d %i %u", (MINUS, MINUS, MINUS), b"-1 -1 4294967295"),
        (b"%ld %lu", (MINUS, MINUS), b"-1 18446744073709551615"),
        (b"%hhd %hd %hhu", (0x1FF, 0x1_8000, 0x1FF), b"-1 -32768 255"),
        (b"%x %X %#x %#x %o %#o", (255, 255, 255, 0, 8, 8), b"ff FF 0xff 0 10 010"),
        (b"[%5d|%-5d|%05d|%+d|% d]", (42, 42, -42 & MINUS, 42, 42), b"[   42|42   |-0042|+42| 42]"),
        (b"[%8.3d|%.0d]", (5, 0), b"[     005|]"),
        (b"%#06x", (255,), b"0x00ff"),
        (b"%c%c", (0x41, 0x142), b"AB"),
        (b"%p %p", (0x10, 0), b"0x10 (nil)"),
        (b"[%s|%6s|%-6s|%.2s]", (1, 1, 1, 1), b"[text|  text|text  |te]"),
        (b"%lld %zd %jx %td", (1, 2, 3, 4), b"1 2 3 4"),
    ],
)
def test_formats(source: bytes, arguments: tuple[int, ...], text: bytes) -> None:
    format_ = Format.parse(source)
    assert format_.arguments == len(arguments)
    assert format_.print(arguments, lambda address, most: b"text"[:most]) == text


@pytest.mark.parametrize(
    "source",
    [
        b"%", b"%n", b"%f", b"%g", b"%*d", b"%.*d", b"%5000d", b"%.5000d", b"%ls", b"%lc",
        b"\\q", b"\\", b"%" + b"9" * 5000 + b"d", b"%5", b"% ",
    ],
)  # fmt: skip
def test_refused_formats(source: bytes) -> None:
    with pytest.raises(BadFormat):
        Format.parse(source)


def test_commands_print_strings_of_the_guest() -> None:
    machine = FakeMachine()
    machine.memory[0x1000:0x1006] = b"hello\0"
    machine.memory[-3:] = b"end"
    console, view = Console(), FakeView(machine, 1)
    run_commands(options(commands=(printf(rb"%s!\n", const(COUNTER)),)).commands, view, console)
    assert console.take() == b"hello!\n"
    assert console.take() == b""
    # A string that runs out of memory, and one that is not there: the others go on.
    commands = (printf(b"%s", const(0x2FFD)), printf(b"%s", const(8)), printf(b"last"))
    run_commands(options(commands=commands).commands, view, console)
    failed = b"a breakpoint's commands failed: cannot read memory at 0x%x\n"
    assert console.take() == failed % 0x3000 + failed % 8 + b"last"


def test_output_is_bounded() -> None:
    console = Console()
    for _ in range(MAX_OUTPUT // 1000 + 2):
        console.write(b"x" * 1000)
    text = console.take()
    assert text.endswith(b"[2000 more bytes were printed, and dropped]\n")
    assert len(text) < MAX_OUTPUT + 100
    assert console.take() == b""


def test_a_load_of_what_is_not_there_has_no_value() -> None:
    program = parse(const(0) + bytes([REF64, END])).program
    with pytest.raises(NoValue):
        program.evaluate(FakeView(FakeMachine(), 1))
