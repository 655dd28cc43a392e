# SPDX-License-Identifier: MIT
"""The real-time clock: date, formats, setting, update cycle, interrupts, RAM."""

import calendar

import pytest

from svsmd.host.port_bus import PortBus
from svsmd.host.rtc_cmos import RtcCmos
from svsmd.host.timers import TimerQueue

SECOND = 1_000_000_000
EPOCH = calendar.timegm((2024, 2, 29, 23, 59, 58))


class Clock:
    """An RTC with its clock, as a guest sees it."""

    def __init__(self, epoch: int = EPOCH) -> None:
        self.now = 0
        self.timers = TimerQueue()
        self.levels: list[bool] = []
        self.rtc = RtcCmos(epoch, lambda: self.now, self.timers, self.levels.append)
        self.bus = PortBus()
        self.rtc.attach(self.bus)

    def __getitem__(self, index: int) -> int:
        self.bus.write(0x70, 1, index)
        return self.bus.read(0x71, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.bus.write(0x70, 1, index)
        self.bus.write(0x71, 1, value)

    @property
    def date(self) -> list[int]:
        return [self[index] for index in (0x32, 9, 8, 7, 4, 2, 0)]

    def irq(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def run_to(self, now: int) -> None:
        while (deadline := self.timers.next_deadline) is not None and deadline <= now:
            self.now = max(self.now, deadline)
            self.timers.run_due(self.now)
        self.now = now


def test_date_in_bcd_advances_over_a_leap_day():
    clock = Clock()
    assert clock.date == [0x20, 0x24, 0x02, 0x29, 0x23, 0x59, 0x58]
    assert clock[6] == 5  # a Thursday; Sunday is 1
    clock.now = 2 * SECOND
    assert clock.date == [0x20, 0x24, 0x03, 0x01, 0x00, 0x00, 0x00]


def test_binary_and_12_hour_formats():
    clock = Clock()
    clock[11] = 0x06
    assert clock.date == [20, 24, 2, 29, 23, 59, 58]
    clock[11] = 0x04
    assert clock[4] == 0x80 | 11
    clock[11] = 0x00
    assert clock[4] == 0x80 | 0x11
    clock.now = 2 * SECOND
    assert clock[4] == 0x12  # midnight


def test_setting_the_date_with_set():
    clock = Clock()
    clock[11] = 0x82
    clock.now = 5 * SECOND
    assert clock[0] == 0x58  # it stands still
    for index, value in zip(
        (0x32, 9, 8, 7, 4, 2, 0), (0x19, 0x99, 0x12, 0x31, 1, 2, 3), strict=True
    ):
        clock[index] = value
    clock[11] = 0x02
    assert clock.date == [0x19, 0x99, 0x12, 0x31, 1, 2, 3]
    clock.now += SECOND
    assert clock[0] == 4


def test_setting_one_register_at_once():
    clock = Clock()
    clock[2] = 0x30
    assert clock.date == [0x20, 0x24, 0x02, 0x29, 0x23, 0x30, 0x58]


def test_impossible_dates_become_possible_ones():
    clock = Clock()
    for index in (0x32, 9, 8, 7, 4, 2, 0):
        clock[index] = 0xFF
    assert all(value >> 4 <= 9 and value & 15 <= 9 for value in clock.date)


def test_update_in_progress_in_the_last_244_microseconds():
    clock = Clock()
    clock.now = SECOND - 244_001
    assert not clock[10] & 0x80
    clock.now += 1
    assert clock[10] & 0x80
    clock.now = SECOND
    assert not clock[10] & 0x80


def test_update_interrupt_and_register_c():
    clock = Clock()
    clock[11] = 0x12
    assert clock.timers.next_deadline == SECOND
    clock.run_to(SECOND)
    assert clock.irq()
    assert clock[12] == 0xD0  # PF as well: the periodic rate runs, its interrupt is off
    assert not clock.irq()
    assert clock[12] == 0
    clock.run_to(2 * SECOND)
    assert clock.irq()


def test_flags_are_raised_without_enables_too():
    clock = Clock()
    clock[10] = 0x20  # no periodic rate
    assert clock[12] == 0
    clock.now = SECOND
    assert clock[12] == 0x10
    assert not clock.irq()


def test_alarm_at_its_second_only():
    clock = Clock()
    clock[1], clock[3], clock[5] = 0x01, 0xFF, 0xC0  # every minute at :01
    clock[11] = 0x22
    clock.run_to(2 * SECOND)
    assert not clock.irq()
    clock.run_to(3 * SECOND)
    assert clock.irq()
    assert clock[12] & 0xA0 == 0xA0


def test_periodic_interrupt_at_1024_hz():
    clock = Clock()
    clock[11] = 0x42
    count = 0
    while (deadline := clock.timers.next_deadline) is not None and deadline <= SECOND:
        clock.run_to(deadline)
        assert clock[12] & 0xC0 == 0xC0
        count += 1
    assert count == 1024
    clock[11] = 0x02
    assert clock.timers.next_deadline is None


def test_ram_and_read_only_registers():
    clock = Clock()
    clock[0x40] = 0x5A
    clock[13] = 0
    assert clock[0x40] == 0x5A
    assert clock[13] == 0x80
    assert clock[0xC0] == 0x5A  # bit 7 of the index is the NMI mask


@pytest.mark.parametrize("epoch", [-1, 253_402_300_800])
def test_dates_outside_four_digits_are_refused(epoch):
    with pytest.raises(ValueError, match="years 1970 to 9999"):
        Clock(epoch)


def test_the_end_of_time_is_survived():
    clock = Clock(253_402_300_799)
    clock.now = 5 * SECOND
    assert clock.date == [0x99, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]
