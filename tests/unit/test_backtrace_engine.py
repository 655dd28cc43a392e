# SPDX-License-Identifier: MIT
"""Backtraces of real code on the engine: from a fault in the kernel to a program at CPL 3."""

from __future__ import annotations

import pytest

from svsmd.core.backtrace.frames import Backtrace, Location
from svsmd.core.backtrace.unwinder import Module, unwind
from svsmd.core.trap_frame import VECTOR_SYSCALL
from svsmd.snp.exits import Hlt
from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.types import C_BIT, PAGE_SIZE
from svsmd.snp.vmpl0_port import Vmpl0Port
from svsmd.snp.vmsa import Efer
from tests.bare_machine import (
    CODE,
    DATA,
    PML4,
    RSP0,
    TSS,
    USER_CS,
    USER_SS,
    BareMachine,
    P,
    U,
    W,
    assemble,
    gate,
)

HIGH = 0xFFFF_8000_0000_0000
"""Where the kernel sees everything once more."""
PROGRAM, PROGRAM_WORK = CODE, CODE + 0x100
ENTRY_UD, ENTRY_PF, ENTRY_SYSCALL, SERVE, FAULT = (CODE + PAGE_SIZE + n * 0x100 for n in range(5))
KERNEL = {"entry_ud": ENTRY_UD, "entry_pf": ENTRY_PF, "entry_syscall": ENTRY_SYSCALL,
          "serve": SERVE, "fault": FAULT}  # fmt: skip
USER = {"program": PROGRAM, "work": PROGRAM_WORK}

SAVE = "".join(
    f"push {name}\n"
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp",
                 *(f"r{n}" for n in range(8, 16)))
)  # fmt: skip
"""As gate.S does it, and the mark in RBP."""
MARK = "lea rbp, [rsp + 1]\n"
FUNCTION = "push rbp\nmov rbp, rsp\n"
# The pieces are assembled one by one and know no symbols of each other.
CALL = "movabs rax, {:#x}\ncall rax\n"


def lookup(table: dict[str, int], base: int, address: int) -> Location | None:
    for name, start in table.items():
        if base + start <= address < base + start + 0x100:
            return Location(name, address - base - start)
    return None


@pytest.fixture
def machine() -> BareMachine:
    machine = BareMachine(vmpl=0, user=True)
    machine.write_u64(PML4 + 256 * 8, PML4 + PAGE_SIZE | P | W | U | C_BIT)
    machine.write_u64(TSS + 4, HIGH + RSP0)
    pieces = {
        ENTRY_UD: "push 0\npush 6\n" + SAVE + MARK + CALL.format(HIGH + SERVE),
        ENTRY_PF: "push 14\n" + SAVE + MARK + "hlt",
        ENTRY_SYSCALL: f"""
            movabs r15, {HIGH + DATA:#x}
            mov [r15], rsp
            movabs rsp, {HIGH + RSP0:#x}
            push {USER_SS}
            push [r15]
            push r11
            push {USER_CS}
            push rcx
            push 0
            push {VECTOR_SYSCALL}
            """ + SAVE + MARK + CALL.format(HIGH + SERVE),
        SERVE: FUNCTION + "sub rsp, 0x20\n" + CALL.format(HIGH + FAULT),
        # Before it has a frame of its own.
        FAULT: "mov rax, [0x7fff0000]",
    }  # fmt: skip
    for at, source in pieces.items():
        machine.write(at, assemble(source, origin=at))
    machine.set_gate(6, gate(HIGH + ENTRY_UD))
    machine.set_gate(14, gate(HIGH + ENTRY_PF))
    return machine


def trace(machine: BareMachine) -> Backtrace:
    """Of the code that has halted, as the core's port reads memory."""
    vmsa = machine.vmsa
    rip, rbp, rsp = vmsa.rip - 1, vmsa.rbp, vmsa.rsp
    assert machine.silicon.load_for_debugger(machine.vmcb)
    port = Vmpl0Port(machine.silicon.processor)

    def read(gva: int, nbytes: int) -> bytes | None:
        try:
            return port.read(gva, nbytes)
        except (GuestFault, NestedFault):
            return None

    return unwind(
        read, rip, rbp, rsp,
        kernel=lambda address: lookup(KERNEL, HIGH, address),
        module=Module(read, lambda address: lookup(USER, 0, address)),
    )  # fmt: skip


def run_program(machine: BareMachine, last: str) -> list[str]:
    """A program whose function does something last; the symbols of the backtrace."""
    machine.write(PROGRAM_WORK, assemble(FUNCTION + last, origin=PROGRAM_WORK))
    assert machine.run("xor ebp, ebp\n" + CALL.format(PROGRAM_WORK)) == Hlt()
    found = trace(machine)
    assert found.end == ""
    return [frame.symbol for frame in found.frames]


def test_exception_at_cpl_3_and_one_on_top(machine: BareMachine) -> None:
    assert run_program(machine, "ud2") == [
        "entry_pf", "#PF, error 0x0", "fault", "serve", "entry_ud", "#UD", "work", "program",
    ]  # fmt: skip


def test_system_call(machine: BareMachine) -> None:
    vmsa = machine.vmsa
    vmsa.efer |= Efer.SCE
    vmsa.star = 0x0023_0010 << 32
    vmsa.lstar = HIGH + ENTRY_SYSCALL
    assert run_program(machine, "syscall") == [
        "entry_pf", "#PF, error 0x0", "fault", "serve", "entry_syscall", "SYSCALL", "work",
        "program",
    ]  # fmt: skip


def test_program_with_a_wild_frame_pointer(machine: BareMachine) -> None:
    """RBP of the program is a kernel address: the kernel's stack is not shown as its frames."""
    code = f"movabs rbp, {HIGH + RSP0 - 0x100:#x}\nud2"
    machine.write(PROGRAM_WORK, assemble(FUNCTION + code, origin=PROGRAM_WORK))
    assert machine.run(CALL.format(PROGRAM_WORK)) == Hlt()
    found = trace(machine)
    assert [frame.symbol for frame in found.frames][-2:] == ["#UD", "work"]
    assert "cannot be read" in found.end
