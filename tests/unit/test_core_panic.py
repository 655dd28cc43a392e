# SPDX-License-Identifier: MIT
"""Panics of the core: the report, what is wiped, and what a second one comes to."""

from __future__ import annotations

from dataclasses import fields

import pytest

from svsmd.core import core as core_module
from svsmd.core.core import MAX_LATER_EXCEPTIONS
from svsmd.core.gate import GateAction, Handler, Preempt
from svsmd.core.hypervisor import SVSM_REASON_SET, SvsmReason
from svsmd.core.port import IMAGE_MAP, PRIVATE_MAP
from svsmd.core.tasks.task import Task
from svsmd.core.trap_frame import TrapFrame
from svsmd.snp import ghcb_msr
from svsmd.snp.rmp import RmpUpdate
from svsmd.snp.types import PAGE_SIZE, Spa
from tests.fake_vmpl0 import GUEST_SECRETS, MIB, SVSM_BASE, SVSM_SECRETS, FakeGateCall, FakeVmpl0

FRAME = SVSM_BASE + 3 * MIB
"""Somewhere in the SVSM's region."""
REGISTERS = [field.name for field in fields(TrapFrame)]


@pytest.fixture
def machine() -> FakeVmpl0:
    machine = FakeVmpl0()
    machine.boot()
    return machine


def exception(machine: FakeVmpl0, vcpu: int = 0, **registers: int) -> FakeGateCall:
    """The native part comes to svsm_exception_gate with these registers saved."""
    values = dict.fromkeys(REGISTERS, 0) | {"cs": 8, "ss": 16, "rflags": 2} | registers
    machine.put(FRAME, b"".join(value.to_bytes(8, "little") for value in values.values()))
    call = machine.calls[vcpu]
    call.rax, call.rbx, call.rdi = 0xBAD_0000, values["vector"], PRIVATE_MAP + FRAME
    call.rbp, call.rsp = call.rdi + 1, call.rdi
    machine.core.exception_entry(call)
    return call


def request(call: FakeGateCall) -> object:
    return ghcb_msr.parse_request(call.rdx << 32 | call.rax)


def log(machine: FakeVmpl0) -> list[str]:
    lines = list(machine.core.log.lines)
    first = next(n for n, line in enumerate(lines) if line.startswith("panic"))
    return lines[first:]


def test_report_of_an_exception(machine: FakeVmpl0) -> None:
    secret = 0x5EC2_E75E_C2E7
    call = exception(
        machine, vector=14, error_code=2, rip=IMAGE_MAP + 0x123, rflags=0x46, rax=secret, r15=secret
    )
    assert call.rbx == GateAction.PANIC
    assert request(call) == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.EXCEPTION)
    lines = log(machine)
    assert lines[:4] == [
        "panic: exception 14 (#PF) at VMPL0",
        "  on vCPU 0",
        "  #PF, error 0x2, CR2 0xbad0000",
        "  RIP 0xffffffff80000123 CS 0x8 RFLAGS 0x46 RSP 0x0 SS 0x10 RBP 0x0",
    ]
    text = "\n".join(lines)
    assert "#1 [exception] #PF, error 0x2" in text
    assert f"#2 [native] {IMAGE_MAP + 0x123:#x}" in text
    # It had yielded to have the stub run the guest.
    assert "#3 [handler] run at core/request_loop.py" in text
    assert f"{secret:x}" not in text


@pytest.mark.parametrize(
    ("vector", "error_code", "line"),
    [
        (29, 0x404, "  #VC, error 0x404, CR2 0xbad0000"),
        (29, 0x72, "  #VC, error 0x72"),
        (13, 0, "  #GP, error 0x0"),
        (6, 0, "  #UD"),
    ],
)
def test_cr2_where_it_says_something(
    machine: FakeVmpl0, vector: int, error_code: int, line: str
) -> None:
    exception(machine, vector=vector, error_code=error_code)
    assert log(machine)[2] == line


def test_report_says_what_each_vcpu_does(machine: FakeVmpl0) -> None:
    exception(machine, vector=6)
    states = [line for line in log(machine) if line.startswith("  vCPU ")]
    assert len(states) == 2
    assert states[0].startswith("  vCPU 0: in VMGEXIT ")
    assert ", guest VMSA 0x" in states[0]
    assert states[1].startswith("  vCPU 1: halted, [handler] run at core/tasks/scheduler.py:")
    assert not any("lock" in line for line in log(machine))


