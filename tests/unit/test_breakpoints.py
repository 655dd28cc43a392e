# SPDX-License-Identifier: MIT
"""The breakpoint engine: what is rejected goes on as if nothing had been there."""

from collections.abc import Callable

import pytest

from svsmd.snp.breakpoint import ROOT_MASK, Breakpoint
from svsmd.snp.exits import DebugReason, DebugStop, Exit, Hlt, Paused
from svsmd.snp.predicate import BadProgram, Instruction, Op, Program
from svsmd.snp.types import C_BIT
from tests.agent_code import EQUAL, LESS_U, REF64, const, options, reg
from tests.bare_machine import CODE, DATA, NX, PML4, SPARE, VMSA, BareMachine, P, W, assemble

pytestmark = pytest.mark.usefixtures("both_callbacks")

ROUNDS = 200
LOOP = f"""
    mov ecx, {ROUNDS}
    mov ebx, {DATA}
again:
    inc qword ptr [rbx]
here:
    lea rax, [rax + rcx]
    dec ecx
    jnz again
    hlt
"""
HERE = CODE + assemble(LOOP).index(bytes.fromhex("48 8d 04 08"))
TICKS = 2 + 4 * ROUNDS + 1


def condition(*codes: bytes) -> tuple[Program, ...]:
    return tuple(expression.program for expression in options(*codes).conditions)


ECX_IS_7 = condition(reg("rcx") + const(7) + bytes([EQUAL]))
NEVER = condition(reg("rcx") + const(ROUNDS) + reg("rcx") + bytes([LESS_U, EQUAL]) + const(0))


def run(m: BareMachine) -> Exit:
    """Until it halts or stops for a debugger."""
    while (exit_ := m.run(ticks=1_000_000)) == Paused():
        pass
    return exit_


def loop(*breakpoints: Breakpoint) -> BareMachine:
    m = BareMachine()
    m.load(LOOP)
    for breakpoint_ in breakpoints:
        m.silicon.debug.add_breakpoint(breakpoint_)
    return m


def finished(m: BareMachine) -> None:
    """The loop has done what it does without breakpoints."""
    assert m.silicon.clock.now == TICKS
    assert m.gpr("rax") == ROUNDS * (ROUNDS + 1) // 2
    assert m.read_u64(DATA) == ROUNDS


def stops(m: BareMachine, breakpoint_: Breakpoint) -> int:
    """So often it stops before the guest halts."""
    for count in range(ROUNDS + 1):
        exit_ = run(m)
        if exit_ == Hlt():
            finished(m)
            return count
        assert isinstance(exit_, DebugStop)
        assert exit_.reason is DebugReason.BREAKPOINT
        assert m.silicon.registers.linear_rip == exit_.address
    raise AssertionError("no progress")


@pytest.mark.parametrize(
    ("conditions", "hits"),
    [
        ((), ROUNDS),
        (ECX_IS_7, 1),
        (NEVER, 0),
        (condition(const(0), reg("rcx") + const(3) + bytes([EQUAL])), 1),
        (condition(const(DATA) + bytes([REF64]) + const(5) + bytes([LESS_U])), 4),
        (condition(const(1 << 40) + bytes([REF64])), ROUNDS),  # not mapped
        (condition(const(1) + const(0) + bytes([0x05])), ROUNDS),  # division by zero
        (condition(reg("cr8")), 0),  # read by Python
        (condition(reg("rip") + const(HERE) + bytes([EQUAL])), ROUNDS),
        (condition(reg("vmpl") + const(2) + bytes([EQUAL])), ROUNDS),
        (condition(reg("eflags") + const(1 << 9) + bytes([0x0F])), 0),
    ],
)
def test_conditions(conditions: tuple[Program, ...], hits: int) -> None:
    breakpoint_ = Breakpoint(HERE, conditions)
    m = loop(breakpoint_)
    assert stops(m, breakpoint_) == hits
    assert breakpoint_.hits == hits
    m.silicon.debug.count_evaluations()
    assert breakpoint_.evaluations == (ROUNDS if conditions else 0)


def test_each_instruction_of_the_loop() -> None:
    """Blocks are cut and entered everywhere, and a rejected hit may fault and be executed again."""
    breakpoints = [Breakpoint(CODE + offset, NEVER) for offset in range(len(assemble(LOOP)))]
    m = loop(*breakpoints)
    assert run(m) == Hlt()
    finished(m)
    m.silicon.debug.count_evaluations()
    evaluations = [b.evaluations for b in breakpoints if b.evaluations]
    assert evaluations == [1, 1, ROUNDS, ROUNDS, ROUNDS, ROUNDS, 1]


