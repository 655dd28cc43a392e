# SPDX-License-Identifier: MIT
"""The real-time clock and CMOS RAM of a PC.

Spec: Motorola MC146818A data sheet (registers A to D, update cycle, alarm, periodic interrupt);
ACPI 6.5, table 5.9 (CENTURY); port 0x70 bit 7 is the PC's NMI mask.
The date is the epoch given at power-on plus the machine's clock (UTC); a guest may set it.
Deviations: the divider of register A is always running; daylight saving and the NMI mask are not
modelled.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum, IntFlag
from typing import Final

from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TICKS_PER_SECOND, TimerQueue

RTC_PORT: Final = 0x70
RTC_IRQ: Final = 8
CENTURY_INDEX: Final = 0x32
CMOS_SIZE: Final = 128
MAX_EPOCH: Final = 253_402_300_799
"""Last second of the year 9999."""

UPDATE_TICKS: Final = 244_000
"""UIP is set for the 244 us before the registers change."""
INDEX_MASK: Final = 0x7F
DONT_CARE: Final = 0xC0
"""An alarm register with both these bits matches always."""
HOUR_PM: Final = 0x80
SECONDS_PER_DAY: Final = 86_400


class Index(IntEnum):
    """Registers of the clock."""

    SECONDS = 0
    SECONDS_ALARM = 1
    MINUTES = 2
    MINUTES_ALARM = 3
    HOURS = 4
    HOURS_ALARM = 5
    DAY_OF_WEEK = 6
    DAY_OF_MONTH = 7
    MONTH = 8
    YEAR = 9
    A = 10
    B = 11
    C = 12
    D = 13


class RegA(IntFlag):
    """Register A."""

    UIP = 1 << 7
    DV_32KHZ = 2 << 4
    RATE_1024HZ = 6
    RATE_MASK = 0x0F


class RegB(IntFlag):
    """Register B."""

    HOUR_24 = 1 << 1
    BINARY = 1 << 2
    UIE = 1 << 4
    AIE = 1 << 5
    PIE = 1 << 6
    SET = 1 << 7


class RegC(IntFlag):
    """Register C; flags have the positions of their enables in register B."""

    UF = 1 << 4
    AF = 1 << 5
    PF = 1 << 6
    IRQF = 1 << 7


REG_D_VRT: Final = 1 << 7
"""RAM and time are valid."""

_TIME_INDICES: Final = frozenset(
    (
        Index.SECONDS,
        Index.MINUTES,
        Index.HOURS,
        Index.DAY_OF_WEEK,
        Index.DAY_OF_MONTH,
        Index.MONTH,
        Index.YEAR,
        CENTURY_INDEX,
    )
)
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class RtcState:
    """Registers, RAM, and the relation of the date to the clock."""

    base: int
    """Nanoseconds since 1970 at tick 0."""
    index: int = 0
    reg_a: int = int(RegA.DV_32KHZ | RegA.RATE_1024HZ)
    reg_b: int = int(RegB.HOUR_24)
    flags: int = 0
    updates_seen: int = 0
    """Seconds since 1970 up to which UF and AF have been worked out."""
    periods_seen: int = 0
    """Periods of the periodic interrupt up to which PF has been worked out."""
    held: dict[int, int] | None = None
    """Time registers while SET stops the clock."""
    ram: bytearray = field(default_factory=lambda: bytearray(CMOS_SIZE))


class RtcCmos:
    """The clock chip at ports 0x70 and 0x71."""

    def __init__(
        self,
        epoch: int,
        now: Callable[[], int],
        timers: TimerQueue,
        set_irq: Callable[[bool], None],
    ) -> None:
        """:param epoch: seconds since 1970 at tick 0, 0 to `MAX_EPOCH`."""
        if not 0 <= epoch <= MAX_EPOCH:
            raise ValueError(f"the date {epoch} is not in the years 1970 to 9999")
        # Runtime glue.
        self._now = now
        self._set_irq = set_irq
        self._timer = timers.timer(self._advance)
        # Volatile state.
        self.state = RtcState(base=epoch * TICKS_PER_SECOND, updates_seen=epoch)

    def attach(self, bus: PortBus) -> None:
        """Puts index and data register at their ports."""
        bus.map_port(RTC_PORT, None, self.write_index)
        bus.map_port(RTC_PORT + 1, self.read_data, self.write_data)

    def write_index(self, value: int) -> None:
        """Selects a register; bit 7 is ignored."""
        self.state.index = value & INDEX_MASK

    def read_data(self) -> int:
        """The selected register."""
        state = self.state
        index = state.index
        if index in _TIME_INDICES:
            return self._time_registers()[index]
        if index == Index.A:
            return state.reg_a | (RegA.UIP if self._updating() else 0)
        if index == Index.B:
            return state.reg_b
        if index == Index.C:
            return self._take_flags()
        if index == Index.D:
            return REG_D_VRT
        return state.ram[index]

    def write_data(self, value: int) -> None:
        """The selected register; C and D are read-only."""
        state = self.state
        index = state.index
        if index in _TIME_INDICES:
            if state.held is not None:
                state.held[index] = value
            else:
                registers = self._time_registers()
                registers[index] = value
                self._set_time(registers)
        elif index == Index.A:
            self._collect()
            state.reg_a = value & ~RegA.UIP
            state.periods_seen = self._periods()
            self._update_irq()
        elif index == Index.B:
            self._write_reg_b(value)
        elif index not in (Index.C, Index.D):
            state.ram[index] = value

    # Time

    def _nanoseconds(self) -> int:
        return self.state.base + self._now()

    def _updating(self) -> bool:
        if self.state.reg_b & RegB.SET:
            return False
        return self._nanoseconds() % TICKS_PER_SECOND >= TICKS_PER_SECOND - UPDATE_TICKS

    def _time_registers(self) -> dict[int, int]:
        if self.state.held is not None:
            return self.state.held
        return self._encoded(self._nanoseconds() // TICKS_PER_SECOND)

    def _encoded(self, seconds: int) -> dict[int, int]:
        date = _UNIX_EPOCH + timedelta(seconds=min(seconds, MAX_EPOCH))
        return {
            Index.SECONDS: self._encode(date.second),
            Index.MINUTES: self._encode(date.minute),
            Index.HOURS: self._encode_hour(date.hour),
            Index.DAY_OF_WEEK: self._encode(date.isoweekday() % 7 + 1),
            Index.DAY_OF_MONTH: self._encode(date.day),
            Index.MONTH: self._encode(date.month),
            Index.YEAR: self._encode(date.year % 100),
            CENTURY_INDEX: self._encode(date.year // 100),
        }

    def _encode(self, value: int) -> int:
        return value if self.state.reg_b & RegB.BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.state.reg_b & RegB.BINARY else (value >> 4) * 10 + (value & 0xF)

    def _encode_hour(self, hour: int) -> int:
        if self.state.reg_b & RegB.HOUR_24:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (HOUR_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.state.reg_b & RegB.HOUR_24:
            return self._decode(value)
        return self._decode(value & ~HOUR_PM) % 12 + (12 if value & HOUR_PM else 0)

    def _set_time(self, registers: dict[int, int]) -> None:
        """Makes *registers* the date of now; impossible values count as the nearest possible."""
        year = self._decode(registers[CENTURY_INDEX]) * 100 + self._decode(registers[Index.YEAR])
        first = datetime(
            min(max(year, 1970), 9999),
            min(max(self._decode(registers[Index.MONTH]), 1), 12),
            1,
            min(self._decode_hour(registers[Index.HOURS]), 23),
            min(self._decode(registers[Index.MINUTES]), 59),
            min(self._decode(registers[Index.SECONDS]), 59),
            tzinfo=UTC,
        )
        day = min(
            max(self._decode(registers[Index.DAY_OF_MONTH]), 1),
            monthrange(first.year, first.month)[1],
        )
        seconds = (first.replace(day=day) - _UNIX_EPOCH) // timedelta(seconds=1)
        self._collect()
        fraction = self._nanoseconds() % TICKS_PER_SECOND
        self.state.base = seconds * TICKS_PER_SECOND + fraction - self._now()
        self.state.updates_seen = seconds
        self._update_irq()

    # Interrupts

    def _write_reg_b(self, value: int) -> None:
        state = self.state
        self._collect()
        if value & RegB.SET:
            # Setting SET aborts the update cycle and clears UIE.
            value &= ~RegB.UIE
            if state.held is None:
                state.held = self._time_registers()
            state.reg_b = value
        else:
            state.reg_b = value
            if state.held is not None:
                registers, state.held = state.held, None
                self._set_time(registers)
        self._update_irq()

    def _take_flags(self) -> int:
        self._collect()
        state = self.state
        flags = int(state.flags)
        if flags & state.reg_b & (RegB.PIE | RegB.AIE | RegB.UIE):
            flags |= RegC.IRQF
        state.flags = 0
        self._update_irq()
        return flags

    def _period(self) -> int:
        """Ticks of the periodic interrupt; 0 if it is off."""
        rate = self.state.reg_a & int(RegA.RATE_MASK)
        if rate == 0:
            return 0
        if rate <= 2:
            # With a 32 kHz crystal these two are what 8 and 9 are.
            rate += 7
        return (TICKS_PER_SECOND << rate - 1) // 32_768

    def _periods(self) -> int:
        period = self._period()
        return self._now() // period if period else 0

    def _collect(self) -> None:
        """Raises the flags of everything that has happened since the last time."""
        state = self.state
        periods = self._periods()
        if periods != state.periods_seen:
            state.periods_seen = periods
            state.flags |= RegC.PF
        if state.held is not None:
            return
        seconds = self._nanoseconds() // TICKS_PER_SECOND
        if seconds != state.updates_seen:
            state.flags |= RegC.UF
            if self._alarm_between(state.updates_seen + 1, seconds):
                state.flags |= RegC.AF
            state.updates_seen = seconds

    def _alarm_between(self, first: int, last: int) -> bool:
        """Whether one of the seconds from *first* to *last* matches the alarm registers."""
        ram = self.state.ram
        seconds = self._alarm_values(ram[Index.SECONDS_ALARM], 60, self._encode)
        minutes = self._alarm_values(ram[Index.MINUTES_ALARM], 60, self._encode)
        hours = self._alarm_values(ram[Index.HOURS_ALARM], 24, self._encode_hour)
        if not (seconds and minutes and hours):
            return False
        # What can match at all does so within a day.
        return any(
            second % 60 in seconds and second // 60 % 60 in minutes and second // 3600 % 24 in hours
            for second in range(first, min(last, first + SECONDS_PER_DAY) + 1)
        )

    @staticmethod
    def _alarm_values(alarm: int, count: int, encode: Callable[[int], int]) -> frozenset[int]:
        if alarm & DONT_CARE == DONT_CARE:
            return frozenset(range(count))
        return frozenset(value for value in range(count) if encode(value) == alarm)

    def _advance(self) -> None:
        self._collect()
        self._update_irq()

    def _update_irq(self) -> None:
        state = self.state
        enabled = state.reg_b & (RegB.PIE | RegB.AIE | RegB.UIE)
        self._set_irq(bool(state.flags & enabled))
        deadlines = []
        if enabled & (RegB.AIE | RegB.UIE) and state.held is None:
            fraction = self._nanoseconds() % TICKS_PER_SECOND
            deadlines.append(self._now() + TICKS_PER_SECOND - fraction)
        period = self._period()
        if enabled & RegB.PIE and period:
            deadlines.append((self._periods() + 1) * period)
        if deadlines:
            self._timer.arm(min(deadlines))
        else:
            self._timer.cancel()
