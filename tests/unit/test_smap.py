# SPDX-License-Identifier: MIT
"""SMEP and SMAP (24593, 5.6): what CPUID announces is enforced."""

from __future__ import annotations

import pytest

from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.exits import DebugReason, DebugStop
from svsmd.snp.faults import PfError, Vector
from svsmd.snp.types import PAGE_SIZE
from svsmd.snp.vmsa import Cr0, Cr4
from tests.bare_machine import CODE, DATA, HANDLERS, IDT, RSP0, BareMachine, P, U, W, assemble, gate

USER_CODE = CODE + 0x1000
PF = Vector.PF


def kernel(cr4: Cr4) -> BareMachine:
    """CPL 0, with a page of data and one of code that are the user's."""
    machine = BareMachine(0)
    machine.map(DATA, DATA, P | W | U)
    machine.map(USER_CODE, USER_CODE, P | W | U)
    machine.vmsa.cr4 |= cr4
    return machine


def process() -> BareMachine:
    """CPL 3, under a kernel whose pages are not the user's, with both on."""
    machine = BareMachine(0, user=True)
    for page in (*range(IDT, IDT + 6 * PAGE_SIZE, PAGE_SIZE), RSP0 - PAGE_SIZE):
        machine.map(page, page, P | W)
    machine.vmsa.cr4 |= Cr4.SMAP | Cr4.SMEP
    return machine


def test_cpuid_announces_both() -> None:
    functions = CpuidPage.build(ncpus=1).functions()
    (structured,) = [f for f in functions if (f.eax_in, f.ecx_in) == (7, 0)]
    assert structured.ebx >> 7 & 1
    assert structured.ebx >> 20 & 1


@pytest.mark.parametrize(
    ("access", "error"),
    [
        (f"mov rax, [{DATA}]", PfError.P),
        (f"mov [{DATA}], rax", PfError.P | PfError.W),
        (f"mov rsp, {DATA + 64}; push rax", PfError.P | PfError.W),
    ],
)
def test_kernel_cannot_touch_the_users_data(access: str, error: PfError) -> None:
    machine = kernel(Cr4.SMAP)
    machine.set_gate(PF, gate(HANDLERS + PF * 16, ist=1))
    trap = machine.trapped(access)
    assert (trap.vector, trap.error_code) == (PF, error)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_stac_and_clac(opened: bool, warm: bool) -> None:
    """Whatever is in the engine's TLB when RFLAGS.AC changes."""
    machine = kernel(Cr4.SMAP)
    source = f"stac; mov rax, [{DATA}]; clac; " if warm else ""
    source += f"{'stac' if opened else 'clac'}; mov rbx, [{DATA}]; hlt"
    if opened:
        machine.run(source)
        assert machine.vmsa.rip == CODE + len(assemble(source))
    else:
        assert machine.trapped(source).vector == PF


def test_interrupt_gate_keeps_ac() -> None:
    """24593, 8.9: RFLAGS.AC is not changed, so a kernel's entries have to execute CLAC."""
    machine = kernel(Cr4.SMAP)
    trap = machine.trapped("stac; ud2")
    assert trap.vector == Vector.UD
    assert trap.rflags >> 18 & 1
    assert machine.vmsa.rflags >> 18 & 1


def test_kernel_cannot_execute_the_users_code() -> None:
    machine = kernel(Cr4.SMEP)
    machine.load(b"\xf4", at=USER_CODE)
    trap = machine.trapped(f"mov rax, {USER_CODE}; jmp rax")
    assert (trap.vector, trap.error_code) == (PF, PfError.P | PfError.ID)
    assert trap.rip == USER_CODE


def test_smap_alone_does_not_stop_a_fetch_nor_smep_a_load() -> None:
    machine = kernel(Cr4.SMAP)
    machine.load(b"\xf4", at=USER_CODE)
    machine.run(f"mov rax, {USER_CODE}; jmp rax")
    assert machine.vmsa.rip == USER_CODE + 1
    machine = kernel(Cr4.SMEP)
    machine.run(f"mov rax, [{DATA}]; hlt")
    assert machine.vmsa.rip > CODE


@pytest.mark.parametrize("instruction", ["stac", "clac"])
def test_user_has_neither_instruction(instruction: str) -> None:
    machine = process()
    assert machine.trapped(instruction).vector == Vector.UD


def test_user_is_not_held_back() -> None:
    machine = process()
    trap = machine.trapped(f"mov rax, [{DATA}]; mov [{DATA}], rax; ud2")
    assert trap.vector == Vector.UD


def test_write_protection_holds_at_cpl_0() -> None:
    machine = BareMachine(0)
    machine.map(DATA, DATA, P)
    machine.vmsa.cr0 |= Cr0.WP
    trap = machine.trapped(f"mov [{DATA}], rax")
    assert (trap.vector, trap.error_code) == (PF, PfError.P | PfError.W)


def test_a_step_looks_at_the_users_code_as_the_user() -> None:
    """The last iteration of REP is looked at by the step, which is no access of CPL 0."""
    machine = BareMachine(user=True)
    machine.vmsa.cr4 |= Cr4.SMAP
    machine.load(f"mov ecx, 2; mov edi, {DATA}; rep stosb; nop")
    machine.silicon.debug.set_stepping(True)
    while machine.vmsa.rip != CODE + 12:
        assert machine.run() == DebugStop(DebugReason.STEP, machine.vmsa.rip)
    assert machine.gpr("rcx") == 0
