# SPDX-License-Identifier: MIT
"""A debugger's writes of registers on the bare machine: what is taken, at once, and what is not."""

from __future__ import annotations

import pytest

from svsmd.snp.cpu_mode import CpuMode
from svsmd.snp.exits import Hlt
from svsmd.snp.register_file import RegisterFile
from svsmd.snp.register_writes import ReadOnlyRegister
from svsmd.snp.types import C_BIT, Vmpl
from svsmd.snp.vmsa import Cr0, Cr4, Efer, Segment, Vmsa
from svsmd.snp.vmsa_state import illegal_state
from tests.bare_machine import (
    CODE,
    CODE32,
    DATA,
    GDT,
    HANDLERS,
    KERNEL_CS,
    KERNEL_SS,
    PML4,
    SPARE,
    TSS,
    TSS_SELECTOR,
    USER_CS,
    USER_CS32,
    USER_SS,
    VMSA,
    BareMachine,
    assemble,
)

pytestmark = pytest.mark.usefixtures("both_callbacks")

MASK = (1 << 64) - 1
CANONICAL_HIGH = 0xFFFF_8000_0000_0000
NOT_CANONICAL = 0x8000_0000_0000
TOP = 7 << 11


def loaded(m: BareMachine) -> RegisterFile:
    assert m.silicon.load_for_debugger(m.vmcb)
    return m.silicon.registers


def value(registers: RegisterFile, name: str) -> int:
    """Of any register, those of more than 64 bits included."""
    if name.startswith("st") and name[2:].isdigit():
        at = 10 * int(name[2:])
        return int.from_bytes(registers.x87().stack[at : at + 10], "little")
    if name.startswith("xmm"):
        at = 16 * int(name[3:])
        return int.from_bytes(registers.vectors()[at : at + 16], "little")
    return registers.value(name)


def state(m: BareMachine) -> bytes:
    """All that a VMSA has, and the engine's mode flags."""
    loaded(m)
    m.silicon.make_readable(VMSA, 4096)
    return m.read(VMSA, 4096) + m.silicon.cpu.hflags.to_bytes(4, "little")


def real_mode(m: BareMachine) -> None:
    m.silicon.save_loaded()
    page = m.silicon.memory.page(VMSA)
    Vmsa.reset_state(page, vmpl=Vmpl(m.vmsa.vmpl), reset_vector=CODE)
    m.vmsa.cs = Segment(0, 0x9B, 0xFFFF, CODE)


def protected_mode(m: BareMachine) -> None:
    m.silicon.save_loaded()
    page = m.silicon.memory.page(VMSA)
    vmpl = Vmpl(m.vmsa.vmpl)
    Vmsa.protected_mode_start(CODE, page=page, vmpl=vmpl)
    m.vmsa.gdtr = Segment(0, 0, 0x5F, GDT)


TAKEN = [
    *((name, MASK) for name in ("rax", "rsp", "rbp", "r8", "r15")),
    ("rip", CODE + 3),
    ("rip", CANONICAL_HIGH),
    ("eflags", 0x24_4CD7),
    *((f"st{n}", 0x4000_C90F_DAA2_2168_C235 + n) for n in range(8)),
    ("st0", (1 << 80) - 1),
    *((name, 0) for name in ("fctrl", "fstat", "ftag", "mxcsr")),
    *((name, 0xFFFF) for name in ("fctrl", "fstat", "ftag", "mxcsr")),
    *((f"xmm{n}", (1 << 128) - 1 - n) for n in range(16)),
    ("cr0", 0x8005_003B),
    ("cr0", 0x8000_0011),
    ("cr2", MASK),
    ("cr3", C_BIT | SPARE),
    ("cr3", (1 << 40) - 1),
    ("cr4", 0x0030_0620),
    ("cr4", 0x20),
    ("efer", 0x1D01),
    ("efer", 0x1500),
    *((f"dr{n}", MASK) for n in range(4)),
    ("dr6", 0xFFFF_4FF1),
    *((f"{name}_base", 0xFFFF_FFFF) for name in ("es", "ss", "ds")),
    *((f"{name}_base", CANONICAL_HIGH) for name in ("fs", "gs", "ldtr", "tr", "gdtr", "idtr")),
    *((f"{name}_base", 0x7FFF_FFFF_FFFF) for name in ("fs", "gs", "ldtr", "tr", "gdtr", "idtr")),
    *((f"{name}_limit", 0xFFFF_FFFF) for name in ("es", "cs", "ss", "ds", "fs", "gs", "tr")),
    *((f"{name}_limit", 0xF_FFFE) for name in ("es", "cs", "ss", "ds", "fs", "gs", "ldtr")),
    *((f"{name}_limit", 0) for name in ("es", "cs", "ldtr", "tr", "gdtr", "idtr")),
    *((f"{name}_limit", 0xFFFF) for name in ("gdtr", "idtr")),
    *((name, USER_SS) for name in ("es", "ds", "fs", "gs")),
    *((name, 0) for name in ("es", "ds", "fs", "gs", "ss", "ldtr")),
    ("ss", KERNEL_SS),
    ("cs", KERNEL_CS),
    ("cs", CODE32),
    ("cs", USER_CS),
    ("cs", USER_CS32),
    ("tr", TSS_SELECTOR),
    *((name, CANONICAL_HIGH) for name in ("lstar", "cstar", "k_gs_base")),
    *((name, CANONICAL_HIGH) for name in ("sysenter_esp", "sysenter_eip")),
    ("star", MASK),
    *((name, 0xFFFF_FFFF) for name in ("fmask", "sysenter_cs", "tsc_aux")),
    ("pat", 0x0706_0504_0100_0706),
]


