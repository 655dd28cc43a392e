# SPDX-License-Identifier: MIT
"""Where virtio devices are: slots with fixed addresses and interrupts, some of them empty.

All slots are in the DSDT of every machine, so that its launch digest does not tell its disks. Each
has a page of MMIO space and an IOAPIC pin of its own behind those of the ISA interrupts.

Spec: VIRTIO 1.2, 4.2.2 (a device ID of 0 is a slot without a device).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from svsmd.host.dma import Dma
from svsmd.host.ioapic import IoApic
from svsmd.host.layout import VIRTIO_MMIO_BASE
from svsmd.host.mmio_bus import MmioBus
from svsmd.host.timers import TimerQueue
from svsmd.host.virtio_blk import BlockBackend, VirtioBlk
from svsmd.host.virtio_mmio import VirtioDevice, VirtioMmio, read_empty_slot
from svsmd.host.virtio_rng import VirtioRng
from svsmd.snp.entropy import EntropySource
from svsmd.snp.types import PAGE_SIZE

DISK_SLOTS: Final = 4
"""Disks that fit, in the slots from 0 on; the entropy device is in the one behind them."""
SLOTS: Final = DISK_SLOTS + 1
SLOT_SIZE: Final = PAGE_SIZE
FIRST_GSI: Final = 16


def slot_base(slot: int) -> int:
    """Guest-physical address of a slot's registers."""
    return VIRTIO_MMIO_BASE + slot * SLOT_SIZE


def slot_gsi(slot: int) -> int:
    """IOAPIC pin of a slot; level-triggered, active high."""
    return FIRST_GSI + slot


def fill_slots(
    mmio: MmioBus,
    ioapic: IoApic,
    dma: Dma,
    disks: Sequence[BlockBackend],
    entropy: EntropySource,
    timers: TimerQueue,
    now: Callable[[], int],
) -> None:
    """Puts disks and the entropy device into their slots.

    :raises ValueError: more than `DISK_SLOTS` disks (a mistake in the wiring).
    """
    if len(disks) > DISK_SLOTS:
        raise ValueError(f"{len(disks)} disks do not fit into {DISK_SLOTS} slots")
    devices: list[VirtioDevice | None] = [
        VirtioBlk(disk, b"svsmd-disk%d" % number) for number, disk in enumerate(disks)
    ]
    devices += [None] * (DISK_SLOTS - len(disks))
    devices.append(VirtioRng(entropy))
    for slot, device in enumerate(devices):
        if device is None:
            mmio.map_region(slot_base(slot), SLOT_SIZE, read_empty_slot, _ignore_write)
            continue
        transport = VirtioMmio(device, dma, ioapic.line(slot_gsi(slot)), timers, now)
        mmio.map_region(slot_base(slot), SLOT_SIZE, transport.read, transport.write)


def _ignore_write(_offset: int, _size: int, _value: int) -> None:
    """Nobody is there."""
