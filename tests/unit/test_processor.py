# SPDX-License-Identifier: MIT
"""What guest code sees of the CPU: intercepted instructions, their faults, flags and results."""

from __future__ import annotations

import struct

import pytest

from svsmd.snp.exits import Cr8WriteTrap, Hlt, Intr, Npf, Shutdown, Vmgexit
from svsmd.snp.faults import GuestFault, NpfError
from svsmd.snp.types import Spa
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmpl0_port import Vmpl0Port
from svsmd.snp.vmsa import Segment
from tests.bare_machine import (
    CODE,
    CODE32,
    DATA,
    HLT,
    IDT,
    KERNEL_SS,
    MEMORY,
    SPARE,
    TSS,
    USER_CS,
    USER_SS,
    BareMachine,
    P,
    W,
    assemble,
)

pytestmark = pytest.mark.usefixtures("both_callbacks")

CF, PF, ZF = 1, 4, 0x40
GP, UD, VC, DB = 13, 6, 29, 1

# -- #VC ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("cpuid", 0x72), ("rdpmc", 0x6F), ("invd", 0x76), ("wbinvd", 0x89), ("monitor", 0x8A),
        ("mwait", 0x8B), ("vmmcall", 0x81), ("mov rax, dr7", 0x27), ("mov dr7, rax", 0x37),
        ("mov rax, dr5", 0x27), ("mov ecx, 0x1B; rdmsr", 0x7C), ("mov ecx, 0x1B; wrmsr", 0x7C),
        ("in al, dx", 0x7B), ("out 0x80, al", 0x7B), ("insb", 0x7B), ("outsd", 0x7B),
        ("rep outsb", 0x7B), ("in eax, 0x10", 0x7B),
    ],
)  # fmt: skip
def test_intercepted_instruction_is_vc(source, code):
    m = BareMachine()
    before = "mov ecx, 0x1B; " if "msr" in source else ""
    at = CODE + len(assemble(before)) if before else CODE
    if "rep" in source or source.startswith(("ins", "outs")):
        m.vmsa.rcx = 2
        m.vmsa.rsi = m.vmsa.rdi = DATA
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code, trap.rip) == (VC, code, at)


@pytest.mark.parametrize("source", ["rdtsc", "rdtscp"])
def test_rdtsc_is_vc_only_if_the_host_intercepts_it(source):
    m = BareMachine()
    m.vmsa.tsc_aux = 0x77
    assert m.run(f"nop; nop; {source}; hlt") == Hlt()
    assert (m.vmsa.rax, m.vmsa.rdx) == (2, 0)
    assert m.vmsa.rcx == (0x77 if source == "rdtscp" else 0)
    m = BareMachine()
    m.vmcb.intercept_rdtsc = True
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code) == (VC, 0x87 if source == "rdtscp" else 0x6E)


@pytest.mark.parametrize("prefix", [b"\xf3", b"\xf2"])
def test_vmgexit_leaves_behind_the_instruction(prefix):
    m = BareMachine()
    assert m.run(prefix + assemble("vmmcall; mov eax, 5; hlt")) == Vmgexit()
    assert m.vmsa.rip == CODE + 4
    assert m.run() == Hlt()
    assert m.gpr("rax") == 5


def test_ghcb_msr_is_the_hosts_and_the_guests():
    m = BareMachine()
    m.vmcb.ghcb_msr = 0x1234_5678_9ABC
    assert m.run("mov ecx, 0xC0010130; rdmsr; mov ebx, eax; not eax; wrmsr; hlt") == Hlt()
    assert m.vmsa.rbx == 0x5678_9ABC
    assert m.vmcb.ghcb_msr == 0x1234_A987_6543


def test_the_port_of_vmpl0_reads_msrs_that_do_not_exit():
    m = BareMachine(vmpl=0)
    assert m.run("hlt") == Hlt()
    port = Vmpl0Port(m.silicon.processor)
    assert port.rdmsr(0xC001_0131) == 0b111
    with pytest.raises(GuestFault) as fault:
        port.rdmsr(0x1B)
    assert (fault.value.vector, fault.value.error_code) == (VC, 0x7C)


