# SPDX-License-Identifier: MIT
"""The entropy device: the machine's seed, and how much of it at once."""

import pytest

from svsmd.host.virtio_rng import MAX_FILL, VirtioRng
from svsmd.snp.entropy import EntropySource
from tests.virtio_driver import BUFFERS, MEMORY_SIZE, Driver


@pytest.fixture
def driver() -> Driver:
    return Driver(VirtioRng(EntropySource(b"seed"))).start()


def test_identity(driver):
    assert driver[0x008] == 4
    assert driver.features & 0xFFFF_FFFF == 0
    assert driver.mmio.read(0x100, 4) == 0


def test_the_seed_decides(driver):
    expected = EntropySource(b"seed").read(100)
    assert driver.submit((BUFFERS, 60, True)) == 60
    assert driver.submit((BUFFERS + 0x1000, 30, True), (BUFFERS + 0x2000, 10, True)) == 40
    memory = driver.memory
    assert memory[BUFFERS : BUFFERS + 60] == expected[:60]
    assert memory[BUFFERS + 0x1000 : BUFFERS + 0x101E] == expected[60:90]
    assert memory[BUFFERS + 0x2000 : BUFFERS + 0x200A] == expected[90:]


def test_no_more_than_so_much(driver):
    assert driver.submit((0x1_0000, 0xFFFF_FFFF, True)) == MAX_FILL
    assert not any(driver.memory[0x1_0000 + MAX_FILL : MEMORY_SIZE])


def test_nothing_to_fill(driver):
    assert driver.submit((BUFFERS, 16, False)) == 0


def test_a_buffer_that_is_not_shared(driver):
    driver.chain([(MEMORY_SIZE - 4, 8, True)])
    driver.offer([0])
    driver.notify()
    assert driver.needs_reset
    assert driver.completed() == []