def test_an_instruction_that_faults_first_is_hit_once() -> None:
    store = Breakpoint(CODE)
    m = loop()
    m.load(f"mov [{DATA}], rax; hlt")
    m.silicon.debug.add_breakpoint(store)
    assert run(m) == DebugStop(DebugReason.BREAKPOINT, CODE)
    assert run(m) == Hlt()
    assert store.hits == 1


@pytest.mark.parametrize("where", [DATA, SPARE], ids=["no execute", "not present"])
def test_a_breakpoint_where_nothing_can_be_executed(where: int, both_callbacks: str) -> None:
    """It comes before the fetch; resumed, the instruction faults, and is hit no more."""
    m = BareMachine()
    m.map(DATA, DATA, P | W | NX)
    m.map(SPARE, SPARE, 0)
    m.load(f"mov rax, {where}; jmp rax")
    stop = Breakpoint(where)
    m.silicon.debug.add_breakpoint(stop)
    m.silicon.debug.add_breakpoint(Breakpoint(where, NEVER))
    assert run(m) == DebugStop(DebugReason.BREAKPOINT, where)
    assert m.gpr("rip") == where
    assert m.gpr("cr2") == 0
    assert run(m) == Hlt()
    trap = m.trap
    assert (trap.vector, trap.rip) == (14, where)
    assert trap.error_code is not None
    assert trap.error_code & 1 << 4
    assert stop.hits == 1


def test_one_that_was_left_by_the_debugger_is_hit_again() -> None:
    """It has been reported, but is not where the machine goes on."""
    m = BareMachine()
    m.load("nop; nop; nop; hlt")
    stop = Breakpoint(CODE + 2)
    m.silicon.debug.add_breakpoint(stop)
    for _ in range(3):
        assert run(m) == DebugStop(DebugReason.BREAKPOINT, CODE + 2)
        m.vmsa.rip = CODE
    assert stop.hits == 3


def test_an_exception_makes_it_hit_again() -> None:
    """The handler returns to the instruction: it is about to be executed once more."""
    m = BareMachine()
    m.set_handler(6, "add qword ptr [rsp], 2; iretq")
    m.set_handler(14, f"mov dword ptr [{m.entry_of(DATA)}], {DATA | P | W}; add rsp, 8; iretq")
    m.write_u64(m.entry_of(DATA) + 4, C_BIT >> 32)
    m.write_u64(m.entry_of(DATA), C_BIT | DATA)
    m.load(f"mov [{DATA}], rax; ud2; hlt")
    store = Breakpoint(CODE, NEVER)
    m.silicon.debug.add_breakpoint(store)
    assert run(m) == Hlt()
    m.silicon.debug.count_evaluations()
    assert store.evaluations == 2


def test_several_at_one_address() -> None:
    calls = 0

    def on_hit() -> bool:
        nonlocal calls
        calls += 1
        return False

    rejected, wanted = Breakpoint(HERE, NEVER), Breakpoint(HERE, ECX_IS_7)
    silent = Breakpoint(HERE, on_hit=on_hit)
    m = loop(rejected, wanted, silent)
    assert run(m) == DebugStop(DebugReason.BREAKPOINT, HERE)
    assert m.silicon.cpu.regs[1] == 7
    assert run(m) == Hlt()
    finished(m)
    m.silicon.debug.count_evaluations()
    assert [b.hits for b in (rejected, wanted, silent)] == [0, 1, ROUNDS]
    assert [b.evaluations for b in (rejected, wanted, silent)] == [ROUNDS, ROUNDS, 0]
    assert calls == ROUNDS


@pytest.mark.parametrize(
    ("make", "hits"),
    [
        (lambda: Breakpoint(HERE, vmpl=2), ROUNDS),
        (lambda: Breakpoint(HERE, vmpl=1), 0),
        (lambda: Breakpoint(HERE, root=PML4), ROUNDS),
        (lambda: Breakpoint(HERE, root=(PML4 | C_BIT) & ROOT_MASK, vmpl=2), ROUNDS),
        (lambda: Breakpoint(HERE, root=0x5000), 0),
        (lambda: Breakpoint(HERE, accepts=lambda: False), 0),
        (lambda: Breakpoint(HERE, accepts=lambda: True, conditions=ECX_IS_7), 1),
        (lambda: Breakpoint(HERE, vmpl=1, conditions=ECX_IS_7), 0),
    ],
)
def test_worlds(make: Callable[[], Breakpoint], hits: int) -> None:
    breakpoint_ = make()
    assert stops(loop(breakpoint_), breakpoint_) == hits
    assert breakpoint_.hits == hits


