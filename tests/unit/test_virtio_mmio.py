# SPDX-License-Identifier: MIT
"""The MMIO transport: registers, negotiation, the queue's life, interrupts, resets."""

import pytest

from svsmd.host.virtio_mmio import (
    BYTES_AT_ONCE,
    REQUESTS_AT_ONCE,
    Interrupt,
    Register,
    Status,
    read_empty_slot,
)
from svsmd.host.virtio_queue import Chain
from tests.virtio_driver import (
    ACCESS_PLATFORM,
    AVAIL,
    BUFFERS,
    DESC,
    USED,
    VERSION_1,
    Driver,
)

FEATURE = 1 << 3
RUNNING = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK


class Echo:
    """Gives back what it reads, and remembers it."""

    device_id = 42
    features = FEATURE
    config = b"\x11\x22\x33\x44\x55"

    def __init__(self) -> None:
        self.heard: list[bytes] = []

    def serve(self, request: Chain) -> int:
        data = request.read(0, request.readable_size)[: request.writable_size]
        self.heard.append(data)
        request.write(0, data)
        return len(data)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def driver(echo: Echo) -> Driver:
    return Driver(echo)


def test_identity(driver):
    assert driver[0x000] == 0x7472_6976
    assert driver[0x004] == 2
    assert driver[0x008] == 42
    assert driver[0x00C] == 0x4D53_5653
    assert driver[0x034] == 128
    assert driver[0x0FC] == 0
    # There is no shared memory region: length and base are -1.
    assert [driver[register] for register in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4


def test_an_empty_slot_is_virtio_without_a_device():
    assert read_empty_slot(0, 4) == 0x7472_6976
    assert read_empty_slot(4, 4) == 2
    assert read_empty_slot(8, 4) == 0
    assert read_empty_slot(0x70, 4) == 0
    assert read_empty_slot(0, 1) == 0


def test_configuration_space_is_read_at_any_width(driver):
    mmio = driver.mmio
    assert mmio.read(0x100, 1) == 0x11
    assert mmio.read(0x101, 1) == 0x22
    assert mmio.read(0x102, 2) == 0x4433
    assert mmio.read(0x100, 4) == 0x4433_2211
    assert mmio.read(0x104, 4) == 0x55
    assert mmio.read(0x100, 8) == 0x55_4433_2211
    assert mmio.read(0xFF8, 8) == 0
    mmio.write(0x100, 4, 0)
    assert mmio.read(0x100, 4) == 0x4433_2211


@pytest.mark.parametrize("size", [1, 2, 8])
def test_registers_are_32_bits_wide(driver, size):
    assert driver.mmio.read(Register.MAGIC_VALUE, size) == 0
    driver.mmio.write(Register.STATUS, size, 1)
    assert driver[Register.STATUS] == 0


def test_features(driver):
    assert driver.features == VERSION_1 | ACCESS_PLATFORM | FEATURE
    driver[Register.DEVICE_FEATURES_SEL] = 2
    assert driver[Register.DEVICE_FEATURES] == 0
    assert driver.negotiate(VERSION_1 | ACCESS_PLATFORM)
    assert driver.negotiate(VERSION_1 | ACCESS_PLATFORM | FEATURE)
    # Legacy drivers, drivers that reach for private memory, and features that were not offered.
    assert not driver.negotiate(FEATURE | ACCESS_PLATFORM)
    assert not driver.negotiate(FEATURE | VERSION_1)
    assert not driver.negotiate(VERSION_1 | ACCESS_PLATFORM | 1 << 28)


def test_features_are_fixed_once_they_are_accepted(driver):
    assert driver.negotiate(VERSION_1 | ACCESS_PLATFORM)
    driver[Register.DRIVER_FEATURES_SEL] = 1
    driver[Register.DRIVER_FEATURES] = 0
    assert driver.mmio.state.driver_features == VERSION_1 | ACCESS_PLATFORM


def test_there_is_one_queue(driver):
    driver.start()
    driver[Register.QUEUE_SEL] = 1
    assert driver[Register.QUEUE_NUM_MAX] == 0
    assert driver[Register.QUEUE_READY] == 0
    driver[Register.QUEUE_READY] = 1
    driver[Register.QUEUE_NUM] = 3
    assert driver[Register.QUEUE_READY] == 0
    assert driver.mmio.queue.size == 8


def test_addresses_have_two_halves(driver):
    driver.set_queue(0x1_2345_6780, 0x2_3456_7890, 0x3_4567_89A0)
    queue = driver.mmio.queue
    assert (queue.desc, queue.driver, queue.device) == (
        0x1_2345_6780,
        0x2_3456_7890,
        0x3_4567_89A0,
    )
    # While the queue is ready nothing of it changes.
    driver[Register.QUEUE_DESC_LOW] = 0
    driver[Register.QUEUE_NUM] = 2
    assert (queue.desc, queue.size) == (0x1_2345_6780, 8)
    driver[Register.QUEUE_READY] = 0
    driver[Register.QUEUE_DESC_LOW] = 0
    assert (queue.ready, queue.desc) == (False, 0x1_0000_0000)


@pytest.mark.parametrize("size", [0, 3, 256, 0x8000_0000, 0xFFFF_FFFF])
def test_impossible_sizes(echo, size):
    driver = Driver(echo, size)
    assert driver.negotiate(driver.features)
    driver.set_queue(DESC, AVAIL, USED)
    assert driver[Register.QUEUE_READY] == 0
    assert driver.needs_reset
    # It was not running yet: there is nobody to interrupt.
    assert not driver.line.level


@pytest.mark.parametrize(
    ("desc", "avail", "used"),
    [(DESC + 8, AVAIL, USED), (DESC, AVAIL + 1, USED), (DESC, AVAIL, USED + 2)],
)
def test_unaligned_rings(driver, desc, avail, used):
    assert driver.negotiate(driver.features)
    driver.set_queue(desc, avail, used)
    assert driver[Register.QUEUE_READY] == 0
    assert driver.needs_reset


def test_a_request_and_its_interrupt(driver, echo):
    driver.start()
    driver.memory.write(BUFFERS, b"hello, device")
    assert driver.submit((BUFFERS, 13, False), (BUFFERS + 64, 20, True)) == 13
    assert driver.memory[BUFFERS + 64 : BUFFERS + 77] == b"hello, device"
    assert driver.line.levels[-1:] == [True]
    assert driver[Register.INTERRUPT_STATUS] == Interrupt.USED_BUFFER
    driver[Register.INTERRUPT_ACK] = Interrupt.CONFIGURATION_CHANGE
    assert driver.line.level
    driver[Register.INTERRUPT_ACK] = Interrupt.USED_BUFFER
    assert not driver.line.level
    assert driver[Register.INTERRUPT_STATUS] == 0


def test_a_notification_without_requests_is_silent(driver, echo):
    driver.start()
    driver.notify()
    assert (echo.heard, driver.line.level) == ([], False)


def test_a_full_queue_is_served_in_parts(echo):
    """A guest cannot keep the machine for as long as all of it takes."""
    driver = Driver(echo, 64).start()
    for index in range(64):
        driver.describe(index, BUFFERS, 4, 0)
    driver.offer(range(40))
    driver.notify()
    assert len(driver.completed()) == REQUESTS_AT_ONCE
    assert driver.line.level
    driver[Register.INTERRUPT_ACK] = Interrupt.USED_BUFFER
    assert driver.tick()
    assert len(driver.completed()) == REQUESTS_AT_ONCE
    assert driver.line.level
    assert driver.tick()
    assert len(driver.completed()) == 40 - 2 * REQUESTS_AT_ONCE
    assert not driver.tick()
    assert len(echo.heard) == 40


def test_large_requests_are_served_one_by_one(echo):
    driver = Driver(echo).start()
    for index in range(4):
        driver.chain([(BUFFERS, 4, False), (BUFFERS, BYTES_AT_ONCE, True)], 2 * index)
    driver.offer((0, 2, 4, 6))
    driver.notify()
    for _ in range(3):
        assert len(driver.completed()) == 1
        assert driver.tick()
    assert len(driver.completed()) == 1


def test_a_reset_forgets_what_is_left(echo):
    driver = Driver(echo, 64).start()
    driver.offer([0] * 40)
    driver.notify()
    driver.start()
    assert not driver.tick()
    assert len(echo.heard) == REQUESTS_AT_ONCE


def test_a_driver_may_do_without_interrupts(driver):
    driver.start()
    driver.memory.write(AVAIL, b"\1\0")
    driver.submit((BUFFERS, 1, False))
    assert not driver.line.level


@pytest.mark.parametrize(
    "status",
    [
        RUNNING & ~Status.DRIVER_OK,
        RUNNING & ~Status.FEATURES_OK,
        RUNNING | Status.DEVICE_NEEDS_RESET,
    ],
)
def test_only_a_running_device_takes_requests(driver, echo, status):
    driver.start()
    driver.mmio.state.status = status
    driver.chain([(BUFFERS, 1, False)])
    driver.offer([0])
    driver.notify()
    assert (echo.heard, driver.completed()) == ([], [])


def test_queues_that_are_not_there_or_not_ready(driver, echo):
    driver.start()
    driver.chain([(BUFFERS, 1, False)])
    driver.offer([0])
    driver.notify(queue=1)
    driver[Register.QUEUE_READY] = 0
    driver.notify()
    assert (echo.heard, driver.needs_reset) == ([], False)


def test_reset_forgets_everything(driver):
    driver.start()
    driver.submit((BUFFERS, 1, False))
    driver.offer([0], count=1000)
    driver.notify()
    assert driver.needs_reset
    assert driver[Register.INTERRUPT_STATUS] == (
        Interrupt.USED_BUFFER | Interrupt.CONFIGURATION_CHANGE
    )
    driver[Register.STATUS] = RUNNING
    assert driver.needs_reset, "only a reset takes it back"
    driver[Register.STATUS] = 0
    assert driver[Register.STATUS] == 0
    assert driver[Register.INTERRUPT_STATUS] == 0
    assert driver[Register.QUEUE_READY] == 0
    assert not driver.line.level
    driver.start()
    assert driver.submit((BUFFERS, 4, False), (BUFFERS + 64, 4, True)) == 4
