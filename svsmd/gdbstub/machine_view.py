# SPDX-License-Identifier: MIT
"""What monitor commands and tables are made from: the machine, and the world somebody looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from svsmd.gdbstub.target import TargetError, Thread
from svsmd.host.vcpu import Activity, Vcpu, World
from svsmd.machine import Machine
from svsmd.snp.processor import Processor
from svsmd.snp.rmp import RmpEntry

ACTIVITY: Final = {
    Activity.RUNNABLE: "running",
    Activity.HALTED: "halted",
    Activity.HALTED_MASKED: "halted with interrupts off",
    Activity.RESET_HOLD_BY_GHCB: "in reset",
    Activity.RESET_HOLD_BY_MSR: "in reset",
}
_PERMISSIONS: Final = "rwus"
"""READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR, from bit 0 on."""
_FLAGS: Final = ("assigned", "validated", "vmsa", "immutable", "in_use")


class MachineView:
    """A machine, as a debugger has selected one of its threads.

    Args:
        selected: the vCPU and the world of the selected thread; None if it has not started.
        threads: all of them.
        read_linear: reads memory of the selected world by linear address.
    """

    def __init__(
        self,
        machine: Machine,
        selected: Callable[[], tuple[Vcpu, World | None]],
        threads: Callable[[], Sequence[Thread]],
        read_linear: Callable[[int, int], bytes],
    ) -> None:
        self.machine: Final = machine
        self._selected = selected
        self.chosen: int | None = None
        """The vCPU that `monitor cpu` has named; None: that of the selected thread."""
        self.threads: Final = threads
        self.read_linear: Final = read_linear

    def selected(self) -> tuple[Vcpu, World | None]:
        """The vCPU that is looked at, and its world; None if it has not started."""
        vcpus = self.machine.hypervisor.vcpus
        if self.chosen is None or self.chosen >= len(vcpus):
            return self._selected()
        vcpu = vcpus[self.chosen]
        return vcpu, vcpu.world

    def processor(self) -> Processor:
        """The CPU with the selected world loaded. Raises `TargetError` if there is none."""
        silicon = self.machine.silicon
        _, world = self.selected()
        if world is None or not silicon.load_for_debugger(world.vmcb):
            raise TargetError("this vCPU has not started")
        return silicon.processor

    def title(self) -> str:
        """Whose memory is shown: "vCPU 0 at VMPL2"."""
        vcpu, _ = self.selected()
        return f"vCPU {vcpu.index} at VMPL{int(vcpu.vmpl)}"


def number(text: str) -> int:
    """A number as a user types it, up to 64 bits. Raises `TargetError`."""
    try:
        value = int(text, 0)
    except ValueError:
        raise TargetError(f"{text!r} is not a number") from None
    if not 0 <= value < 1 << 64:
        raise TargetError(f"{text} is not a 64-bit number")
    return value


def flags_text(entry: RmpEntry) -> str:
    """State of an RMP entry in words: "assigned validated", "shared"."""
    return " ".join(name for name in _FLAGS if getattr(entry, name)) or "shared"


def permissions_text(mask: int) -> str:
    """A permission mask as "rwus": READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR."""
    return "".join(letter if mask >> bit & 1 else "-" for bit, letter in enumerate(_PERMISSIONS))
