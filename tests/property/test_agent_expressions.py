# SPDX-License-Identifier: MIT
"""Any bytes are refused, or an expression that ends; its value is that of a plain interpreter."""

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.agent.bytecode import BadExpression, parse_expression
from svsmd.gdbstub.agent.packet import parse_options
from svsmd.gdbstub.agent.printf import BadFormat, Format
from svsmd.snp import native_callbacks
from svsmd.snp.exits import Hlt
from svsmd.snp.native_breakpoints import pack_program
from svsmd.snp.predicate import NoValue, Program
from tests.agent_code import (
    AND,
    DUP,
    END,
    EXT,
    GOTO,
    IF_GOTO,
    LOG_NOT,
    LSH,
    NAMES,
    NOT,
    PICK,
    POP,
    REF8,
    REF64,
    ROT,
    SWAP,
    ZERO_EXT,
    Fault,
    const,
    interpret,
    reg,
    tail,
)
from tests.bare_machine import DATA, VMSA, BareMachine

_NUMBERS = st.one_of(
    st.integers(0, 100),
    st.integers((1 << 64) - 100, (1 << 64) - 1),
    st.sampled_from([1 << 63, (1 << 63) - 1, 1 << 31, 1 << 32]),
    st.integers(0, (1 << 64) - 1),
)
_REGISTERS = st.sampled_from(["rax", "r15", "rsp", "rip", "eflags", "cs", "gs_base", "cr0", "cr3",
                              "efer", "vmpl", "cs_limit", "cr8", "lstar"])  # fmt: skip
_ADDRESSES = st.one_of(
    st.integers(DATA, DATA + 0x2000), st.sampled_from([DATA + 0xFFD, VMSA, 1 << 40, 1 << 47])
)


def _placed(code: list[Any], at: int = 0) -> bytes:
    """Flattens nested lists; ("if", then, otherwise) becomes jumps to absolute offsets."""
    out = b""
    for part in code:
        if isinstance(part, bytes):
            out += part
        elif isinstance(part, list):
            out += _placed(part, at + len(out))
        else:
            _, then, otherwise = part
            begin = at + len(out)
            first = _placed(otherwise, begin + 3)
            there = begin + 3 + len(first) + 3
            second = _placed(then, there)
            end = there + len(second)
            out += bytes([IF_GOTO]) + there.to_bytes(2, "big") + first
            out += bytes([GOTO]) + end.to_bytes(2, "big") + second
    return out


_leaves = st.one_of(
    _NUMBERS.map(const), _REGISTERS.map(reg), _ADDRESSES.map(lambda a: const(a) + bytes([REF64]))
).map(lambda code: [code])
_binary = [*range(2, LSH), LSH, 0x0A, 0x0B, AND, 0x10, 0x11, 0x13, 0x14, 0x15]
_code = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b, op: [a, b, bytes([op])], inner, inner, st.sampled_from(_binary)),
        st.builds(lambda a, op: [a, bytes([op])], inner, st.sampled_from([LOG_NOT, NOT])),
        st.builds(
            lambda a, op, n: [a, bytes([op, n])],
            inner, st.sampled_from([EXT, ZERO_EXT]), st.integers(1, 64),
        ),
        st.builds(lambda a: [a, bytes([DUP, POP])], inner),
        st.builds(lambda a, b: [a, b, bytes([SWAP, POP])], inner, inner),
        st.builds(
            lambda a, b, c, n: [a, b, c, bytes([ROT, PICK, n, 0x11, 0x02, SWAP, 0x03])],
            inner, inner, inner, st.integers(0, 2),
        ),
        st.builds(lambda a, b, c: [a, ("if", b, c)], inner, inner, inner),
        st.builds(
            lambda a, size: [a, const(0xFFF), bytes([AND]), const(DATA), bytes([2, REF8 + size])],
            inner, st.integers(0, 3),
        ),
    ),
    max_leaves=12,
).map(_placed)  # fmt: skip


@cache
def _machine() -> BareMachine:
    machine = BareMachine()
    machine.write(DATA, bytes(range(256)) * 32)
    machine.map(DATA + 0x2000, DATA, 0)  # not present
    # Native code follows tables that the guest has used.
    source = f"mov rax, [{DATA}]; mov rax, 0x1122334455667788; or r15, -1; hlt"
    assert machine.run(source) == Hlt()
    return machine


def _native(program: Program) -> int | None:
    """Its value by native code; None where that leaves it to Python."""
    callbacks = _machine().silicon.cpu._callbacks
    assert isinstance(callbacks, native_callbacks.NativeCallbacks)
    packed = pack_program(program, callbacks._engine.layout)
    value = ctypes.c_uint64()
    if packed is None or not callbacks._library.svsmd_evaluate(
        callbacks._user, ctypes.byref(packed), ctypes.byref(value)
    ):
        return None
    return value.value


def _reference(code: bytes) -> int | None:
    silicon = _machine().silicon

    def load(address: int, nbytes: int) -> int:
        try:
            return silicon.debug.view.load(address, nbytes)
        except NoValue:
            raise Fault from None

    try:
        return interpret(code, silicon.registers.value, load)
    except Fault:
        return None


def _python(program: Program) -> int | None:
    try:
        return program.evaluate(_machine().silicon.debug.view)
    except NoValue:
        return None


@settings(max_examples=500)
@given(_code)
def test_three_evaluators_agree(code: bytes) -> None:
    code += bytes([END])
    expected = _reference(code)
    program = parse_expression(code, NAMES).program
    assert _python(program) == expected
    native = _native(program)
    if native is None:
        # Only what is unusual is left to Python.
        assert expected is None or {"cr8"} & set(program.registers) or VMSA.to_bytes(4) in code
    else:
        assert native == expected


@settings(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.lists(
            st.one_of(
                st.sampled_from([bytes([op]) for op in range(0x35)]),
                st.builds(const, _NUMBERS),
                st.builds(lambda op, n: bytes([op, 0, n]), st.sampled_from([IF_GOTO, GOTO]),
                          st.integers(0, 40)),
                st.builds(lambda n: bytes([PICK, n]), st.integers(0, 5)),
            ),
            max_size=20,
        ).map(b"".join),
    )
)  # fmt: skip
def test_any_bytes_end_or_are_refused(code: bytes) -> None:
    """Byte code that is accepted is what the interpreter makes of it; that would not end else."""
    try:
        expression = parse_expression(code + bytes([END]), NAMES)
    except BadExpression:
        return
    if not expression.formats:
        assert _python(expression.program) == _reference(code + bytes([END]))


@given(st.one_of(st.binary(max_size=60), st.lists(st.binary(max_size=9), max_size=5).map(
    lambda codes: tail(*codes, commands=tuple(codes))[1:])))  # fmt: skip
def test_any_tail_of_a_packet(text: bytes) -> None:
    with suppress(BadExpression):
        parse_options(text, NAMES)


@given(
    st.lists(st.sampled_from([b"%", b"d", b"s", b"l", b"5", b".", b"-", b"0", b"\\", b"n", b"c",
                              b"#", b"x", b"text", b"7"]), max_size=12).map(b"".join),
    st.lists(_NUMBERS, min_size=12, max_size=12),
)  # fmt: skip
def test_any_format(source: bytes, arguments: list[int]) -> None:
    try:
        format_ = Format.parse(source)
    except BadFormat:
        return
    text = format_.print(arguments[: format_.arguments], lambda address, most: b"s" * min(most, 9))
    assert len(text) < 20_000
