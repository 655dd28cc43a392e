# SPDX-License-Identifier: MIT
"""The block device: each type of request, each way to fail one."""

import struct

import pytest

from svsmd.host.virtio_blk import MAX_DATA_SIZE, SEG_MAX, SIZE_MAX, VirtioBlk
from svsmd.snp.types import PAGE_SIZE
from tests.virtio_driver import BUFFERS, MEMORY_SIZE, SECTOR, Driver, MemoryDisk

OK, IOERR, UNSUPP = 0, 1, 2
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
HEADER = BUFFERS
STATUS = BUFFERS + 0x100
DATA = BUFFERS + 0x1000


@pytest.fixture
def disk() -> MemoryDisk:
    return MemoryDisk()


@pytest.fixture
def driver(disk: MemoryDisk) -> Driver:
    return Driver(VirtioBlk(disk, b"a disk")).start()


def request(driver: Driver, kind: int, sector: int, *data: tuple[int, int, bool]) -> int:
    """Do a request and return its status; the length that is reported has to fit to it."""
    driver.memory.write(HEADER, struct.pack("<IIQ", kind, 0xDEAD_BEEF, sector))
    driver.memory.write(STATUS, b"\xaa")
    length = driver.submit((HEADER, 16, False), *data, (STATUS, 1, True))
    status = driver.memory[STATUS : STATUS + 1][0]
    writable = sum(size for _, size, is_writable in data if is_writable)
    if status == OK and kind != GET_ID:
        assert length == writable + 1
    elif status != OK:
        assert length == (0 if writable else 1)
    return status


def test_configuration(driver):
    assert driver[0x008] == 2
    assert driver.mmio.read(0x100, 8) == 64
    assert driver.mmio.read(0x108, 4) == SIZE_MAX
    assert driver.mmio.read(0x10C, 4) == SEG_MAX == 126
    # Size of segments, number of segments, flush; not read-only.
    assert driver.features & 0xFFFF_FFFF == 1 << 1 | 1 << 2 | 1 << 9


def test_read(driver, disk):
    assert request(driver, IN, 3, (DATA, 2 * SECTOR, True)) == OK
    assert driver.memory[DATA : DATA + 1024] == disk.bytes[3 * SECTOR : 5 * SECTOR]


def test_write(driver, disk):
    driver.memory.write(DATA, b"\x5a" * SECTOR)
    before = bytes(disk.bytes)
    assert request(driver, OUT, 63, (DATA, SECTOR, False)) == OK
    assert disk.bytes == before[: 63 * SECTOR] + b"\x5a" * SECTOR
    assert disk.flushes == 0


def test_framing_means_nothing(driver, disk):
    """A header in pieces, data in odd ones, and the status at the end of the data (2.7.4.1)."""
    driver.memory.write(HEADER, struct.pack("<IIQ", IN, 0, 1))
    length = driver.submit(
        (HEADER, 5, False), (HEADER + 5, 11, False), (DATA, 300, True), (DATA + 1000, 213, True)
    )
    assert length == SECTOR + 1
    expected = disk.bytes[SECTOR : 2 * SECTOR]
    assert driver.memory[DATA : DATA + 300] == expected[:300]
    assert driver.memory[DATA + 1000 : DATA + 1212] == expected[300:]
    assert driver.memory[DATA + 1212 : DATA + 1213] == b"\0"

    driver.memory.write(HEADER, struct.pack("<IIQ", OUT, 0, 2) + b"\x77" * SECTOR)
    assert driver.submit((HEADER, 16 + SECTOR, False), (DATA, 1, True)) == 1
    assert disk.bytes[2 * SECTOR : 3 * SECTOR] == b"\x77" * SECTOR


def test_flush(driver, disk):
    assert request(driver, FLUSH, 0) == OK
    assert disk.flushes == 1


