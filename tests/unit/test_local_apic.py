# SPDX-License-Identifier: MIT
"""Local APICs in x2APIC mode, the bus between them, and the MSR policy in front of them."""

import pytest

from svsmd.host.local_apic import ApicBus, LocalApic
from svsmd.host.msr_policy import MsrPolicy, VcpuMsrs
from svsmd.host.pic8259 import Pic8259Pair
from svsmd.host.timers import TimerQueue

TPR, PPR, EOI, LDR, SVR, ISR, TMR, IRR = 0x808, 0x80A, 0x80B, 0x80D, 0x80F, 0x810, 0x818, 0x820
ESR, ICR, LVT_TIMER, LINT0, LINT1, LVT_ERROR = 0x828, 0x830, 0x832, 0x835, 0x836, 0x837
INIT_COUNT, CURRENT, DIVIDE, SELF_IPI, DEADLINE = 0x838, 0x839, 0x83E, 0x83F, 0x6E0


class Smp:
    """Some vCPUs with their local APICs."""

    def __init__(self, ncpus: int = 1) -> None:
        self.now = 0
        self.timers = TimerQueue()
        self.bus = ApicBus()
        self.events: list[tuple[str, int]] = []
        self.pic = Pic8259Pair(lambda level: self.apics[0].set_lint0(level))
        self.apics = [self._apic(index) for index in range(ncpus)]
        self.msrs = MsrPolicy([VcpuMsrs(apic, lambda: self.now) for apic in self.apics])

    def _apic(self, index: int) -> LocalApic:
        return LocalApic(
            index,
            lambda: self.now,
            self.timers,
            self.bus,
            is_bsp=index == 0,
            on_nmi=lambda: self.events.append(("nmi", index)),
            on_init=lambda: self.events.append(("init", index)),
            on_sipi=lambda vector: self.events.append((f"sipi {vector:#x}", index)),
            ext_int=self.pic if index == 0 else None,
        )

    def enable(self) -> "Smp":
        for index in range(len(self.apics)):
            assert self.wr(SVR, 0x1FF, index)
        return self

    def rd(self, msr: int, cpu: int = 0) -> int | None:
        return self.msrs.read(cpu, msr)

    def wr(self, msr: int, value: int, cpu: int = 0) -> bool:
        return self.msrs.write(cpu, msr, value)

    def run_to(self, now: int) -> None:
        while (deadline := self.timers.next_deadline) is not None and deadline <= now:
            self.now = max(self.now, deadline)
            self.timers.run_due(self.now)
        self.now = now

    def pending(self) -> list[int | None]:
        return [apic.pending_vector() for apic in self.apics]


def test_identity_registers():
    smp = Smp(20)
    assert smp.rd(0x1B) == 0xFEE00D00
    assert smp.rd(0x1B, 1) == 0xFEE00C00
    assert smp.rd(0x802, 19) == 19
    assert smp.rd(0x803) == 0x50014
    assert smp.rd(LDR, 19) == 1 << 16 | 1 << 3
    assert smp.rd(SVR) == 0xFF
    assert smp.rd(LVT_TIMER) == 0x10000


@pytest.mark.parametrize("msr", [0x800, 0x809, 0x80E, 0x82F, 0x831, 0x840, 0x8FF, EOI, SELF_IPI])
def test_reads_that_fault(msr):
    assert Smp().rd(msr) is None


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (0x802, 0),
        (0x803, 0),
        (PPR, 0),
        (ISR, 0),
        (CURRENT, 0),
        (TPR, 0x100),
        (EOI, 1),
        (ESR, 1),
        (SVR, 0x400),
        (SVR, 1 << 32),
        (ICR, 1 << 20),
        (ICR, 1 << 13),
        (LVT_TIMER, 1 << 19),
        (LVT_ERROR, 0x100),
        (INIT_COUNT, 1 << 32),
        (DIVIDE, 4),
        (SELF_IPI, 0x100),
        (0x1B, 0xFEE00900),
        (0x1B, 0),
        (0x831, 0),
    ],
)
def test_writes_that_fault(msr, value):
    assert not Smp().wr(msr, value)


