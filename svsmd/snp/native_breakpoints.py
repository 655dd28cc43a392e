# SPDX-License-Identifier: MIT
"""Breakpoints as native/breakpoints.c reads them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

from svsmd.snp.breakpoint import ROOT_MASK, Breakpoint
from svsmd.snp.engine_layout import EngineLayout
from svsmd.snp.predicate import MASK, Op, Program
from svsmd.snp.register_names import CONTROL, GENERAL, LAYOUT_WORDS, SEGMENTS


class _Register(IntEnum):
    """enum register_kind of native/breakpoints.c."""

    WORD = 0
    HALF = 1
    SELECTOR = 2
    RIP = 3
    RFLAGS = 4
    VMPL = 5


class _Instruction(ctypes.Structure):
    """struct instruction of native/breakpoints.c."""

    _fields_ = (("op", ctypes.c_uint64), ("operand", ctypes.c_uint64))


class _Point(ctypes.Structure):
    """struct point of native/breakpoints.c."""

    _fields_ = (
        ("ask", ctypes.c_uint64), ("vmpl", ctypes.c_uint64), ("root", ctypes.c_uint64),
        ("root_mask", ctypes.c_uint64), ("programs", ctypes.c_void_p), ("count", ctypes.c_uint64),
        ("evaluations", ctypes.c_uint64),
    )  # fmt: skip


class _Site(ctypes.Structure):
    """struct site of native/breakpoints.c."""

    _fields_ = (
        ("shared", ctypes.c_void_p), ("points", ctypes.c_void_p), ("count", ctypes.c_uint64),
    )  # fmt: skip


def _register_operands(layout: EngineLayout) -> Mapping[str, int]:
    """Operands of OP_REGISTER by the names of the registers that native code can read."""

    def operand(kind: _Register, offset: int = 0) -> int:
        return kind << 32 | offset

    return {
        **{name: operand(_Register.WORD, layout.regs + 8 * i) for i, name in enumerate(GENERAL)},
        **{
            name: operand(_Register.SELECTOR, layout.segment(i))
            for i, name in enumerate(SEGMENTS)
        },
        **{
            f"{name}_base": operand(_Register.WORD, layout.segment(i) + 8)
            for i, name in enumerate(SEGMENTS)
        },
        **{
            f"{name}_limit": operand(_Register.HALF, layout.segment(i) + 16)
            for i, name in enumerate(SEGMENTS)
        },
        **{name: operand(_Register.WORD, layout.cr + 8 * i) for name, i in CONTROL.items()},
        **{
            name: operand(_Register.WORD, getattr(layout, field))
            for name, field in LAYOUT_WORDS.items()
        },
        "rip": operand(_Register.RIP),
        "eflags": operand(_Register.RFLAGS),
        "vmpl": operand(_Register.VMPL),
    }  # fmt: skip


def pack_program(program: Program, layout: EngineLayout) -> ctypes.Array[Any] | None:
    """The program as an array of struct instruction; None if native code cannot evaluate it."""
    if program.calls:
        return None
    operands = _register_operands(layout)
    packed = (_Instruction * len(program.instructions))()
    for at, (op, operand) in zip(packed, program.instructions, strict=True):
        at.op, at.operand = op, operand
        if op is Op.REGISTER:
            found = operands.get(program.registers[operand])
            if found is None:
                return None
            at.operand = found
    return packed


class Site:
    """A linear address with breakpoints.

    Attributes:
        user: what svsmd_on_breakpoint() is called with.
    """

    def __init__(self, shared: ctypes.Structure) -> None:
        self._site = _Site(shared=ctypes.addressof(shared))
        self.user: Final = ctypes.byref(self._site)
        self._breakpoints: Sequence[Breakpoint] = ()
        self._points: Any = ()
        self._programs: list[Any] = []

    def set_points(self, breakpoints: Sequence[Breakpoint], layout: EngineLayout) -> None:
        """These are there from now on; without any, each execution is an exit."""
        self.count_evaluations()
        self._breakpoints = tuple(breakpoints)
        self._programs = []
        self._points = points = (_Point * len(breakpoints))()
        for point, breakpoint_ in zip(points, breakpoints, strict=True):
            self._fill(point, breakpoint_, layout)
        self._site.points, self._site.count = ctypes.addressof(points), len(breakpoints)

    def _fill(self, point: _Point, breakpoint_: Breakpoint, layout: EngineLayout) -> None:
        point.vmpl = MASK if breakpoint_.vmpl is None else breakpoint_.vmpl
        if breakpoint_.root is not None:
            point.root, point.root_mask = breakpoint_.root, ROOT_MASK
        packed = [pack_program(program, layout) for program in breakpoint_.conditions]
        if breakpoint_.physical or breakpoint_.accepts is not None or None in packed:
            point.ask = 1
            return
        addresses = [ctypes.addressof(program) for program in packed if program is not None]
        table = (ctypes.c_void_p * len(addresses))(*addresses)
        self._programs.append((packed, table))
        point.programs, point.count = ctypes.addressof(table), len(addresses)

    def count_evaluations(self) -> None:
        """Adds those that native code has done since the last call to the breakpoints' own."""
        for point, breakpoint_ in zip(self._points, self._breakpoints, strict=True):
            breakpoint_.evaluations += point.evaluations
            point.evaluations = 0