@pytest.mark.parametrize(("name", "number"), TAKEN)
def test_what_is_written_is_read_and_saved(name: str, number: int) -> None:
    m = BareMachine()
    registers = loaded(m)
    registers.write(name, number)
    assert value(registers, name) == number
    m.silicon.save_loaded()
    assert illegal_state(Vmsa(bytearray(m.read(VMSA, 4096)))) is None
    assert value(loaded(m), name) == number


REFUSED = [
    ("rip", NOT_CANONICAL, "not a canonical address"),
    ("eflags", 1 << 17 | 2, "VM changes by IRET"),
    *((name, 1 << 16, "has 16 bits") for name in ("fctrl", "fstat", "ftag", "mxcsr")),
    *((name, 0, "no x87 instruction") for name in ("fiseg", "fioff", "foseg", "fooff", "fop")),
    ("cr0", 1 << 32 | 0x8000_0011, r"protection exception \(24593, 3.1.1\)"),
    ("cr0", 0x8000_0010, "general protection"),  # paging without protection
    ("cr0", 0xA000_0011, "general protection"),  # NW without CD
    ("cr0", 0x11, "general protection"),  # no paging in 64-bit code
    ("cr3", 1 << 40, "has 40 bits"),
    ("cr4", 0, r"protection exception \(24593, 3.1.3\)"),  # long mode without PAE
    ("cr4", 1 << 17 | 0x20, "general protection"),  # PCIDE
    ("cr4", 1 << 18 | 0x20, "general protection"),  # OSXSAVE
    ("efer", 0xD01, "without SVME"),
    ("efer", 0x1101, "LMA follows"),
    ("efer", 0x1400, r"protection exception \(24593, 3.1.7\)"),  # LME
    ("efer", 0x1501 | 1 << 16, "general protection"),
    ("efer", 0x1501 | 1 << 13, "general protection"),  # LMSLE
    ("dr6", 1 << 32, "general protection"),
    ("cs_base", 0x1000, "64-bit code has no CS base"),
    *((f"{name}_base", 1 << 32, "has 32 bits") for name in ("es", "cs", "ss", "ds")),
    *(
        (f"{name}_base", NOT_CANONICAL, "not a canonical address")
        for name in ("fs", "gs", "ldtr", "tr", "gdtr", "idtr")
    ),
    *((f"{name}_limit", 0x10_0000, "ends in fff") for name in ("es", "cs", "ldtr", "tr")),
    *((f"{name}_limit", 1 << 16, "16 bits") for name in ("gdtr", "idtr")),
    *((name, 1 << 16, "a selector has 16 bits") for name in ("es", "cs", "ss", "ldtr", "tr")),
    ("cs", 0, "cannot be null"),
    ("tr", 3, "cannot be null"),
    ("ss", 3, "RPL"),
    ("ss", USER_SS, "RPL"),
    ("ss", KERNEL_CS, "no writable data"),
    ("cs", KERNEL_SS, "no code segment"),
    ("cs", KERNEL_CS | 3, "has DPL 0, not 3"),
    ("cs", USER_CS & ~3, "has DPL 3, not 0"),
    ("ds", KERNEL_SS | 3, "has DPL 0"),
    ("ds", TSS_SELECTOR, "no segment that can be read"),
    ("ds", 0x60, "beyond the end of the global table"),
    ("ds", 0xFFFF, "is not present"),
    ("ds", 0x38, "is not present"),
    ("ldtr", TSS_SELECTOR, "names no LDT"),
    ("tr", KERNEL_SS, "names no TSS"),
    ("tr", TSS_SELECTOR | 4, "local table"),
    *((name, NOT_CANONICAL, "not a canonical address") for name in ("lstar", "cstar", "k_gs_base")),
    *((name, NOT_CANONICAL, "not a canonical") for name in ("sysenter_esp", "sysenter_eip")),
    *((name, 1 << 32, "has 32 bits") for name in ("fmask", "sysenter_cs", "tsc_aux")),
    ("pat", 0x0007_0406_0007_0402, "PA0 has no memory type 0x2"),
    ("pat", 8 << 56, "PA7"),
    ("no_such", 0, "cannot be written"),
    ("cr5", 0, "cannot be written"),
    ("xcr0", 1, "cannot be written"),
]


