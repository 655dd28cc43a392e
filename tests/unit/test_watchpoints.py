# SPDX-License-Identifier: MIT
"""Watchpoints on the bare machine: what hits one, and that nothing else is any different."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svsmd.snp.debug_support import Watch
from svsmd.snp.exits import DebugReason, DebugStop, Hlt
from tests.bare_machine import CODE, DATA, HANDLERS, RSP0, SPARE, BareMachine, P, W

pytestmark = pytest.mark.usefixtures("both_callbacks")

READ, WRITE, ACCESS = (
    DebugReason.READ_WATCHPOINT, DebugReason.WRITE_WATCHPOINT, DebugReason.ACCESS_WATCHPOINT,
)  # fmt: skip
AT = DATA + 0x108
OSFXSR = 1 << 9


def ready(source: str) -> BareMachine:
    m = BareMachine()
    m.vmsa.cr4 |= OSFXSR
    m.write(DATA, bytes(range(256)) * 32)
    m.load(f"mov ebx, {AT}\n{source}\nhlt")
    return m


def watching(source: str, reason: DebugReason, address: int, length: int) -> BareMachine:
    m = ready(source)
    m.silicon.debug.add_watch(Watch(reason, address, length, address))
    return m


def hits(source: str, reason: DebugReason, address: int, length: int) -> list[int]:
    """Linear addresses behind the instructions that hit it."""
    m = watching(source, reason, address, length)
    found = []
    while (exit_ := m.run()) != Hlt():
        assert exit_ == DebugStop(reason, address)
        found.append(m.silicon.registers.linear_rip)
        assert len(found) < 50
    free = ready(source)
    assert free.run() == Hlt()
    assert free.silicon.clock.now == m.silicon.clock.now
    assert free.vmsa.tobytes() == m.vmsa.tobytes()
    assert free.read(DATA, 0x2000) == m.read(DATA, 0x2000)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(-9, 9), st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.booleans(),
    st.sampled_from([READ, WRITE, ACCESS]),
)  # fmt: skip
def test_loads_and_stores_hit_what_they_overlap(
    offset: int, size: int, length: int, store: bool, reason: DebugReason
) -> None:
    """Aligned or not: the engine splits what is not."""
    register = {1: "al", 2: "ax", 4: "eax", 8: "rax"}[size]
    place = f"[rbx + {offset}]"
    source = f"mov {place}, {register}" if store else f"mov {register}, {place}"
    overlaps = offset < length and offset + size > 0
    kind = reason is ACCESS or (reason is WRITE) == store
    assert len(hits(source, reason, AT, length)) == (overlaps and kind)


@pytest.mark.parametrize(
    ("source", "read", "write"),
    [
        ("inc qword ptr [rbx]", 1, 1),
        ("lock xadd [rbx], rax", 1, 1),
        ("xchg [rbx], rax", 1, 1),
        ("cmp qword ptr [rbx], 3", 1, 0),
        (f"lea rsp, [rbx + 8]; push rax; mov esp, {RSP0}", 0, 1),
        (f"mov rsp, rbx; pop rax; mov esp, {RSP0}", 1, 0),
        (f"lea rsp, [rbx + 8]; call 1f; 1: mov esp, {RSP0}", 0, 1),
        ("movups xmm0, [rbx - 9]", 1, 0),
        ("movups [rbx - 8], xmm0", 0, 1),
        ("movdqa xmm0, [rbx - 8]", 1, 0),
        ("fld qword ptr [rbx]; fstp qword ptr [rbx + 8]", 1, 0),
        ("lea rsi, [rbx - 4]; lea rdi, [rbx + 64]; mov ecx, 3; rep movsd", 2, 0),
        ("lea rsi, [rbx - 64]; lea rdi, [rbx - 4]; mov ecx, 3; rep movsd", 0, 2),
        ("lea rdi, [rbx - 8]; mov ecx, 3; rep stosq", 0, 1),
        ("lea rdi, [rbx + 16]; std; mov ecx, 3; rep stosq; cld", 0, 1),
        ("mov rax, [rbx + 8]; mov [rbx - 8], rax; mov eax, [rbx - 4]", 0, 0),
        ("mov rax, [rbx - 7]", 1, 0),
        ("inc qword ptr [rbx + 9]", 0, 0),
        ("add dword ptr [rbx - 3], 5", 1, 1),
        ("add qword ptr [rbx + 0xef5], 5", 0, 0),
        ("mov rax, [rbx + 0x1000]; mov [rbx + 0x1000], rax", 0, 0),
    ],
)
def test_kinds_of_instructions(source: str, read: int, write: int) -> None:
    assert len(hits(source, READ, AT, 8)) == read
    assert len(hits(source, WRITE, AT, 8)) == write


def test_the_stop_is_behind_the_instruction() -> None:
    assert hits("mov [rbx], al; nop", WRITE, AT, 1) == [CODE + 5 + 2]


def test_another_address_of_the_same_memory() -> None:
    m = watching(f"mov [{SPARE + 0x108}], al", WRITE, AT, 1)
    m.map(SPARE, DATA)
    assert m.run() == DebugStop(WRITE, AT)
    assert m.run() == Hlt()


def test_a_page_that_is_mapped_elsewhere_is_not_watched_there() -> None:
    m = watching(
        f"mov [rbx], al; mov dword ptr [{m_entry(DATA)}], {SPARE | P | W}; invlpg [rbx]\n"
        "mov [rbx], al; mov al, [rbx]",
        ACCESS, AT, 1,
    )  # fmt: skip
    m.own(SPARE)
    assert m.run() == DebugStop(ACCESS, AT)
    assert m.run() == Hlt()


def m_entry(address: int) -> int:
    return BareMachine.entry_of(address)


def test_an_exception_frame_is_no_operand() -> None:
    """Neither by the engine's fast delivery nor by ours."""
    m = watching("ud2; hlt", WRITE, RSP0 - 0x100, 0x100)
    m.set_handler(6, "hlt")
    m.load(f"mov esp, {RSP0}; ud2; hlt")
    assert m.run() == Hlt()
    assert m.vmsa.rip - 1 == HANDLERS + 6 * 16


def test_code_on_a_watched_page() -> None:
    m = watching("", ACCESS, CODE + 0x800, 8)
    m.load(f"mov ecx, 100; 1: mov [{CODE + 0x808}], ecx; dec ecx; jnz 1b; "
           f"mov [{CODE + 0x800}], eax; hlt")  # fmt: skip
    assert m.run() == DebugStop(ACCESS, CODE + 0x800)
    assert m.run() == Hlt()
    assert m.silicon.clock.now == 1 + 3 * 100 + 2


def test_an_access_that_faults_is_no_hit() -> None:
    m = watching("mov [rbx], al", WRITE, AT, 1)
    m.map(DATA, DATA, P)
    m.silicon.cpu.cr[0] |= 1 << 16
    assert m.trapped().vector == 14


def test_many_accesses_beside_it_cost_no_exit(both_callbacks: str) -> None:
    if both_callbacks == "python":
        return
    m = watching("mov ecx, 10000; 1: mov [rbx + 8], rcx; mov rax, [rbx - 8]; dec ecx; jnz 1b",
                 ACCESS, AT, 8)  # fmt: skip
    assert m.run() == Hlt()
    assert m.silicon.cpu.shared.exits < 20


def test_removed_watchpoints_leave_nothing() -> None:
    m = watching("mov [rbx], al; mov al, [rbx]", ACCESS, AT, 1)
    assert m.run() == DebugStop(ACCESS, AT)
    m.silicon.debug.remove_watch(ACCESS, AT, 1)
    assert m.run() == Hlt()
