# SPDX-License-Identifier: MIT
"""The rows of docs/access-checks.md that guest code reaches, executed by guest code."""

from __future__ import annotations

import pytest

from svsmd.snp.exits import Exit, Hlt, Npf
from svsmd.snp.faults import NpfError
from svsmd.snp.nested_paging import NestedTables
from svsmd.snp.rmp import GUEST_ASID, RmpUpdate
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa
from tests.bare_machine import (
    CODE,
    DATA,
    EXECUTE_SUPERVISOR,
    EXECUTE_USER,
    HANDLERS,
    HLT,
    MEMORY,
    PML4,
    READ,
    SPARE,
    VMSA,
    WRITE,
    BareMachine,
    P,
    U,
    W,
    gate,
)

RETURN = b"\xc3"
ACCESSES = {
    "read": f"mov rax, [{SPARE + 8}]; hlt",
    "write": f"mov rax, {SPARE + 8}; mov [rax], rbx; hlt",
    "fetch": f"mov rax, {SPARE + 8}; call rax; hlt",
}
BASE = NpfError.P | NpfError.U | NpfError.RMP
PRIVATE = BASE | NpfError.ENC | NpfError.FINAL
BITS = {"read": NpfError(0), "write": NpfError.W, "fetch": NpfError.ID}


def attempt(m: BareMachine, access: str) -> Exit:
    m.silicon.memory.write(SPARE + 8, RETURN)
    return m.run(ACCESSES[access])


def expect_npf(exit_: Exit, row: str, bits: int, gpa: int = SPARE + 8) -> None:
    assert isinstance(exit_, Npf), exit_
    assert (exit_.reason, exit_.gpa, NpfError(exit_.error_code)) == (row, gpa, NpfError(bits))


# -- shared (C = 0) -------------------------------------------------------------------------


def shared(m: BareMachine) -> BareMachine:
    m.map(SPARE, SPARE, P | W, private=False)
    return m


@pytest.mark.parametrize("access", ["read", "write"])
def test_ac_10_and_12_shared_access_to_an_unassigned_page(access):
    assert attempt(shared(BareMachine()), access) == Hlt()


def test_ac_11_shared_read_of_an_assigned_page_is_ciphertext():
    seen = []
    for content in (b"A" * 16, b"A" * 16, b"B" * 16):
        m = shared(BareMachine())
        m.own(SPARE)
        m.silicon.memory.write(SPARE, content)
        source = f"mov rax, [{SPARE}]; mov rbx, [{SPARE}]; mov rcx, [{SPARE + 8}]; hlt"
        assert m.run(source) == Hlt()
        vmsa = m.vmsa
        assert vmsa.rax == vmsa.rbx
        cipher = vmsa.rax.to_bytes(8, "little") + vmsa.rcx.to_bytes(8, "little")
        assert cipher != content
        assert cipher == m.silicon.host_read(SPARE, 16)
        seen.append(cipher)
    assert seen[0] == seen[1] != seen[2]


def test_ac_11_the_vmsa_page_too():
    m = BareMachine()
    m.map(SPARE, VMSA, P, private=False)
    assert m.run(f"mov rax, [{SPARE + 0x150}]; hlt") == Hlt()
    assert m.gpr("rax") != PML4 | C_BIT


def test_ac_13_shared_write_of_an_assigned_page():
    m = shared(BareMachine())
    m.own(SPARE)
    expect_npf(attempt(m, "write"), "AC-13", BASE | NpfError.W | NpfError.FINAL)
    assert m.read(SPARE + 8, 1) == RETURN


def test_ac_13_a_shared_alias_does_not_lend_its_leaf():
    """A private access before, and a shared read before, do not let the shared write through."""
    m = BareMachine()
    m.own(SPARE)
    m.map(SPARE + PAGE_SIZE, SPARE, P | W, private=False)
    source = f"""
        mov [{SPARE}], rax
        mov rax, [{SPARE + PAGE_SIZE}]
        mov [{SPARE + PAGE_SIZE}], rbx
        hlt
    """
    expect_npf(m.run(source), "AC-13", BASE | NpfError.W | NpfError.FINAL, SPARE)


