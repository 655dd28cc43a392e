# SPDX-License-Identifier: MIT
"""Exceptions and interrupts through the guest's IDT: frames, stacks, error codes, what fails."""

from __future__ import annotations

import struct

import pytest

from svsmd.snp.exits import Hlt, Intr, Npf, Shutdown
from svsmd.snp.types import Spa, Vmpl
from svsmd.snp.vmsa import Segment, Vmsa
from tests.bare_machine import (
    CODE,
    CODE32,
    DATA,
    GDT,
    HANDLERS,
    HLT,
    IDT,
    IF,
    IST1,
    KERNEL_CS,
    KERNEL_SS,
    MEMORY,
    RF,
    RSP0,
    SPARE,
    STACK,
    TF,
    TSS,
    USER_CS,
    USER_SS,
    VMSA,
    BareMachine,
    assemble,
    gate,
)

pytestmark = pytest.mark.usefixtures("both_callbacks")

DE, DB, BP, OF, UD, DF, TS, NP, SS, GP, PF, MF, AC, XM = (
    0,
    1,
    3,
    4,
    6,
    8,
    10,
    11,
    12,
    13,
    14,
    16,
    17,
    19,
)


def handler(vector: int) -> int:
    return HANDLERS + 16 * vector


# -- vectors and frames ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "vector", "error_code"),
    [
        ("xor ecx, ecx; div ecx", DE, None),
        ("ud2", UD, None),
        ("mov eax, 0x58; ltr ax", GP, 0x58),
        ("mov eax, 0x1003; mov ds, eax", GP, 0x1000),
        ("mov eax, 0x10; lldt ax", GP, 0x10),
        ("mov rax, 0x8000000000000000; mov rbx, [rax]", GP, 0),
        (f"mov rax, [{MEMORY * 2}]", PF, 0),
        (f"mov [{MEMORY * 2}], rax", PF, 2),
        (f"mov rax, {MEMORY * 2}; jmp rax", PF, 0x10),
        ("mov rax, cr0; or eax, 0x22; mov cr0, rax; fninit; fldcw [rip + 1f]; fld1; fldz; fdivp;"
         "fwait; hlt; 1: .word 0x300", MF, None),
    ],
)  # fmt: skip
def test_exceptions_push_their_error_code(source, vector, error_code):
    m = BareMachine()
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code) == (vector, error_code)
    assert trap.rflags & RF  # a fault, which is resumed
    assert (trap.cs, trap.ss, trap.rsp) == (KERNEL_CS, KERNEL_SS, STACK)
    if vector == PF:
        assert m.vmsa.cr2 == MEMORY * 2


def test_page_fault_bits_at_cpl_3():
    m = BareMachine(user=True)
    m.map(SPARE, SPARE, 1)
    trap = m.trapped(f"mov [{SPARE}], rax")
    assert (trap.vector, trap.error_code) == (PF, 7)


@pytest.mark.parametrize(
    ("code", "vector"), [(b"\xcc", BP), (b"\xcd\x40", 0x40), (b"\xcd\x03", BP), (b"\xcd\xcc", 0xCC)]
)
def test_software_interrupts_are_traps(code, vector):
    trap = BareMachine().trapped(code)
    assert (trap.vector, trap.rip) == (vector, CODE + len(code))
    assert not trap.rflags & RF


@pytest.mark.parametrize("code", [b"\xcc", b"\xcd\x40", b"\xcd\x03", b"\xcd\xcc", b"\xcd\xce"])
def test_int_n_with_a_low_dpl_is_gp_at_the_instruction(code):
    m = BareMachine(user=True)
    trap = m.trapped(b"\x90" + code)
    vector = 3 if code == b"\xcc" else code[1]
    assert (trap.vector, trap.error_code, trap.rip) == (GP, vector * 8 + 2, CODE + 1)


def test_int_n_with_dpl_3_is_allowed():
    m = BareMachine(user=True)
    m.set_gate(0x40, gate(handler(0x40), dpl=3))
    trap = m.trapped("int 0x40")
    assert (trap.vector, trap.cs, trap.ss, trap.rsp) == (0x40, USER_CS, USER_SS, STACK)


def test_stack_switch_by_tss_and_back():
    m = BareMachine(user=True)
    trap = m.trapped("ud2; hlt")
    assert (trap.cs, trap.ss) == (USER_CS, USER_SS)
    vmsa = m.vmsa
    assert (vmsa.rsp, vmsa.cpl, vmsa.ss.selector) == (RSP0 - 40, 0, 0)
    m.set_handler(UD, "add qword ptr [rsp], 2; iretq")
    m.vmsa.rip = handler(UD)
    assert m.trapped().vector == GP  # HLT at CPL 3
    assert m.trap.rip == CODE + 2


