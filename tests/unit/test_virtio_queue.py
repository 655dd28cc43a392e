# SPDX-License-Identifier: MIT
"""The split virtqueue, and direct memory access: order, wrapping, and what a driver must not do."""

import pytest

from svsmd.host.dma import Dma, DmaError
from svsmd.host.virtio_mmio import Interrupt, Register
from svsmd.host.virtio_queue import Chain, DescFlag
from svsmd.snp.types import PAGE_SIZE
from tests.virtio_driver import AVAIL, BUFFERS, DESC, MEMORY_SIZE, USED, Driver, SharedMemory


class Recorder:
    """Takes every request."""

    device_id = 1
    features = 0
    config = b""

    def __init__(self) -> None:
        self.requests: list[Chain] = []

    def serve(self, request: Chain) -> int:
        self.requests.append(request)
        return len(self.requests)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(recorder: Recorder) -> Driver:
    return Driver(recorder).start()


class TestDma:
    def test_across_pages(self):
        memory = SharedMemory()
        dma = Dma(memory.host_page)
        data = bytes(range(256)) * 40
        dma.write(PAGE_SIZE - 100, data)
        assert memory[PAGE_SIZE - 100 : PAGE_SIZE - 100 + len(data)] == data
        assert dma.read(PAGE_SIZE - 100, len(data)) == data
        assert dma.read(5, 0) == b""
        dma.write(MEMORY_SIZE + 5, b"")

    @pytest.mark.parametrize(
        "gpa", [PAGE_SIZE * 3 - 1, PAGE_SIZE * 3, MEMORY_SIZE - 1, MEMORY_SIZE, (1 << 64) - 1]
    )
    def test_private_and_missing_memory(self, gpa):
        memory = SharedMemory()
        memory.private.add(3)
        dma = Dma(memory.host_page)
        with pytest.raises(DmaError):
            dma.read(gpa, 2)
        with pytest.raises(DmaError):
            dma.write(gpa, b"\1\2")
        assert not any(memory.bytes), "all or nothing"


class TestChain:
    def chain(self) -> tuple[SharedMemory, Chain]:
        memory = SharedMemory()
        memory.write(0x100, b"abc")
        memory.write(0x200, b"defgh")
        readable = ((0x100, 3), (0x300, 0), (0x200, 5))
        return memory, Chain(Dma(memory.host_page), 0, readable, ((0x400, 2), (0x500, 4)))

    def test_reads_are_one_run_of_bytes(self):
        _, chain = self.chain()
        assert chain.readable_size == 8
        whole = b"abcdefgh"
        for start in range(9):
            for size in range(9 - start):
                assert chain.read(start, size) == whole[start : start + size]

    def test_writes_are_one_run_of_bytes(self):
        memory, chain = self.chain()
        assert chain.writable_size == 6
        chain.write(1, b"1234")
        assert memory[0x400:0x402] + memory[0x500:0x504] == b"\x001234\0"


def test_requests_come_in_order_and_the_rings_wrap(driver, recorder):
    for round_ in range(30):
        heads = [(round_ + n) % 8 for n in range(round_ % 8 + 1)]
        for head in heads:
            driver.chain([(BUFFERS + head, 1, False)], first=head)
        recorder.requests.clear()
        driver.offer(heads)
        driver.notify()
        assert [request.head for request in recorder.requests] == heads
        assert driver.completed() == [(head, n + 1) for n, head in enumerate(heads)]
    assert driver.mmio.queue.next_avail == driver.avail > driver.size


def test_indices_wrap_at_16_bits(driver, recorder):
    driver.mmio.queue.next_avail = driver.mmio.queue.next_used = 0xFFFE
    driver.avail = driver.used = 0xFFFE
    driver.chain([(BUFFERS, 1, False)])
    driver.offer([0, 0, 0, 0])
    driver.notify()
    assert len(driver.completed()) == 4
    assert driver.mmio.queue.next_avail == driver.mmio.queue.next_used == 2


def test_a_chain_may_use_every_descriptor(driver, recorder):
    buffers = [(BUFFERS + n, 1, n >= 3) for n in range(driver.size)]
    driver.submit(*buffers)
    (request,) = recorder.requests
    assert request.readable == tuple((BUFFERS + n, 1) for n in range(3))
    assert request.writable == tuple((BUFFERS + n, 1) for n in range(3, 8))


def refused(driver: Driver) -> None:
    """The device has given up and says so; a reset helps."""
    driver.notify()
    assert driver.needs_reset
    assert driver[Register.INTERRUPT_STATUS] & Interrupt.CONFIGURATION_CHANGE
    assert driver.line.level
    driver.start()
    driver.submit((BUFFERS, 1, False))


def test_more_requests_than_fit(driver):
    driver.offer([0], count=9)
    refused(driver)


def test_an_index_that_goes_back(driver):
    driver.submit((BUFFERS, 1, False))
    driver.offer([0], count=-1)
    refused(driver)


@pytest.mark.parametrize("head", [8, 0xFFFF])
def test_heads_that_do_not_exist(driver, head):
    driver.offer([head])
    refused(driver)


def test_next_that_does_not_exist(driver):
    driver.describe(0, BUFFERS, 1, DescFlag.NEXT, 8)
    driver.offer([0])
    refused(driver)


@pytest.mark.parametrize("length", [1, 2, 8])
def test_loops(driver, length):
    for n in range(length):
        driver.describe(n, BUFFERS, 1, DescFlag.NEXT, (n + 1) % length)
    driver.offer([0])
    refused(driver)


def test_readable_behind_writable(driver):
    driver.chain([(BUFFERS, 1, True), (BUFFERS, 1, False)])
    driver.offer([0])
    refused(driver)


def test_indirect_descriptors_were_not_offered(driver):
    driver.describe(0, BUFFERS, 16, DescFlag.INDIRECT)
    driver.offer([0])
    refused(driver)


@pytest.mark.parametrize("page", [DESC, AVAIL, USED], ids=["descriptors", "available", "used"])
def test_rings_in_private_memory(driver, page):
    driver.chain([(BUFFERS, 1, False)])
    driver.offer([0])
    driver.memory.private.add(page // PAGE_SIZE)
    driver.notify()
    assert driver.needs_reset
    driver.memory.private.clear()
    refused(driver)


def test_what_came_before_the_mistake_was_served(driver, recorder):
    driver.chain([(BUFFERS, 1, False)])
    driver.offer([0, 9])
    driver.notify()
    assert driver.needs_reset
    assert driver.completed() == [(0, 1)]


def test_a_ring_that_feeds_itself_ends(driver, recorder):
    """The used ring lies on the available ring: each completion makes more available."""
    driver[Register.QUEUE_READY] = 0
    driver.set_queue(DESC, AVAIL, AVAIL)
    driver.chain([(BUFFERS, 1, False)])
    driver.memory.write(AVAIL + 2, b"\x08\0")
    driver.notify()
    assert len(recorder.requests) <= driver.size
