# SPDX-License-Identifier: MIT
"""A machine as debuggers see it that know no processes, with threads by their bare numbers."""

from collections.abc import Mapping

from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.target import (
    ANY_WORLD,
    BreakpointKind,
    MonitorCommand,
    StopEvent,
    Thread,
    ThreadId,
    WatchpointKind,
)
from svsmd.machine import Machine


class PlainTarget:
    """What the tests ask of a `MachineTarget`; vCPU n is thread n + 1."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.whole = MachineTarget(machine)

    @property
    def monitor_commands(self) -> Mapping[str, MonitorCommand]:
        return self.whole.monitor_commands

    def threads(self) -> list[Thread]:
        return list(self.whole.threads())

    def read_registers(self, tid: int) -> bytes:
        return self.whole.read_registers(_thread(tid))

    def read_register(self, tid: int, name: str) -> int:
        value = self.whole.read_register(_thread(tid), name)
        assert value is not None
        return value

    def write_register(self, tid: int, name: str, value: int) -> None:
        self.whole.write_register(_thread(tid), name, value)

    def read_memory(self, tid: int, gva: int, length: int) -> bytes:
        return self.whole.read_memory(_thread(tid), gva, length)

    def write_memory(self, tid: int, gva: int, data: bytes) -> None:
        self.whole.write_memory(_thread(tid), gva, data)

    def insert_breakpoint(
        self,
        kind: BreakpointKind,
        address: int,
        options: Options = NO_OPTIONS,
        *,
        physical: bool = False,
    ) -> None:
        self.whole.insert_breakpoint(ANY_WORLD, kind, address, options, physical=physical)

    def remove_breakpoint(
        self, kind: BreakpointKind, address: int, *, physical: bool = False
    ) -> None:
        self.whole.remove_breakpoint(ANY_WORLD, kind, address, physical=physical)

    def forget_removed_breakpoints(self) -> None:
        self.whole.forget_removed_breakpoints()

    def arrived(self, tid: int) -> bool:
        return self.whole.arrived(_thread(tid))

    def take_output(self) -> bytes:
        return self.whole.take_output()

    def insert_watchpoint(self, kind: WatchpointKind, address: int, length: int) -> None:
        self.whole.insert_watchpoint(_thread(1), kind, address, length)

    def remove_watchpoint(self, kind: WatchpointKind, address: int, length: int) -> None:
        self.whole.remove_watchpoint(ANY_WORLD, kind, address, length)

    def step(self, tid: int) -> StopEvent:
        event = self.whole.step(_thread(tid))
        assert event is not None
        return event


def _thread(tid: int) -> ThreadId:
    return ThreadId(ANY_WORLD, tid)