def test_ist_switches_without_a_change_of_cpl():
    m = BareMachine()
    m.set_gate(UD, gate(handler(UD), ist=1))
    m.vmsa.rsp = STACK - 3
    trap = m.trapped("ud2")
    assert (m.gpr("rsp"), trap.rsp) == (IST1 - 40, STACK - 3)


def test_the_stack_is_aligned():
    m = BareMachine()
    m.vmsa.rsp = STACK - 3
    m.trapped("ud2")
    assert m.gpr("rsp") == (STACK - 3 & ~15) - 40


@pytest.mark.parametrize(("trap_gate", "expected"), [(True, IF), (False, 0)])
def test_gate_kind_decides_about_if(trap_gate, expected):
    m = BareMachine()
    m.set_gate(UD, gate(handler(UD), trap=trap_gate))
    m.vmsa.rflags = 2 | IF
    trap = m.trapped("ud2")
    assert trap.rflags & IF
    assert m.vmsa.rflags & IF == expected


# -- single steps of the guest --------------------------------------------------------------


def test_tf_is_a_trap_after_each_instruction():
    m = BareMachine()
    m.vmsa.rflags = 2 | TF
    trap = m.trapped("nop; nop")
    assert (trap.vector, trap.rip) == (DB, CODE + 1)
    assert trap.rflags & TF
    assert not m.vmsa.rflags & TF
    assert m.vmsa.dr6 & 1 << 14


@pytest.mark.parametrize("code", [b"\x0f\x31", b"\x0f\xc7\xf0", b"\xb9\x30\x01\x01\xc0\x0f\x32"])
def test_tf_after_instructions_that_are_served(code):
    m = BareMachine()
    m.set_handler(DB, "inc r15; iretq")
    m.vmsa.rflags = 2 | TF
    m.trapped(code + b"\x0f\x0b")  # ends with UD2
    assert m.trap.rip == CODE + len(code)
    assert m.gpr("r15") == (2 if len(code) > 3 else 1)


def test_tf_and_a_debuggers_step_are_told_apart():
    m = BareMachine()
    m.silicon.debug.set_stepping(True)
    m.vmsa.rflags = 2 | TF
    m.run("nop; nop")
    assert m.vmsa.rip == handler(DB)
    m = BareMachine()
    m.silicon.debug.set_stepping(True)
    m.run("nop; nop")
    assert m.vmsa.rip == CODE + 1
    assert not m.vmsa.rflags & TF


# -- faults of the delivery -----------------------------------------------------------------


def broken(
    vector: int, *, present: bool = True, selector: int = KERNEL_CS, kind: int = 0xE
) -> bytes:
    low = handler(vector) & 0xFFFF | selector << 16 | kind << 40 | present << 47
    return struct.pack("<QQ", low | (handler(vector) >> 16) << 48, 0)


@pytest.mark.parametrize(
    ("entry", "vector", "error_code"),
    [
        (broken(UD, present=False), NP, UD * 8 + 2),
        (broken(UD, kind=0xC), GP, UD * 8 + 2),
        (broken(UD, selector=0), GP, 0),
        (broken(UD, selector=0x18), GP, 0x18),
        (broken(UD, selector=0x100), GP, 0x100),
        (broken(UD, selector=CODE32), GP, CODE32),
        (gate(0x8000_0000_0000_0000), GP, 0),
        (gate(handler(UD), ist=7), TS, 0x40),
    ],
)
def test_a_broken_gate(entry, vector, error_code):
    m = BareMachine()
    m.vmsa.tr = Segment(0x40, 0x8B, 0x3F, TSS)
    m.set_gate(UD, entry)
    trap = m.trapped("ud2")
    assert (trap.vector, trap.error_code, trap.rip) == (vector, error_code, CODE)


def test_two_contributory_faults_are_df_and_a_third_is_a_shutdown():
    m = BareMachine()
    m.set_gate(GP, broken(GP, present=False))
    trap = m.trapped("mov eax, 0x1003; mov ds, eax")
    assert (trap.vector, trap.error_code) == (DF, 0)
    m = BareMachine()
    m.set_gate(GP, broken(GP, present=False))
    m.set_gate(DF, broken(DF, present=False))
    assert isinstance(m.run("mov eax, 0x1003; mov ds, eax"), Shutdown)