def test_sev_status_says_what_the_vmsa_has():
    m = BareMachine()
    assert m.run("mov ecx, 0xC0010131; rdmsr; hlt") == Hlt()
    assert m.gpr("rax") == 0b111
    assert BareMachine().trapped("mov ecx, 0xC0010131; wrmsr").vector == GP


@pytest.mark.parametrize(
    "source", ["vmrun", "vmload", "vmsave", "stgi", "clgi", "skinit eax", "invlpga rax, ecx"]
)
def test_svm_instructions_are_undefined(source):
    # The engine's VMSAVE would write wherever RAX points, whoever owns that memory.
    m = BareMachine()
    m.vmsa.rax = SPARE
    assert m.trapped(source).vector == UD
    assert m.read(SPARE, 0x1000) == bytes(0x1000)


@pytest.mark.parametrize(
    "source", ["psmash", "rmpupdate", ".byte 0xF3, 0x0F, 0xC7, 0xF8", "lock rdrand eax"]
)
def test_other_undefined_opcodes(source):
    encoded = {
        "psmash": b"\xf3\x0f\x01\xff", "rmpupdate": b"\xf2\x0f\x01\xfe",
        "lock rdrand eax": b"\xf0\x0f\xc7\xf0",
    }  # fmt: skip
    assert BareMachine().trapped(encoded.get(source, source)).vector == UD


def test_rdrand_comes_from_the_seed():
    source = "rdrand rax; setc bl; rdrand ecx; rdseed r9; rdrand dx; hlt"
    values = []
    for _ in range(2):
        m = BareMachine()
        m.vmsa.rdx = 0xFFFF_FFFF_FFFF_0000
        m.vmsa.rcx = 0xFFFF_FFFF_FFFF_FFFF
        assert m.run(source) == Hlt()
        vmsa = m.vmsa
        values.append((vmsa.rax, vmsa.rcx, vmsa.r9, vmsa.rdx))
        assert vmsa.rbx & 0xFF == 1
        assert vmsa.rcx >> 32 == 0
        assert vmsa.rdx >> 16 == 0xFFFF_FFFF_FFFF
    assert values[0] == values[1]
    assert len(set(values[0])) == 4


# -- control registers ----------------------------------------------------------------------

PG, NW, CD, PE = 1 << 31, 1 << 29, 1 << 30, 1


@pytest.mark.parametrize(
    "source",
    [
        "mov rax, cr0; btr rax, 31; mov cr0, rax",      # paging off in 64-bit code
        "mov rax, cr0; bts rax, 32; mov cr0, rax",
        "mov rax, cr0; btr rax, 0; mov cr0, rax",       # PG without PE
        "mov rax, cr0; bts rax, 29; mov cr0, rax",      # NW without CD
        "mov rax, cr4; btr rax, 5; mov cr4, rax",       # PAE off in long mode
        "mov rax, cr4; bts rax, 12; mov cr4, rax",      # LA57
        "mov rax, cr4; bts rax, 17; mov cr4, rax",      # PCIDE
        "mov rax, cr4; bts rax, 18; mov cr4, rax",      # OSXSAVE
        "mov rax, cr4; bts rax, 33; mov cr4, rax",
        "mov ecx, 0xC0000080; rdmsr; btr eax, 8; wrmsr",  # LME under paging
        "mov ecx, 0xC0000080; rdmsr; bts eax, 1; wrmsr",  # reserved
    ],
)  # fmt: skip
def test_illegal_control_register_is_gp(source):
    trap = BareMachine().trapped(source + "; hlt")
    assert (trap.vector, trap.error_code) == (GP, 0)


def test_control_registers_take_legal_values():
    m = BareMachine()
    source = """
        mov rax, cr4; or eax, 0x680; mov cr4, rax; mov rbx, cr4
        mov rax, cr0; bts rax, 3; mov cr0, rax; clts; mov rdx, cr0
        mov eax, 0xE; lmsw ax; smsw r8
        mov ecx, 0xC0000080; rdmsr; or eax, 1; wrmsr; rdmsr; hlt
    """
    assert m.run(source) == Hlt()
    assert m.vmsa.rbx & 0x6A0 == 0x6A0
    assert not m.vmsa.rdx & 8
    assert m.vmsa.r8 & 0xF == 0xF
    assert m.vmsa.rax & 0x1D01 == 0x1D01  # SVME stays, whatever a guest writes