@pytest.mark.parametrize(("name", "number", "why"), REFUSED)
def test_what_the_processor_would_not_take_changes_nothing(
    name: str, number: int, why: str
) -> None:
    m = BareMachine()
    registers = loaded(m)
    before = state(m)
    with pytest.raises((ValueError, ReadOnlyRegister), match=why) as refused:
        registers.write(name, number)
    assert "\n" not in str(refused.value)
    assert state(m) == before


# -- modes --------------------------------------------------------------------------------


def test_the_mode_follows_from_the_registers() -> None:
    m = BareMachine()
    registers = loaded(m)
    assert registers.read("cpu_mode") == CpuMode.LONG_64
    registers.write("cs", CODE32)
    assert registers.read("cpu_mode") == CpuMode.COMPATIBILITY_32
    assert registers.code_bits == 32
    m.write_u64(GDT + CODE32, 0x008F_9B00_0000_FFFF)  # without D
    registers.write("cs", CODE32)
    assert registers.read("cpu_mode") == CpuMode.COMPATIBILITY_16
    registers.write("cr0", 0x11)
    assert registers.read("cpu_mode") == CpuMode.PROTECTED_16
    m.write_u64(GDT + CODE32, 0x00CF_9B00_0000_FFFF)
    registers.write("cs", CODE32)
    assert registers.read("cpu_mode") == CpuMode.PROTECTED_32
    registers.write("cr0", 0x10)
    assert registers.read("cpu_mode") == CpuMode.REAL


def test_virtual_8086_mode() -> None:
    m = BareMachine()
    protected_mode(m)
    m.vmsa.rflags |= 1 << 17
    assert loaded(m).read("cpu_mode") == CpuMode.VIRTUAL_8086
    loaded(m).write("ds", 0x1234)
    assert loaded(m).read("ds_base") == 0x12340


def test_the_linear_address_of_the_next_instruction() -> None:
    m = BareMachine()
    real_mode(m)
    registers = loaded(m)
    assert registers.read("cs_base") == CODE
    assert registers.read("pc_lin") == registers.linear_rip == CODE
    registers.write("rip", CODE + 2)
    assert m.silicon.cpu.rip == 2
    assert registers.read("pc_lin") == CODE + 2
    registers.write("cs_base", CODE + 0x10)
    assert registers.read("pc_lin") == CODE + 0x12
    with pytest.raises(ValueError, match="within 4 GiB from the base"):
        registers.write("rip", CODE)
    with pytest.raises(ValueError, match="within 4 GiB from the base"):
        registers.write("rip", CODE + 0x10 + (1 << 32))


def test_a_selector_in_real_mode_is_a_base() -> None:
    m = BareMachine()
    real_mode(m)
    m.own(0xF_F000)
    m.write(0xF_FFF2, b"\x99")
    m.load(assemble("mov al, es:[2]; hlt", bits=16), CODE)
    registers = loaded(m)
    registers.write("es", 0xFFFF)
    assert (registers.read("es"), registers.read("es_base")) == (0xFFFF, 0xF_FFF0)
    for name in "ldtr", "tr":
        with pytest.raises(ValueError, match="real and virtual-8086 mode"):
            registers.write(name, 8)
    assert m.run() == Hlt()
    assert m.gpr("rax") & 0xFF == 0x99


