# SPDX-License-Identifier: MIT
"""Local APICs in x2APIC mode, and the bus between them and the IOAPIC.

Spec: AMD64 APM vol. 2 (24593), chapter 16: local vector table, timer, interprocessor interrupts,
priorities, and x2APIC (MSR addresses, reserved bits give #GP, logical ids). The TSC-deadline mode
is that of Intel SDM vol. 3A, chapter 10, "TSC-Deadline Mode".
Deviations: only x2APIC mode exists, on from reset (an SNP guest reaches its APIC by MSR exits). The
CMCI and extended LVT entries, lowest-priority focus and remote read are not modelled. A periodic
timer is slowed down to `MIN_PERIOD_TICKS`, so that a hostile guest cannot occupy the host with it.
The timer counts one tick per bus clock before its divider.

The host posts what `pending_vector` returns as the virtual interrupt of the vCPU before each run
and calls `acknowledge` when the silicon has delivered it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from functools import partial
from operator import attrgetter
from typing import Final, Protocol

from svsmd.host.layout import LOCAL_APIC_BASE
from svsmd.host.timers import TimerQueue
from svsmd.snp.x2apic import ICR_ASSERT, ICR_DESTINATION_SHIFT, LVT_MASKED, SVR_ENABLE, ApicMsr

APIC_BASE_MSR: Final = 0x1B
TSC_DEADLINE_MSR: Final = 0x6E0
X2APIC_FIRST_MSR: Final = 0x800
APIC_VERSION: Final = 0x0005_0014
"""Integrated APIC, LVT entries 0 to 5, no EOI broadcast suppression."""
X2APIC_BROADCAST: Final = 0xFFFF_FFFF
XAPIC_BROADCAST: Final = 0xFF
FIRST_LEGAL_VECTOR: Final = 16
MIN_PERIOD_TICKS: Final = 10_000


class ApicBase(IntFlag):
    """APIC_BASE MSR 0000_001B."""

    BSC = 1 << 8
    EXTD = 1 << 10
    AE = 1 << 11


class DeliveryMode(IntEnum):
    """Message type of LVT, ICR and IOAPIC entries."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    REMOTE_READ = 3
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXT_INT = 7


class Shorthand(IntEnum):
    """DSH field of the ICR."""

    NONE = 0
    SELF = 1
    ALL = 2
    OTHERS = 3


class TimerMode(IntEnum):
    """Bits 18:17 of the timer's LVT entry."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


class Esr(IntFlag):
    """Error status register."""

    SEND_ILLEGAL_VECTOR = 1 << 5
    RECEIVED_ILLEGAL_VECTOR = 1 << 6


LVT_VECTOR: Final = 0xFF
LVT_MODE_SHIFT: Final = 8
LVT_REMOTE_IRR: Final = 1 << 14
LVT_LEVEL_TRIGGERED: Final = 1 << 15
LVT_TIMER_MODE_SHIFT: Final = 17
SVR_VECTOR: Final = 0xFF

ICR_LOGICAL: Final = 1 << 11
ICR_LEVEL_TRIGGERED: Final = 1 << 15
ICR_SHORTHAND_SHIFT: Final = 18
_ICR_RESERVED: Final = 0xFFF3_2000
_ICR_STORED: Final = 0xFFFF_FFFF_000C_CFFF

_LVT_VALID: Final[dict[ApicMsr, int]] = {
    ApicMsr.LVT_TIMER: 0x7_10FF,
    ApicMsr.LVT_THERMAL: 0x1_17FF,
    ApicMsr.LVT_PERFORMANCE: 0x1_17FF,
    ApicMsr.LVT_LINT0: 0x1_F7FF,
    ApicMsr.LVT_LINT1: 0x1_F7FF,
    ApicMsr.LVT_ERROR: 0x1_10FF,
}
"""Bits that may be written as one."""
_LVT_READ_ONLY: Final = 1 << 12 | LVT_REMOTE_IRR
_SVR_VALID: Final = 0x3FF
_DIVIDE_VALID: Final = 0xB
_LAST_VECTORED: Final = int(DeliveryMode.LOWEST_PRIORITY)
"""Fixed and lowest-priority messages are those that set a bit of IRR."""
_FIXED: Final = int(DeliveryMode.FIXED)
_TIMER_TSC_DEADLINE: Final = int(TimerMode.TSC_DEADLINE)
_LVT_TIMER: Final = ApicMsr.LVT_TIMER
_WORDS: Final = 8
_WORD_MASK: Final = 0xFFFF_FFFF


class MsrError(Exception):
    """An MSR access that raises #GP(0) in the guest."""


