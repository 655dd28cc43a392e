# SPDX-License-Identifier: MIT
"""The I/O APIC: 24 interrupt pins, routed to local APICs as messages.

Spec: Intel 82093AA data sheet (290566): IOREGSEL, IOWIN, identification, version, arbitration,
redirection table; Intel ICH9 data sheet 13.5 (version 0x20, EOI register).
Deviations: the arbitration bus is not modelled; a remote IRR of a pin is cleared by the EOI of any
local APIC for the pin's vector, as on the system bus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

from svsmd.host.layout import IOAPIC_BASE
from svsmd.host.mmio_bus import MmioBus
from svsmd.snp.types import PAGE_SIZE

PINS: Final = 24
IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
EOIR: Final = 0x40
VERSION: Final = 0x20 | (PINS - 1) << 16


class Index(IntEnum):
    """Indirect registers."""

    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    REDIRECTION = 0x10


VECTOR: Final = 0xFF
DELIVERY_MODE_SHIFT: Final = 8
LOGICAL: Final = 1 << 11
ACTIVE_LOW: Final = 1 << 13
REMOTE_IRR: Final = 1 << 14
LEVEL_TRIGGERED: Final = 1 << 15
MASKED: Final = 1 << 16
DESTINATION_SHIFT: Final = 56
_WRITABLE: Final = 0xFF00_0000_0001_AFFF
_ID_MASK: Final = 0x0F00_0000
_EXT_INT: Final = 7
_LOW: Final = 0xFFFF_FFFF


class MessageBus(Protocol):
    """Where the messages go: `svsmd.host.local_apic.ApicBus`."""

    def send_message(
        self, destination: int, logical: bool, mode: int, vector: int, level_triggered: bool
    ) -> None:
        """One interrupt message."""


@dataclass(slots=True)
class IoApicState:
    """Registers and input levels."""

    select: int = 0
    id: int = 0
    redirection: list[int] = field(default_factory=lambda: [MASKED] * PINS)
    lines: int = 0
    """Levels of the pins, before polarity."""


class IoApic:
    """The chip."""

    def __init__(self, bus: MessageBus) -> None:
        # Runtime glue.
        self._bus = bus
        # Volatile state.
        self.state = IoApicState()

    def attach(self, bus: MmioBus, base: int = IOAPIC_BASE) -> None:
        """Puts the registers at *base*."""
        bus.map_region(base, PAGE_SIZE, self.read, self.write)

    def line(self, pin: int) -> Callable[[bool], None]:
        """The input *pin* as a function of its level, for the device that drives it."""

        def set_line(level: bool) -> None:
            self.set_irq(pin, level)

        return set_line

    def set_irq(self, pin: int, level: bool) -> None:
        """Pin goes to *level* (True is asserted; polarity bits change nothing, as in any emulator:
        the device and the table describe the same wire)."""
        state = self.state
        bit = 1 << pin
        rising = level and not state.lines & bit
        state.lines = state.lines | bit if level else state.lines & ~bit
        entry = state.redirection[pin]
        if entry & LEVEL_TRIGGERED:
            if level:
                self._service(pin)
        elif rising:
            # An edge on a masked pin is lost, as the data sheet says (3.2.4, interrupt mask).
            self._send(entry)

    def end_of_interrupt(self, vector: int) -> None:
        """EOI broadcast: level-triggered pins that are still asserted fire again."""
        for pin, entry in enumerate(self.state.redirection):
            if entry & VECTOR == vector and entry & REMOTE_IRR:
                self.state.redirection[pin] = entry & ~REMOTE_IRR
                self._service(pin)

    def read(self, offset: int, size: int) -> int:
        """MMIO read; registers are 32 bits wide, the rest of the page reads as zero."""
        if size != 4:
            return 0
        if offset == IOREGSEL:
            return self.state.select
        if offset == IOWIN:
            return self._read_register(self.state.select)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """MMIO write; only 32-bit accesses of the registers have an effect (but 8-bit selects)."""
        if offset == IOREGSEL:
            self.state.select = value & 0xFF
        elif size != 4:
            return
        elif offset == IOWIN:
            self._write_register(self.state.select, value)
        elif offset == EOIR:
            self.end_of_interrupt(value & VECTOR)

    def _read_register(self, index: int) -> int:
        state = self.state
        if index in (Index.ID, Index.ARBITRATION):
            return state.id
        if index == Index.VERSION:
            return VERSION
        pin, high = divmod(index - Index.REDIRECTION, 2)
        if 0 <= pin < PINS:
            return state.redirection[pin] >> (32 if high else 0) & _LOW
        return 0

    def _write_register(self, index: int, value: int) -> None:
        state = self.state
        if index == Index.ID:
            state.id = value & _ID_MASK
            return
        pin, high = divmod(index - Index.REDIRECTION, 2)
        if not 0 <= pin < PINS:
            return
        old = state.redirection[pin]
        entry = old & _LOW | value << 32 if high else old & ~_LOW | value
        entry = entry & _WRITABLE | old & REMOTE_IRR
        if not entry & LEVEL_TRIGGERED:
            # Remote IRR has no meaning for edges, and drivers clear it by switching the mode.
            entry &= ~REMOTE_IRR
        state.redirection[pin] = entry
        if entry & LEVEL_TRIGGERED:
            self._service(pin)

    def _service(self, pin: int) -> None:
        """Sends the interrupt of a level-triggered pin, unless its last one has not ended yet."""
        state = self.state
        entry = state.redirection[pin]
        if state.lines & 1 << pin and not entry & (MASKED | REMOTE_IRR):
            state.redirection[pin] = entry | REMOTE_IRR
            self._send(entry)

    def _send(self, entry: int) -> None:
        mode = entry >> DELIVERY_MODE_SHIFT & 7
        # ExtINT goes nowhere from here: the 8259 pair is wired to LINT0 and not to pin 0.
        if entry & MASKED or mode == _EXT_INT:
            return
        self._bus.send_message(
            entry >> DESTINATION_SHIFT,
            bool(entry & LOGICAL),
            mode,
            entry & VECTOR,
            bool(entry & LEVEL_TRIGGERED),
        )
