# SPDX-License-Identifier: MIT
"""What a hypervisor may do with the chip."""

from __future__ import annotations

import pytest

from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.exits import DebugReason, DebugStop, Hlt, Intr, InvalidVmsa, Paused
from svsmd.snp.memory import NotRam
from svsmd.snp.rmp import RmpReturn, RmpUpdate
from svsmd.snp.silicon import RmpViolation
from svsmd.snp.types import PAGE_SIZE, Spa
from svsmd.snp.vmcb import Vmcb
from tests.bare_machine import CODE, DATA, MEMORY, SPARE, VMSA, BareMachine

pytestmark = pytest.mark.usefixtures("both_callbacks")


def test_host_reads_ciphertext_and_plaintext():
    m = BareMachine()
    m.write(DATA, b"secret" * 8)
    data = m.silicon.host_read(DATA, 48)
    assert b"secret" not in data
    assert data == m.silicon.host_read(DATA, 48)
    m.silicon.host_write(SPARE, b"public")
    assert m.silicon.host_read(SPARE, 6) == b"public"
    with pytest.raises(NotRam):
        m.silicon.host_read(MEMORY, 1)


def test_host_cannot_write_private_pages():
    m = BareMachine()
    with pytest.raises(RmpViolation):
        m.silicon.host_write(DATA - 4, b"12345678")
    assert m.read(DATA - 4, 4) == bytes(4)
    assert m.silicon.host_page(DATA) is None


def test_host_reads_of_a_vmsa_show_its_latest_state_encrypted():
    m = BareMachine()
    m.run("mov rax, 0x1122334455667788; hlt")
    before = m.silicon.host_read(VMSA, 0x1000)
    m.run("hlt")
    assert m.silicon.host_read(VMSA, 0x1000) != before
    assert (0x1122334455667788).to_bytes(8, "little") not in before


def test_the_exit_code_is_in_the_vmsa():
    m = BareMachine()
    assert m.run("hlt") == Hlt()
    assert m.vmsa.guest_exitcode == 0x78


def test_the_host_learns_whether_interrupts_are_on():
    m = BareMachine()
    m.load("sti; nop; hlt; cli; hlt; sti; 1: jmp 1b")
    exits = [(m.run(), m.vmcb.guest_interrupt_mask) for _ in range(3)]
    assert exits == [(Hlt(), True), (Hlt(), False), (Intr(), True)]


def test_who_stood_still_was_interrupted_when_somebody_else_runs():
    m = BareMachine()
    m.own(SPARE)
    m.make_vmsa(2, at=SPARE, code=CODE + PAGE_SIZE)
    m.load("hlt", at=CODE + PAGE_SIZE)
    other = Vmcb(SPARE)
    assert m.run("hlt; 1: jmp 1b") == Hlt()
    m.silicon.cpu.request_stop()
    assert m.run() == Paused()
    m.silicon.cpu.clear_stop()
    assert m.vmsa.guest_exitcode == 0x78, "nothing has happened to it"
    assert m.silicon.vmrun(other, m.silicon.clock.now + 100) == Hlt()
    assert m.vmsa.guest_exitcode == 0x60


def test_the_rmp_forgets_a_context_with_its_page():
    m = BareMachine()
    assert m.run("hlt; hlt") == Hlt()
    assert m.rmp.rmpupdate(Spa(VMSA), RmpUpdate()) is RmpReturn.SUCCESS
    m.silicon.host_write(VMSA, bytes(0x1000))
    m.silicon.save_loaded()
    assert m.silicon.host_read(VMSA, 0x1000) == bytes(0x1000)
    m.own(CODE + 0x10_0000)


def test_a_debugger_sees_a_context_that_must_not_run():
    """VMPL0 clears EFER.SVME of a guest that it serves: looking at it does not set it again."""
    m = BareMachine()
    assert m.run("mov rax, 0x1234; hlt; hlt") == Hlt()
    m.silicon.save_loaded()
    m.vmsa.efer &= ~0x1000
    before = bytes(m.vmsa.memory)
    assert m.silicon.load_for_debugger(m.vmcb)
    assert m.silicon.registers.general()[0] == 0x1234
    m.silicon.make_readable(VMSA, PAGE_SIZE)
    assert bytes(m.vmsa.memory) == before
    assert isinstance(m.run(), InvalidVmsa)
    assert not m.vmsa.efer & 0x1000
    m.vmsa.efer |= 0x1000
    assert m.run() == Hlt()


def test_a_debugger_sees_no_context_that_is_none():
    m = BareMachine()
    m.vmsa.cr0 = 0x8000_0000
    assert not m.silicon.load_for_debugger(m.vmcb)
    for spa in (1, MEMORY, SPARE):
        assert not m.silicon.load_for_debugger(Vmcb(spa))


def test_a_breakpoint_stops_whom_it_is_for():
    m = BareMachine()
    breakpoint_ = Breakpoint(CODE)
    m.load("1: inc rax; jmp 1b")
    asked = 0

    def third() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    breakpoint_.accepts = third
    m.silicon.debug.add_breakpoint(breakpoint_)
    assert m.run() == DebugStop(DebugReason.BREAKPOINT, CODE)
    assert asked == 3
    assert m.silicon.registers.general()[0] == 2
    breakpoint_.accepts = lambda: False
    assert m.run() == Intr()
    # One that stood there when it was reported counts again if it is asked for.
    breakpoint_.accepts = lambda: True
    first = m.run()
    m.silicon.report_again(m.vmcb)
    rax = m.silicon.registers.general()[0]
    assert m.run() == first
    assert m.silicon.registers.general()[0] == rax
    assert m.run() == first
    assert m.silicon.registers.general()[0] == rax + 1