def test_read_modify_write_of_a_shared_alias_writes_nothing():
    m = shared(BareMachine())
    m.own(SPARE)
    before = m.read(SPARE, PAGE_SIZE)
    expect_npf(m.run(f"lock inc qword ptr [{SPARE}]; hlt"), "AC-13",
               BASE | NpfError.W | NpfError.FINAL, SPARE)  # fmt: skip
    assert m.read(SPARE, PAGE_SIZE) == before


# -- private (C = 1) ------------------------------------------------------------------------


@pytest.mark.parametrize("access", list(ACCESSES))
def test_ac_20_not_covered(access):
    m = BareMachine()
    m.map(SPARE, MEMORY * 4)
    exit_ = m.run(ACCESSES[access])
    assert isinstance(exit_, Npf)
    assert exit_.gpa == MEMORY * 4 + 8


@pytest.mark.parametrize("access", list(ACCESSES))
def test_ac_21_not_assigned(access):
    expect_npf(attempt(BareMachine(), access), "AC-21", PRIVATE | BITS[access])


@pytest.mark.parametrize("access", list(ACCESSES))
@pytest.mark.parametrize(
    ("row", "changes"),
    [("AC-22", {"asid": 2}), ("AC-22", {"asid": 0}), ("AC-23", {"gpa": Gpa(SPARE + PAGE_SIZE)}),
     ("AC-24", {"immutable": True})],
)  # fmt: skip
def test_ac_22_to_24(access, row, changes):
    m = BareMachine()
    update = {"assigned": True, "asid": GUEST_ASID, "gpa": Gpa(SPARE)} | changes
    m.rmp.rmpupdate(Spa(SPARE), RmpUpdate(**update))
    m.rmp.firmware_update(Spa(SPARE), validated=True, permissions=(15, 15, 15, 15))
    expect_npf(attempt(m, access), row, PRIVATE | BITS[access])


@pytest.mark.parametrize("access", list(ACCESSES))
def test_ac_26_not_validated(access):
    m = BareMachine()
    m.own(SPARE, validated=False)
    m.silicon.memory.write(SPARE + 8, RETURN)
    trap = m.trapped(ACCESSES[access])
    assert (trap.vector, trap.error_code) == (29, 0x404)
    assert m.vmsa.cr2 == SPARE + 8
    if access == "fetch":
        assert trap.rip == SPARE + 8


@pytest.mark.parametrize(
    ("source", "address"),
    [
        (f"mov rbx, {SPARE + 0x10}; mov rcx, [rbx + rbx * 2 - {SPARE * 2 + 0x20}]", SPARE + 0x10),
        (f"mov rdi, {SPARE + 0xFF8}; mov ecx, 2; rep stosq", SPARE + 0xFF8),
        (f"mov rdi, {SPARE - 8}; mov ecx, 4; rep stosq", SPARE),
        (f"mov rsi, {SPARE + 5}; mov edi, {DATA}; movsb", SPARE + 5),
        (f"mov rsp, {SPARE + 0x100}; push rax", SPARE + 0xF8),
        (f"mov rsp, {SPARE + 0x100}; pop rax", SPARE + 0x100),
        (f"mov rax, [{SPARE - 4}]", SPARE),
        (f"lock inc byte ptr [{SPARE + 1}]", SPARE + 1),
    ],
)
def test_ac_26_cr2_is_the_address_of_the_operand(source, address):
    m = BareMachine()
    m.set_gate(29, gate(HANDLERS + 29 * 16, ist=1))
    m.own(SPARE - PAGE_SIZE)
    m.own(SPARE, validated=False)
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code) == (29, 0x404)
    assert m.vmsa.cr2 == address


NEEDS = {"read": READ, "write": READ | WRITE, "fetch": EXECUTE_SUPERVISOR}


@pytest.mark.parametrize("access", list(ACCESSES))
@pytest.mark.parametrize("mask", range(16))
def test_ac_30_to_34_and_40_every_permission_mask(access, mask):
    m = BareMachine(2)
    m.own(SPARE, permissions=(15, 15, mask, 15))
    exit_ = attempt(m, access)
    if mask & NEEDS[access] == NEEDS[access]:
        assert exit_ == Hlt()
        return
    rows = {"read": "AC-30", "write": "AC-31", "fetch": "AC-34"}
    row = rows[access]
    if access != "fetch" and mask & 3 == WRITE:
        row = "AC-32"
    expect_npf(exit_, row, PRIVATE | BITS[access] | NpfError.VMPL)


