# SPDX-License-Identifier: MIT
"""Steps that go on by themselves while the PC is in a range: as if each had been asked for."""

from __future__ import annotations

import pytest

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.debug_support import Watch
from svsmd.snp.exits import DebugReason, DebugStop, Exit, Hlt, Intr
from tests.agent_code import EQUAL, const, options, reg
from tests.bare_machine import CODE, DATA, BareMachine, assemble

pytestmark = pytest.mark.usefixtures("both_callbacks")

ROUNDS = 40
LOOP = f"""
    mov ecx, {ROUNDS}
    mov edi, {DATA}
again:
    push rcx
    mov ecx, 3
    rep stosb
    call mix
    pop rcx
here:
    lea rax, [rax + rcx]
    dec ecx
    jnz again
    hlt
mix:
    inc qword ptr [{DATA + 0x800}]
    ret
"""
HERE = CODE + assemble(LOOP).index(bytes.fromhex("48 8d 04 08"))
MIX = CODE + assemble(LOOP).index(b"\xf4") + 1
BODY = range(CODE, MIX)
EVERYWHERE = range((1 << 64) - 1)
MOST = 1_000_000


def loop(source: str = LOOP) -> BareMachine:
    """A machine behind its first instruction."""
    m = BareMachine()
    m.load(source)
    step(m)
    return m


def step(m: BareMachine, within: range | None = None, most: int = 0, *, ticks: int = MOST) -> Exit:
    m.silicon.debug.set_stepping(True, within, most)
    return m.run(ticks=ticks)


def pc(m: BareMachine) -> int:
    return m.silicon.registers.linear_rip


def state(m: BareMachine) -> tuple[object, ...]:
    registers = m.silicon.registers
    return (
        m.silicon.clock.now, pc(m), registers.general(), registers.rflags, m.silicon.cpu.dr[6],
        m.read(DATA, 0x1000),
    )  # fmt: skip


def walk(m: BareMachine, within: range) -> int:
    """What a range step does, instruction by instruction; how many there were."""
    count = 0
    while True:
        count += 1
        assert step(m) == DebugStop(DebugReason.STEP, pc(m))
        if pc(m) not in within:
            return count


def ride(m: BareMachine, within: range) -> int:
    """The same by range steps, of which one may end for reasons of its own."""
    count = 0
    while True:
        assert step(m, within, MOST) == DebugStop(DebugReason.STEP, pc(m))
        count += 1 + m.silicon.debug.steps
        if pc(m) not in within:
            return count


def test_as_by_single_steps() -> None:
    one_by_one, at_once = loop(), loop()
    for _ in range(ROUNDS):
        # To the call, and through what is called.
        for within in (BODY, range(MIX, MIX + 0x100)):
            assert walk(one_by_one, within) == ride(at_once, within)
            assert state(one_by_one) == state(at_once)
    free = BareMachine()
    assert free.run(LOOP) == Hlt()
    at_once.silicon.debug.set_stepping(False)
    assert at_once.run() == Hlt()
    assert state(at_once) == state(free)


def test_no_more_than_asked_for(both_callbacks: str) -> None:
    m = loop("mov ecx, 1000; again: dec ecx; jnz again; hlt")
    cpu = m.silicon.cpu
    events: list[int] = []
    handler = cpu.exit_handler

    def note(code: int) -> None:
        events.append(code)
        handler(code)

    cpu.exit_handler = note
    assert step(m, BODY, 1500) == DebugStop(DebugReason.STEP, pc(m))
    assert m.silicon.debug.steps == 1500
    assert m.silicon.clock.now == 1502
    # Native code needs nobody for that.
    assert len(events) == (1501 if both_callbacks == "python" else 0)


def test_a_breakpoint_in_the_range_comes_first() -> None:
    m = loop()
    breakpoint_ = Breakpoint(HERE)
    m.silicon.debug.add_breakpoint(breakpoint_)
    for count in range(1, 4):
        while (exit_ := step(m, EVERYWHERE, MOST)).reason is DebugReason.STEP:  # type: ignore[union-attr]
            assert pc(m) != HERE
        assert exit_ == DebugStop(DebugReason.BREAKPOINT, HERE)
        assert (pc(m), breakpoint_.hits, m.gpr("rcx")) == (HERE, count, ROUNDS + 1 - count)


def test_a_condition_that_does_not_hold() -> None:
    m = loop()
    ecx_is_7 = options(reg("rcx") + const(7) + bytes([EQUAL])).conditions
    breakpoint_ = Breakpoint(HERE, tuple(condition.program for condition in ecx_is_7))
    m.silicon.debug.add_breakpoint(breakpoint_)
    while (exit_ := step(m, EVERYWHERE, MOST)) != DebugStop(DebugReason.BREAKPOINT, HERE):
        assert exit_ == DebugStop(DebugReason.STEP, pc(m))
    m.silicon.debug.count_evaluations()
    assert (m.gpr("rcx"), breakpoint_.hits) == (7, 1)
    assert breakpoint_.evaluations == ROUNDS - 7 + 1


def test_a_watchpoint_in_the_range() -> None:
    m = loop()
    watched = DATA + 0x800
    m.silicon.debug.add_watch(Watch(DebugReason.WRITE_WATCHPOINT, watched, 8, watched))
    while (exit_ := step(m, EVERYWHERE, MOST)) == DebugStop(DebugReason.STEP, pc(m)):
        pass
    assert exit_ == DebugStop(DebugReason.WRITE_WATCHPOINT, watched)
    assert m.read_u64(watched) == 1


def test_a_request_to_stop() -> None:
    m = loop()
    m.silicon.cpu.request_stop()
    assert step(m, EVERYWHERE, MOST) == DebugStop(DebugReason.STEP, pc(m))
    assert m.silicon.debug.steps == 0


@pytest.mark.parametrize("ticks", [1, 7, 33, 100])
def test_a_deadline_falls_where_it_does_without_steps(ticks: int) -> None:
    free, stepped = loop(), loop()
    free.silicon.debug.set_stepping(False)
    deadline = free.silicon.clock.now + ticks
    assert free.run(ticks=ticks) == Intr()
    while step(stepped, EVERYWHERE, MOST, ticks=deadline - stepped.silicon.clock.now) != Intr():
        pass
    assert state(stepped) == state(free)


def test_another_address_space_ends_it() -> None:
    m = loop("mov rax, cr3; or rax, 0x10; mov cr3, rax; nop; nop; hlt")
    while (where := pc(m) - CODE) < 10:
        assert step(m, EVERYWHERE, MOST) == DebugStop(DebugReason.STEP, pc(m))
    assert where == 10, "the instruction behind the one that loads CR3"


def test_another_cpl_ends_it() -> None:
    m = BareMachine(user=True)
    vmsa = m.vmsa
    vmsa.efer |= 1
    vmsa.star, vmsa.lstar = 0x10 << 32, CODE + 0x800
    m.load("nop; nop; syscall")
    m.load("nop; nop; nop; hlt", at=CODE + 0x800)
    step(m)
    for expected in (CODE + 0x800, CODE + 0x803):
        while pc(m) < expected:
            assert step(m, EVERYWHERE, 2) == DebugStop(DebugReason.STEP, pc(m))
        assert pc(m) == expected
