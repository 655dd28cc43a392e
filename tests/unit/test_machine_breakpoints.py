# SPDX-License-Identifier: MIT
"""The breakpoints of a real machine, with what a debugger wants of them."""

import pytest

from svsmd.gdbstub.target import BreakpointKind, Stopped, TargetError, ThreadId
from svsmd.slice_end import DebugEvent, Idle
from svsmd.snp.exits import DebugReason
from tests.agent_code import EQUAL, const, options, printf, reg
from tests.plain_target import PlainTarget
from tests.unit.test_machine_target import CODE, HLT, Make, machine_of, make, register, run, ticks

ROUNDS = 100
LOOP = b"\xb9" + ROUNDS.to_bytes(4, "little") + bytes.fromhex("48 ff c0 90 ff c9 75 f8") + HLT
AT = CODE + 8
SOFTWARE = BreakpointKind.SOFTWARE
RAX_IS_10 = options(reg("rax") + const(10) + bytes([EQUAL]))

__all__ = ["make"]


def table(target: PlainTarget) -> str:
    return target.monitor_commands["breakpoints"].run([])


def test_counts_survive_what_debuggers_do_at_stops(make: Make) -> None:
    target = make(LOOP)
    assert table(target) == "there are no breakpoints\n"
    target.insert_breakpoint(SOFTWARE, AT, RAX_IS_10)
    assert run(target) == DebugEvent(0, DebugReason.BREAKPOINT, AT)
    line = "0x0000000000100008: software, 1 hit, 10 evaluations of its condition\n"
    assert table(target) == line
    target.remove_breakpoint(SOFTWARE, AT)
    assert table(target) == line
    target.insert_breakpoint(SOFTWARE, AT, RAX_IS_10)
    target.forget_removed_breakpoints()
    assert isinstance(run(target), Idle)
    assert table(target) == line.replace(" 10 ", f" {ROUNDS} ")
    target.remove_breakpoint(SOFTWARE, AT)
    target.forget_removed_breakpoints()
    assert table(target) == "there are no breakpoints\n"


def test_commands(make: Make) -> None:
    free, target = make(LOOP), make(LOOP)
    assert isinstance(run(free), Idle)
    commands = (printf(rb"%d\n", reg("rax")),)
    target.insert_breakpoint(SOFTWARE, AT, options(commands=commands))
    assert isinstance(run(target), Idle)
    assert target.take_output().split() == [b"%d" % (n + 1) for n in range(ROUNDS)]
    assert ticks(target) == ticks(free)
    assert table(target) == "0x0000000000100008: software, 100 hits, prints and goes on\n"


def test_a_step_reaches_a_breakpoint(make: Make) -> None:
    target = make(LOOP)
    target.insert_breakpoint(SOFTWARE, AT, RAX_IS_10)
    target.step(1)
    target.step(1)
    assert not target.arrived(1)
    target.insert_breakpoint(SOFTWARE, AT, options(reg("rax")))
    assert target.arrived(1)


@pytest.mark.parametrize("reset", [False, True])
def test_physical_address(make: Make, reset: bool) -> None:
    target = make(LOOP)
    target.insert_breakpoint(SOFTWARE, AT, RAX_IS_10, physical=True)
    if reset:
        machine_of(target)._reset()
    assert run(target) == DebugEvent(0, DebugReason.BREAKPOINT, AT)
    assert table(target).startswith("gpa 0x0000000000100008: software, 1 hit, ")
    target.remove_breakpoint(SOFTWARE, AT, physical=True)
    assert isinstance(run(target), Idle)
    with pytest.raises(TargetError):
        target.insert_breakpoint(SOFTWARE, 1 << 38, physical=True)


def test_physical_and_linear_are_two(make: Make) -> None:
    target = make(LOOP)
    target.insert_breakpoint(SOFTWARE, AT, options(const(0)), physical=True)
    target.insert_breakpoint(SOFTWARE, AT, RAX_IS_10)
    assert isinstance(run(target), DebugEvent)
    target.remove_breakpoint(SOFTWARE, AT)
    assert isinstance(run(target), Idle)


def test_breakpoints_of_processes(make: Make) -> None:
    """The guest is at VMPL0, and so process 1; one that is another's is passed, by steps, too."""
    target = make(LOOP)
    whole, me = target.whole, ThreadId(1, 1)
    whole.insert_breakpoint(3, SOFTWARE, AT)
    whole.insert_breakpoint(17, SOFTWARE, AT)
    whole.insert_breakpoint(1, SOFTWARE, AT, RAX_IS_10)
    for _ in range(2):
        assert whole.step(me) == Stopped(1, pid=1)
        assert not whole.arrived(me)
    assert run(target) == DebugEvent(0, DebugReason.BREAKPOINT, AT)
    assert register(target, "rax") == 10
    line = "0x0000000000100008: process {}, software, {}\n"
    assert table(target) == "".join(
        (
            line.format(1, "1 hit, 10 evaluations of its condition"),
            line.format(3, "0 hits"),
            line.format(17, "0 hits"),
        )
    )
    assert whole.arrived(me)
    assert not whole.arrived(ThreadId(3, 1)), "it does not execute"
    whole.remove_breakpoint(1, SOFTWARE, AT)
    assert isinstance(run(target), Idle)
    assert table(target).splitlines()[1] == line.format(3, "0 hits").rstrip()