def test_priorities():
    smp = Smp().enable()
    apic = smp.apics[0]
    for vector in (0x31, 0x45, 0x41):
        assert smp.wr(SELF_IPI, vector)
    assert smp.rd(IRR + 1) == 1 << 0x11
    assert smp.rd(IRR + 2) == 1 << 5 | 1 << 1
    assert apic.pending_vector() == 0x45
    apic.acknowledge(0x45)
    assert smp.rd(ISR + 2) == 1 << 5
    assert smp.rd(PPR) == 0x40
    # The same priority class waits, a higher one does not.
    assert apic.pending_vector() is None
    smp.wr(SELF_IPI, 0x50)
    assert apic.pending_vector() == 0x50
    apic.acknowledge(0x50)
    smp.wr(EOI, 0)
    assert apic.pending_vector() is None
    smp.wr(EOI, 0)
    assert apic.pending_vector() == 0x41
    smp.wr(TPR, 0x4F)
    assert smp.rd(PPR) == 0x4F
    assert apic.pending_vector() is None
    smp.wr(TPR, 0x3F)
    assert apic.pending_vector() == 0x41
    smp.wr(EOI, 0)  # nothing in service: nothing happens
    assert apic.pending_vector() == 0x41


def test_software_disabled_apic_takes_no_interrupts_and_masks_its_lvt():
    smp = Smp().enable()
    smp.wr(LVT_TIMER, 0x40)
    smp.wr(SVR, 0xFF)
    assert smp.rd(LVT_TIMER) == 0x10040
    smp.wr(LVT_TIMER, 0x40)
    assert smp.rd(LVT_TIMER) == 0x10040
    smp.wr(SELF_IPI, 0x55)
    smp.wr(SVR, 0x1FF)
    assert smp.pending() == [None]


def test_one_shot_timer_counts_down_and_fires_once():
    smp = Smp().enable()
    smp.wr(LVT_TIMER, 0x40)
    smp.wr(DIVIDE, 0x3)  # by 16
    smp.wr(INIT_COUNT, 1000)
    smp.run_to(8_000)
    assert smp.rd(CURRENT) == 500
    smp.run_to(15_999)
    assert smp.pending() == [None]
    smp.run_to(16_000)
    assert smp.pending() == [0x40]
    assert smp.rd(CURRENT) == 0
    assert smp.timers.next_deadline is None


@pytest.mark.parametrize(
    ("code", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)],
)
def test_timer_divisors(code, divisor):
    smp = Smp().enable()
    smp.wr(DIVIDE, code)
    smp.wr(INIT_COUNT, 100)
    assert smp.timers.next_deadline == 100 * divisor


def test_periodic_timer_and_missed_periods():
    smp = Smp().enable()
    smp.wr(LVT_TIMER, 0x2_0040)
    smp.wr(DIVIDE, 0xB)
    smp.wr(INIT_COUNT, 100_000)
    smp.run_to(100_000)
    assert smp.pending() == [0x40]
    assert smp.timers.next_deadline == 200_000
    smp.now = 1_234_567
    smp.timers.run_due(smp.now)
    assert smp.timers.next_deadline == 1_300_000
    smp.wr(INIT_COUNT, 0)
    assert smp.timers.next_deadline is None


def test_periodic_timer_has_a_floor():
    smp = Smp().enable()
    smp.wr(LVT_TIMER, 0x2_0040)
    smp.wr(INIT_COUNT, 1)
    assert smp.timers.next_deadline == 10_000


def test_tsc_deadline_timer():
    smp = Smp().enable()
    smp.wr(DEADLINE, 500)
    assert smp.rd(DEADLINE) == 0  # another mode: ignored
    smp.wr(LVT_TIMER, 0x4_0040)
    smp.wr(INIT_COUNT, 5)
    assert smp.timers.next_deadline is None
    smp.wr(DEADLINE, 500)
    assert smp.rd(DEADLINE) == 500
    smp.run_to(500)
    assert smp.pending() == [0x40]
    assert smp.rd(DEADLINE) == 0
    smp.wr(DEADLINE, 900)
    smp.wr(DEADLINE, 0)
    assert smp.timers.next_deadline is None
    smp.wr(DEADLINE, 900)
    smp.wr(LVT_TIMER, 0x40)  # changing the mode disarms
    assert smp.timers.next_deadline is None


def test_deadline_in_the_past_fires_at_once():
    smp = Smp().enable()
    smp.now = 1000
    smp.wr(LVT_TIMER, 0x4_0040)
    smp.wr(DEADLINE, 1)
    smp.timers.run_due(smp.now)
    assert smp.pending() == [0x40]