class ExtIntSource(Protocol):
    """A legacy interrupt controller behind LINT0."""

    def peek(self) -> int:
        """The vector that it would deliver now."""

    def acknowledge(self) -> int:
        """INTA cycle: the vector that it delivers."""


class EoiListener(Protocol):
    """An IOAPIC, as the end of a level-triggered interrupt concerns it."""

    def end_of_interrupt(self, vector: int) -> None:
        """EOI broadcast."""


def _reset_lvt() -> dict[ApicMsr, int]:
    return dict.fromkeys(_LVT_VALID, LVT_MASKED)


@dataclass(slots=True)
class LocalApicState:
    """Registers; IRR, ISR and TMR are integers of 256 bits."""

    tpr: int = 0
    svr: int = 0xFF
    irr: int = 0
    isr: int = 0
    tmr: int = 0
    esr: int = 0
    esr_pending: int = 0
    """Errors since the last write of ESR."""
    icr: int = 0
    lvt: dict[ApicMsr, int] = field(default_factory=_reset_lvt)
    initial_count: int = 0
    divide: int = 0
    timer_start: int = 0
    """Tick at which the counter had `initial_count`."""
    tsc_deadline: int = 0
    lint0: bool = False


class LocalApic:
    """The local APIC of one vCPU."""

    def __init__(
        self,
        apic_id: int,
        now: Callable[[], int],
        timers: TimerQueue,
        bus: ApicBus,
        *,
        is_bsp: bool,
        on_nmi: Callable[[], None],
        on_init: Callable[[], None] | None = None,
        on_sipi: Callable[[int], None] | None = None,
        ext_int: ExtIntSource | None = None,
    ) -> None:
        """Attaches itself to *bus*.

        :param on_nmi: an NMI arrived for the vCPU.
        :param on_init: INIT arrived; the APIC has been reset. None: INIT is dropped.
        :param on_sipi: start-up IPI, with its vector (page of the real-mode entry). None: dropped.
        :param ext_int: what is wired to LINT0; None except at the boot CPU.
        """
        # Fixed configuration.
        self.apic_id = apic_id
        self.apic_base = (
            LOCAL_APIC_BASE | ApicBase.AE | ApicBase.EXTD | (ApicBase.BSC if is_bsp else 0)
        )
        self.logical_id = apic_id >> 4 << 16 | 1 << (apic_id & 0xF)
        # Runtime glue.
        self._now = now
        self._bus = bus
        self._on_nmi = on_nmi
        self._on_init = on_init
        self._on_sipi = on_sipi
        self._ext_int = ext_int
        self._timer = timers.timer(self._timer_expired)
        # Volatile state.
        self.state = LocalApicState()
        self.msr_reads = self._read_table()
        """MSR number to method: part of the vCPU's MSR dispatch."""
        self.msr_writes = self._write_table()
        bus.add(self)

    def reset(self) -> None:
        """State after INIT; lines from outside keep their level."""
        self._timer.cancel()
        self.state = LocalApicState(lint0=self.state.lint0)

    def take_over(self, old: LocalApic) -> None:
        """Go on as *old*, whose machine is gone: registers, interrupts, and a timer that runs."""
        self.state = old.state
        if old._timer.deadline is not None:
            self._timer.arm(old._timer.deadline)

    # What the hypervisor asks

    def pending_vector(self) -> int | None:
        """The vector that the vCPU should take now if its RFLAGS.IF allows, or None."""
        state = self.state
        if state.irr and state.svr & SVR_ENABLE:
            vector = state.irr.bit_length() - 1
            if vector >> 4 > self.ppr() >> 4:
                return vector
        if state.lint0 and self._ext_int is not None and self._accepts_ext_int():
            return self._ext_int.peek()
        return None

    def acknowledge(self, vector: int) -> None:
        """The silicon has delivered *vector*, which `pending_vector` had named."""
        state = self.state
        bit = 1 << vector
        if state.irr & bit:
            state.irr &= ~bit
            state.isr |= bit
        elif self._ext_int is not None:
            self._ext_int.acknowledge()

    def ppr(self) -> int:
        """Processor priority register."""
        state = self.state
        in_service = state.isr.bit_length() - 1 & 0xF0 if state.isr else 0
        return state.tpr if state.tpr >> 4 >= in_service >> 4 else in_service

    # What arrives

    def deliver(self, mode: int, vector: int, level_triggered: bool = False) -> None:
        """An interrupt message for this APIC; modes that have no meaning here are dropped."""
        state = self.state
        if mode <= _LAST_VECTORED:
            if not state.svr & SVR_ENABLE:
                return
            if vector < FIRST_LEGAL_VECTOR:
                self._error(Esr.RECEIVED_ILLEGAL_VECTOR)
                return
            bit = 1 << vector
            state.irr |= bit
            if level_triggered:
                state.tmr |= bit
            else:
                state.tmr &= ~bit
        elif mode == DeliveryMode.NMI:
            self._on_nmi()
        elif mode == DeliveryMode.INIT and self._on_init is not None:
            self.reset()
            self._on_init()
        elif mode == DeliveryMode.STARTUP and self._on_sipi is not None:
            self._on_sipi(vector)

    def set_lint0(self, level: bool) -> None:
        """LINT0, where the PC's 8259 pair is wired to."""
        rising = level and not self.state.lint0
        self.state.lint0 = level
        entry = self.state.lvt[ApicMsr.LVT_LINT0]
        mode = entry >> LVT_MODE_SHIFT & 7
        if rising and mode != DeliveryMode.EXT_INT:
            self._deliver_local(entry)

    def set_lint1(self, level: bool) -> None:
        """LINT1, the NMI pin: acts on its rising edge."""
        if level:
            self._deliver_local(self.state.lvt[ApicMsr.LVT_LINT1])

    # Registers

    def read_apic_base(self) -> int:
        """APIC_BASE."""
        return self.apic_base

    def write_apic_base(self, value: int) -> None:
        """APIC_BASE: the APIC can be neither moved nor switched to another mode."""
        if value != self.apic_base:
            raise MsrError(f"APIC_BASE {value:#x}: only x2APIC mode at the default address")

    def read_tsc_deadline(self) -> int:
        """TSC deadline: 0 when disarmed, or in another timer mode."""
        return self.state.tsc_deadline if self._timer.deadline is not None else 0

    def write_tsc_deadline(self, value: int) -> None:
        """TSC deadline: arms the timer, or disarms it with 0; ignored in another timer mode."""
        if self._timer_mode() != _TIMER_TSC_DEADLINE:
            return
        self.state.tsc_deadline = value
        if value:
            self._timer.arm(value)
        else:
            self._timer.cancel()

    def _read_table(self) -> dict[int, Callable[[], int]]:
        table: dict[int, Callable[[], int]] = {
            APIC_BASE_MSR: self.read_apic_base,
            TSC_DEADLINE_MSR: self.read_tsc_deadline,
            ApicMsr.ID: lambda: self.apic_id,
            ApicMsr.VERSION: lambda: APIC_VERSION,
            ApicMsr.TPR: lambda: self.state.tpr,
            ApicMsr.PPR: self.ppr,
            ApicMsr.LDR: lambda: self.logical_id,
            ApicMsr.SVR: lambda: self.state.svr,
            ApicMsr.ESR: lambda: self.state.esr,
            ApicMsr.ICR: lambda: self.state.icr,
            ApicMsr.TIMER_INITIAL_COUNT: lambda: self.state.initial_count,
            ApicMsr.TIMER_CURRENT_COUNT: self._current_count,
            ApicMsr.TIMER_DIVIDE: lambda: self.state.divide,
        }
        for word in range(_WORDS):
            table[ApicMsr.ISR + word] = self._word_reader("isr", word)
            table[ApicMsr.TMR + word] = self._word_reader("tmr", word)
            table[ApicMsr.IRR + word] = self._word_reader("irr", word)
        for entry in _LVT_VALID:
            table[entry] = partial(self._read_lvt, entry)
        return {int(msr): read for msr, read in table.items()}

    def _word_reader(self, name: str, word: int) -> Callable[[], int]:
        register = attrgetter(name)
        shift = 32 * word

        def read() -> int:
            bits: int = register(self.state)
            return bits >> shift & _WORD_MASK

        return read

    def _read_lvt(self, entry: ApicMsr) -> int:
        return self.state.lvt[entry]

    def _write_table(self) -> dict[int, Callable[[int], None]]:
        table: dict[int, Callable[[int], None]] = {
            APIC_BASE_MSR: self.write_apic_base,
            TSC_DEADLINE_MSR: self.write_tsc_deadline,
            ApicMsr.TPR: self._write_tpr,
            ApicMsr.EOI: self._write_eoi,
            ApicMsr.SVR: self._write_svr,
            ApicMsr.ESR: self._write_esr,
            ApicMsr.ICR: self._write_icr,
            ApicMsr.TIMER_INITIAL_COUNT: self._write_initial_count,
            ApicMsr.TIMER_DIVIDE: self._write_divide,
            ApicMsr.SELF_IPI: self._write_self_ipi,
        }
        for entry in _LVT_VALID:
            table[entry] = partial(self._write_lvt, entry)
        return {int(msr): write for msr, write in table.items()}

    @property
    def task_priority(self) -> int:
        """Bits 7:4 of TPR, 0 to 15: what CR8 is (24593, 16.6.4)."""
        return self.state.tpr >> 4

    @task_priority.setter
    def task_priority(self, value: int) -> None:
        self.state.tpr = value << 4

    def _write_tpr(self, value: int) -> None:
        _check_reserved(value, 0xFF)
        self.state.tpr = value

    def _write_eoi(self, value: int) -> None:
        _check_reserved(value, 0)
        state = self.state
        if not state.isr:
            return
        vector = state.isr.bit_length() - 1
        bit = 1 << vector
        state.isr &= ~bit
        if state.tmr & bit:
            self._bus.broadcast_eoi(vector)

    def _write_svr(self, value: int) -> None:
        _check_reserved(value, _SVR_VALID)
        state = self.state
        state.svr = value
        if not value & SVR_ENABLE:
            # A software-disabled APIC has all its LVT entries masked.
            for entry in state.lvt:
                state.lvt[entry] |= LVT_MASKED

    def _write_esr(self, value: int) -> None:
        _check_reserved(value, 0)
        state = self.state
        state.esr, state.esr_pending = state.esr_pending, 0

    def _write_icr(self, value: int) -> None:
        if value & _ICR_RESERVED:
            raise MsrError(f"ICR {value:#x}: reserved bits")
        state = self.state
        state.icr = value & _ICR_STORED
        mode = value >> LVT_MODE_SHIFT & 7
        vector = value & 0xFF
        if mode in (DeliveryMode.REMOTE_READ, DeliveryMode.EXT_INT):
            return
        if mode == DeliveryMode.INIT and value & ICR_LEVEL_TRIGGERED and not value & ICR_ASSERT:
            # "INIT level de-assert" of the old start-up sequence does nothing on these processors.
            return
        if mode <= _LAST_VECTORED and vector < FIRST_LEGAL_VECTOR:
            self._error(Esr.SEND_ILLEGAL_VECTOR)
            return
        self._bus.send_ipi(
            self,
            value >> ICR_DESTINATION_SHIFT,
            bool(value & ICR_LOGICAL),
            mode,
            vector,
            value >> ICR_SHORTHAND_SHIFT & 3,
        )

    def _write_self_ipi(self, value: int) -> None:
        _check_reserved(value, 0xFF)
        if value < FIRST_LEGAL_VECTOR:
            self._error(Esr.SEND_ILLEGAL_VECTOR)
        else:
            self.deliver(_FIXED, value)

    def _write_lvt(self, entry: ApicMsr, value: int) -> None:
        state = self.state
        value &= ~_LVT_READ_ONLY
        _check_reserved(value, _LVT_VALID[entry])
        if not state.svr & SVR_ENABLE:
            value |= LVT_MASKED
        old_mode = self._timer_mode()
        state.lvt[entry] = value
        if entry is ApicMsr.LVT_TIMER and self._timer_mode() != old_mode:
            # A change of the timer's mode disarms it.
            state.initial_count = state.tsc_deadline = 0
            self._timer.cancel()

    # Timer

    def _timer_mode(self) -> int:
        return self.state.lvt[_LVT_TIMER] >> LVT_TIMER_MODE_SHIFT & 3

    def _divisor_shift(self) -> int:
        divide = self.state.divide
        return ((divide >> 1 & 4 | divide & 3) + 1) & 7

    def _period(self) -> int:
        return self.state.initial_count << self._divisor_shift()

    def _current_count(self) -> int:
        if self._timer.deadline is None or self._timer_mode() == TimerMode.TSC_DEADLINE:
            return 0
        remaining = max(0, self._timer.deadline - self._now())
        return -(-remaining >> self._divisor_shift())

    def _write_initial_count(self, value: int) -> None:
        _check_reserved(value, _WORD_MASK)
        if self._timer_mode() == TimerMode.TSC_DEADLINE:
            return
        self.state.initial_count = value
        self._restart()

    def _write_divide(self, value: int) -> None:
        _check_reserved(value, _DIVIDE_VALID)
        count = self._current_count()
        self.state.divide = value
        if self._timer.deadline is not None and self._timer_mode() != TimerMode.TSC_DEADLINE:
            self._timer.arm(self._now() + (count << self._divisor_shift()))

    def _restart(self) -> None:
        self.state.timer_start = self._now()
        if self.state.initial_count:
            self._timer.arm(self.state.timer_start + self._interval())
        else:
            self._timer.cancel()

    def _interval(self) -> int:
        period = self._period()
        if self._timer_mode() == TimerMode.PERIODIC:
            return max(period, MIN_PERIOD_TICKS)
        return period

    def _timer_expired(self) -> None:
        state = self.state
        if self._timer_mode() == TimerMode.PERIODIC:
            interval = self._interval()
            # Periods that were missed altogether are one interrupt.
            periods = (self._now() - state.timer_start) // interval
            state.timer_start += max(periods, 1) * interval
            self._timer.arm(state.timer_start + interval)
        state.tsc_deadline = 0
        entry = state.lvt[ApicMsr.LVT_TIMER]
        if not entry & LVT_MASKED:
            self.deliver(_FIXED, entry & LVT_VECTOR)

    # Inside

    def _accepts_ext_int(self) -> bool:
        entry = self.state.lvt[ApicMsr.LVT_LINT0]
        return not entry & LVT_MASKED and entry >> LVT_MODE_SHIFT & 7 == DeliveryMode.EXT_INT

    def _deliver_local(self, entry: int) -> None:
        if not entry & LVT_MASKED:
            self.deliver(entry >> LVT_MODE_SHIFT & 7, entry & LVT_VECTOR)

    def _error(self, error: Esr) -> None:
        state = self.state
        if state.esr_pending & error:
            return
        state.esr_pending |= error
        entry = state.lvt[ApicMsr.LVT_ERROR]
        if not entry & LVT_MASKED and entry & LVT_VECTOR >= FIRST_LEGAL_VECTOR:
            self.deliver(_FIXED, entry & LVT_VECTOR)


