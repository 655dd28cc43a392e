# SPDX-License-Identifier: MIT
"""How a slice of a machine's run ends: what `Machine.run_slice` returns.

Spec: docs/architecture.md.
"""

from dataclasses import dataclass

from svsmd.snp.events import SnpEvent
from svsmd.snp.exits import DebugReason


@dataclass(frozen=True, slots=True)
class Stopped:
    """The slice's ticks are used up, or `request_stop` was called. The machine can go on."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Every vCPU is halted.

    Attributes:
        deadline: the tick at which a timer is due; None if only an input can wake the machine.
    """

    deadline: int | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The machine has ended.

    Attributes:
        exit_code: an `ExitCode`.
        reason: one line for the user, such as "the guest powered off".
        report: what there is to say beyond that: the lines of the SVSM's panic.
    """

    exit_code: int
    reason: str
    report: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DebugEvent:
    """A breakpoint, a watchpoint, a catch or a panic of the SVSM stopped the machine.

    Attributes:
        vcpu: its number, from 0 on.
        kind: what stopped it.
        address: of the breakpoint or of the watched data, or where the SVSM panicked (GVA).
        event: what was caught, with DebugReason.EVENT.
    """

    vcpu: int
    kind: DebugReason
    address: int
    event: SnpEvent | None = None


SliceEnd = Stopped | Idle | Ended | DebugEvent
