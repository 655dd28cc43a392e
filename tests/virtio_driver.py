# SPDX-License-Identifier: MIT
"""A guest's side of virtio: memory of which some is shared, and a driver that fills rings."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from svsmd.host.dma import Dma
from svsmd.host.timers import TimerQueue
from svsmd.host.virtio_mmio import Register, Status, VirtioDevice, VirtioMmio
from svsmd.host.virtio_queue import DescFlag
from svsmd.snp.types import PAGE_SIZE

MEMORY_SIZE: Final = 64 * PAGE_SIZE
DESC: Final = 0x1000
AVAIL: Final = 0x2000
USED: Final = 0x3000
BUFFERS: Final = 0x8000
"""Where a test may put its own data; all below is the driver's."""

VERSION_1: Final = 1 << 32
ACCESS_PLATFORM: Final = 1 << 33

Buffer = tuple[int, int, bool]
"""Address, size, and whether the device writes it."""


class SharedMemory:
    """RAM from 0 up, shared but for the pages in `private`."""

    def __init__(self, size: int = MEMORY_SIZE) -> None:
        self.bytes = bytearray(size)
        self.private: set[int] = set()

    def host_page(self, gpa: int) -> memoryview | None:
        """As `Silicon.host_page`."""
        if gpa % PAGE_SIZE or not 0 <= gpa < len(self.bytes) or gpa // PAGE_SIZE in self.private:
            return None
        return memoryview(self.bytes)[gpa : gpa + PAGE_SIZE]

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self.bytes[where])

    def write(self, gpa: int, data: bytes) -> None:
        self.bytes[gpa : gpa + len(data)] = data


@dataclass
class Line:
    """An interrupt line and its history."""

    levels: list[bool] = field(default_factory=list)

    def __call__(self, level: bool) -> None:
        self.levels.append(level)

    @property
    def level(self) -> bool:
        return bool(self.levels) and self.levels[-1]