class ApicBus:
    """Routes messages among the local APICs and end-of-interrupt broadcasts to the IOAPICs."""

    def __init__(self) -> None:
        self._apics: dict[int, LocalApic] = {}
        self._listeners: list[EoiListener] = []

    def add(self, apic: LocalApic) -> None:
        """Attaches a local APIC.

        :raises ValueError: its id is taken (a mistake in the wiring).
        """
        if apic.apic_id in self._apics:
            raise ValueError(f"two local APICs have the id {apic.apic_id}")
        self._apics[apic.apic_id] = apic

    def add_eoi_listener(self, listener: EoiListener) -> None:
        """Attaches an IOAPIC."""
        self._listeners.append(listener)

    def broadcast_eoi(self, vector: int) -> None:
        """A level-triggered interrupt ended at some local APIC."""
        for listener in self._listeners:
            listener.end_of_interrupt(vector)

    def send_ipi(
        self,
        source: LocalApic,
        destination: int,
        logical: bool,
        mode: int,
        vector: int,
        shorthand: int,
    ) -> None:
        """An interprocessor interrupt, with a 32-bit destination."""
        if shorthand == Shorthand.SELF:
            targets = [source]
        elif shorthand == Shorthand.ALL:
            targets = list(self._apics.values())
        elif shorthand == Shorthand.OTHERS:
            targets = [apic for apic in self._apics.values() if apic is not source]
        else:
            targets = self._targets(destination, logical, X2APIC_BROADCAST)
        self._send(targets, mode, vector, False)

    def send_message(
        self, destination: int, logical: bool, mode: int, vector: int, level_triggered: bool
    ) -> None:
        """An interrupt of an IOAPIC, with an 8-bit destination."""
        targets = self._targets(destination, logical, XAPIC_BROADCAST)
        self._send(targets, mode, vector, level_triggered)

    def _targets(self, destination: int, logical: bool, broadcast: int) -> list[LocalApic]:
        if destination == broadcast:
            return list(self._apics.values())
        if not logical:
            apic = self._apics.get(destination)
            return [] if apic is None else [apic]
        cluster, members = destination >> 16, destination & 0xFFFF
        return [
            apic
            for apic in self._apics.values()
            if apic.logical_id >> 16 == cluster and apic.logical_id & members
        ]

    @staticmethod
    def _send(targets: list[LocalApic], mode: int, vector: int, level_triggered: bool) -> None:
        if mode == DeliveryMode.LOWEST_PRIORITY and targets:
            # Ties go to the lowest id: the choice must not depend on anything unrecorded.
            targets = [min(targets, key=lambda apic: (apic.ppr(), apic.apic_id))]
        for apic in targets:
            apic.deliver(mode, vector, level_triggered)


def _check_reserved(value: int, valid: int) -> None:
    if value & ~valid:
        raise MsrError(f"reserved bits in {value:#x}")
