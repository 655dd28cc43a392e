# SPDX-License-Identifier: MIT
"""The 8254, port 0x61, and the 8259 pair that its interrupt goes to."""

import pytest

from svsmd.host.pic8259 import Pic8259Pair
from svsmd.host.pit8254 import Pit8254, ticks_at
from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TimerQueue


class Pc:
    """PIT and PIC on one port bus."""

    def __init__(self) -> None:
        self.now = 0
        self.timers = TimerQueue()
        self.bus = PortBus()
        self.intr: list[bool] = []
        self.pic = Pic8259Pair(self.intr.append)
        self.pic.attach(self.bus)
        self.irq0: list[bool] = []

        def set_irq0(level: bool) -> None:
            self.irq0.append(level)
            self.pic.set_irq(0, level)

        self.pit = Pit8254(lambda: self.now, self.timers, set_irq0)
        self.pit.attach(self.bus)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.bus.write(port, 1, value)

    def inp(self, port: int) -> int:
        return self.bus.read(port, 1)

    def init_pic(self) -> None:
        self.out(0x20, 0x11)
        self.out(0x21, 0x30, 4, 1)
        self.out(0xA0, 0x11)
        self.out(0xA1, 0x38, 2, 1)
        self.out(0x21, 0)
        self.out(0xA1, 0)


@pytest.fixture
def pc() -> Pc:
    return Pc()


def test_channel_2_one_shot_as_tsc_calibration_uses_it(pc):
    pc.out(0x61, 0x01)
    pc.out(0x43, 0xB0)
    assert not pc.inp(0x61) & 0x20
    pc.out(0x42, 0x34, 0x12)
    pc.now = ticks_at(0x1234) - 1
    assert not pc.inp(0x61) & 0x20
    pc.now += 1
    assert pc.inp(0x61) & 0x20


def test_gate_of_channel_2_suspends_the_count(pc):
    pc.out(0x61, 0x01)
    pc.out(0x43, 0xB0)
    pc.out(0x42, 100, 0)
    pc.now = ticks_at(40)
    pc.out(0x61, 0x00)
    pc.now = ticks_at(1000)
    assert (pc.inp(0x42), pc.inp(0x42)) == (60, 0)
    pc.out(0x61, 0x01)
    pc.now = ticks_at(1059)
    assert not pc.inp(0x61) & 0x20
    pc.now = ticks_at(1060)
    assert pc.inp(0x61) & 0x20


def test_count_stays_latched_until_both_bytes_are_read(pc):
    pc.out(0x43, 0x34)
    pc.out(0x40, 0x00, 0x10)
    pc.now = ticks_at(1)
    pc.out(0x43, 0x00)
    pc.now = ticks_at(600)
    pc.out(0x43, 0x00)  # ignored: there is one already
    assert (pc.inp(0x40), pc.inp(0x40)) == (0xFF, 0x0F)
    assert (pc.inp(0x40), pc.inp(0x40)) == (0x1000 - 600 & 0xFF, 0x1000 - 600 >> 8)


def test_read_back_of_status_and_count(pc):
    pc.out(0x43, 0x36)
    pc.out(0x43, 0xE2)  # status of channel 0
    assert pc.inp(0x40) == 0x40 | 0x80 | 0x36
    pc.out(0x40, 10, 0)
    pc.out(0x43, 0xC2)  # both
    assert pc.inp(0x40) == 0x80 | 0x36
    assert (pc.inp(0x40), pc.inp(0x40)) == (10, 0)


def test_bcd_counting(pc):
    pc.out(0x43, 0x31)
    pc.out(0x40, 0x00, 0x10)
    pc.now = ticks_at(1)
    assert (pc.inp(0x40), pc.inp(0x40)) == (0x99, 0x09)


def test_channel_0_interrupts_periodically(pc):
    pc.init_pic()
    pc.out(0x43, 0x34)
    pc.out(0x40, 0xA9, 0x04)  # 1193: about 1 kHz
    vectors = []
    while pc.now < 10_000_000:
        deadline = pc.timers.next_deadline
        assert deadline is not None
        pc.now = deadline
        pc.timers.run_due(pc.now)
        assert pc.pic.intr
        vectors.append(pc.pic.acknowledge())
        pc.out(0x20, 0x20)
    assert vectors == [0x30] * 11
    assert pc.now == ticks_at(11 * 1193)


