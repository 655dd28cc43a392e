# SPDX-License-Identifier: MIT
"""The frame that native code makes on an exception or a system call, and restores CPL 3 code from.

Spec: 24593, 8.9.3 (what the CPU pushes) and 8.2 (vectors); the rest of the layout is that of
`svsmd/core/native/gate.S`. What IRETQ refuses: 24594, IRET; canonical addresses: 24593, 1.1.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Final, Self

USER_CS: Final = 0x33
USER_DS: Final = 0x2B
VECTOR_INTERRUPT: Final = 0x40
"""The interrupt of VMPL0's own APIC (SVSM_VECTOR_INTERRUPT)."""
VECTOR_SYSCALL: Final = 0x100
"""A frame that SYSCALL has made (SVSM_VECTOR_SYSCALL)."""

NMI: Final = 2
PAGE_FAULT: Final = 14
_EXCEPTIONS: Final = {
    0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 4: "#OF", 5: "#BR", 6: "#UD", 7: "#NM", 8: "#DF",
    10: "#TS", 11: "#NP", 12: "#SS", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 18: "#MC",
    19: "#XF", 21: "#CP", 28: "#HV", 29: "#VC", 30: "#SX",
}  # fmt: skip
"""24593, table 8-1."""
_ERROR_CODES: Final = frozenset((8, 10, 11, 12, 13, 14, 17, 21, 29, 30))
_FIRST_INTERRUPT: Final = 32
_VECTORS: Final = 256

USER_TOP: Final = 1 << 47
"""First address that is not of CPL 3: the end of the lower canonical half."""

RFLAGS_RESERVED_ONE: Final = 1 << 1
RFLAGS_IF: Final = 1 << 9
_RFLAGS_OF_USER: Final = 0x24_0CD5
"""What CPL 3 chooses itself: CF, PF, AF, ZF, SF, DF, OF, AC, ID. TF is not among them: nobody
serves its #DB."""

_FRAME: Final = struct.Struct("<22Q")
FRAME_SIZE: Final = _FRAME.size


@dataclass(slots=True)
class TrapFrame:
    """Registers in the order of memory, 8 bytes each; by default those of CPL 3 code."""

    r15: int = 0
    r14: int = 0
    r13: int = 0
    r12: int = 0
    r11: int = 0
    r10: int = 0
    r9: int = 0
    r8: int = 0
    rbp: int = 0
    rdi: int = 0
    rsi: int = 0
    rdx: int = 0
    rcx: int = 0
    rbx: int = 0
    rax: int = 0
    vector: int = 0
    error_code: int = 0
    rip: int = 0
    cs: int = USER_CS
    rflags: int = RFLAGS_RESERVED_ONE | RFLAGS_IF
    rsp: int = 0
    ss: int = USER_DS

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From `FRAME_SIZE` bytes."""
        return cls(*_FRAME.unpack(data))

    def pack(self) -> bytes:
        """`FRAME_SIZE` bytes that IRETQ takes to CPL 3 without a fault, whatever the fields are."""
        self.cs, self.ss = USER_CS, USER_DS
        self.rflags = self.rflags & _RFLAGS_OF_USER | RFLAGS_RESERVED_ONE | RFLAGS_IF
        return _FRAME.pack(*_registers(self))

    @property
    def user(self) -> bool:
        """Whether it came from CPL 3."""
        return self.cs & 3 == 3

    def __str__(self) -> str:
        name = vector_name(self.vector)
        return f"{name}, error {self.error_code:#x}" if self.vector in _ERROR_CODES else name

    def summary(self) -> str:
        """One line without the general registers: those may hold somebody's data."""
        return (
            f"RIP {self.rip:#x} CS {self.cs:#x} RFLAGS {self.rflags:#x} "
            f"RSP {self.rsp:#x} SS {self.ss:#x} RBP {self.rbp:#x}"
        )


_registers: Final = attrgetter(*(field.name for field in fields(TrapFrame)))


def vector_name(vector: int) -> str:
    """The manual's name of an exception, such as "#PF"."""
    if vector == VECTOR_SYSCALL:
        return "SYSCALL"
    if _FIRST_INTERRUPT <= vector < _VECTORS:
        return f"interrupt {vector:#x}"
    return _EXCEPTIONS.get(vector, f"vector {vector:#x}")
