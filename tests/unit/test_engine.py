# SPDX-License-Identifier: MIT
"""The engine counts instructions exactly, and nothing that stops it changes what it computes."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.cpu_unicorn import UnicornCpu
from svsmd.snp.engine_layout import EngineMismatch
from svsmd.snp.exits import DebugReason, DebugStop, Exit, Hlt, Intr, Paused
from svsmd.snp.memory import GuestMemory
from svsmd.snp.self_test import check_engine
from tests.bare_machine import CODE, DATA, HLT, MEMORY, NX, STACK, BareMachine, P, W, assemble

pytestmark = pytest.mark.usefixtures("both_callbacks")

ROUTINE = CODE + 0x1000
"""`mov al, imm8; ret`, which programs change."""

SNIPPETS = (
    "add rax, rbx; cmp rax, rcx; jb 1f; inc rdx; 1:",
    "mov ecx, 5; 1: add rbx, rcx; dec ecx; jnz 1b",
    "mov ecx, 3; 1: loop 1b",
    f"mov ecx, 7; mov edi, {DATA}; rep stosb",
    f"xor ecx, ecx; mov edi, {DATA}; rep stosd",
    f"mov ecx, 9; mov esi, {DATA}; mov edi, {DATA + 64}; rep movsq",
    f"mov ecx, 30; mov edi, {DATA}; mov al, 3; repne scasb",
    f"mov ecx, 30; mov esi, {DATA}; mov edi, {DATA + 8}; repe cmpsb",
    f"std; mov ecx, 4; mov edi, {DATA + 200}; rep stosw; cld",
    f"lock inc dword ptr [{DATA}]; inc dword ptr [{DATA + 8}]",
    f"mov r10, {DATA + 16}; lock xadd [r10], rax; cmpxchg [r10], rbx; setz bl",
    f"mov r10, {DATA + 32}; mov r9, -1; stc; lock inc qword ptr [r10]; push 2; popfq; "
    "mov r9, 0x7777; add r9, r9; lock cmpxchg8b [r10]; jz 1f; nop; 1: pushfq; pop r8",
    f"mov r10, {DATA + 32}; lock inc qword ptr [r10]; push 2; popfq; jmp 1f; 1: mov r8, -4; "
    "add r8, 0x7f7f7f; cmpxchg16b [r10]; pushfq; pop r11; jnz 2f; nop; 2: nop",
    "ud2",
    f"mov r10, {MEMORY * 2}; mov r11, [r10]; nop",
    "xor ecx, ecx; div ecx",
    "int 0x40",
    "cpuid",
    "rdtsc; xor r9, rax; rol r9, 7",
    "pushfq; popfq; stc; adc rax, rdx; pushfq; pop r12",
    "cli; sti; nop; cli",
    f"add byte ptr [{ROUTINE + 1}], 3; mov r10, {ROUTINE}; call r10; add r8b, al",
    "mov eax, ds; mov ss, [rip + 1f]; inc rbx; jmp 2f; 1: .word 0x18; 2:",
    "cvtsi2sd xmm0, eax; addsd xmm0, xmm0; cvttsd2si r13, xmm0",
    "fld1; fld1; faddp; fistp dword ptr [rsp - 8]; mov r14d, [rsp - 8]",
)  # fmt: skip

REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "r8", "r9", "r10", "r11", "r12",
             "r13", "r14", "rip", "rflags", "cr2", "dr6")  # fmt: skip


def machine(program: bytes) -> BareMachine:
    m = BareMachine()
    m.vmsa.cr4 |= 0x600
    m.set_handler(0, "add qword ptr [rsp], 2; iretq")
    m.set_handler(6, "add qword ptr [rsp], 2; iretq")
    m.set_handler(14, "add rsp, 8; add qword ptr [rsp], 3; iretq")
    m.set_handler(29, "add rsp, 8; add qword ptr [rsp], 2; iretq")
    m.set_handler(0x40, "iretq")
    m.write(ROUTINE, b"\xb0\x01\xc3")
    m.write(DATA, bytes(range(256)))
    m.load(program + HLT)
    return m


def outcome(m: BareMachine) -> tuple[object, ...]:
    vmsa = m.vmsa
    state = tuple(getattr(vmsa, name) for name in REGISTERS)
    return (
        m.silicon.clock.now,
        state,
        m.read(DATA, 0x100),
        m.read(ROUTINE, 3),
        m.read(STACK - 64, 64),
    )


def run_freely(m: BareMachine) -> None:
    assert m.run(ticks=1_000_000) == Hlt()


def run_in_slices(m: BareMachine) -> None:
    """Gives the machine back at every block."""
    shared = m.silicon.cpu.shared
    for _ in range(5000):
        shared.slice_end = 0
        exit_ = m.run(ticks=1_000_000)
        if exit_ == Hlt():
            return
        assert exit_ == Paused()
    raise AssertionError("no progress")


def run_switched(m: BareMachine) -> None:
    """As run_in_slices(), with the registers in the VMSA between two slices."""
    shared = m.silicon.cpu.shared
    for _ in range(5000):
        shared.slice_end = 0
        exit_ = m.run(ticks=1_000_000)
        m.silicon.save_loaded()
        if exit_ == Hlt():
            return
    raise AssertionError("no progress")


def run_in_steps(m: BareMachine) -> None:
    m.silicon.debug.set_stepping(True)
    for _ in range(5000):
        exit_ = m.run(ticks=1_000_000)
        if exit_ == Hlt():
            return
        assert isinstance(exit_, DebugStop)
        assert exit_.reason is DebugReason.STEP
    raise AssertionError("no progress")


def run_with_breakpoints(m: BareMachine, where: list[int]) -> None:
    for offset in where:
        m.silicon.debug.add_breakpoint(Breakpoint(CODE + offset))
    for _ in range(5000):
        exit_ = m.run(ticks=1_000_000)
        if exit_ == Hlt():
            return
        assert isinstance(exit_, DebugStop)
        assert exit_.reason is DebugReason.BREAKPOINT
    raise AssertionError("no progress")


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=6),
    st.lists(st.integers(0, 120), max_size=4),
)
def test_nothing_that_stops_the_engine_changes_what_it_computes(snippets, where):
    program = b"".join(assemble(snippet) for snippet in snippets)
    free = machine(program)
    run_freely(free)
    expected = outcome(free)
    for run in (run_in_slices, run_switched, run_in_steps):
        m = machine(program)
        run(m)
        assert outcome(m) == expected, run.__name__
    m = machine(program)
    run_with_breakpoints(m, where)
    assert outcome(m) == expected, "breakpoints"


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_each_snippet_stopped_everywhere(snippet):
    program = assemble(snippet)
    free = machine(program)
    run_freely(free)
    expected = outcome(free)
    for run in (run_in_slices, run_switched, run_in_steps):
        m = machine(program)
        run(m)
        assert outcome(m) == expected, run.__name__
    m = machine(program)
    run_with_breakpoints(m, list(range(len(program))))
    assert outcome(m) == expected, "breakpoints"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("hlt", 1),
        ("nop; nop; nop; hlt", 4),
        ("mov ecx, 1000; 1: dec ecx; jnz 1b; hlt", 2002),
        ("call 1f; hlt; 1: ret", 3),
        ("ud2; hlt", 3),                              # two of the handler
        ("cpuid; hlt", 4),                            # three of the handler
        ("rdtsc; hlt", 2),
        ("int 0x40; hlt", 3),
        (f"mov edi, {DATA}; xor ecx, ecx; rep stosb; hlt", 4),
        (f"mov r10, {MEMORY * 2}; mov r11, [r10]; hlt", 5),  # three of the handler
    ],
)  # fmt: skip
def test_counts_are_those_of_a_hand(source, count):
    m = machine(assemble(source))
    run_freely(m)
    assert m.silicon.clock.now == count


@pytest.mark.parametrize("ticks", range(1, 40))
def test_a_deadline_falls_on_the_same_instruction_in_every_mode(ticks):
    program = assemble("mov ecx, 50; 1: inc rax; cmp rax, 7; je 2f; inc rbx; 2: dec ecx; jnz 1b")
    free, stepped = machine(program), machine(program)
    assert free.silicon.vmrun(free.vmcb, ticks) == Intr()
    stepped.silicon.debug.set_stepping(True)
    exit_: Exit = DebugStop(DebugReason.STEP, 0)
    while isinstance(exit_, DebugStop):
        exit_ = stepped.silicon.vmrun(stepped.vmcb, ticks)
    assert exit_ == Intr()
    assert outcome(free) == outcome(stepped)


def test_read_modify_write_is_exact_under_stops_from_another_thread(both_callbacks):
    m = BareMachine()
    # The callbacks in Python are about two hundred times slower.
    rounds = 5_000_000 if both_callbacks == "native" else 50_000
    m.load(
        f"""
        mov rcx, {rounds}
        1: lock inc qword ptr [{DATA}]
        inc qword ptr [{DATA + 8}]
        inc rbx
        add [{DATA + 16}], rdx
        mov [{DATA + 16}], rbx
        dec rcx
        mov ecx, {rounds}
        cmp rbx, rcx
        jb 1b
        hlt
        """
    )
    cpu = m.silicon.cpu
    done = threading.Event()
    stops = 0

    def ask() -> None:
        while not done.is_set():
            cpu.request_stop()
            done.wait(0.00001)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        while (exit_ := m.run(ticks=100_000_000)) == Paused():
            cpu.clear_stop()
            stops += 1
    finally:
        done.set()
        asker.join()
    assert exit_ == Hlt()
    count = m.gpr("rbx")
    assert count == rounds
    assert m.read_u64(DATA) == m.read_u64(DATA + 8) == count
    assert m.silicon.clock.now == 1 + 9 * count + 1
    assert stops > 20


def test_a_request_to_stop_that_comes_before_the_run_is_not_lost():
    m = BareMachine()
    m.silicon.cpu.request_stop()
    assert m.run("1: jmp 1b") == Paused()


def test_each_slice_makes_progress():
    m = BareMachine()
    m.load("1: inc rax; jmp 1b")
    m.silicon.cpu.request_stop()
    for _ in range(10):
        assert m.run() == Paused()
    assert m.gpr("rax") == 10


def test_code_that_is_written_through_another_mapping_is_seen():
    m = BareMachine()
    m.own(0x60_0000)
    m.write(0x60_0000, b"\xb0\x01\xc3")  # mov al, 1; ret
    m.map(0x70_0000, 0x60_0000)
    source = """
        mov rbx, 0x600000; call rbx; mov cl, al
        mov byte ptr [0x700001], 2
        call rbx; mov ch, al
        mov byte ptr [0x600001], 3
        call rbx; mov dl, al; hlt
    """
    assert m.run(source) == Hlt()
    assert (m.gpr("rcx") & 0xFFFF, m.gpr("rdx") & 0xFF) == (0x0201, 3)


SLOTS = 8
SLOT_SIZE = 0x20
CODE_PAGE, WRITABLE, EXECUTABLE_TOO = 0x60_0000, 0x70_0000, 0x71_0000
"""A page with `SLOTS` functions `mov al, imm8; ret`, and two more mappings of it."""


def machine_with_functions() -> BareMachine:
    m = BareMachine()
    m.own(CODE_PAGE)
    for slot in range(SLOTS):
        m.write(CODE_PAGE + slot * SLOT_SIZE, bytes((0xB0, slot, 0xC3)))
    m.map(WRITABLE, CODE_PAGE, P | W | NX)
    m.map(EXECUTABLE_TOO, CODE_PAGE)
    return m


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, WRITABLE, EXECUTABLE_TOO, CODE_PAGE]),
            st.integers(0, SLOTS - 1),
            st.integers(0, 255),
        ),
        max_size=40,
    )
)
def test_code_is_what_was_stored_last_through_whichever_mapping(steps):
    """Each step calls a function (None), or stores its operand through a mapping."""
    source, values, digest = "xor r9d, r9d\n", list(range(SLOTS)), 0
    call_all = [(None, slot, 0) for slot in range(SLOTS)]
    for mapping, slot, value in [*call_all, *steps, *call_all]:
        offset = slot * SLOT_SIZE
        if mapping is not None:
            values[slot] = value
            source += f"mov byte ptr [{mapping + offset + 1}], {value}\n"
        else:
            digest = (digest * 31 + values[slot]) & 0xFFFF_FFFF
            source += f"mov ebx, {CODE_PAGE + offset}; xor eax, eax; call rbx\n"
            source += "imul r9d, r9d, 31; add r9d, eax\n"
    m = machine_with_functions()
    assert m.run(source + "hlt") == Hlt()
    assert m.gpr("r9") == digest


def test_code_beside_which_much_is_stored_is_seen_when_it_changes():
    m = machine_with_functions()
    source = f"""
        xor r9d, r9d; mov esi, 3
    1:  mov ebx, {CODE_PAGE}; xor eax, eax; call rbx; add r9d, eax
        mov ecx, 2000
    2:  mov dword ptr [{WRITABLE + 0x800}], ecx; dec ecx; jnz 2b
        mov byte ptr [{WRITABLE + SLOT_SIZE + 1}], 100
        mov ebx, {CODE_PAGE + SLOT_SIZE}; xor eax, eax; call rbx; add r9d, eax
        add byte ptr [{WRITABLE + 1}], 10
        dec esi; jnz 1b; hlt
    """
    assert m.run(source) == Hlt()
    assert m.gpr("r9") == 0 + 10 + 20 + 3 * 100


def test_host_and_debugger_writes_to_code_are_seen():
    m = BareMachine()
    m.load("mov al, 1; hlt")
    assert m.run() == Hlt()
    m.write(CODE + 1, b"\x09")
    m.vmsa.rip = CODE
    assert m.run() == Hlt()
    assert m.gpr("rax") & 0xFF == 9


def test_flags_survive_every_way_into_the_engine():
    for flags in (0x8D5 | 0x402, 0x2, 0x443, 0x882):
        m = BareMachine()
        m.vmsa.rflags = flags
        assert m.run("pushfq; pop rax; hlt") == Hlt()
        assert m.gpr("rax") == flags
        m = BareMachine()
        m.silicon.load_for_debugger(m.vmcb)
        m.silicon.registers.write("eflags", flags)
        assert m.run("pushfq; pop rax; hlt") == Hlt()
        assert m.gpr("rax") == flags


def test_a_stale_breakpoint_costs_nothing():
    m = machine(assemble("mov ecx, 5; 1: dec ecx; jnz 1b"))
    breakpoint_ = Breakpoint(CODE + 5)
    m.silicon.debug.add_breakpoint(breakpoint_)
    assert m.run() == DebugStop(DebugReason.BREAKPOINT, CODE + 5)
    m.silicon.debug.remove_breakpoint(breakpoint_)
    while (exit_ := m.run()) == Paused():
        pass  # the engine forgets it
    assert exit_ == Hlt()
    assert m.silicon.clock.now == 12


def test_the_self_test_leaves_nothing_behind():
    memory = GuestMemory(MEMORY)
    cpu = UnicornCpu(memory)
    check_engine(cpu)
    assert cpu.shared.ticks == 0
    assert memory.read(0, 0x4000) == bytes(0x4000)
    assert bytes(cpu.assigned[:16]) == bytes(16)


def test_the_self_test_finds_exit_checks_within_instructions():
    cpu = UnicornCpu(GuestMemory(MEMORY))
    ctypes.c_uint8.from_address(cpu.layout.no_exit_request).value = 0
    cpu.flush_code()
    with pytest.raises(EngineMismatch, match="in each store"):
        check_engine(cpu)


def test_engines_are_found_among_the_remains_of_others():
    for _ in range(30):
        UnicornCpu(GuestMemory(16 << 20))


def test_blocks_are_shortened_and_stop_all_the_same(both_callbacks):
    """A block that has run once no longer asks the engine whether it is to stop."""
    if both_callbacks == "python":
        return  # whose blocks are as the translator made them
    m = machine(assemble("mov ecx, 1000; 1: dec ecx; jnz 1b; hlt"))
    shared: Any = m.silicon.cpu.shared
    before = shared.shortened
    assert m.silicon.vmrun(m.vmcb, 500) == Intr()
    # The blocks of `mov, dec, jnz` and of `dec, jnz`; and the latter stops, which lengthens it.
    assert shared.shortened == before + 2
    for until in (600, 700, 800):
        assert m.silicon.vmrun(m.vmcb, until) == Intr()
    assert shared.shortened == before + 5
    assert m.silicon.vmrun(m.vmcb, 10_000) == Hlt()
    assert (m.vmsa.rcx, m.silicon.clock.now) == (0, 2002)
