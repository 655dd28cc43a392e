# SPDX-License-Identifier: MIT
"""Timer queue, the port and MMIO buses, the ACPI PM timer and the ACPI power registers."""

import pytest

from svsmd.host.acpi_pm import AcpiPm
from svsmd.host.mmio_bus import MmioBus
from svsmd.host.pm_timer import PmTimer
from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TimerQueue


def test_deadlines_run_in_order_and_ties_in_arming_order():
    queue = TimerQueue()
    ran: list[str] = []
    for name, deadline in (("late", 30), ("first", 10), ("second", 10)):
        queue.timer(lambda name=name: ran.append(name)).arm(deadline)  # type: ignore[misc]
    assert queue.next_deadline == 10
    assert queue.run_due(9) == 0
    assert queue.run_due(30) == 3
    assert ran == ["first", "second", "late"]
    assert queue.next_deadline is None


def test_rearming_replaces_and_cancelling_forgets():
    queue = TimerQueue()
    ran: list[int] = []
    timer = queue.timer(lambda: ran.append(1))
    timer.arm(5)
    timer.arm(50)
    assert queue.next_deadline == 50
    assert queue.run_due(49) == 0
    timer.cancel()
    assert queue.run_due(100) == 0
    assert not ran


def test_rearming_for_ever_does_not_grow_the_queue():
    queue = TimerQueue()
    ran: list[str] = []
    other = queue.timer(lambda: ran.append("other"))
    other.arm(2_000_000)
    timer = queue.timer(lambda: ran.append("rearmed"))
    for deadline in range(1_000_000, 1_010_000):
        timer.arm(deadline)
    assert len(queue._heap) <= 64
    assert queue.run_due(1_009_998) == 0
    assert queue.run_due(2_000_000) == 2
    assert ran == ["rearmed", "other"]


def test_a_callback_may_cancel_one_that_is_due_at_the_same_time():
    queue = TimerQueue()
    ran: list[str] = []
    victim = queue.timer(lambda: ran.append("victim"))

    def killer() -> None:
        ran.append("killer")
        victim.cancel()

    queue.timer(killer).arm(5)
    victim.arm(5)
    assert queue.run_due(5) == 1
    assert ran == ["killer"]


def test_a_timer_that_rearms_itself_for_the_past_does_not_hold_the_queue_up():
    queue = TimerQueue()
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        timer.arm(0)

    timer = queue.timer(again)
    timer.arm(0)
    assert queue.run_due(10) == 1
    assert queue.run_due(10) == 1
    assert count == 2


def test_port_bus_routes_by_port_and_size_and_splits_the_rest():
    bus = PortBus()
    log: list[tuple[str, int]] = []
    bus.map_port(0x10, lambda: 0x12, lambda value: log.append(("10", value)))
    bus.map_port(0x11, lambda: 0x34, lambda value: log.append(("11", value)))
    bus.map_port(0x20, lambda: 0xABCD, lambda value: log.append(("20", value)), 2)
    assert bus.read(0x10, 1) == 0x12
    assert bus.read(0x10, 2) == 0x3412
    assert bus.read(0x10, 4) == 0xFFFF3412
    assert bus.read(0x20, 2) == 0xABCD
    assert bus.read(0x20, 4) == 0xFFFFABCD
    assert bus.read(0x20, 1) == 0xFF
    bus.write(0x10, 2, 0x7788)
    bus.write(0x20, 4, 0x55556666)
    bus.write(0x999, 4, 1)
    assert log == [("10", 0x88), ("11", 0x77), ("20", 0x6666)]
    # The last port of the space wraps round.
    assert bus.read(0xFFFF, 2) == 0xFFFF


def test_port_bus_refuses_two_devices_at_one_port():
    bus = PortBus()
    bus.map_port(1, lambda: 0, None)
    with pytest.raises(ValueError, match="two devices"):
        bus.map_port(1, None, lambda value: None)
    with pytest.raises(ValueError, match="no port"):
        bus.map_port(0xFFFF, lambda: 0, None, 2)


def test_mmio_bus_gives_offsets_and_answers_for_nobody():
    bus = MmioBus()
    log: list[tuple[int, int, int]] = []
    bus.map_region(0xFEC0_0000, 0x1000, lambda offset, size: offset, lambda *args: log.append(args))
    assert bus.read(0xFEC0_0010, 4) == 0x10
    bus.write(0xFEC0_0020, 4, 7)
    assert log == [(0x20, 4, 7)]
    assert bus.read(0xFED0_0000, 2) == 0xFFFF
    assert bus.read(0xFEC0_0FFE, 4) == 0xFFFF_FFFF
    bus.write(0xFEC0_0FFE, 4, 1)
    assert len(log) == 1
    with pytest.raises(ValueError, match="overlaps"):
        bus.map_region(0xFEC0_0000, 4, lambda offset, size: 0, lambda *args: None)


def test_pm_timer_counts_at_its_frequency_and_wraps():
    now = 0
    bus = PortBus()
    PmTimer(lambda: now).attach(bus)
    assert bus.read(0x608, 4) == 0
    now = 1_000_000_000
    assert bus.read(0x608, 4) == 3_579_545
    now = 1_200 * 1_000_000_000
    assert bus.read(0x608, 4) == 1_200 * 3_579_545 - (1 << 32)


@pytest.fixture
def power():
    calls: list[str] = []
    bus = PortBus()
    AcpiPm(lambda: calls.append("off"), lambda: calls.append("reset")).attach(bus)
    return bus, calls


@pytest.mark.parametrize(
    ("port", "size", "value", "calls"),
    [
        (0x604, 2, 0x2000, ["off"]),
        (0x604, 2, 0x3400, []),  # another sleep type
        (0x604, 2, 0x0001, []),  # no SLP_EN
        (0x60C, 1, 0x20, ["off"]),
        (0x60C, 1, 0x34, []),
        (0xCF9, 1, 0x02, []),  # only the kind of reset
        (0xCF9, 1, 0x06, ["reset"]),
        (0xCF9, 1, 0x0E, ["reset"]),
    ],
)
def test_power_registers(power, port, size, value, calls):
    bus, log = power
    bus.write(port, size, value)
    assert log == calls


def test_pci_probing_does_not_reset(power):
    bus, log = power
    bus.write(0xCF8, 4, 0x8000_0E04)
    bus.write(0xCF8, 2, 0x0600)
    assert (bus.read(0xCF8, 4), bus.read(0xCF8, 2)) == (0xFFFF_FFFF, 0xFFFF)
    assert not log


def test_pm1_registers_read_back(power):
    bus, _ = power
    bus.write(0x602, 2, 0x0100)
    assert bus.read(0x600, 4) == 0x0100_0000
    assert bus.read(0x604, 2) == 1
    bus.write(0x604, 2, 0x2400)
    assert bus.read(0x604, 2) == 0x0401
    bus.write(0xCF9, 1, 0x0E)
    assert bus.read(0xCF9, 1) == 0x0A
