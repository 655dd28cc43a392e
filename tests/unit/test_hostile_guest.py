# SPDX-License-Identifier: MIT
"""A guest that does its worst: the machine ends it as hardware would, and never breaks.

The engine dies on some nested page tables, and a process that died tells nothing: what is random
runs in a process of its own first.
"""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from svsmd.snp.exits import Exit, Hlt, Intr, InvalidVmsa, Npf, Shutdown, Vmgexit
from svsmd.snp.types import C_BIT, PAGE_SIZE
from tests.bare_machine import (
    CODE,
    DATA,
    MEMORY,
    NX,
    PAGE_TABLES,
    PML4,
    SPARE,
    STACK,
    VMSA,
    BareMachine,
    P,
    U,
    W,
)

ENDS = (Hlt, Intr, InvalidVmsa, Npf, Shutdown, Vmgexit)
DATA_ONLY, UNVALIDATED, UNOWNED, FOREIGN, READ_ONLY = (SPARE + i * PAGE_SIZE for i in range(5))
MMIO = 0xFEC0_0000
TARGETS = (
    DATA_ONLY, UNVALIDATED, UNOWNED, FOREIGN, READ_ONLY, VMSA, MMIO, MEMORY, MEMORY * 8, PML4, CODE,
    DATA, PAGE_TABLES, 1 << 38, C_BIT - PAGE_SIZE,
)  # fmt: skip


def hostile_machine(vmpl: int = 2, *, user: bool = False) -> BareMachine:
    m = BareMachine(vmpl, user=user)
    m.own(DATA_ONLY, permissions=(15, 15, 3, 3))
    m.own(UNVALIDATED, validated=False)
    m.own(FOREIGN, permissions=(15, 0, 0, 0))
    m.own(READ_ONLY, permissions=(15, 1, 1, 1))
    return m


def run_out(m: BareMachine) -> Exit:
    """Goes on until the guest cannot, or has had its time."""
    exit_: Exit = Hlt()
    for _ in range(8):
        exit_ = m.run(ticks=4_000)
        assert isinstance(exit_, ENDS), exit_
        if not isinstance(exit_, Hlt | Vmgexit):
            break
    return exit_


@pytest.mark.parametrize("alias", [0, C_BIT])
@pytest.mark.parametrize("target", TARGETS)
def test_cr3_at_every_kind_of_page(target, alias):
    m = hostile_machine()
    m.vmsa.rax = target | alias
    m.load(f"mov cr3, rax; mov rbx, [{DATA}]; mov [{DATA}], rbx; jmp $ + 2; hlt")
    run_out(m)


@pytest.mark.parametrize("alias", [0, C_BIT])
@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("target", TARGETS)
def test_table_entry_at_every_kind_of_page(target, level, alias):
    """The engine died of a walk through a leaf without execute permission."""
    gva = 24 << 20
    where = (
        PML4,
        PML4 + PAGE_SIZE,
        PML4 + 2 * PAGE_SIZE + (gva >> 21) * 8,
        BareMachine.entry_of(gva),
    )[level]
    m = hostile_machine()
    m.load(
        f"""
        mov rax, {target | alias | P | W | U:#x}
        mov rdx, {where}
        mov [rdx], rax
        mov rax, cr3
        mov cr3, rax
        mov rbx, [{gva}]
        mov [{gva}], rbx
        mov rax, {gva}
        call rax
        hlt
        """
    )
    run_out(m)


def test_page_tables_with_data_permissions_only():
    """All tables lie in pages that this VMPL may read and write, and not execute."""
    m = hostile_machine()
    for page in range(PML4, PML4 + 19 * PAGE_SIZE, PAGE_SIZE):
        m.rmp.firmware_update(page, permissions=(15, 15, 3, 15))  # type: ignore[arg-type]
    assert m.run(f"mov rax, 7; mov [{DATA}], rax; hlt") == Hlt()
    assert m.read_u64(DATA) == 7


def test_a_page_table_that_maps_itself():
    m = hostile_machine()
    m.write_u64(PML4 + 8 * 511, PML4 | P | W | C_BIT)
    source = "mov rax, 0xFFFFFFFFFFFFF000; mov rbx, [rax]; mov qword ptr [rax], 0; mov rcx, cr3;"
    m.load(source + f"mov cr3, rcx; mov rdx, [{DATA}]; hlt")
    assert isinstance(run_out(m), Shutdown)


@pytest.mark.parametrize(
    "source",
    [
        "1: jmp 1b", "1: push rax; jmp 1b", "1: call 1b", "xor rsp, rsp; push rax",
        "lidt [0]; int3",
        f"mov rsp, {UNVALIDATED}; int3", f"mov rsp, {FOREIGN}; int3", f"mov rsp, {READ_ONLY}; int3",
        "mov rsp, 0x8000000000000000; ud2", "mov eax, 0x28; mov ss, eax; ud2",
        f"mov qword ptr [{STACK - 8}], 0; ret", "1: rdtsc; jmp 1b", "cli; 1: hlt; jmp 1b",
        "mov ax, 0x40; ltr ax", "mov rax, 0x7ffffffffff0; jmp rax",
        "xor eax, eax; mov cr3, rax; nop",
        "mov eax, 0x1000; lldt ax; mov ax, 4; mov ds, ax", "sysretq",
        ".byte 0x0f, 0x35", "iretq", "syscall",
    ],
)  # fmt: skip
def test_ways_to_misbehave(source):
    run_out(_loaded(source))