def test_debug_registers_are_the_guests_and_do_nothing():
    m = BareMachine()
    m.vmsa.rax = CODE
    m.vmsa.rcx = 0xFFFF_FFFF
    source = "mov dr0, rax; mov r9, dr0; mov dr6, rcx; mov r10, dr6; mov dr4, rcx; hlt"
    assert m.run(source) == Hlt()
    assert m.vmsa.r9 == CODE
    assert m.vmsa.r10 == 0xFFFF_0FF0 | 0xE00F
    assert BareMachine().trapped("mov rax, cr4; or eax, 8; mov cr4, rax; mov rax, dr4").vector == UD
    m = BareMachine()
    m.vmsa.rax = 1 << 32
    assert m.trapped("mov dr6, rax").vector == GP


def test_paging_and_long_mode_off_and_on_again():
    """64-bit code goes to compatibility mode, to no paging, and all the way back."""
    m = BareMachine()
    source = f"""
        push {CODE32}
        lea rax, [rip + compat]
        push rax
        retfq
        .code32
        compat:
        mov eax, cr0
        btr eax, 31
        mov cr0, eax
        mov dword ptr [{DATA}], 0x1234
        mov ecx, 0xC0000080
        rdmsr
        mov ebx, eax
        mov eax, cr0
        bts eax, 31
        mov cr0, eax
        ljmp 0x10, offset back
        .code64
        back:
        mov rdx, {DATA}
        mov rdx, [rdx]
        hlt
    """
    assert m.run(source) == Hlt()
    assert not m.vmsa.rbx & 1 << 10  # LMA was off
    assert m.gpr("rdx") == 0x1234
    assert m.vmsa.efer & 1 << 10


@pytest.mark.parametrize("pse", [False, True])
def test_32_bit_page_tables_are_private(pse):
    """Entries of 32 bits have no C-bit: memory is private as without paging."""
    m = BareMachine()
    table = DATA + 0x1000
    if pse:
        entries = b"".join(struct.pack("<I", i << 22 | P | W | 0x80) for i in range(8))
        m.write(table, entries)
    else:
        m.own(SPARE, 8)
        m.write(table, b"".join(struct.pack("<I", SPARE + i * 0x1000 | P | W) for i in range(8)))
        pages = b"".join(struct.pack("<I", i << 12 | P | W) for i in range(8 * 1024))
        m.write(SPARE, pages)
    m.vmsa.cr0 = 0x8001_0033
    m.vmsa.cr4 = 0x10
    m.vmsa.cr3 = table
    m.vmsa.efer = 1 << 12
    m.vmsa.cs = Segment(CODE32, 0xC9B, 0xFFFF_FFFF, 0)
    code = assemble(f"mov dword ptr [{DATA}], 0x77; mov eax, [{DATA}]; hlt", bits=32)
    assert m.run(code) == Hlt()
    assert m.gpr("rax") == 0x77
    assert m.read_u64(DATA) == 0x77


@pytest.mark.parametrize("source", ["xgetbv", "xsetbv", "xsave [rdi]"])
def test_xsave_is_undefined_as_cpuid_says(source):
    assert BareMachine().trapped("xor ecx, ecx; " + source).vector == UD


# -- ports ----------------------------------------------------------------------------------


def user_machine(iopl: int = 0, bitmap: bytes = b"") -> BareMachine:
    m = BareMachine(user=True)
    m.vmsa.rflags |= iopl << 12
    if bitmap:
        m.write(TSS + 0x68, bitmap)
        m.vmsa.tr = m.vmsa.tr._replace(limit=0x67 + len(bitmap))
    return m


