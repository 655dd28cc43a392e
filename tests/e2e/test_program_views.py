# SPDX-License-Identifier: MIT
"""What a debugger sees of the SVSM's programs, wherever the machine stands still."""

from contextlib import suppress
from pathlib import Path

import pytest

from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.target import G_LAYOUT, BreakpointKind, Stopped, TargetError, ThreadId
from svsmd.gdbstub.world_filter import PROGRAM_PID
from svsmd.slice_end import DebugEvent, Ended, Idle
from tests.e2e.test_module_debugging import address_of
from tests.module_machine import ModuleMachine, modules, program

SPIN = program("/bin/spin", arguments=["spin", "5"])
PROGRAM = ThreadId(PROGRAM_PID + 1, 1)
KEPT = (1, 6, 7, 12, 13, 14, 15)  # rbx rbp rsp r12 to r15, in the order of `g`
RIP = 16


def stopped_in_now(tmp_path: Path) -> tuple[ModuleMachine, MachineTarget]:
    """At the function of spin that makes a system call."""
    machine = ModuleMachine(tmp_path, SPIN, names=["spin"])
    target = MachineTarget(machine.machine)
    now = address_of("spin", "now")
    target.insert_breakpoint(PROGRAM.pid, BreakpointKind.SOFTWARE, now)
    for _ in range(200):
        end = machine.machine.run_slice()
        if isinstance(end, DebugEvent):
            break
    target.remove_breakpoint(PROGRAM.pid, BreakpointKind.SOFTWARE, now)
    assert target.name_process(Stopped(1)).thread == PROGRAM
    return machine, target


def values(target: MachineTarget, thread: ThreadId = PROGRAM) -> tuple[int, ...]:
    unpacked: tuple[int, ...] = G_LAYOUT.unpack(target.read_registers(thread))
    return unpacked


def test_registers_at_each_instruction_of_a_system_call(tmp_path: Path) -> None:
    """On the way into the SVSM, in it, and on the way back they are those of the program."""
    machine, target = stopped_in_now(tmp_path)
    while target.read_memory(PROGRAM, values(target)[RIP], 2) != b"\x0f\x05":
        target.step(PROGRAM)
    before, seen = values(target), set()
    entered = 0
    for _ in range(2000):
        machine.machine.step_vcpu(0)
        now = values(target)
        assert [now[n] for n in KEPT] == [before[n] for n in KEPT]
        assert now[RIP] == before[RIP] + 2
        assert now[18:20] == before[18:20]  # CS, SS
        assert now[25:] == before[25:]  # x87 and SSE, FS base
        seen.add(target.name_process(Stopped(1)).pid)
        if target.name_process(Stopped(1)).thread == PROGRAM:
            break
        entered += 1
    assert seen == {1, PROGRAM.pid}
    assert entered > 40


def test_looking_has_no_effect(tmp_path: Path) -> None:
    ends = []
    for looking in (False, True):
        machine = ModuleMachine(tmp_path, SPIN * 2, names=["spin"], append="selftest cpu", cpus=2)
        target = MachineTarget(machine.machine)
        end: object = None
        for _ in range(3000):
            end = machine.machine.run_slice(100_000)
            if isinstance(end, Ended):
                break
            if isinstance(end, Idle) and end.deadline is not None:
                machine.machine.skip_idle(max(0, end.deadline - machine.machine.clock_now))
            if looking:
                for thread in target.process_threads():
                    target.read_registers(thread.id)
                    pc = values(target, thread.id)[RIP]
                    with suppress(TargetError):
                        target.read_memory(thread.id, pc, 16)
        assert isinstance(end, Ended), end
        ends.append((machine.machine.clock_now, machine.svsm))
    assert ends[0] == ends[1]


def test_memory_is_that_of_the_program(tmp_path: Path) -> None:
    """Two of one kind differ; pages that nobody has touched show what they will begin with."""
    machine, target = stopped_in_now(tmp_path)
    main = address_of("spin", "main")
    words = address_of("spin", "words")
    assert target.read_memory(PROGRAM, main, 16) in modules()["spin"]
    assert target.read_memory(PROGRAM, words + 4096, 8) == bytes(8)
    with pytest.raises(TargetError, match="has no memory"):
        target.write_memory(PROGRAM, words + 8192, b"x")
    for address in (0, 1 << 40, 0xFFFF_FFFF_8000_0000):
        with pytest.raises(TargetError, match="has no memory"):
            target.read_memory(PROGRAM, address, 1)
    machine.run("spin: done, unharmed")
    assert target.read_registers(PROGRAM) == bytes(G_LAYOUT.size)
    assert target.step(PROGRAM) == Stopped(1, pid=PROGRAM.pid)
