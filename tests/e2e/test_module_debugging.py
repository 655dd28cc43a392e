# SPDX-License-Identifier: MIT
"""Debugger, panic and end of a machine while its SVSM runs programs."""

import gc
import sys
from pathlib import Path

import pytest

from svsmd.elf_symbols import elf_symbols
from svsmd.errors import ExitCode
from svsmd.gdbstub.target import BreakpointKind
from svsmd.gdbstub.target_xml import G_SPANS, REGISTER_NUMBERS
from svsmd.slice_end import DebugEvent, Ended
from svsmd.snp.exits import DebugReason
from tests.module_machine import ModuleMachine, modules, program
from tests.plain_target import PlainTarget

SPIN = program("/bin/spin", arguments=["spin", "5"])
FOREVER = program("/bin/spin", arguments=["spin", "1000000"])


def address_of(name: str, symbol: str) -> int:
    """Of a function in a module."""
    return elf_symbols(modules()[name])[symbol].start


def register(target: PlainTarget, name: str, tid: int) -> int:
    raw = target.read_registers(tid)
    return int.from_bytes(raw[G_SPANS[REGISTER_NUMBERS[name]]], "little")


def run_to_stop(machine: ModuleMachine) -> DebugEvent:
    for _ in range(200):
        end = machine.machine.run_slice()
        if isinstance(end, DebugEvent):
            return end
    raise AssertionError("no breakpoint was hit")


@pytest.mark.parametrize("kind", [BreakpointKind.SOFTWARE, BreakpointKind.HARDWARE])
def test_breakpoint_in_a_module(tmp_path: Path, kind: BreakpointKind) -> None:
    machine = ModuleMachine(tmp_path, SPIN, names=["spin"])
    target = PlainTarget(machine.machine)
    main = address_of("spin", "main")
    target.insert_breakpoint(kind, main)
    stop = run_to_stop(machine)
    assert (stop.kind, stop.address) == (DebugReason.BREAKPOINT, main)
    tid = stop.vcpu + 1
    assert register(target, "cs", tid) == 0x33
    assert register(target, "rip", tid) == main
    assert target.read_memory(tid, main, 4) == target.read_memory(tid, main, 4)
    # The stack has the arguments, and steps stay in the module.
    argv = register(target, "rsi", tid)
    where = int.from_bytes(target.read_memory(tid, argv, 8), "little")
    assert target.read_memory(tid, where, 5) == b"spin\0"
    target.remove_breakpoint(kind, main)
    for _ in range(3):
        target.step(tid)
        assert main <= register(target, "rip", tid) < main + 0x100
    assert machine.run("spin: done, unharmed") is None


def test_breakpoints_and_steps_in_a_module_change_nothing(tmp_path: Path) -> None:
    ends = []
    for disturbed in (False, True):
        machine = ModuleMachine(tmp_path, SPIN * 2, names=["spin"], append="selftest cpu")
        if disturbed:
            target = PlainTarget(machine.machine)
            now = address_of("spin", "now")
            target.insert_breakpoint(BreakpointKind.SOFTWARE, now)
            for _ in range(4):
                stop = run_to_stop(machine)
                for _ in range(30):
                    machine.machine.step_vcpu(stop.vcpu)
            target.remove_breakpoint(BreakpointKind.SOFTWARE, now)
        end = machine.run("never said")
        assert end is not None
        assert end.exit_code == ExitCode.OK
        ends.append((machine.machine.clock_now, machine.svsm))
    assert ends[0] == ends[1]


def test_panic_while_a_module_runs(tmp_path: Path) -> None:
    machine = ModuleMachine(tmp_path, FOREVER, names=["spin"], cpus=2)
    assert machine.run() is None
    core = machine.machine.core
    assert core is not None
    assert core._scheduler is not None

    def fail() -> None:
        raise ArithmeticError("of the test")

    core._scheduler._wake_due = lambda cpu, state: fail()  # type: ignore[method-assign]
    end = machine.run("never said")
    assert end is not None
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert "panic: ArithmeticError" in machine.lines
    assert any("the secrets page is wiped" in line for line in machine.lines)


@pytest.mark.parametrize("slices", [1, 2, 5, 12])
def test_a_machine_that_is_dropped_says_nothing(
    tmp_path: Path, slices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers that are closed with their machine have nothing to do any more."""
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    machine = ModuleMachine(tmp_path, FOREVER * 3, names=["spin"], cpus=2)
    for _ in range(slices):
        assert not isinstance(machine.machine.run_slice(300_000), Ended)
    core = machine.machine.core
    assert core is not None
    handlers = list(core._gate._handlers.values())
    del machine, core
    for handler in handlers:
        handler.close()
    del handlers
    gc.collect()
    assert not said