@pytest.mark.parametrize(
    ("iopl", "bitmap", "source", "vector"),
    [
        (0, b"", "in al, 0x10", GP),
        (3, b"", "in al, 0x10", VC),
        (0, b"\xff\xff\xfe\xff\xff", "in al, 0x10", VC),
        (0, b"\xff\xff\xfe\xff\xff", "in ax, 0x10", GP),
        (0, b"\xff\xff\xfc\xff\xff", "out 0x10, ax", VC),
        (0, b"\xff\x7f\xfe\xff\xff", "out 0x0f, al", VC),
        (0, b"\xff\x7f\xff\xff\xff", "out 0x0f, ax", GP),
        (0, b"\xff\xff", "in al, 0x10", GP),
        (0, b"\xff\xff", "insb", GP),
    ],
)
def test_ports_at_cpl_3(iopl, bitmap, source, vector):
    m = user_machine(iopl, bitmap)
    m.vmsa.rdi, m.vmsa.rdx = DATA, 0x10
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code) == (vector, 0 if vector == GP else 0x7B)
    assert trap.rip == CODE


# -- RMP instructions -----------------------------------------------------------------------

PVALIDATE, RMPADJUST, RMPQUERY = b"\xf2\x0f\x01\xff", b"\xf3\x0f\x01\xfe", b"\xf3\x0f\x01\xfd"


def rmp_machine(
    address: int = SPARE, rcx: int = 0, rdx: int = 0, vmpl: int = 0, *, user: bool = False
) -> BareMachine:
    m = BareMachine(vmpl, user=user)
    m.vmsa.rax, m.vmsa.rcx, m.vmsa.rdx = address, rcx, rdx
    m.vmsa.rflags |= 0x8D5
    return m


@pytest.mark.parametrize(("was", "wanted", "carry"), [(0, 1, 0), (1, 1, 1), (1, 0, 0), (0, 0, 1)])
def test_pvalidate_result_and_flags(was, wanted, carry):
    m = rmp_machine(rdx=wanted)
    m.own(SPARE, validated=bool(was))
    assert m.run(PVALIDATE + HLT) == Hlt()
    assert m.gpr("rax") == 0
    assert m.vmsa.rflags & 0x8D5 == ZF | PF | carry
    entry = m.rmp.lookup(SPARE)
    assert entry is not None
    assert entry.validated == bool(wanted)


def test_pvalidate_huge_on_small_is_sizemismatch():
    m = rmp_machine(0x60_0000, rcx=1, rdx=1)
    m.own(0x60_0000, validated=False)
    assert m.run(PVALIDATE + HLT) == Hlt()
    assert m.gpr("rax") == 6
    assert m.vmsa.rflags & 0x8D5 == PF


def test_pvalidate_small_on_huge_is_npf_with_sizem():
    m = rmp_machine(0x60_0000, rdx=1)
    m.own_huge(0x60_0000)
    exit_ = m.run(PVALIDATE + HLT)
    assert isinstance(exit_, Npf)
    assert exit_.gpa == 0x60_0000
    bits = NpfError.P | NpfError.U | NpfError.RMP | NpfError.ENC | NpfError.SIZEM
    assert exit_.error_code == bits
    assert m.vmsa.rip == CODE  # the host smashes the page, and the instruction runs again
    m.rmp.psmash(Spa(0x60_0000))
    assert m.run() == Hlt()
    assert m.vmsa.rflags & CF


def test_pvalidate_works_through_a_shared_mapping():
    # docs/access-checks.md: the C-bit of the operand's mapping does not matter.
    m = rmp_machine(rdx=1)
    m.own(SPARE, validated=False)
    m.map(SPARE, SPARE, private=False)
    assert m.run(PVALIDATE + HLT) == Hlt()
    assert m.gpr("rax") == 0


@pytest.mark.parametrize("code", [PVALIDATE, RMPADJUST, RMPQUERY])
def test_rmp_instructions_need_cpl_0(code):
    trap = rmp_machine(user=True).trapped(code)
    assert (trap.vector, trap.error_code, trap.rip) == (GP, 0, CODE)


