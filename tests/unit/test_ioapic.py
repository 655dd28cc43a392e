# SPDX-License-Identifier: MIT
"""The I/O APIC: registers, edge and level pins, masking."""

import pytest

from svsmd.host.ioapic import IoApic
from svsmd.host.mmio_bus import MmioBus

BASE = 0xFEC0_0000
LEVEL, MASKED, LOGICAL = 1 << 15, 1 << 16, 1 << 11


class Chip:
    """An IOAPIC as its driver sees it; messages are recorded."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, bool, int, int, bool]] = []
        self.ioapic = IoApic(self)
        self.bus = MmioBus()
        self.ioapic.attach(self.bus)

    def send_message(
        self, destination: int, logical: bool, mode: int, vector: int, level_triggered: bool
    ) -> None:
        self.sent.append((destination, logical, mode, vector, level_triggered))

    def __getitem__(self, index: int) -> int:
        self.bus.write(BASE, 4, index)
        return self.bus.read(BASE + 0x10, 4)

    def __setitem__(self, index: int, value: int) -> None:
        self.bus.write(BASE, 4, index)
        self.bus.write(BASE + 0x10, 4, value)

    def route(self, pin: int, entry: int) -> None:
        self[0x11 + 2 * pin] = entry >> 32
        self[0x10 + 2 * pin] = entry & 0xFFFF_FFFF


@pytest.fixture
def chip() -> Chip:
    return Chip()


def test_identification(chip):
    assert chip[1] == 0x170020
    assert chip[0x10] == MASKED
    assert chip[0x3F] == 0
    assert chip[0x40] == 0
    assert chip[0x0F] == 0
    chip[0] = 0xFFFF_FFFF
    assert chip[0] == chip[2] == 0x0F00_0000
    chip[1] = 0
    assert chip[1] == 0x170020
    assert chip.bus.read(BASE + 0x20, 4) == 0


def test_read_only_bits_stay(chip):
    chip[0x10] = 0xFFFF_FFFF
    assert chip[0x10] == 0x0001_AFFF
    chip[0x11] = 0xFFFF_FFFF
    assert chip[0x11] == 0xFF00_0000


def test_edges_are_sent_once_each(chip):
    chip.route(4, 2 << 56 | LOGICAL | 0x34)
    line = chip.ioapic.line(4)
    line(True)
    line(True)
    line(False)
    line(True)
    assert chip.sent == [(2, True, 0, 0x34, False)] * 2


def test_edge_on_a_masked_pin_is_lost(chip):
    chip.route(4, MASKED | 0x34)
    chip.ioapic.set_irq(4, True)
    chip.route(4, 0x34)
    assert not chip.sent
    chip.ioapic.set_irq(4, False)
    chip.ioapic.set_irq(4, True)
    assert chip.sent == [(0, False, 0, 0x34, False)]


def test_ext_int_entries_go_nowhere(chip):
    chip.route(0, 7 << 8)
    chip.ioapic.set_irq(0, True)
    assert not chip.sent


def test_switching_to_edge_mode_clears_remote_irr(chip):
    chip.route(9, LEVEL | 0x59)
    chip.ioapic.set_irq(9, True)
    chip[0x10 + 18] = MASKED | 0x59
    assert not chip[0x10 + 18] & 1 << 14
    chip[0x10 + 18] = LEVEL | 0x59
    assert len(chip.sent) == 2


def test_level_pin_waits_for_eoi(chip):
    chip.route(9, LEVEL | 0x59)
    chip.ioapic.set_irq(9, True)
    chip.ioapic.set_irq(9, True)
    assert len(chip.sent) == 1
    assert chip[0x10 + 18] & 1 << 14
    chip.ioapic.end_of_interrupt(0x58)
    assert len(chip.sent) == 1
    chip.ioapic.end_of_interrupt(0x59)
    assert len(chip.sent) == 2  # the line is still up
    chip.ioapic.set_irq(9, False)
    chip.bus.write(BASE + 0x40, 4, 0x59)
    assert len(chip.sent) == 2
    assert not chip[0x10 + 18] & 1 << 14


def test_level_pin_fires_when_it_is_unmasked(chip):
    chip.route(9, MASKED | LEVEL | 0x59)
    chip.ioapic.set_irq(9, True)
    chip.ioapic.set_irq(9, False)
    chip.route(9, LEVEL | 0x59)
    assert not chip.sent
    chip.route(9, MASKED | LEVEL | 0x59)
    chip.ioapic.set_irq(9, True)
    chip.route(9, LEVEL | 0x59)
    assert chip.sent == [(0, False, 0, 0x59, True)]


def test_only_dword_accesses_count(chip):
    chip.bus.write(BASE, 4, 0x10)
    chip.bus.write(BASE + 0x10, 1, 0)
    assert chip[0x10] == MASKED
    assert chip.bus.read(BASE + 0x10, 2) == 0
