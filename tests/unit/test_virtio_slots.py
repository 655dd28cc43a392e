# SPDX-License-Identifier: MIT
"""Where the devices are: addresses, pins of the IOAPIC, empty slots, and the DSDT's word on it."""

import struct

import pytest

from svsmd.config import MAX_DISKS
from svsmd.host.acpi_tables import dsdt
from svsmd.host.dma import Dma
from svsmd.host.ioapic import PINS, IoApic
from svsmd.host.mmio_bus import MmioBus
from svsmd.host.timers import TimerQueue
from svsmd.host.virtio_mmio import Register, Status
from svsmd.host.virtio_slots import DISK_SLOTS, SLOTS, fill_slots, slot_base, slot_gsi
from svsmd.snp.entropy import EntropySource
from tests.virtio_driver import MemoryDisk, SharedMemory


class Messages:
    """The bus behind the IOAPIC."""

    def __init__(self) -> None:
        self.vectors: list[int] = []

    def send_message(
        self, destination: int, logical: bool, mode: int, vector: int, level_triggered: bool
    ) -> None:
        self.vectors.append(vector)


def machine(disks: int) -> tuple[MmioBus, IoApic, Messages]:
    messages = Messages()
    mmio, ioapic = MmioBus(), IoApic(messages)
    media = [MemoryDisk(number + 1) for number in range(disks)]
    dma = Dma(SharedMemory().host_page)
    fill_slots(mmio, ioapic, dma, media, EntropySource(b""), TimerQueue(), lambda: 0)
    return mmio, ioapic, messages


def test_the_configuration_knows_the_number_of_slots():
    assert MAX_DISKS == DISK_SLOTS
    assert slot_gsi(SLOTS - 1) < PINS


@pytest.mark.parametrize("disks", range(DISK_SLOTS + 1))
def test_disks_come_first_and_the_entropy_device_last(disks):
    mmio, _, _ = machine(disks)
    ids = [mmio.read(slot_base(slot) + Register.DEVICE_ID, 4) for slot in range(SLOTS)]
    assert ids == [2] * disks + [0] * (DISK_SLOTS - disks) + [4]
    for slot in range(SLOTS):
        assert mmio.read(slot_base(slot), 4) == 0x7472_6976
        # Writes find somebody or nobody, and harm neither.
        mmio.write(slot_base(slot) + Register.STATUS, 4, 1)
    assert [mmio.read(slot_base(slot) + 0x100, 8) for slot in range(disks)] == list(
        range(1, disks + 1)
    )


def test_too_many_disks():
    with pytest.raises(ValueError, match="5 disks"):
        machine(DISK_SLOTS + 1)


@pytest.mark.parametrize("slot", [0, 1, SLOTS - 1])
def test_each_has_its_pin(slot):
    mmio, ioapic, messages = machine(DISK_SLOTS)
    for pin in range(PINS):
        ioapic.write(0x00, 4, 0x10 + 2 * pin)
        ioapic.write(0x10, 4, 0x40 + pin | 1 << 15)
    base = slot_base(slot)

    def write(register: int, value: int) -> None:
        mmio.write(base + register, 4, value)

    write(Register.DRIVER_FEATURES_SEL, 1)
    write(Register.DRIVER_FEATURES, 3)
    running = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
    write(Register.STATUS, running)
    write(Register.STATUS, running | Status.DRIVER_OK)
    # A queue of no size: the device gives up, and says so by its interrupt.
    write(Register.QUEUE_NUM, 0)
    write(Register.QUEUE_READY, 1)
    assert messages.vectors == [0x40 + slot_gsi(slot)]


def test_the_dsdt_names_them():
    table = dsdt()
    assert table.count(b"LNRO0005\0") == SLOTS
    for slot in range(SLOTS):
        memory = struct.pack("<BHBII", 0x86, 9, 1, slot_base(slot), 0x1000)
        # Consumer, level-triggered, active high, exclusive; one interrupt.
        interrupt = struct.pack("<BHBBI", 0x89, 6, 1, 1, slot_gsi(slot))
        assert table.count(memory + interrupt) == 1
