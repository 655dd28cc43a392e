# SPDX-License-Identifier: MIT
"""What monitor commands and tables are made from: the machine, and the thread somebody looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Final

from svsmd.gdbstub.target import ANY_WORLD, Selection, TargetError, Thread, ThreadId
from svsmd.gdbstub.world_filter import PROGRAM_PID
from svsmd.gdbstub.worlds import Worlds
from svsmd.host.vcpu import Vcpu, World
from svsmd.machine import Machine
from svsmd.snp.processor import Processor
from svsmd.snp.types import PAGE_SIZE
from svsmd.snp.vmsa import Vmsa


class MachineView:
    """A machine, as a debugger has selected one of its threads.

    Args:
        worlds: finds what a thread runs in.
        threads: the vCPUs.
    """

    def __init__(
        self, machine: Machine, worlds: Worlds, threads: Callable[[], Sequence[Thread]]
    ) -> None:
        self.machine: Final = machine
        self._worlds = worlds
        self.selection = Selection()
        """Of the client that asks."""
        self.threads: Final = threads

    def _thread(self) -> ThreadId:
        """The thread that is looked at."""
        chosen = self.selection.vcpu
        if chosen is not None and chosen < len(self.machine.hypervisor.vcpus):
            return ThreadId(ANY_WORLD, chosen + 1)
        return self.selection.thread or ThreadId(ANY_WORLD, self.machine.current_vcpu + 1)

    def selected(self) -> tuple[Vcpu, World | None]:
        """The vCPU that is looked at, and its world; None if there is none.

        A program has that of the SVSM where its page tables are loaded; without one the vCPU that
        stopped is looked at.
        """
        vcpu = self.machine.hypervisor.vcpus[self.machine.current_vcpu]
        return self._worlds.place(self._thread()) or (vcpu, None)

    def processor(self) -> Processor:
        """The CPU with the selected world loaded. Raises `TargetError` if there is none."""
        silicon = self.machine.silicon
        found = self._worlds.place(self._thread())
        if found is None:
            raise TargetError(f"{self.title()}: its page tables are not loaded")
        world = found[1]
        if world is None or not silicon.load_for_debugger(world.vmcb):
            raise TargetError("this vCPU has not started")
        return silicon.processor

    def vmsa(self, world: World) -> Vmsa | None:
        """The VMSA page of a world, up to date; None if the host has put it outside of RAM."""
        silicon, spa = self.machine.silicon, world.vmcb.vmsa_spa
        if not silicon.memory.contains(spa, PAGE_SIZE):
            return None
        silicon.make_readable(spa, PAGE_SIZE)
        return Vmsa(silicon.memory.page(spa))

    def read_linear(self, gva: int, length: int) -> bytes:
        """Memory of the selected thread by linear address; see `Target.read_memory`."""
        return self._worlds.view(self._thread()).read_memory(gva, length)

    def code_bits(self) -> int:
        """How code of the selected thread is to be disassembled. Raises `TargetError`."""
        return self._worlds.view(self._thread()).code_bits()

    def title(self) -> str:
        """Whose memory is shown: "vCPU 0 at VMPL2"."""
        thread = self._thread()
        if self._worlds.place(thread) is None:
            return f"task {thread.pid - PROGRAM_PID}, which no vCPU runs"
        vcpu, world = self.selected()
        return f"vCPU {vcpu.index} at VMPL{int(vcpu.vmpl if world is None else world.vmpl)}"


def name_of(names: type[IntEnum], value: int) -> str:
    """A number by its name in the specification; in hex if it has none there."""
    try:
        return names(value).name
    except ValueError:
        return f"{value:#x}"


def number(text: str) -> int:
    """A number as a user types it, up to 64 bits. Raises `TargetError`."""
    try:
        value = int(text, 0)
    except ValueError:
        raise TargetError(f"{text!r} is not a number") from None
    if not 0 <= value < 1 << 64:
        raise TargetError(f"{text} is not a 64-bit number")
    return value
