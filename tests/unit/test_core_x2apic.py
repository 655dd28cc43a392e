# SPDX-License-Identifier: MIT
"""The local APIC of VMPL0: what the core writes to it, and what it makes of the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from svsmd.core.gate import Handler
from svsmd.core.log import CoreLog
from svsmd.core.x2apic import MAX_TIMER_TICKS, X2Apic
from svsmd.snp.faults import Vector
from svsmd.snp.ghcb import Ghcb, GhcbError
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT
from tests.fake_vmpl0 import FakeVmpl0

T = TypeVar("T")

TIMER, SPURIOUS, KICK = 0x40, 0xFF, 0x51


class Rig:
    """Two vCPUs at VMPL0 after boot; their APICs are off, and the core has nothing to do there."""

    def __init__(self) -> None:
        self.machine = FakeVmpl0()
        self.log = CoreLog()
        self.apic = X2Apic(self.log)
        self.machine.boot()
        self.cpus = [self.machine.core.cpus[n] for n in range(2)]
        for n, cpu in enumerate(self.cpus):
            assert self.do(self.apic.disable(cpu), n)

    def do(self, handler: Handler[T], vcpu: int = 0) -> T:
        return self.machine.drive(vcpu, handler)

    def ghcb(self, vcpu: int = 0) -> Ghcb:
        gpa = self.cpus[vcpu].ghcb
        assert gpa is not None
        return Ghcb(self.machine.pages[gpa >> PAGE_SHIFT])

    def host_answers(self, answer: Callable[[Ghcb], None]) -> None:
        """Be a host that does nothing but answer."""

        def act(request: int) -> int | None:
            if request & PAGE_MASK:
                return None
            answer(self.ghcb())
            return request

        self.machine.answer = act

    def pending(self, vcpu: int) -> int | None:
        return self.machine.planes[vcpu].apic.pending_vector()

    def deadline(self) -> int | None:
        return self.machine.timers.next_deadline

    def enable(self, vcpu: int = 0) -> bool:
        return self.do(self.apic.enable(self.cpus[vcpu], TIMER, SPURIOUS), vcpu)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_timer_interrupts_after_the_time_that_was_asked_for(rig: Rig) -> None:
    assert rig.enable()
    assert rig.deadline() is None
    start = rig.machine.now
    assert rig.do(rig.apic.arm_timer(rig.cpus[0], 50_000))
    deadline = rig.deadline()
    assert deadline is not None
    assert start + 50_000 <= deadline <= rig.machine.now + 50_000
    rig.cpus[0].port.charge(50_000)
    rig.machine.timers.run_due(rig.machine.now)
    assert rig.pending(0) == TIMER
    assert rig.deadline() is None, "it is a one-shot timer"


def test_a_timer_that_is_armed_again_keeps_no_old_deadline(rig: Rig) -> None:
    rig.enable()
    rig.do(rig.apic.arm_timer(rig.cpus[0], 100))
    rig.do(rig.apic.arm_timer(rig.cpus[0], 1_000_000))
    deadline = rig.deadline()
    assert deadline is not None
    assert deadline > rig.machine.now + 900_000


def test_enabling_again_disarms_the_timer(rig: Rig) -> None:
    rig.enable()
    rig.do(rig.apic.arm_timer(rig.cpus[0], 100))
    rig.enable()
    assert rig.deadline() is None


def test_a_time_that_is_too_long_ends_early(rig: Rig) -> None:
    rig.enable()
    assert rig.do(rig.apic.arm_timer(rig.cpus[0], 1 << 60))
    deadline = rig.deadline()
    assert deadline is not None
    assert deadline <= rig.machine.now + MAX_TIMER_TICKS


def test_an_ipi_reaches_the_vcpu_that_it_names(rig: Rig) -> None:
    for vcpu in (0, 1):
        assert rig.enable(vcpu)
    assert rig.do(rig.apic.send_ipi(rig.cpus[0], 1, KICK))
    assert (rig.pending(0), rig.pending(1)) == (None, KICK)
    assert rig.do(rig.apic.send_ipi(rig.cpus[1], 1, KICK + 1), 1)
    assert rig.pending(1) == KICK + 1
    assert rig.do(rig.apic.send_ipi(rig.cpus[0], 77, KICK)), "nobody says that there is none"


def test_the_end_of_an_interrupt_lets_the_next_one_in(rig: Rig) -> None:
    rig.enable()
    apic = rig.machine.planes[0].apic
    rig.do(rig.apic.send_ipi(rig.cpus[0], 0, KICK))
    apic.acknowledge(KICK)
    rig.do(rig.apic.send_ipi(rig.cpus[0], 0, KICK))
    assert rig.pending(0) is None
    assert rig.do(rig.apic.end_of_interrupt(rig.cpus[0]))
    assert rig.pending(0) == KICK


def test_an_apic_that_is_off_takes_nothing(rig: Rig) -> None:
    rig.enable()
    rig.do(rig.apic.arm_timer(rig.cpus[0], 100))
    assert rig.do(rig.apic.disable(rig.cpus[0]))
    rig.do(rig.apic.send_ipi(rig.cpus[0], 0, KICK))
    rig.cpus[0].port.charge(1000)
    rig.machine.timers.run_due(rig.machine.now)
    assert rig.pending(0) is None
    assert rig.enable()
    assert rig.pending(0) is None


def refuses_with_gp(ghcb: Ghcb) -> None:
    ghcb.set_answer()
    ghcb.set_exception(Vector.GP, 0)


def refuses_as_malformed(ghcb: Ghcb) -> None:
    ghcb.clear_valid()
    ghcb.set_malformed(GhcbError.INVALID_EVENT)


def answers_nothing(ghcb: Ghcb) -> None:
    ghcb.clear_valid()


def leaves_the_request(ghcb: Ghcb) -> None:
    """The host came back without having looked at it."""


def answers_nonsense(ghcb: Ghcb) -> None:
    ghcb.memory[:] = b"\xff" * len(ghcb.memory)


HOSTS = [
    refuses_with_gp, refuses_as_malformed, answers_nothing, leaves_the_request, answers_nonsense,
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
def test_a_refusal_is_returned_and_logged_once(rig: Rig, host: Callable[[Ghcb], None]) -> None:
    rig.host_answers(host)
    apic, cpu = rig.apic, rig.cpus[0]
    assert not rig.enable()
    assert not rig.do(apic.end_of_interrupt(cpu))
    assert not rig.do(apic.arm_timer(cpu, 1000))
    assert not rig.do(apic.send_ipi(cpu, 1, KICK))
    assert not rig.do(apic.disable(cpu))
    assert list(rig.log.lines) == ["vCPU 0: the hypervisor refuses SVR of the local APIC"]


def test_what_the_core_must_not_ask_for(rig: Rig) -> None:
    apic, cpu = rig.apic, rig.cpus[0]
    for vectors in ((31, 255), (64, 256), (-1, 255)):
        with pytest.raises(ValueError, match="not an interrupt's"):
            rig.do(apic.enable(cpu, *vectors))
    with pytest.raises(ValueError, match="vector 13"):
        rig.do(apic.send_ipi(cpu, 1, 13))
    with pytest.raises(ValueError, match="APIC id 0x100000000"):
        rig.do(apic.send_ipi(cpu, 1 << 32, KICK))
    with pytest.raises(ValueError, match="0 ticks"):
        rig.do(apic.arm_timer(cpu, 0))
