# SPDX-License-Identifier: MIT
"""VMRUN loads all of a VMSA, #VMEXIT saves it unchanged, and worlds do not see each other."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.cpu_unicorn import UnicornCpu
from svsmd.snp.exits import Hlt, InvalidVmsa
from svsmd.snp.memory import GuestMemory
from svsmd.snp.types import Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import Segment, Vmsa
from svsmd.snp.vmsa_state import illegal_state, load, save
from tests.bare_machine import CODE, MEMORY, PML4, SPARE, STACK, BareMachine

QUADS = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15", "rip", "cr2", "dr0", "dr1", "dr2", "dr3", "star", "lstar", "cstar", "sfmask",
    "kernel_gs_base", "sysenter_esp", "sysenter_eip", "g_pat",
)  # fmt: skip
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")
CPU = UnicornCpu(GuestMemory(16 << 20))

quad = st.integers(0, (1 << 64) - 1)
half = st.integers(0, (1 << 32) - 1)
segment = st.builds(
    Segment, st.integers(0, 0xFFFF), st.integers(0, 0xFFF), st.integers(0, 0xFFFF_FFFF), quad
)
# Tags are empty (3) or not (0): what else a register holds is told by its value.
tags = st.lists(st.sampled_from((0, 3)), min_size=8, max_size=8)


@settings(max_examples=60)
@given(st.data())
def test_every_field_makes_the_round_trip(data):
    vmsa = Vmsa.long_mode_start(CODE, STACK, PML4)
    for name in QUADS:
        setattr(vmsa, name, data.draw(quad, name))
    for name in SEGMENTS:
        setattr(vmsa, name, data.draw(segment, name))
    draws: dict[str, Any] = {
        "rflags": st.integers(0, 0x3F_FFFF).map(lambda f: f & 0x3C_7FD5 | 2),
        "dr6": half, "tsc_aux": half, "sysenter_cs": half, "cr3": st.integers(0, (1 << 40) - 1),
        "cpl": st.integers(0, 3), "mxcsr": st.integers(0, 0xFFFF),
        "x87_fcw": st.integers(0, 0xFFFF), "x87_fsw": st.integers(0, 0xFFFF),
        "fpreg_x87": st.binary(min_size=80, max_size=80),
        "fpreg_xmm": st.binary(min_size=256, max_size=256),
        "vintr_ctrl": st.sampled_from((0, 1 << 10)),
    }  # fmt: skip
    for name, strategy in draws.items():
        setattr(vmsa, name, data.draw(strategy, name))
    vmsa.x87_ftw = sum(tag << 2 * i for i, tag in enumerate(data.draw(tags)))
    before = bytes(vmsa.memory)
    load(CPU, vmsa)
    after = Vmsa(bytearray(before))
    save(CPU, after)
    wrong = [n for n in Vmsa.FIELDS if getattr(after, n) != getattr(vmsa, n)]
    assert not wrong
    assert bytes(after.memory) == before


def test_registers_pass_through_a_run():
    m = BareMachine()
    vmsa = m.vmsa
    vmsa.cr4 |= 0x600
    vmsa.x87_ftw = 0  # saved as empty or not
    for i in range(16):
        vmsa.set_xmm(i, bytes([i] * 16))
    before = bytes(vmsa.memory)
    assert m.run("nop; hlt") == Hlt()
    after = m.vmsa
    after.rip = CODE
    after.guest_exitcode = 0
    assert bytes(after.memory) == before


def test_rf_does_not_survive():
    vmsa = Vmsa.long_mode_start(CODE, STACK, PML4)
    vmsa.rflags = 0x1_0002
    load(CPU, vmsa)
    save(CPU, vmsa)
    assert vmsa.rflags == 2


def test_worlds_do_not_see_each_others_registers():
    m = BareMachine(2)
    other = Vmcb(SPARE)
    m.own(SPARE, vmsa=True)
    Vmsa.long_mode_start(CODE + 0x100, STACK, m.vmsa.cr3, page=m.silicon.memory.page(SPARE),
                         vmpl=Vmpl.VMPL1)  # fmt: skip
    fill = "; ".join(f"mov {r}, -1" for r in ("rax", "rbx", "rdx", "rsi", "r8", "r15"))
    assert m.run(fill + "; mov rax, cr4; or eax, 0x600; mov cr4, rax; pcmpeqd xmm3, xmm3; std;"
                 "fninit; fld1; mov rax, -1; mov cr2, rax; hlt") == Hlt()  # fmt: skip
    m.load("hlt", at=CODE + 0x100)
    Vmsa(m.silicon.memory.page(SPARE)).x87_ftw = 0
    fresh = Vmsa(bytearray(bytes(m.silicon.memory.page(SPARE))))
    assert m.silicon.vmrun(other, 1 << 40) == Hlt()
    m.silicon.save_loaded()
    after = Vmsa(m.silicon.memory.page(SPARE))
    after.rip -= 1
    after.guest_exitcode = 0
    assert bytes(after.memory) == bytes(fresh.memory)
    first = Vmsa(m.silicon.memory.page(m.vmcb.vmsa_spa))
    assert first.xmm(3) == b"\xff" * 16
    assert first.rax == first.cr2 == (1 << 64) - 1
    assert first.rflags & 0x400


def test_what_vmrun_refuses():
    changes: tuple[dict[str, int], ...] = (
        {"efer": 0x500}, {"efer": 0x1D02}, {"cr0": 0x8000_0000}, {"cr0": 0xA000_0033},
        {"cr0": 1 << 32 | 0x8001_0033}, {"cr4": 0}, {"cr4": 1 << 12 | 0x20}, {"cr3": 1 << 45},
        {"dr6": 1 << 32}, {"dr7": 1 << 40}, {"cpl": 4}, {"rflags": 1 << 17 | 2},
        {"vmpl": 4}, {"sev_features": 0}, {"sev_features": 3},
    )  # fmt: skip
    for change in changes:
        m = BareMachine()
        for name, value in change.items():
            setattr(m.vmsa, name, value)
        exit_ = m.run("hlt")
        assert isinstance(exit_, InvalidVmsa), change
        assert not exit_.busy
    both = BareMachine()
    both.vmsa.cs = Segment(0x10, 0xE9B, 0xFFFF_FFFF, 0)
    assert isinstance(both.run("hlt"), InvalidVmsa)
    assert illegal_state(BareMachine().vmsa) is None


def test_vmrun_rows_of_the_page():
    for row in ("AC-60", "AC-63"):
        m = BareMachine()
        if row == "AC-60":
            m.vmcb.vmsa_spa = SPARE
        else:
            m.rmp.firmware_update(Spa(m.vmcb.vmsa_spa), vmsa=False)
        exit_ = m.run()
        assert isinstance(exit_, InvalidVmsa)
        assert exit_.reason == row
    for spa in (1, MEMORY, MEMORY * 1000, 0xFEC0_0000):
        m = BareMachine()
        m.vmcb.vmsa_spa = spa
        assert isinstance(m.run(), InvalidVmsa)
