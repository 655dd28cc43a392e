# SPDX-License-Identifier: MIT
"""Why a VMRUN ended: the #VMEXITs that the host of an SEV-SNP guest sees.

Only automatic exits reach the host (24593, 15.35.4, table 15-36): the guest's register state
stays in its VMSA. Everything else is a #VC inside the guest and never leaves the silicon.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from svsmd.snp.events import SnpEvent


@dataclass(frozen=True, slots=True)
class Vmgexit:
    """VMGEXIT (SVM_EXIT 0x403): the request is in the VMCB's GHCB field."""


@dataclass(frozen=True, slots=True)
class Hlt:
    """HLT (SVM_EXIT 0x78), already past the instruction."""


@dataclass(frozen=True, slots=True)
class Cr8WriteTrap:
    """MOV to CR8 (SVM_EXIT 0x98), already past the instruction: the VMCB's V_TPR is the new one."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Triple fault (SVM_EXIT 0x7F)."""

    reason: str


@dataclass(frozen=True, slots=True)
class Npf:
    """Nested page fault (SVM_EXIT 0x400).

    Attributes:
        gpa: faulting guest-physical address, without the C-bit.
        error_code: EXITINFO1, bits as in 24593, table 15-33 and 15.36.10.
        reason: the row of docs/access-checks.md that refused the access.
    """

    gpa: int
    error_code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Intr:
    """A physical interrupt (SVM_EXIT 0x60): the clock reached the host's deadline."""


@dataclass(frozen=True, slots=True)
class InvalidVmsa:
    """VMRUN refused to load the VMSA (VMEXIT_INVALID -1, or VMEXIT_BUSY -2).

    Attributes:
        busy: the VMSA is in use by another core.
        reason: which rule of 15.36.12 it broke.
    """

    busy: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Paused:
    """Not a #VMEXIT: the owner of the machine asked for it back, or its slice is over.

    The guest's state is untouched and VMRUN goes on where it was.
    """


class DebugReason(Enum):
    """What stopped the CPU for a debugger."""

    BREAKPOINT = "breakpoint"
    WRITE_WATCHPOINT = "watch"
    READ_WATCHPOINT = "rwatch"
    ACCESS_WATCHPOINT = "awatch"
    STEP = "step"
    EVENT = "event"
    """Something that a catch waits for has happened (svsmd/snp/events)."""
    PANIC = "panic"
    """The SVSM has given up, and written why to its log."""


@dataclass(frozen=True, slots=True)
class DebugStop:
    """Not a #VMEXIT: a breakpoint, a watchpoint, a catch or a single step of the attached debugger,
    or a place that stops for one.

    Attributes:
        address: of the breakpoint, or of the watched data.
        event: what was caught. None from the silicon: the events wait in a queue of their own.
    """

    reason: DebugReason
    address: int
    event: SnpEvent | None = None


Exit = Vmgexit | Hlt | Cr8WriteTrap | Shutdown | Npf | Intr | InvalidVmsa | Paused | DebugStop