@pytest.mark.parametrize(
    ("icr", "targets"),
    [
        (0x1 << 32, [1]),
        (0x7 << 32, []),
        (0xFFFF_FFFF << 32, [0, 1, 2, 3]),
        (1 << 11 | 0b1010 << 32, [1, 3]),
        (1 << 11 | 0x1_0001 << 32, []),
        (1 << 18, [0]),
        (2 << 18, [0, 1, 2, 3]),
        (3 << 18, [1, 2, 3]),
    ],
)
def test_ipi_destinations(icr, targets):
    smp = Smp(4).enable()
    assert smp.wr(ICR, icr | 0x60)
    assert [index for index, vector in enumerate(smp.pending()) if vector == 0x60] == targets


def test_lowest_priority_goes_to_the_least_busy():
    smp = Smp(3).enable()
    smp.wr(TPR, 0x20, 0)
    smp.wr(TPR, 0x10, 2)
    smp.wr(TPR, 0x10, 1)
    smp.wr(ICR, 2 << 18 | 1 << 8 | 0x60)
    assert smp.pending() == [None, 0x60, None]


def test_nmi_init_and_startup():
    smp = Smp(2).enable()
    smp.wr(TPR, 0x30, 1)
    smp.wr(ICR, 1 << 32 | 0x400)
    smp.wr(ICR, 1 << 32 | 0xC500)
    smp.wr(ICR, 1 << 32 | 0x8500)  # level de-assert: nothing
    smp.wr(ICR, 1 << 32 | 0x469A)
    assert smp.events == [("nmi", 1), ("init", 1), ("sipi 0x9a", 1)]
    assert smp.rd(TPR, 1) == 0
    assert smp.rd(SVR, 1) == 0xFF


def test_illegal_vectors_are_errors():
    smp = Smp().enable()
    smp.wr(LVT_ERROR, 0x70)
    smp.wr(ICR, 1 << 18 | 0x0F)
    assert smp.pending() == [0x70]
    assert smp.rd(ESR) == 0
    smp.wr(ESR, 0)
    assert smp.rd(ESR) == 1 << 5
    smp.wr(ESR, 0)
    assert smp.rd(ESR) == 0


def test_eoi_of_level_triggered_interrupts_is_broadcast():
    smp = Smp().enable()
    ended: list[int] = []

    class Listener:
        def end_of_interrupt(self, vector: int) -> None:
            ended.append(vector)

    smp.bus.add_eoi_listener(Listener())
    smp.bus.send_message(0, False, 0, 0x51, True)
    smp.bus.send_message(0, False, 0, 0x61, False)
    assert smp.rd(TMR + 2) == 1 << 0x11
    for vector in (0x61, 0x51):
        assert smp.pending() == [vector]
        smp.apics[0].acknowledge(vector)
        smp.wr(EOI, 0)
    assert ended == [0x51]


def test_ext_int_from_the_8259_pair():
    smp = Smp().enable()
    smp.pic.master.write_command(0x11)
    for word in (0x30, 4, 1, 0):
        smp.pic.master.write_data(word)
    smp.pic.set_irq(4, True)
    assert smp.pending() == [None]
    smp.wr(LINT0, 0x700)
    assert smp.pending() == [0x34]
    smp.apics[0].acknowledge(0x34)
    assert smp.pic.master.state.isr == 1 << 4
    assert smp.rd(ISR + 1) == 0
    assert smp.pending() == [None]


def test_lint1_as_nmi():
    smp = Smp().enable()
    smp.apics[0].set_lint1(True)
    assert not smp.events
    smp.wr(LINT1, 0x400)
    smp.apics[0].set_lint1(True)
    assert smp.events == [("nmi", 0)]


def test_msr_policy_of_other_msrs():
    smp = Smp(2)
    smp.now = 77
    assert smp.rd(0x10) == 77
    assert smp.wr(0x10, 5)
    assert smp.rd(0x10) == 77
    assert smp.rd(0x8B) == 0x1000065
    assert smp.wr(0xC0011029, 0x1234)
    assert (smp.rd(0xC0011029, 0), smp.rd(0xC0011029, 1)) == (0x1234, 2)
    assert not smp.wr(0xFE, 0)
    assert smp.rd(0x200) == 0
    for unknown in (0x4B564D02, 0xC0010131, 0x12345678):
        assert smp.rd(unknown) is None
        assert not smp.wr(unknown, 0)
