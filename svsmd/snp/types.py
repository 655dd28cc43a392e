# SPDX-License-Identifier: MIT
"""Address types, page sizes and privilege levels that every part of the silicon shares.

Sources: AMD64 Architecture Programmer's Manual volume 2 (24593), 15.34 and 15.36.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NewType

Gva = NewType("Gva", int)
"""Guest virtual (linear) address."""

Gpa = NewType("Gpa", int)
"""Guest physical address, without the C-bit."""

Spa = NewType("Spa", int)
"""System physical address."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
"""Bytes of the page that the RMP counts in (4 KiB)."""
PAGE_MASK: Final = PAGE_SIZE - 1

HUGE_PAGE_SHIFT: Final = 21
HUGE_PAGE_SIZE: Final = 1 << HUGE_PAGE_SHIFT
"""Bytes of the larger RMP page (2 MiB)."""
PAGES_PER_HUGE_PAGE: Final = HUGE_PAGE_SIZE // PAGE_SIZE

C_BIT_POSITION: Final = 39
"""Position of the encryption bit in a page table entry, as CPUID 8000_001F:EBX[5:0] reports it.

Real parts have it at 51; the engine has 40 physical address bits, so here it is the highest.
"""
C_BIT: Final = 1 << C_BIT_POSITION

PHYSICAL_BITS: Final = C_BIT_POSITION + 1
"""Bits of a guest-physical address, the C-bit included."""


class PageSize(IntEnum):
    """Page size operand of PVALIDATE, RMPADJUST and RMPUPDATE (24594, PVALIDATE: ECX[0])."""

    SIZE_4K = 0
    SIZE_2M = 1

    @property
    def nbytes(self) -> int:
        """Bytes of a page of this size."""
        return HUGE_PAGE_SIZE if self else PAGE_SIZE

    @property
    def npages(self) -> int:
        """How many 4 KiB pages it covers."""
        return PAGES_PER_HUGE_PAGE if self else 1


class Vmpl(IntEnum):
    """Virtual machine privilege level (24593, 15.36.7); 0 is the most privileged."""

    VMPL0 = 0
    VMPL1 = 1
    VMPL2 = 2
    VMPL3 = 3
