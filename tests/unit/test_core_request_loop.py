# SPDX-License-Identifier: MIT
"""Request loop and gate: when a call is taken, what protects it, and how handlers are resumed."""

from __future__ import annotations

from typing import Never

import pytest

from svsmd.core.gate import (
    Effect,
    Gate,
    GateAction,
    GateReason,
    Handler,
    NestedPageFault,
    Preempt,
    SvsmPanic,
    Vmgexit,
    Wait,
)
from svsmd.core.log import LOG_LINE_LENGTH, LOG_LINES, CoreLog
from svsmd.core.panic import Cause
from svsmd.core.port import GateCall
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.recent_calls import RECENT_CALLS
from svsmd.core.result_codes import SvsmResult
from svsmd.snp import ghcb_msr
from svsmd.snp.faults import NestedFault
from svsmd.snp.ghcb import Ghcb
from svsmd.snp.rmp import RmpUpdate
from svsmd.snp.types import PAGE_SIZE, Gpa, PageSize, Spa
from svsmd.snp.vmsa import Efer, VmexitCode, Vmsa
from tests.fake_vmpl0 import GUEST_CAA, GUEST_VMPL, MIB, FakeGateCall, FakePort, FakeVmpl0

QUERY = SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL
RUN_GUEST = ghcb_msr.RunVmpl(GUEST_VMPL).encode()


@pytest.fixture
def machine() -> FakeVmpl0:
    machine = FakeVmpl0()
    machine.boot()
    return machine


def prepare(machine: FakeVmpl0, rcx: int = 1) -> Vmsa:
    return machine.begin_call(QUERY, rcx, gpa=machine.vmsas[0, GUEST_VMPL], caa=GUEST_CAA)


def test_results_come_back_and_other_registers_stay(machine: FakeVmpl0) -> None:
    state = prepare(machine)
    state.r9, state.rbx, state.rip = 0x99, 0xBB, 0x1234
    assert machine.run(0) == "guest"
    assert (state.rax, state.rcx) == (0, 1 << 32 | 1)
    assert (state.r9, state.rbx, state.rip) == (0x99, 0xBB, 0x1234)
    assert machine.get(GUEST_CAA, 1) == b"\0"


def resume(machine: FakeVmpl0) -> GateAction:
    """What vCPU 0 does first when the host has answered RUN_VMPL and comes back."""
    call = machine.calls[0]
    call.rax, call.rbx = ghcb_msr.run_vmpl_response(0), GateReason.VMGEXIT
    machine.core.gate_entry(call)
    return GateAction(call.rbx)


def test_who_comes_back_without_a_call_may_have_been_interrupted(machine: FakeVmpl0) -> None:
    """As long as the interrupt is pending, the guest would not run at all."""
    assert resume(machine) is GateAction.WINDOW


def test_who_comes_with_a_call_loses_no_time(machine: FakeVmpl0) -> None:
    prepare(machine)
    assert resume(machine) is GateAction.VMGEXIT


def test_no_request_is_left_in_the_ghcb(machine: FakeVmpl0) -> None:
    """Programs at CPL 3 can execute VMGEXIT."""
    bitmap = Ghcb.valid_bitmap
    assert machine.get(machine.ghcbs[0] + bitmap.offset, bitmap.size) == bytes(bitmap.size)
    assert any(machine.get(machine.ghcbs[0], PAGE_SIZE))


@pytest.mark.parametrize("pending", [1, 2, 0xFF])
def test_any_pending_value_counts(machine: FakeVmpl0, pending: int) -> None:
    state = prepare(machine)
    machine.put(GUEST_CAA, bytes([pending]))
    machine.run(0)
    assert state.rax == 0


def test_no_call_is_pending(machine: FakeVmpl0) -> None:
    state = prepare(machine)
    machine.put(GUEST_CAA, b"\0")
    assert machine.run(0) == "guest"
    assert (state.rax, state.rcx) == (QUERY, 1)