class Driver:
    """A device in its transport, and a driver for it."""

    def __init__(self, device: VirtioDevice, size: int = 8) -> None:
        self.memory = SharedMemory()
        self.line = Line()
        self.now = 0
        self.timers = TimerQueue()
        self.mmio = VirtioMmio(
            device, Dma(self.memory.host_page), self.line, self.timers, lambda: self.now
        )
        self.size = size
        self.avail = 0
        self.used = 0

    def __getitem__(self, register: int) -> int:
        return self.mmio.read(register, 4)

    def __setitem__(self, register: int, value: int) -> None:
        self.mmio.write(register, 4, value)

    @property
    def features(self) -> int:
        """What the device offers."""
        words = []
        for select in (0, 1):
            self[Register.DEVICE_FEATURES_SEL] = select
            words.append(self[Register.DEVICE_FEATURES])
        return words[1] << 32 | words[0]

    def negotiate(self, features: int) -> bool:
        """Reset the device, ask for features; whether it accepts them."""
        self[Register.STATUS] = 0
        self[Register.STATUS] = Status.ACKNOWLEDGE
        self[Register.STATUS] = Status.ACKNOWLEDGE | Status.DRIVER
        for select in (0, 1):
            self[Register.DRIVER_FEATURES_SEL] = select
            self[Register.DRIVER_FEATURES] = features >> 32 * select & 0xFFFF_FFFF
        self[Register.STATUS] = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        return bool(self[Register.STATUS] & Status.FEATURES_OK)

    def start(self) -> Driver:
        """The whole initialisation (3.1.1), with all features."""
        assert self.negotiate(self.features)
        self.memory.write(DESC, bytes(BUFFERS - DESC))
        self.avail = self.used = 0
        self.set_queue(DESC, AVAIL, USED)
        assert self[Register.QUEUE_READY] == 1
        self[Register.STATUS] = self[Register.STATUS] | Status.DRIVER_OK
        return self

    def set_queue(self, desc: int, avail: int, used: int) -> None:
        """Describe the queue, and switch it on."""
        self[Register.QUEUE_SEL] = 0
        self[Register.QUEUE_NUM] = self.size
        for register, address in (
            (Register.QUEUE_DESC_LOW, desc),
            (Register.QUEUE_DRIVER_LOW, avail),
            (Register.QUEUE_DEVICE_LOW, used),
        ):
            self[register] = address & 0xFFFF_FFFF
            self[register + 4] = address >> 32
        self[Register.QUEUE_READY] = 1

    def describe(self, index: int, gpa: int, size: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor."""
        self.memory.write(DESC + 16 * index, struct.pack("<QIHH", gpa, size, flags, following))

    def chain(self, buffers: Sequence[Buffer], first: int = 0) -> None:
        """Write the descriptors of one request, from descriptor `first` on."""
        for number, (gpa, size, writable) in enumerate(buffers):
            flags = DescFlag.WRITE if writable else DescFlag(0)
            if number < len(buffers) - 1:
                flags |= DescFlag.NEXT
            self.describe(first + number, gpa, size, flags, first + number + 1)

    def offer(self, heads: Iterable[int], count: int | None = None) -> None:
        """Make requests available; `count` is a lie about how many."""
        heads = list(heads)
        for head in heads:
            slot = AVAIL + 4 + 2 * (self.avail % self.size)
            self.memory.write(slot, head.to_bytes(2, "little"))
            self.avail = self.avail + 1 & 0xFFFF
        told = self.avail if count is None else self.avail - len(heads) + count
        self.memory.write(AVAIL + 2, (told & 0xFFFF).to_bytes(2, "little"))

    def notify(self, queue: int = 0) -> None:
        """Tell the device."""
        self[Register.QUEUE_NOTIFY] = queue

    def tick(self) -> bool:
        """A tick passes; whether the device had something left to do."""
        self.now += 1
        return bool(self.timers.run_due(self.now))

    def completed(self) -> list[tuple[int, int]]:
        """Head and length of what the device has given back since the last time."""
        (told,) = struct.unpack("<H", self.memory[USED + 2 : USED + 4])
        found = []
        while self.used != told:
            slot = USED + 4 + 8 * (self.used % self.size)
            found.append(struct.unpack("<II", self.memory[slot : slot + 8]))
            self.used = self.used + 1 & 0xFFFF
        return found

    def submit(self, *buffers: Buffer) -> int:
        """Do one request at descriptor 0; how many bytes the device says to have written."""
        self.chain(buffers)
        self.offer([0])
        self.notify()
        ((head, length),) = self.completed()
        assert head == 0
        return length

    @property
    def needs_reset(self) -> bool:
        """The device has given up."""
        return bool(self[Register.STATUS] & Status.DEVICE_NEEDS_RESET)


SECTOR: Final = 512


class MemoryDisk:
    """A block backend in memory; `fail` makes everything an I/O error."""

    def __init__(self, sectors: int = 64, *, read_only: bool = False) -> None:
        self.sectors: Final = sectors
        self.read_only: Final = read_only
        self.bytes = bytearray(n * 7 & 0xFF for n in range(sectors * SECTOR))
        self.flushes = 0
        self.fail = False

    def read(self, sector: int, count: int) -> bytes:
        assert 0 <= sector <= sector + count <= self.sectors
        self._check()
        return bytes(self.bytes[sector * SECTOR : (sector + count) * SECTOR])

    def write(self, sector: int, data: bytes) -> None:
        assert not self.read_only
        assert len(data) % SECTOR == 0
        assert 0 <= sector <= sector + len(data) // SECTOR <= self.sectors
        self._check()
        self.bytes[sector * SECTOR : sector * SECTOR + len(data)] = data

    def flush(self) -> None:
        self._check()
        self.flushes += 1

    def _check(self) -> None:
        if self.fail:
            raise OSError("as the test wants it")