def test_pvalidate_outside_vmpl0_is_gp_before_its_operand_faults():
    trap = rmp_machine(MEMORY * 2, vmpl=1).trapped(PVALIDATE)
    assert (trap.vector, trap.error_code) == (GP, 0)


@pytest.mark.parametrize("code", [PVALIDATE, RMPADJUST, RMPQUERY])
def test_rmp_instruction_on_an_unmapped_address_is_pf(code):
    m = rmp_machine(MEMORY * 2 + 8, rdx=0x0101)
    trap = m.trapped(code)
    assert (trap.vector, trap.error_code) == (14, 0)
    assert m.vmsa.cr2 == MEMORY * 2 + 8


@pytest.mark.parametrize("code", [RMPADJUST, RMPQUERY])
def test_rmp_instruction_on_an_unvalidated_page_is_vc(code):
    m = rmp_machine(SPARE, rdx=0x0101)
    m.own(SPARE, validated=False)
    trap = m.trapped(code)
    assert (trap.vector, trap.error_code) == (VC, 0x404)
    assert m.vmsa.cr2 == SPARE


def test_rmpadjust_grants_and_rmpquery_tells():
    m = rmp_machine(SPARE, rdx=0x1_0302)
    m.own(SPARE, permissions=(15, 0, 0, 0))
    query = "mov edx, 2; mov rax, " + hex(SPARE)
    assert m.run(RMPADJUST + assemble(query) + RMPQUERY + HLT) == Hlt()
    assert (m.vmsa.rax, m.vmsa.rdx, m.vmsa.rcx) == (0, 0x1_0302, 0)
    entry = m.rmp.lookup(SPARE)
    assert entry is not None
    assert entry.permissions == (15, 0, 3, 0)


def test_rmpadjust_of_the_own_level_is_fail_permission():
    m = rmp_machine(SPARE, rdx=0x0F02, vmpl=2)
    m.own(SPARE)
    assert m.run(RMPADJUST + HLT) == Hlt()
    assert m.gpr("rax") == 2
    assert m.vmsa.rflags & 0x8D5 == 0


def test_a_permission_taken_away_counts_at_once():
    """The engine must not remember the page: neither its leaf, nor its TLB entry."""
    m = rmp_machine(SPARE, rdx=0x0101, vmpl=0)
    m.own(SPARE)
    assert m.run(f"mov rbx, [{SPARE}]; mov [{SPARE}], rbx; hlt") == Hlt()
    m.rmp.firmware_update(Spa(SPARE), permissions=(1, 0, 0, 0))
    m.vmsa.rip = CODE
    exit_ = m.run()
    assert isinstance(exit_, Npf)
    assert exit_.reason == "AC-31"
    assert m.vmsa.rip > CODE


def test_invlpgb_and_tlbsync_are_no_ops_that_flush():
    m = BareMachine()
    assert m.run(b"\x0f\x01\xfe\x0f\x01\xff" + HLT) == Hlt()
    assert m.silicon.clock.now == 3


# -- SYSCALL --------------------------------------------------------------------------------


def syscall_machine() -> BareMachine:
    m = BareMachine(user=True)
    vmsa = m.vmsa
    vmsa.efer |= 1
    vmsa.star = 0x20 << 48 | 0x10 << 32
    vmsa.lstar = CODE + 0x800
    vmsa.sfmask = 0x200
    vmsa.rflags = 0x202
    m.load(HLT * 16, at=CODE + 0x800)
    return m


@pytest.mark.parametrize("prefix", [b"", b"\x48", b"\x66\x48", b"\x2e\x2e\x2e"])
def test_syscall_enters_at_lstar(prefix):
    """A prefix makes the instruction longer; the kernel is entered at LSTAR all the same."""
    m = syscall_machine()
    m.vmsa.rflags |= CF
    assert m.run(prefix + b"\x0f\x05" + HLT) == Hlt()
    vmsa = m.vmsa
    assert vmsa.rip == CODE + 0x801
    assert vmsa.rcx == CODE + len(prefix) + 2
    assert vmsa.r11 == 0x202 | CF
    assert vmsa.rflags == 2 | CF
    assert (vmsa.cpl, vmsa.cs.selector, vmsa.ss.selector) == (0, 0x10, KERNEL_SS)
    assert m.silicon.clock.now == 2