def test_name(driver):
    assert request(driver, GET_ID, 0, (DATA, 20, True)) == OK
    assert driver.memory[DATA : DATA + 20] == b"a disk".ljust(20, b"\0")
    driver.memory.write(DATA, b"\xff" * 32)
    assert request(driver, GET_ID, 0, (DATA, 32, True)) == OK
    assert driver.memory[DATA : DATA + 32] == b"a disk".ljust(20, b"\0") + b"\xff" * 12
    assert request(driver, GET_ID, 0, (DATA, 19, True)) == IOERR


@pytest.mark.parametrize("kind", [2, 3, 5, 9, 11, 13, 14, 0x8000_0000, 0xFFFF_FFFF])
def test_unknown_types(driver, disk, kind):
    before = bytes(disk.bytes)
    assert request(driver, kind, 0, (DATA, SECTOR, True)) == UNSUPP
    assert disk.bytes == before


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (64, SECTOR),
        (63, 2 * SECTOR),
        ((1 << 64) - 1, SECTOR),
        ((1 << 55) - 1, SECTOR),
        (0, SECTOR - 1),
        (0, 1),
        (0, 65 * SECTOR),
        (0, 0xFFFF_FE00),
    ],
)
def test_ranges_that_are_none(driver, disk, kind, sector, size):
    before = bytes(disk.bytes)
    assert request(driver, kind, sector, (DATA, size, kind == IN)) == IOERR
    assert disk.bytes == before
    assert not driver.needs_reset


def test_no_data_is_no_mistake(driver):
    assert request(driver, IN, 64) == OK
    assert request(driver, OUT, 0) == OK


def test_a_request_without_end(disk):
    """Many large segments of the same memory, on a disk that would have them."""
    large = MemoryDisk()
    object.__setattr__(large, "sectors", 1 << 40)
    driver = Driver(VirtioBlk(large, b""), size=128).start()
    segment = (0, MEMORY_SIZE, False)
    count = MAX_DATA_SIZE // MEMORY_SIZE + 1
    assert request(driver, OUT, 0, *[segment] * count) == IOERR


def test_read_only():
    disk = MemoryDisk(read_only=True)
    driver = Driver(VirtioBlk(disk, b"")).start()
    assert driver.features & 1 << 5
    assert request(driver, OUT, 0, (DATA, SECTOR, False)) == IOERR
    assert request(driver, IN, 0, (DATA, SECTOR, True)) == OK
    assert request(driver, FLUSH, 0) == OK


@pytest.mark.parametrize(
    ("kind", "data"),
    [(IN, [(DATA, SECTOR, True)]), (OUT, [(DATA, SECTOR, False)]), (FLUSH, [])],
)
def test_a_failing_medium(driver, disk, kind, data):
    disk.fail = True
    assert request(driver, kind, 0, *data) == IOERR
    disk.fail = False
    assert request(driver, kind, 0, *data) == OK


@pytest.mark.parametrize("kind", [IN, OUT])
@pytest.mark.parametrize(
    "gpa", [0x3_0000, 0x3_0000 - 1, MEMORY_SIZE, MEMORY_SIZE - 1, 1 << 39, (1 << 64) - 1]
)
def test_data_in_private_or_missing_memory(driver, disk, kind, gpa):
    driver.memory.private.add(0x3_0000 // PAGE_SIZE)
    before = bytes(disk.bytes)
    assert request(driver, kind, 0, (gpa, SECTOR, kind == IN)) == IOERR
    assert disk.bytes == before
    assert not driver.needs_reset


@pytest.mark.parametrize(
    "buffers",
    [
        [],
        [(HEADER, 16, False)],
        [(HEADER, 15, False), (STATUS, 1, True)],
        [(STATUS, 1, True)],
        [(HEADER, 16, False), (STATUS, 0, True)],
        [(MEMORY_SIZE, 16, False), (STATUS, 1, True)],
        [(HEADER, 16, False), (MEMORY_SIZE, 1, True)],
        [(HEADER, 16, False), (DATA, SECTOR, True), (MEMORY_SIZE, 1, True)],
    ],
)
def test_requests_that_cannot_even_fail(driver, buffers):
    driver.chain(buffers or [(0, 0, False)])
    driver.offer([0])
    driver.notify()
    assert driver.needs_reset
    assert driver.completed() == []
