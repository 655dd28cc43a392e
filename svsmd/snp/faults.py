# SPDX-License-Identifier: MIT
"""Faults that an access or an instruction takes: exceptions of the guest, and nested page faults.

Spec: 24593 (APM vol. 2) 8.4.2 (#PF error code), 15.25.6 (nested page faults), 15.35.5 (#VC),
15.36.10 (RMP checks). They are raised inside the silicon and end there: `GuestFault` is delivered
through the guest's IDT, `NestedFault` ends VMRUN with VMEXIT_NPF.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Vector(IntEnum):
    """Exception vectors that the silicon raises on its own account (24593, table 8-1)."""

    UD = 6
    GP = 13
    PF = 14
    VC = 29


PAGE_NOT_VALIDATED: Final = 0x404
"""#VC error code of an access to an unvalidated page (24593, 15.36.10)."""


class PfError(IntFlag):
    """Bits of the #PF error code (24593, 8.4.2; bit 31: 15.36.10)."""

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    ID = 1 << 4
    RMP = 1 << 31


class NpfError(IntFlag):
    """Bits of EXITINFO1 of VMEXIT_NPF (24593, 15.25.6 and 15.36.10).

    U is always set: the nested tables see every access of a guest as a user access. SIZEM is set by
    PVALIDATE and RMPADJUST alone, never by an access to memory.
    """

    P = 1 << 0
    W = 1 << 1
    U = 1 << 2
    RSVD = 1 << 3
    ID = 1 << 4
    RMP = 1 << 31
    FINAL = 1 << 32
    WALK = 1 << 33
    ENC = 1 << 34
    SIZEM = 1 << 35
    VMPL = 1 << 36


class GuestFault(Exception):
    """An exception for the guest's IDT.

    `vector` 0..31; `error_code` None for a vector that pushes none; `address` is the faulting
    virtual address, which goes into CR2 for #PF and for #VC 0x404 (24593, 15.36.10), or None where
    whoever raises it knows no virtual address: who walked the page tables fills it in.
    """

    def __init__(
        self, vector: int, error_code: int | None = None, address: int | None = None
    ) -> None:
        self.vector = vector
        self.error_code = error_code
        self.address = address
        code = "" if error_code is None else f" error {error_code:#x}"
        where = "" if address is None else f" at {address:#x}"
        super().__init__(f"vector {vector}{code}{where}")


class NestedFault(Exception):
    """A nested page fault: the world ends with VMEXIT_NPF.

    `gpa` goes into EXITINFO2, `error_code` (`NpfError` bits) into EXITINFO1 (24593, 15.25.6);
    `row` is the row of docs/access-checks.md that says why.
    """

    def __init__(self, gpa: int, error_code: int, row: str) -> None:
        self.gpa = gpa
        self.error_code = error_code
        self.row = row
        super().__init__(f"nested page fault at gpa {gpa:#x}, EXITINFO1 {error_code:#x} ({row})")