def test_syscall_and_sysret():
    m = syscall_machine()
    m.load("sysretq", at=CODE + 0x800)
    trap = m.trapped("mov ebx, 1; syscall; mov ebx, 2; hlt")
    assert (trap.vector, trap.cs, trap.ss) == (GP, USER_CS, USER_SS)  # HLT at CPL 3
    assert m.gpr("rbx") == 2
    assert trap.rflags & 0x202 == 0x202


def test_syscall_without_sce_is_ud():
    m = syscall_machine()
    m.vmsa.efer &= ~1
    trap = m.trapped("syscall")
    assert (trap.vector, trap.rip, trap.cs) == (UD, CODE, USER_CS)


def test_syscall_from_compatibility_mode_uses_cstar():
    m = syscall_machine()
    m.vmsa.cs = Segment(0x23, 0xCFB, 0xFFFF_FFFF, 0)
    m.vmsa.cstar = CODE + 0x808
    assert m.run(b"\x0f\x05" + HLT) == Hlt()
    assert m.vmsa.rip == CODE + 0x809
    assert m.vmsa.cs.attrib & 0x200


def test_syscall_in_legacy_mode():
    m = BareMachine()
    vmsa = m.vmsa
    vmsa.efer = 1 << 12 | 1
    vmsa.cr0 = 0x11
    vmsa.cs = Segment(CODE32, 0xC9B, 0xFFFF_FFFF, 0)
    vmsa.star = 0x10 << 32 | CODE + 0x800
    m.load(HLT, at=CODE + 0x800)
    assert m.run(b"\x0f\x05" + HLT) == Hlt()
    assert (m.vmsa.rip, m.vmsa.rcx) == (CODE + 0x801, CODE + 2)
    assert m.vmsa.cs.attrib & 0x600 == 0x400  # 32-bit code, not 64-bit


# -- CR8 ------------------------------------------------------------------------------------


@pytest.mark.parametrize("register", ["rax", "r9"])
def test_mov_to_cr8_traps_and_reads_back(register):
    m = BareMachine()
    write = f"mov {register}, 7; mov cr8, {register}"
    assert m.run(f"{write}; xor {register}, {register}; mov {register}, cr8; hlt") == Cr8WriteTrap()
    assert (m.vmcb.v_tpr, m.silicon.clock.now) == (7, 2)
    assert m.silicon.registers.read("cr8") == 7
    m.vmcb.v_tpr = 9  # what its host wants it to be
    assert m.silicon.vmrun(m.vmcb, 1000) == Hlt()
    assert m.gpr(register) == 9


def test_cr8_belongs_to_its_vmcb():
    m = BareMachine()
    m.run("mov eax, 3; mov cr8, rax; hlt")
    assert m.vmcb.v_tpr == 3
    m.vmcb = Vmcb(m.vmcb.vmsa_spa)
    assert m.run("mov rbx, cr8; hlt") == Hlt()
    assert m.gpr("rbx") == 0


def test_reserved_bits_of_cr8_are_gp():
    m = BareMachine()
    assert m.trapped("mov eax, 0x10; mov cr8, rax").vector == GP
    assert m.vmcb.v_tpr == 0


def test_cr8_at_cpl_3_is_gp():
    assert BareMachine(user=True).trapped("mov rax, cr8").vector == GP


# -- HLT, deadlines -------------------------------------------------------------------------


def test_hlt_at_cpl_3_is_gp():
    assert BareMachine(user=True).trapped("hlt").vector == GP


def test_an_endless_loop_ends_at_its_deadline():
    m = BareMachine()
    assert m.run("again: inc rax; jmp again", ticks=10_000) == Intr()
    assert m.silicon.clock.now in (10_000, 10_001)
    assert m.gpr("rax") == m.silicon.clock.now // 2


def test_triple_fault_is_a_shutdown():
    m = BareMachine()
    m.vmsa.idtr = Segment(0, 0, 0, IDT)
    assert isinstance(m.run("ud2"), Shutdown)