def _loaded(source: str) -> BareMachine:
    m = hostile_machine()
    m.load(source + "; hlt")
    return m


def random_entry(random_: random.Random) -> int:
    target = random_.choice(TARGETS) + random_.randrange(4) * PAGE_SIZE
    entry = target | random_.choice((0, C_BIT)) | random_.choice((P | W, P | W | U, P, P | U, 0x83))
    if random_.random() < 0.1:
        entry |= NX
    if random_.random() < 0.05:
        entry |= 1 << random_.randrange(40, 63)
    return entry


def one_random_guest(seed: int) -> str:
    """Runs random code on random page tables; returns how it ended."""
    random_ = random.Random(seed)
    m = hostile_machine(random_.randrange(1, 4), user=random_.random() < 0.3)
    vmsa = m.vmsa
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9"):
        value = random_.choice(TARGETS) if random_.random() < 0.7 else random_.getrandbits(64)
        setattr(vmsa, name, value)
    for _ in range(random_.randrange(12)):
        table = random_.choice((PML4, PML4 + PAGE_SIZE, PML4 + 2 * PAGE_SIZE, PAGE_TABLES))
        m.write_u64(table + 8 * random_.randrange(64), random_entry(random_))
    for target in TARGETS[:5]:
        for _ in range(8):
            m.silicon.memory.write_u64(target + 8 * random_.randrange(8), random_entry(random_))
    m.load(random_code(random_))
    m.load(random_code(random_), at=CODE + 0x800)
    ends = []
    for _ in range(4):
        exit_ = run_out(m)
        ends.append(type(exit_).__name__)
        m.vmcb.v_irq = random_.choice((None, 0x20, 0xFF))
        m.vmcb.v_nmi = random_.random() < 0.2
        m.vmsa.rip = CODE + random_.randrange(0x40)
        m.vmsa.rsp = STACK
    return " ".join(ends)


_USEFUL = (
    b"\x0f\x22\xd8", b"\x0f\x22\xc0", b"\x0f\x22\xe0", b"\x0f\x01\xd9", b"\xf3\x0f\x01\xd9",
    b"\xf2\x0f\x01\xff", b"\xf3\x0f\x01\xfe", b"\x0f\x05", b"\x48\x0f\x07", b"\x48\xcf", b"\xf4",
    b"\x0f\x30", b"\x0f\x32", b"\x0f\xa2", b"\x48\x89\x03", b"\x48\x8b\x03", b"\xff\xe0",
    b"\xff\xd3",
    b"\xf3\x48\xab", b"\xf3\x48\xa5", b"\x8e\xd0", b"\x8e\xd8", b"\xcd\x80", b"\xcc", b"\x0f\x0b",
    b"\x0f\x01\x18", b"\x0f\x01\x10", b"\x0f\x00\xd8", b"\x0f\x00\xd0", b"\x9d", b"\xfb", b"\xfa",
    b"\x0f\x01\xdb", b"\x0f\x01\xda", b"\x0f\x20\xc0", b"\x0f\x21\xf8", b"\x0f\x23\xf8", b"\xcb",
    b"\x0f\x01\x38", b"\x0f\xae\x00", b"\x0f\xae\x08", b"\xdb\xe3", b"\xdd\x00", b"\x0f\xc7\xf0",
    b"\xe4\x10", b"\xee", b"\x6c", b"\x6e", b"\xf3\x6e", b"\x0f\x01\xf8", b"\xf0\x48\x0f\xb1\x0b",
)  # fmt: skip


def random_code(random_: random.Random) -> bytes:
    code = b""
    while len(code) < 200:
        if random_.random() < 0.6:
            code += random_.choice(_USEFUL)
        else:
            code += random_.randbytes(random_.randrange(1, 6))
    return code


def one_random_vmsa(seed: int) -> str:
    """Runs a VMSA of random bytes, with more or fewer of its fields as they should be."""
    random_ = random.Random(seed)
    m = hostile_machine()
    page = m.vmsa.memory
    good = bytes(page)
    chance = random_.choice((0.01, 0.05, 0.3, 1.0))
    for at in range(0, 0x700, random_.choice((1, 2, 8))):
        if random_.random() < chance:
            page[at : at + 1] = random_.randbytes(1)
    for start, end in ((0x3B0, 0x3B8), (0xCA, 0xCB), (0xD0, 0xD8), (0x148, 0x160), (0x168, 0x170)):
        if random_.random() < 0.8:
            page[start:end] = good[start:end]
    m.load(random_code(random_))
    return type(run_out(m)).__name__


def batch(kind: str, first: int, count: int) -> None:
    """What the process of its own does."""
    run = {"guest": one_random_guest, "vmsa": one_random_vmsa}[kind]
    for seed in range(first, first + count):
        try:
            run(seed)
        except BaseException:
            print(f"seed {seed}", flush=True)
            raise


@pytest.mark.parametrize("kind", ["guest", "vmsa"])
def test_random_guests_end_as_the_hardware_would_end_them(kind):
    code = f"from tests.unit.test_hostile_guest import batch; batch({kind!r}, 0, 40)"
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", code], capture_output=True,
                          text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_random_guests_repeat_themselves():
    for seed in range(6):
        assert one_random_guest(seed) == one_random_guest(seed)