def test_channel_0_one_shot_interrupts_once(pc):
    pc.out(0x43, 0x30)
    pc.out(0x40, 100, 0)
    pc.irq0.clear()
    pc.now = ticks_at(100)
    assert pc.timers.next_deadline == pc.now
    pc.timers.run_due(pc.now)
    assert pc.irq0 == [False, True]
    assert pc.timers.next_deadline is None


def test_square_wave_and_strobe_outputs(pc):
    channel = pc.pit.channels[0]
    pc.out(0x43, 0x36)
    pc.out(0x40, 4, 0)
    levels = []
    for clock in range(8):
        pc.now = ticks_at(clock)
        levels.append(channel.out())
    assert levels == [True, True, False, False] * 2
    pc.now = 0
    pc.out(0x43, 0x38)
    pc.out(0x40, 2, 0)
    levels = []
    for clock in range(5):
        pc.now = ticks_at(clock)
        levels.append(channel.out())
    assert levels == [True, True, False, True, True]


def test_rising_gate_triggers_mode_1(pc):
    pc.out(0x43, 0xB2)
    pc.out(0x42, 10, 0)
    assert pc.inp(0x61) & 0x20
    pc.out(0x61, 1)
    assert not pc.inp(0x61) & 0x20
    pc.now = ticks_at(10)
    assert pc.inp(0x61) & 0x20


def test_refresh_bit_toggles(pc):
    seen = set()
    for pc.now in range(0, 100_000, 5_000):
        seen.add(pc.inp(0x61) & 0x10)
    assert seen == {0, 0x10}


def test_pic_probe_by_mask_register(pc):
    # Linux writes the mask and reads it back to find out whether there is a PIC.
    pc.out(0xA1, 0xFF)
    pc.out(0x21, 0xFB)
    assert pc.inp(0x21) == 0xFB
    assert pc.inp(0xA1) == 0xFF


def test_pic_priorities_and_cascade(pc):
    pc.init_pic()
    pc.pic.set_irq(12, True)
    pc.pic.set_irq(4, True)
    assert pc.pic.peek() == 0x38 + 4
    assert pc.pic.acknowledge() == 0x38 + 4
    # 4 is lower than the cascade in service.
    assert not pc.pic.intr
    pc.pic.set_irq(1, True)
    assert pc.pic.acknowledge() == 0x31
    pc.out(0x20, 0x20)
    pc.out(0xA0, 0x20)
    pc.out(0x20, 0x20)
    assert pc.pic.acknowledge() == 0x34
    pc.out(0x20, 0x0B)
    assert pc.inp(0x20) == 1 << 4
    pc.out(0x20, 0x64)  # specific EOI
    assert pc.inp(0x20) == 0


def test_pic_two_requests_behind_the_cascade(pc):
    pc.init_pic()
    pc.pic.set_irq(9, True)
    pc.pic.set_irq(8, True)
    assert pc.pic.acknowledge() == 0x38
    pc.out(0xA0, 0x20)
    pc.out(0x20, 0x20)
    assert pc.pic.intr
    assert pc.pic.acknowledge() == 0x39


def test_pic_masking_and_spurious(pc):
    pc.init_pic()
    pc.out(0x21, 0x10)
    pc.pic.set_irq(4, True)
    assert not pc.pic.intr
    pc.out(0x21, 0x00)
    assert pc.pic.intr
    pc.pic.set_irq(4, False)
    assert not pc.pic.intr
    assert pc.pic.acknowledge() == 0x37


def test_pic_level_triggered_input_fires_until_it_falls(pc):
    pc.init_pic()
    pc.out(0x4D0, 0xFF)
    assert pc.inp(0x4D0) == 0xF8
    pc.pic.set_irq(5, True)
    assert pc.pic.acknowledge() == 0x35
    pc.out(0x20, 0x20)
    assert pc.pic.intr
    pc.pic.set_irq(5, False)
    assert not pc.pic.intr


def test_pic_poll_and_auto_eoi(pc):
    pc.out(0x20, 0x11)
    pc.out(0x21, 0x30, 4, 3, 0)
    pc.pic.set_irq(3, True)
    pc.out(0x20, 0x0C)
    assert pc.inp(0x20) == 0x83
    pc.out(0x20, 0x0B)
    assert pc.inp(0x20) == 0