@pytest.mark.parametrize("mask", range(16))
def test_ac_33_fetch_at_cpl_3(mask):
    m = BareMachine(2, user=True)
    m.own(SPARE, permissions=(15, 15, mask, 15))
    m.silicon.memory.write(SPARE + 8, b"\xb3\x07" + RETURN)
    exit_ = m.run(f"mov rax, {SPARE + 8}; call rax; int3")
    if mask & EXECUTE_USER:
        assert exit_ == Hlt()  # of the handler that INT3 is refused with
        assert m.gpr("rbx") == 7
    else:
        expect_npf(exit_, "AC-33", PRIVATE | NpfError.ID | NpfError.VMPL)


def test_a_page_for_one_cpl_is_data_for_the_other():
    """Execute-user only: the supervisor reads and writes it, and cannot run it."""
    m = BareMachine(2)
    m.own(SPARE, permissions=(15, 15, READ | WRITE | EXECUTE_USER, 15))
    m.silicon.memory.write(SPARE + 8, RETURN)
    source = f"""
        mov rcx, 1000
        1: inc qword ptr [{SPARE}]; dec rcx; jnz 1b
        mov rax, {SPARE + 8}; call rax; hlt
    """
    expect_npf(m.run(source), "AC-34", PRIVATE | NpfError.ID | NpfError.VMPL)
    assert m.read_u64(SPARE) == 1000
    assert m.silicon.clock.now == 3003


def test_an_instruction_that_ends_on_a_page_without_execute_permission():
    m = BareMachine(2)
    m.own(SPARE)
    m.own(SPARE + PAGE_SIZE, permissions=(15, 15, READ | WRITE, 15))
    m.write(SPARE + PAGE_SIZE - 1, b"\xb3\x07")
    source = f"mov rcx, [{SPARE + PAGE_SIZE}]; mov rax, {SPARE + PAGE_SIZE - 1}; jmp rax"
    exit_ = m.run(source)
    expect_npf(exit_, "AC-34", PRIVATE | NpfError.ID | NpfError.VMPL, SPARE + PAGE_SIZE)
    assert m.gpr("rbx") == 0


# -- fetches and walks ----------------------------------------------------------------------


def test_ac_41_execution_from_shared_memory_is_refused():
    m = shared(BareMachine())
    # Its data is mapped by then: the engine could find it executable.
    m.silicon.memory.write(SPARE + 8, RETURN)
    exit_ = m.run(f"mov rbx, [{SPARE + 8}]; mov [{SPARE}], rbx; mov rax, {SPARE + 8}; call rax")
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-21"
    assert m.vmsa.rip == SPARE + 8


def test_ac_41_an_instruction_that_ends_in_shared_memory_is_refused():
    m = BareMachine()
    m.own(SPARE)
    m.map(SPARE + PAGE_SIZE, SPARE + PAGE_SIZE, P | W, private=False)
    m.write(SPARE + PAGE_SIZE - 1, b"\xb3\x07" + HLT)
    exit_ = m.run(f"mov rcx, [{SPARE + PAGE_SIZE}]; mov rax, {SPARE + PAGE_SIZE - 1}; jmp rax")
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-21"
    assert m.gpr("rbx") == 0


def test_ac_41_code_with_c_0_in_its_mapping_is_fetched_privately():
    m = shared(BareMachine())
    m.own(SPARE)
    m.silicon.memory.write(SPARE + 8, b"\xb3\x07\x0f\xa2" + RETURN)
    trap = m.trapped(ACCESSES["fetch"])
    assert (trap.vector, trap.error_code, trap.rip) == (29, 0x72, SPARE + 10)  # CPUID
    assert m.gpr("rbx") == 7


def test_ac_41_cr3_without_c_bit_is_walked_privately():
    m = BareMachine()
    m.vmsa.cr3 = PML4
    assert m.run(f"mov rax, [{DATA}]; hlt") == Hlt()