@pytest.mark.parametrize("code", [VmexitCode.INTR, VmexitCode.HLT, VmexitCode.NPF, 0])
def test_guest_that_did_not_ask_is_not_served(machine: FakeVmpl0, code: int) -> None:
    state = prepare(machine)
    state.guest_exitcode = code
    assert machine.run(0) == "guest"
    assert state.rax == QUERY
    assert machine.get(GUEST_CAA, 1) == b"\1"


@pytest.mark.parametrize("value", [RUN_GUEST, 0, 0xFFF, (1 << 64) - 1, 0x20_0000_0017])
def test_host_comes_back_with_nonsense(machine: FakeVmpl0, value: int) -> None:
    state = prepare(machine)
    machine.calls[0].rax = value
    end = machine.run(0)
    if end == "halt":
        assert machine.run(0) == "guest"
    assert state.rax == 0
    assert not machine.core.panicked


def test_host_that_refuses_to_run_the_guest_is_waited_for(machine: FakeVmpl0) -> None:
    machine.answer = lambda request: ghcb_msr.run_vmpl_response(7) if request == RUN_GUEST else None
    assert machine.run(0) == "guest"
    assert machine.run(0) == "halt"
    assert "refuses RUN_VMPL: 0x7" in list(machine.core.log.lines)[-2]
    assert (
        machine.core.log.lines[-1] == "no restart: the host has no fw_cfg, or it refuses its data"
    )


def test_guest_cannot_run_while_its_call_is_served(machine: FakeVmpl0) -> None:
    page = 8 * MIB
    machine.solve_faults = False
    machine.write_list(GUEST_CAA + 8, [page])
    state = machine.begin_call(
        SvsmCoreCall.SVSM_CORE_PVALIDATE,
        GUEST_CAA + 8,
        gpa=machine.vmsas[0, GUEST_VMPL],
        caa=GUEST_CAA,
    )
    assert machine.run(0) == "fault"
    assert not state.efer & Efer.SVME
    # The flag is clear before the handler runs, not after.
    assert machine.get(GUEST_CAA, 1) == b"\0"
    machine.solve_faults = True
    machine.ports[0].log.clear()
    assert machine.run(0) == "guest"
    assert state.efer & Efer.SVME
    assert ("flush", 0) in machine.ports[0].log, "the list has taken rights away"


def test_efer_bits_without_a_name_survive(machine: FakeVmpl0) -> None:
    state = prepare(machine)
    auto_ibrs = 1 << 21
    state.efer |= auto_ibrs
    machine.run(0)
    assert state.efer & auto_ibrs


def test_calling_area_that_the_host_swapped_is_a_panic(machine: FakeVmpl0) -> None:
    prepare(machine)
    machine.rmp.rmpupdate(Spa(GUEST_CAA), RmpUpdate())
    update = RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(GUEST_CAA), 1)
    machine.rmp.rmpupdate(Spa(GUEST_CAA), update)
    assert machine.run(0) == "end"


def test_calls_take_time(machine: FakeVmpl0) -> None:
    before = machine.ports[0].ticks
    prepare(machine)
    machine.run(0)
    one = machine.ports[0].ticks - before
    prepare(machine)
    machine.run(0)
    assert machine.ports[0].ticks - before == 2 * one > 0


def test_unknown_protocol(machine: FakeVmpl0) -> None:
    state = machine.call(7 << 32, 1, 2, 3)
    assert state.rax == SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL
    assert (state.rcx, state.rdx, state.r8) == (1, 2, 3)