def test_long_mode_step_by_step() -> None:
    """What code does to get there, a debugger can do for it."""
    m = BareMachine()
    protected_mode(m)
    registers = loaded(m)
    assert registers.read("cpu_mode") == CpuMode.PROTECTED_32
    registers.write("efer", int(Efer.SVME | Efer.LME))
    with pytest.raises(ValueError, match="general protection"):  # with LME, paging needs PAE
        registers.write("cr0", int(Cr0.PG | Cr0.PE | Cr0.ET))
    registers.write("cr4", int(Cr4.PAE))
    registers.write("cr3", PML4 | C_BIT)
    registers.write("cr0", int(Cr0.PG | Cr0.PE | Cr0.ET))
    assert registers.read("efer") & Efer.LMA
    assert registers.read("cpu_mode") == CpuMode.COMPATIBILITY_32
    registers.write("cs", KERNEL_CS)
    assert registers.read("cpu_mode") == CpuMode.LONG_64
    assert m.run("mov rax, 0x123456789abcdef0; hlt") == Hlt()
    assert m.gpr("rax") == 0x1234_5678_9ABC_DEF0


# -- what is written takes effect ---------------------------------------------------------


def test_cr3_takes_effect_at_once() -> None:
    m = BareMachine()
    m.own(SPARE, 20)
    copy = m.read(PML4, 19 * 4096)
    m.write(SPARE, copy)
    # The same page tables but for one page, whose data lies elsewhere.
    for level in range(3):
        entry = int.from_bytes(m.read(SPARE + level * 4096, 8), "little")
        if level < 2:
            m.write_u64(SPARE + level * 4096, entry - PML4 + SPARE)
    for index in range(16):
        at = SPARE + 2 * 4096 + 8 * index
        m.write_u64(at, m.read_u64(at) - PML4 + SPARE)
    other = SPARE + 3 * 4096 + (DATA >> 12) * 8
    m.write_u64(other, m.read_u64(other) + 4096)
    m.write(DATA, b"\x11")
    m.write(DATA + 4096, b"\x22")
    m.load(f"1: mov al, [{DATA}]; hlt; jmp 1b")
    assert m.run() == Hlt()
    assert m.silicon.registers.general()[0] & 0xFF == 0x11
    loaded(m).write("cr3", SPARE | C_BIT)
    assert m.run() == Hlt()
    assert m.silicon.registers.general()[0] & 0xFF == 0x22


def test_write_protection_takes_effect_at_once() -> None:
    m = BareMachine()
    m.map(DATA, DATA, 1)  # read-only
    m.load(f"1: mov byte ptr [{DATA}], 1; hlt; jmp 1b")
    registers = loaded(m)
    registers.write("cr0", registers.read("cr0") & ~(1 << 16))
    assert m.run() == Hlt()
    assert m.read(DATA, 1) == b"\1"
    registers.write("cr0", registers.read("cr0") | 1 << 16)
    assert m.trapped().vector == 14


def test_no_execute_takes_effect_at_once() -> None:
    m = BareMachine()
    m.map(DATA, DATA, 3 | 1 << 63)
    m.load("nop; hlt", DATA)
    registers = loaded(m)
    registers.write("efer", registers.read("efer") & ~(1 << 11))
    registers.write("rip", DATA)
    assert m.trapped().vector == 14  # bit 63 is reserved then
    m = BareMachine()
    m.map(DATA, DATA, 3)
    m.load("nop; hlt", DATA)
    loaded(m).write("rip", DATA)
    assert m.run() == Hlt()


def test_syscall_goes_where_lstar_says() -> None:
    m = BareMachine()
    m.load("mov ebx, 7; hlt", CODE + 0x100)
    registers = loaded(m)
    registers.write("efer", registers.read("efer") | 1)
    registers.write("lstar", CODE + 0x100)
    registers.write("star", KERNEL_CS << 32)
    registers.write("fmask", 0)
    assert m.run("syscall; hlt") == Hlt()
    assert m.gpr("rbx") == 7


def test_the_fpu_computes_with_what_is_written() -> None:
    m = BareMachine()
    registers = loaded(m)
    m.run("fninit; hlt")
    one, two = 0x3FFF << 64 | 1 << 63, 0x4000 << 64 | 1 << 63
    registers.write("fstat", 6 << 11)
    registers.write("ftag", 0x0FFF)
    registers.write("st0", one)
    registers.write("st1", two)
    registers.write("rip", CODE)
    assert m.run(f"fadd st, st(1); fstp tbyte ptr [{DATA}]; hlt") == Hlt()
    assert int.from_bytes(m.read(DATA, 10), "little") == 0x4000 << 64 | 0xC000_0000_0000_0000