def test_ac_42_the_vmsa_page_reads_as_any_other():
    m = BareMachine()
    assert m.run(f"mov rax, [{VMSA + 0x150}]; hlt") == Hlt()
    assert m.gpr("rax") == PML4 | C_BIT


@pytest.mark.parametrize("validated", [False, True])
def test_walk_of_a_table_that_is_not_accessible(validated):
    m = BareMachine()
    table = SPARE
    m.own(table, validated=validated, permissions=(15, 15, 0, 0))
    m.write_u64(PML4 + 2 * PAGE_SIZE + 8 * 8, table | P | W | U | C_BIT)
    source = f"mov rax, [{8 << 21}]; hlt"
    if validated:
        exit_ = m.run(source)
        assert isinstance(exit_, Npf)
        assert exit_.gpa == table
        assert exit_.error_code & NpfError.VMPL
    else:
        trap = m.trapped(source)
        assert (trap.vector, trap.error_code) == (29, 0x404)
        assert m.vmsa.cr2 == 8 << 21


def test_another_vmpls_page_and_the_svsms_memory():
    for permissions in ((15, 0, 0, 0), (15, 15, 0, 0), (15, 0, 0, 15)):
        m = BareMachine(2)
        m.own(SPARE, permissions=permissions)
        expect_npf(attempt(m, "read"), "AC-30", PRIVATE | NpfError.VMPL)


def test_mmio_is_vc_npf():
    for source in ("mov rax, [rbx]", "mov [rbx], rax", "lock xchg [rbx], eax"):
        m = BareMachine()
        m.map(SPARE, 0xFEC0_0000, P | W, private=False)
        m.vmsa.rbx = SPARE + 0x10
        trap = m.trapped(source)
        assert (trap.vector, trap.error_code, trap.rip) == (29, 0x400, CODE)


def test_fetch_from_mmio_is_an_npf():
    m = BareMachine()
    m.map(SPARE, 0xFEC0_0000, P | W, private=False)
    assert isinstance(m.run(ACCESSES["fetch"]), Npf)


# -- sizes, changes -------------------------------------------------------------------------


def test_huge_pages_and_psmash():
    m = BareMachine(2)
    m.own_huge(0x60_0000)
    assert m.run(f"mov [{0x60_1000}], rsp; mov rax, [{0x60_1000}]; hlt") == Hlt()
    m.rmp.psmash(Spa(0x60_0000))
    m.rmp.firmware_update(Spa(0x60_1000), permissions=(15, 15, 0, 0))
    m.vmsa.rip = CODE
    assert isinstance(m.run(), Npf)


@pytest.mark.parametrize("size", list(PageSize))
def test_a_page_that_the_host_takes_away_is_gone_at_once(size):
    m = BareMachine(2)
    gpa = 0x60_0000
    if size:
        m.own_huge(gpa)
    else:
        m.own(gpa)
    assert m.run(f"mov rax, [{gpa}]; hlt; mov rax, [{gpa}]; hlt") == Hlt()
    m.rmp.rmpupdate(Spa(gpa), RmpUpdate(page_size=size))
    exit_ = m.run()
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-21"


def test_code_of_a_page_that_was_taken_away_does_not_run():
    m = BareMachine(2)
    m.own(SPARE)
    m.write(SPARE, RETURN)
    assert m.run(f"mov rax, {SPARE}; call rax; hlt; call rax; hlt") == Hlt()
    m.rmp.rmpupdate(Spa(SPARE), RmpUpdate())
    exit_ = m.run()
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-21"


def test_a_full_pool_starts_anew_and_tells_the_engine():
    pool = memoryview(bytearray(40 * PAGE_SIZE)).cast("Q")
    resets: list[int] = []
    tables = NestedTables(pool, 0x1000_0000, lambda: resets.append(1))
    roots = list(tables.roots)
    for region in range(60):
        tables.map_page(2, region << 21 | C_BIT, region << 21, writable=True)
    assert resets
    assert tables.roots == roots
    assert tables.unmap(59 << 9, 1)
    assert not tables.unmap(59 << 9 | 1, 0)