def test_page_fault_in_the_delivery_of_a_page_fault_is_df():
    m = BareMachine()
    m.set_gate(DF, gate(handler(DF), ist=1))
    trap = m.trapped(f"mov rsp, {MEMORY * 2}; push rax")
    assert trap.vector == DF
    assert m.vmsa.cr2 == MEMORY * 2 - 48  # where the first frame was to begin


def test_a_bad_stack_at_a_benign_exception_is_the_second_fault():
    m = BareMachine()
    m.set_gate(PF, gate(handler(PF), ist=1))
    trap = m.trapped(f"mov rsp, {MEMORY * 2 - 8}; ud2")
    assert (trap.vector, trap.error_code) == (PF, 2)


def test_delivery_on_a_page_that_the_rmp_refuses_is_an_npf():
    m = BareMachine()
    m.own(SPARE, permissions=(15, 15, 1, 1))
    exit_ = m.run(f"mov rsp, {SPARE + 0x800}; int 0x40; hlt")
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-31"
    assert m.vmsa.rip == CODE + 7  # the instruction can be executed again
    m.rmp.firmware_update(Spa(SPARE), permissions=(15, 15, 15, 15))
    assert m.trapped().vector == 0x40


# -- interrupts -----------------------------------------------------------------------------


def test_an_interrupt_waits_for_if():
    m = BareMachine()
    m.vmcb.v_irq = 0x30
    trap = m.trapped("inc rax; inc rax; sti; inc rax; inc rax; hlt")
    assert (trap.vector, trap.rip, m.gpr("rax")) == (0x30, CODE + 10, 3)  # one more: the shadow
    assert not m.vmcb.v_irq
    assert trap.rflags & IF
    assert not trap.rflags & RF


def test_sti_hlt_has_no_window():
    m = BareMachine()
    m.vmcb.v_irq = 0x30
    trap = m.trapped("sti; hlt; inc rax")
    assert (trap.vector, trap.rip, m.gpr("rax")) == (0x30, CODE + 2, 0)


def test_mov_ss_has_a_shadow():
    m = BareMachine()
    m.vmsa.rflags |= IF
    m.vmcb.v_irq = None
    m.load("mov eax, ss; mov ss, eax; inc rbx; 1: jmp 1b")
    m.silicon.vmrun(m.vmcb, 1)
    m.vmcb.v_irq = 0x30
    assert m.trapped().vector == 0x30


def test_the_shadow_is_part_of_the_vmsa():
    m = BareMachine()
    m.vmsa.rflags |= IF
    m.vmsa.vintr_ctrl |= 1 << 10
    m.vmcb.v_irq = 0x30
    trap = m.trapped("inc rax; inc rax; hlt")
    assert (trap.vector, trap.rip) == (0x30, CODE + 3)


def test_hlt_without_an_interrupt_stays_an_exit():
    m = BareMachine()
    m.vmcb.v_irq = 0x30
    assert m.run("cli; hlt; hlt") == Hlt()
    assert m.vmcb.v_irq == 0x30
    assert m.vmsa.rip == CODE + 2


def test_an_nmi_is_delivered_whatever_if_says():
    m = BareMachine()
    m.vmcb.v_nmi = True
    trap = m.trapped("hlt")
    assert (trap.vector, trap.rip) == (2, CODE)
    assert not m.vmcb.v_nmi


def test_an_interrupt_whose_delivery_is_an_npf_is_not_lost():
    m = BareMachine()
    m.own(SPARE, permissions=(15, 15, 1, 1))
    m.vmsa.rsp = SPARE + 0x800
    m.vmsa.rflags |= IF
    m.vmcb.v_irq = 0x30
    assert isinstance(m.run("1: jmp 1b"), Npf)
    m.rmp.firmware_update(Spa(SPARE), permissions=(15, 15, 15, 15))
    assert m.trapped().vector == 0x30


def test_an_interrupt_through_a_bad_gate_is_gp_with_ext():
    m = BareMachine()
    m.set_gate(0x30, broken(0x30, kind=0xC))
    m.vmsa.rflags |= IF
    m.vmcb.v_irq = 0x30
    trap = m.trapped("1: jmp 1b")
    assert (trap.vector, trap.error_code) == (GP, 0x30 * 8 + 3)


def test_interrupts_take_no_time():
    m = BareMachine()
    m.set_handler(0x30, "iretq")
    m.vmsa.rflags |= IF
    m.load("1: inc rax; jmp 1b")
    for _ in range(20):
        m.vmcb.v_irq = 0x30
        assert m.run(ticks=100) == Intr()
        assert m.vmcb.v_irq is None
    assert m.silicon.clock.now - 20 == m.gpr("rax") * 2 + (m.vmsa.rip != CODE)


