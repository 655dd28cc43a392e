# SPDX-License-Identifier: MIT
"""What one step of the hypervisor came to: the vocabulary between host and machine.

Spec: none; the reasons of a termination are those of 56421, 2.3.1 (termination request) and
4.1 (SNP_TERMINATE).
"""

from __future__ import annotations

from dataclasses import dataclass

from svsmd.snp.exits import DebugStop


@dataclass(frozen=True, slots=True)
class Continue:
    """There is more to run."""


@dataclass(frozen=True, slots=True)
class AllHalted:
    """No vCPU has anything to run.

    Attributes:
        next_deadline: when the next device timer expires, in ticks; None if none is armed, and then
            only input from outside wakes the machine.
    """

    next_deadline: int | None


@dataclass(frozen=True, slots=True)
class PoweredOff:
    """The guest switched the machine off (ACPI S5)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The guest reset the machine."""


@dataclass(frozen=True, slots=True)
class Terminated:
    """The guest asked to be terminated.

    Attributes:
        reason_set: 0 for the reasons of 56421, 1 for those of Linux, others as their owners say.
        reason_code: reason in that set, 8 bits.
        vcpu: index of the vCPU that asked.
        vmpl: the level it asked at.
    """

    reason_set: int
    reason_code: int
    vcpu: int
    vmpl: int


@dataclass(frozen=True, slots=True)
class Crashed:
    """The guest cannot go on.

    Attributes:
        text: one line that says which vCPU, which VMPL and why.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Debug:
    """The CPU stopped for a debugger.

    Attributes:
        exit: what stopped it.
        vcpu: index of the vCPU that stopped.
        vmpl: the level it ran at.
    """

    exit: DebugStop
    vcpu: int
    vmpl: int


End = PoweredOff | Reset | Terminated | Crashed
"""The outcomes after which this machine has nothing more to run, ever."""

HostOutcome = Continue | AllHalted | End | Debug