def test_vcpus_that_have_not_started() -> None:
    machine = FakeVmpl0()
    assert machine.run(0) == "guest"
    exception(machine, vector=6)
    assert "  vCPU 1: not started" in log(machine)


def test_report_says_who_holds_locks(machine: FakeVmpl0) -> None:
    domain = machine.core.locks
    assert domain is not None
    lock, _free = domain.lock("memory"), domain.lock("free")
    tasks: dict[str, Task] = {}

    def takes(name: str) -> Handler[int]:
        yield from lock.acquire(tasks[name])
        yield Preempt()
        return 0

    for name in ("one", "two"):
        tasks[name] = Task(0, name, takes(name))
        next(tasks[name].body)
    exception(machine, vector=6)
    lines = log(machine)
    first = lines.index("  lock memory: held by one, who took it at")
    where = "    #0 [handler] takes at test_core_panic.py:"
    assert lines[first + 1].startswith(where)
    assert lines[first + 2] == "  two waits for it since"
    assert lines[first + 3].startswith(where)
    assert not any("lock free" in line for line in lines)


@pytest.mark.parametrize("where", [0, 1 << 63, (1 << 64) - 8, PRIVATE_MAP + 64 * MIB])
def test_registers_that_cannot_be_read(machine: FakeVmpl0, where: int) -> None:
    call = machine.calls[0]
    call.rbx, call.rdi, call.rbp = 13, where, where + 1
    machine.core.exception_entry(call)
    assert f"  there are no saved registers at {where:#x}" in log(machine)


def test_the_whole_secrets_page_of_the_svsm_is_wiped(machine: FakeVmpl0) -> None:
    machine.put(SVSM_SECRETS, b"\xa5" * PAGE_SIZE)
    guest = machine.get(GUEST_SECRETS, PAGE_SIZE)
    exception(machine, vector=13)
    assert machine.get(SVSM_SECRETS, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert machine.get(GUEST_SECRETS, PAGE_SIZE) == guest
    assert any(guest)


def test_secrets_page_that_is_gone(machine: FakeVmpl0) -> None:
    machine.rmp.rmpupdate(Spa(SVSM_SECRETS), RmpUpdate())
    call = exception(machine, vector=13)
    assert call.rbx == GateAction.PANIC
    assert any("cannot be wiped" in line for line in log(machine))
    assert log(machine)[0] == "panic: exception 13 (#GP) at VMPL0"


def test_panic_before_the_secrets_page_is_known() -> None:
    machine = FakeVmpl0()
    machine.put(machine.info.svsm_base + 0x8_0000, b"garbage!")
    assert machine.run(0) == "end"
    assert "the secrets page is not known, nothing is wiped" in log(machine)


def test_second_exception_keeps_the_first_report(machine: FakeVmpl0) -> None:
    exception(machine, vector=14, rip=IMAGE_MAP)
    first = log(machine)
    for _ in range(10 * MAX_LATER_EXCEPTIONS):
        call = exception(machine, vector=8)
        assert call.rbx == GateAction.VMGEXIT
        assert request(call) == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.EXCEPTION)
    assert log(machine)[: len(first)] == first
    assert log(machine)[len(first) :] == ["then exception 8 (#DF), ignored"] * MAX_LATER_EXCEPTIONS


def test_exception_after_a_handler_has_raised_keeps_its_reason(machine: FakeVmpl0) -> None:
    machine.core._gate.panic(machine.calls[0], ValueError("secret"))
    call = exception(machine, vector=8)
    assert request(call) == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.PANIC)
    assert log(machine)[0] == "panic: ValueError"


def test_report_that_fails_is_still_a_panic(
    machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> list[str]:
        raise RecursionError("secret")

    monkeypatch.setattr(core_module, "report", fails)
    call = exception(machine, vector=13)
    assert call.rbx == GateAction.PANIC
    assert log(machine)[0] == "panic: RecursionError while dealing with it"
    assert machine.get(SVSM_SECRETS, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_panics_take_time(machine: FakeVmpl0) -> None:
    before = machine.ports[0].ticks
    exception(machine, vector=13)
    assert machine.ports[0].ticks > before