# -- 32-bit protected mode, real mode -------------------------------------------------------


def protected_machine(*, user: bool = False) -> BareMachine:
    m = BareMachine()
    vmsa = Vmsa.protected_mode_start(CODE, STACK, page=m.silicon.memory.page(VMSA), vmpl=Vmpl.VMPL2)
    vmsa.gdtr = Segment(0, 0, 0x5F, GDT)
    vmsa.idtr = Segment(0, 0, 0x7FF, IDT)
    for vector in range(256):
        target = handler(vector)
        entry = target & 0xFFFF | CODE32 << 16 | 0x8E << 40 | (target >> 16) << 48
        m.write(IDT + 8 * vector, struct.pack("<Q", entry))
    vmsa.cs = Segment(CODE32, 0xC9B, 0xFFFF_FFFF, 0)
    vmsa.tr = Segment(0x40, 0x8B, 0x67, TSS)
    m.write(TSS + 4, struct.pack("<II", RSP0, KERNEL_SS))
    if user:
        vmsa.cpl = 3
        vmsa.cs = Segment(0x23, 0xCFB, 0xFFFF_FFFF, 0)
        vmsa.ss = vmsa.ds = vmsa.es = Segment(USER_SS, 0xCF3, 0xFFFF_FFFF, 0)
    return m


def frame32(m: BareMachine, words: int) -> tuple[int, ...]:
    vmsa = m.vmsa
    return struct.unpack(f"<{words}I", m.read(vmsa.rsp, 4 * words))


def test_protected_mode_fault():
    m = protected_machine()
    assert m.run(assemble("nop; ud2", 32)) == Hlt()
    assert m.vmsa.rip == handler(UD) + 1
    assert frame32(m, 2) == (CODE + 1, CODE32)
    assert m.vmsa.rsp == STACK - 12


def test_protected_mode_error_code_and_int():
    m = protected_machine()
    assert m.run(assemble("mov eax, 0x1003; mov ds, eax", 32)) == Hlt()
    assert m.vmsa.rip == handler(GP) + 1
    assert frame32(m, 3) == (0x1000, CODE + 5, CODE32)
    m = protected_machine()
    assert m.run(b"\xcd\x40") == Hlt()
    assert frame32(m, 2) == (CODE + 2, CODE32)


def test_protected_mode_stack_switch():
    m = protected_machine(user=True)
    assert m.run(assemble("ud2", 32)) == Hlt()
    words = frame32(m, 5)
    assert (words[0], words[1], words[3], words[4]) == (CODE, 0x23, STACK, USER_SS)
    vmsa = m.vmsa
    assert (vmsa.rsp, vmsa.ss.selector, vmsa.cpl) == (RSP0 - 20, KERNEL_SS, 0)


def test_protected_mode_vc_and_interrupt():
    m = protected_machine()
    assert m.run(assemble("cpuid", 32)) == Hlt()
    assert frame32(m, 3) == (0x72, CODE, CODE32)
    m = protected_machine()
    m.vmcb.v_irq = 0x30
    assert m.run(assemble("sti; nop; nop; hlt", 32)) == Hlt()
    assert m.vmsa.rip == handler(0x30) + 1
    assert frame32(m, 1) == (CODE + 2,)


def test_real_mode_delivery():
    m = BareMachine()
    vmsa = Vmsa.reset_state(m.silicon.memory.page(VMSA), reset_vector=0)
    vmsa.cs = Segment(DATA >> 4 & 0xFFFF, 0x9B, 0xFFFF, DATA)
    vmsa.idtr = Segment(0, 0, 0x3FF, DATA + 0x200)
    vmsa.ss = Segment(0, 0x93, 0xFFFF, DATA)
    vmsa.rsp = 0x1000
    m.own(0x9_0000)
    m.write(0x9_0010, HLT)
    m.write(DATA, b"\x90\x0f\x0b")
    m.write(DATA + 0x200 + 4 * UD, struct.pack("<HH", 0x10, 0x9000))
    assert m.run() == Hlt()
    vmsa = m.vmsa
    assert (vmsa.cs.base, vmsa.rip, vmsa.rsp) == (0x9_0000, 0x11, 0x1000 - 6)
    assert struct.unpack("<3H", m.read(DATA + 0x1000 - 6, 6))[0] == 1
