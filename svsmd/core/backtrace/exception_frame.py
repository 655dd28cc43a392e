# SPDX-License-Identifier: MIT
"""The registers that the native image saves when it is entered by an exception or a system call.

Spec: 24593, 8.9.3 (what the CPU pushes) and 8.2 (vectors); the frame is `svsmd/core/native/gate.S`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, Self, TypeAlias

Read: TypeAlias = Callable[[int, int], bytes | None]
"""Reads memory: GVA and bytes; None if that is not to be had."""

SYSTEM_CALL_VECTOR: Final = 0x100
"""In the place of the vector, after SYSCALL."""

_NAMES: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XF", 21: "#CP", 28: "#HV", 29: "#VC", 30: "#SX",
}  # fmt: skip
_ERROR_CODES: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
_FIRST_INTERRUPT: Final = 32
_VECTORS: Final = 256
_ERROR_CODE_END: Final = 1 << 32
_SELECTOR_END: Final = 1 << 16
_RFLAGS_END: Final = 1 << 22
_RFLAGS_ONE: Final = 1 << 1
"""Reads as 1 (24593, 3.1.6)."""


def vector_name(vector: int) -> str:
    """The manual's name of an exception, such as "#PF"."""
    if vector == SYSTEM_CALL_VECTOR:
        return "SYSCALL"
    if _FIRST_INTERRUPT <= vector < _VECTORS:
        return f"interrupt {vector:#x}"
    return _NAMES.get(vector, f"vector {vector:#x}")


class ExceptionFrame(NamedTuple):
    """The frame, in the order in which it lies in memory; each register has 8 bytes."""

    r15: int
    r14: int
    r13: int
    r12: int
    r11: int
    r10: int
    r9: int
    r8: int
    rbp: int
    rdi: int
    rsi: int
    rdx: int
    rcx: int
    rbx: int
    rax: int
    vector: int
    error_code: int
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int

    @classmethod
    def load(cls, read: Read, gva: int) -> Self | None:
        """The frame at `gva`; None if it cannot be read, or no entry can have left it."""
        data = read(gva, FRAME_SIZE)
        if data is None or len(data) != FRAME_SIZE:
            return None
        frame = cls(*_FRAME.unpack(data))
        return frame if frame.plausible else None

    @property
    def plausible(self) -> bool:
        """Whether it can be what it should be, and not some data that RBP happens to point at."""
        return (
            self.vector <= SYSTEM_CALL_VECTOR
            and self.error_code < _ERROR_CODE_END
            and self.cs < _SELECTOR_END
            and self.cs & 3 in (0, 3)
            and self.ss < _SELECTOR_END
            and self.rflags < _RFLAGS_END
            and self.rflags & _RFLAGS_ONE != 0
        )

    @property
    def user(self) -> bool:
        """Whether it came from CPL 3."""
        return self.cs & 3 == 3

    def __str__(self) -> str:
        name = vector_name(self.vector)
        return f"{name}, error {self.error_code:#x}" if self.vector in _ERROR_CODES else name

    def registers(self) -> str:
        """One line without the general registers: those may hold somebody's data."""
        return (
            f"RIP {self.rip:#x} CS {self.cs:#x} RFLAGS {self.rflags:#x} "
            f"RSP {self.rsp:#x} SS {self.ss:#x} RBP {self.rbp:#x}"
        )


_FRAME: Final = struct.Struct("<22Q")
FRAME_SIZE: Final = _FRAME.size