def test_conditions_can_change_while_armed() -> None:
    m = loop()
    debug = m.silicon.debug
    for wanted in (100, 50):
        breakpoint_ = Breakpoint(HERE, condition(reg("rcx") + const(wanted) + bytes([EQUAL])))
        debug.add_breakpoint(breakpoint_)
        assert run(m) == DebugStop(DebugReason.BREAKPOINT, HERE)
        assert m.silicon.cpu.regs[1] == wanted
        debug.remove_breakpoint(breakpoint_)
    assert run(m) == Hlt()
    finished(m)


def test_rejected_hits_leave_requests_to_stop_alone(both_callbacks: str) -> None:
    m = loop(Breakpoint(HERE, NEVER))
    m.silicon.cpu.shared.slice_end = 50
    assert m.run() == Paused()
    if both_callbacks == "native":
        # One exit to Python would be more than there are.
        before = m.silicon.cpu.shared.exits
        m.silicon.cpu.shared.slice_end = (1 << 64) - 1
        assert run(m) == Hlt()
        assert m.silicon.cpu.shared.exits - before < 10


def test_a_condition_reads_the_registers_in_the_vmsa() -> None:
    """As a debugger sees it: they are put there before it is read."""
    rax = VMSA + 0x1F8
    m = loop(Breakpoint(HERE, condition(const(rax) + bytes([REF64]) + reg("rax") + bytes([EQUAL]))))
    assert run(m) == DebugStop(DebugReason.BREAKPOINT, HERE)


# -- by physical address ------------------------------------------------------------------


def test_physical_address() -> None:
    breakpoint_ = Breakpoint(HERE, ECX_IS_7, physical=True)
    assert stops(loop(breakpoint_), breakpoint_) == 1


def test_physical_address_of_code_that_has_run() -> None:
    m = loop()
    m.silicon.cpu.shared.slice_end = 50
    assert m.run() == Paused()
    m.silicon.cpu.shared.slice_end = (1 << 64) - 1
    breakpoint_ = Breakpoint(HERE, physical=True)
    m.silicon.debug.add_breakpoint(breakpoint_)
    assert run(m) == DebugStop(DebugReason.BREAKPOINT, HERE)
    m.silicon.debug.remove_breakpoint(breakpoint_)
    assert run(m) == Hlt()
    finished(m)


def test_physical_address_at_two_linear_ones() -> None:
    """Whatever maps the code, and only while it does."""
    m = BareMachine()
    m.own(SPARE, 2)
    m.load("nop; nop; ret", at=SPARE)
    m.load("nop; nop; ret", at=SPARE + 0x1000)
    alias = SPARE + 0x5000
    m.map(alias, SPARE)
    m.map(alias + 0x1000, SPARE + 0x1000)
    source = f"""
        mov eax, {SPARE}
        call rax
        mov eax, {alias}
        call rax
        mov eax, {alias + 0x1000}
        call rax
        mov dword ptr [{m.entry_of(alias)}], {(SPARE + 0x1000) | P | W}
        invlpg [{alias}]
        mov eax, {alias}
        call rax
        hlt
    """
    breakpoint_ = Breakpoint(SPARE + 1, physical=True)
    m.load(source)
    m.silicon.debug.add_breakpoint(breakpoint_)
    for at in (SPARE + 1, alias + 1):
        assert run(m) == DebugStop(DebugReason.BREAKPOINT, at)
    assert run(m) == Hlt()
    assert breakpoint_.hits == 2


def test_physical_address_changes_no_count() -> None:
    m = loop(*(Breakpoint(CODE + i, NEVER, physical=True) for i in range(len(assemble(LOOP)))))
    for _ in range(100):
        m.silicon.cpu.shared.slice_end = m.silicon.clock.now + 40
        exit_ = m.run(ticks=1_000_000)
        if exit_ == Hlt():
            break
        assert exit_ == Paused()
    finished(m)


# -- programs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "instructions",
    [
        (),
        (Instruction(Op.CONST, 1 << 64),),
        (Instruction(Op.CONST, -1),),
        (Instruction(Op.REGISTER, 0),),
        (Instruction(Op.CONST, 1), Instruction(Op.LOAD, 3), Instruction(Op.END)),
        (Instruction(Op.CONST, 1), Instruction(Op.EXTEND, 65), Instruction(Op.END)),
        (Instruction(Op.CALL, 1 << 32), Instruction(Op.END)),
        (Instruction(Op.JUMP, 0),),
        (Instruction(Op.JUMP, 1),),
        (Instruction(Op.END),) * 5000,
    ],
)
def test_bad_programs(instructions: tuple[Instruction, ...]) -> None:
    with pytest.raises(BadProgram):
        Program(instructions)