@pytest.mark.parametrize(("control", "rounded"), [(0x037F, 2), (0x0B7F, 3), (0x077F, 2)])
def test_rounding_follows_the_control_word(control: int, rounded: int) -> None:
    m = BareMachine()
    m.write(DATA, b"\x05\0\x02\0")
    m.run("fninit; hlt")
    m.load(
        f"fild word ptr [{DATA}]; fidiv word ptr [{DATA + 2}]; fistp dword ptr [{DATA + 16}]; hlt"
    )
    registers = loaded(m)
    registers.write("fctrl", control)
    registers.write("rip", CODE)
    assert m.run() == Hlt()
    assert int.from_bytes(m.read(DATA + 16, 4), "little") == rounded


@pytest.mark.parametrize(("control", "rounded"), [(0x1F80, 2), (0x5F80, 3), (0x3F80, 2)])
def test_rounding_follows_mxcsr(control: int, rounded: int) -> None:
    m = BareMachine()
    m.vmsa.cr4 |= 1 << 9
    registers = loaded(m)
    registers.write("xmm3", 0x4004_0000_0000_0000)  # 2.5
    registers.write("mxcsr", control)
    assert m.run("cvtsd2si eax, xmm3; hlt") == Hlt()
    assert m.gpr("rax") == rounded


def test_the_top_of_the_stack_moves_no_st() -> None:
    m = BareMachine()
    registers = loaded(m)
    for number in range(8):
        registers.write(f"st{number}", 100 + number)
    for top in (3, 7, 0, 5):
        registers.write("fstat", top << 11 | 0x40FF)
        assert registers.value("fstat") == top << 11 | 0x40FF
        assert [value(registers, f"st{n}") for n in range(8)] == list(range(100, 108))


def test_the_user_of_a_selector_is_at_its_rpl() -> None:
    m = BareMachine(user=True)
    m.silicon.save_loaded()
    m.make_vmsa(2)
    registers = loaded(m)
    registers.write("cs", USER_CS)
    assert registers.cpl == 3
    registers.write("ss", USER_SS)
    assert m.trapped("hlt").vector == 13
    assert m.trap.cs == USER_CS


def test_tr_has_the_whole_base() -> None:
    m = BareMachine()
    registers = loaded(m)
    registers.write("tr_base", 0)
    registers.write("tr", TSS_SELECTOR)
    assert registers.read("tr_base") == TSS
    assert registers.attributes("tr") >> 8 & 15 == 11
    assert m.read(GDT + TSS_SELECTOR + 5, 1) == b"\x89", "memory stays as it is"
    m.write_u64(GDT + TSS_SELECTOR + 8, 0xFFFF_8000)
    registers.write("tr", TSS_SELECTOR)
    assert registers.read("tr_base") == 0xFFFF_8000_0000_0000 | TSS


def test_a_descriptor_of_the_local_table() -> None:
    m = BareMachine()
    m.write_u64(GDT + 0x50, DATA << 16 & 0xFF_FFFF_0000 | 0x82 << 40 | 0xFFFF)
    m.write_u64(DATA + 8, 0x12CF_F334_5678_FFFF)
    registers = loaded(m)
    registers.write("ldtr", 0x50)
    assert registers.read("ldtr_base") == DATA
    registers.write("fs", 0xF)
    assert registers.read("fs_base") == 0x1234_5678
    assert registers.read("fs_limit") == 0xFFFF_FFFF


def test_a_table_that_is_not_mapped() -> None:
    m = BareMachine()
    registers = loaded(m)
    registers.write("gdtr_base", 0x4000_0000)
    with pytest.raises(ValueError, match="global descriptor table: cannot read memory"):
        registers.write("ds", KERNEL_SS)


def test_the_idt_can_be_moved() -> None:
    m = BareMachine()
    m.own(SPARE)
    m.write(SPARE, m.read(m.vmsa.idtr.base, 4096))
    m.write(SPARE + 6 * 16, m.read(SPARE + 7 * 16, 16))
    loaded(m).write("idtr_base", SPARE)
    assert m.run("ud2") == Hlt()
    assert m.vmsa.rip - 1 == HANDLERS + 7 * 16