class TestGate:
    """The gate alone, with handlers of the test."""

    def make(self, *effects: Effect | Exception) -> tuple[Gate, FakeGateCall, list[int]]:
        sent: list[int] = []

        def handler() -> Handler[Never]:
            for effect in effects:
                if isinstance(effect, Exception):
                    raise effect
                sent.append((yield effect))
            raise SvsmPanic("no more")

        def start(call: GateCall) -> Handler[Never]:
            return handler()

        def on_panic(call: GateCall, error: Exception | None) -> None:
            self.causes.append(Cause.of(call, error))

        self.causes: list[Cause] = []
        call = FakeGateCall(FakePort(FakeVmpl0()), 0, rbx=GateReason.BOOT)
        return Gate(start, lambda: 0xDEAD_0000_0100, on_panic), call, sent

    def test_vmgexit(self) -> None:
        gate, call, sent = self.make(Vmgexit(0x1234_5678_9ABC_D016), Preempt())
        gate.entry(call)
        assert (call.rbx, call.rdx, call.rax) == (GateAction.VMGEXIT, 0x1234_5678, 0x9ABC_D016)
        call.rbx, call.rax = int(GateReason.VMGEXIT), 0xFEDC_0000_0000_0017
        gate.entry(call)
        assert sent == [0xFEDC_0000_0000_0017]
        assert call.rbx == GateAction.LOOP

    def test_wait_and_preempt(self) -> None:
        gate, call, sent = self.make(Wait(), Preempt(), Wait())
        gate.entry(call)
        assert call.rbx == GateAction.HLT
        call.rbx, call.rax = int(GateReason.LOOP), 0x55
        gate.entry(call)
        assert call.rbx == GateAction.LOOP
        call.rbx = int(GateReason.LOOP)
        gate.entry(call)
        assert sent == [0x55, 0]

    def test_nested_fault_restarts_the_gate_instruction(self) -> None:
        fault = NestedFault(0x1000, 4, "row")
        gate, call, _ = self.make(NestedPageFault(fault), Wait())
        with pytest.raises(NestedFault) as raised:
            gate.entry(call)
        assert raised.value is fault
        assert call.rbx == GateReason.BOOT
        gate.entry(call)
        assert call.rbx == GateAction.HLT

    def test_exception_is_a_panic_and_its_text_stays_inside(self) -> None:
        gate, call, _ = self.make(ValueError("secret"))
        gate.entry(call)
        assert gate.panicked
        assert (call.rbx, call.rdx, call.rax) == (GateAction.PANIC, 0xDEAD, 0x100)
        cause = self.causes[0]
        assert cause.why == "ValueError"
        lines = cause.handler.lines()
        assert lines[0].startswith("#0 [handler] handler at test_core_request_loop.py:")
        assert not any("secret" in line for line in lines)
        gate.entry(call)
        assert (call.rbx, call.rdx, call.rax) == (GateAction.VMGEXIT, 0xDEAD, 0x100)
        assert len(self.causes) == 1


def test_log_is_a_ring() -> None:
    seen: list[str] = []
    log = CoreLog(seen.append)
    for number in range(LOG_LINES + 5):
        log.write(f"line {number}")
    log.write("x" * 10_000)
    assert len(log.lines) == LOG_LINES
    assert log.lines[0] == "line 6"
    assert len(log.lines[-1]) == LOG_LINE_LENGTH
    assert len(seen) == LOG_LINES + 6


def test_the_last_calls_are_kept(machine: FakeVmpl0) -> None:
    """With who made them, what came of them and how long they took; not for ever."""
    assert not machine.core.recent_calls
    prepare(machine, rcx=0x1234)
    assert machine.run(0) == "guest"
    (record,) = machine.core.recent_calls
    assert (record.apic_id, record.protocol, record.call, record.rcx) == (0, 0, QUERY, 0x1234)
    assert record.result == SvsmResult.SVSM_SUCCESS
    assert record.began > 0
    assert record.ticks > 0
    for _ in range(RECENT_CALLS + 5):
        prepare(machine)
        assert machine.run(0) == "guest"
    assert len(machine.core.recent_calls) == RECENT_CALLS
    assert [call.began for call in machine.core.recent_calls] == sorted(
        call.began for call in machine.core.recent_calls
    )
