# SPDX-License-Identifier: MIT
"""The pair of 8259A interrupt controllers of a PC.

Spec: Intel 8259A data sheet (231468-003): initialization and operation command words, fully nested
mode, rotation, polling; Intel ICH9 data sheet 13.4.12 (edge/level control, ports 0x4D0 and 0x4D1).
Deviations: MCS-80 mode, the special fully nested mode and buffered mode are not modelled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from svsmd.host.port_bus import PortBus

MASTER_PORT: Final = 0x20
SLAVE_PORT: Final = 0xA0
ELCR_PORT: Final = 0x4D0
CASCADE_IRQ: Final = 2
SPURIOUS_IRQ: Final = 7
LEVEL_CAPABLE: Final = (0xF8, 0xDE)
"""Inputs of master and slave that may be level-triggered: not 0, 1, 2, 8 and 13."""


class Icw1(IntFlag):
    """Initialization command word 1."""

    IC4 = 1 << 0
    SNGL = 1 << 1
    LTIM = 1 << 3
    INIT = 1 << 4


ICW4_AEOI: Final = 1 << 1


class Ocw3(IntFlag):
    """Operation command word 3."""

    RIS = 1 << 0
    RR = 1 << 1
    POLL = 1 << 2
    OCW3 = 1 << 3
    SMM = 1 << 5
    ESMM = 1 << 6


OCW2_LEVEL: Final = 0x07
OCW2_COMMAND_SHIFT: Final = 5
_EOI, _SPECIFIC_EOI, _ROTATE_EOI, _ROTATE_SPECIFIC_EOI = 1, 3, 5, 7
_SET_ROTATE_AEOI, _CLEAR_ROTATE_AEOI, _SET_PRIORITY = 4, 0, 6


@dataclass(slots=True)
class PicState:
    """Registers of one chip."""

    irr: int = 0
    isr: int = 0
    imr: int = 0
    lines: int = 0
    elcr: int = 0
    base: int = 0
    """Vector of input 0 (ICW2)."""
    lowest: int = 7
    """The input with the lowest priority."""
    expect: int = 0
    """ICW that the data port takes next: 2, 3, 4, or 0."""
    wants_icw4: bool = False
    auto_eoi: bool = False
    rotate_on_auto_eoi: bool = False
    special_mask: bool = False
    read_isr: bool = False
    poll: bool = False


class Pic8259:
    """One chip; `Pic8259Pair` wires two."""

    def __init__(self, level_capable: int, changed: Callable[[], None]) -> None:
        # Fixed configuration.
        self._level_capable = level_capable
        # Runtime glue.
        self._changed = changed
        # Volatile state.
        self.state = PicState()

    def set_irq(self, irq: int, level: bool) -> None:
        """Input *irq* (0 to 7) goes high or low."""
        state = self.state
        bit = 1 << irq
        if level:
            if state.elcr & bit or not state.lines & bit:
                state.irr |= bit
            state.lines |= bit
        else:
            state.lines &= ~bit
            # A request that goes away before it is acknowledged is spurious, edge or level.
            state.irr &= ~bit
        self._changed()

    def pending(self) -> int | None:
        """The input that asks for service now, or None."""
        state = self.state
        requests = state.irr & ~state.imr
        if not requests:
            return None
        in_service = state.isr & ~state.imr if state.special_mask else state.isr
        for step in range(1, 9):
            irq = state.lowest + step & 7
            bit = 1 << irq
            if in_service & bit:
                return None
            if requests & bit:
                return irq
        return None

    def acknowledge(self) -> int:
        """INTA: the input that gets served; 7 if the request has gone."""
        irq = self.pending()
        if irq is None:
            return SPURIOUS_IRQ
        state = self.state
        bit = 1 << irq
        if not state.elcr & bit:
            state.irr &= ~bit
        if not state.auto_eoi:
            state.isr |= bit
        elif state.rotate_on_auto_eoi:
            state.lowest = irq
        self._changed()
        return irq

    def read_command(self) -> int:
        """IRR, ISR, or the answer to a poll."""
        state = self.state
        if state.poll:
            state.poll = False
            irq = self.pending()
            return 0 if irq is None else self.acknowledge() | 0x80
        return state.isr if state.read_isr else state.irr

    def write_command(self, value: int) -> None:
        """ICW1, OCW2 or OCW3."""
        if value & Icw1.INIT:
            self._initialize(value)
        elif value & Ocw3.OCW3:
            self._operate(value)
        else:
            self._end_of_interrupt(value >> OCW2_COMMAND_SHIFT, value & OCW2_LEVEL)
        self._changed()

    def read_data(self) -> int:
        """IMR."""
        return self.state.imr

    def write_data(self, value: int) -> None:
        """IMR, or the initialization word that comes next."""
        state = self.state
        if state.expect == 2:
            state.base = value & 0xF8
            state.expect = 3
        elif state.expect == 3:
            # The cascade is wired; what the word says about it is not needed.
            state.expect = 4 if state.wants_icw4 else 0
        elif state.expect == 4:
            state.auto_eoi = bool(value & ICW4_AEOI)
            state.expect = 0
        else:
            state.imr = value
        self._changed()

    def read_elcr(self) -> int:
        """Edge/level control."""
        return self.state.elcr

    def write_elcr(self, value: int) -> None:
        """Edge/level control: a one makes the input level-triggered."""
        self.state.elcr = value & self._level_capable
        self._changed()

    def _initialize(self, icw1: int) -> None:
        old = self.state
        # The edge detectors start anew: only level-triggered lines keep their requests.
        self.state = PicState(
            irr=old.lines & old.elcr,
            lines=old.lines,
            elcr=old.elcr,
            base=old.base,
            expect=2,
            wants_icw4=bool(icw1 & Icw1.IC4),
        )

    def _operate(self, ocw3: int) -> None:
        state = self.state
        if ocw3 & Ocw3.POLL:
            state.poll = True
        if ocw3 & Ocw3.RR:
            state.read_isr = bool(ocw3 & Ocw3.RIS)
        if ocw3 & Ocw3.ESMM:
            state.special_mask = bool(ocw3 & Ocw3.SMM)

    def _end_of_interrupt(self, command: int, level: int) -> None:
        state = self.state
        if command in (_EOI, _ROTATE_EOI):
            highest = self._highest_in_service()
            if highest is None:
                return
            state.isr &= ~(1 << highest)
            if command == _ROTATE_EOI:
                state.lowest = highest
        elif command in (_SPECIFIC_EOI, _ROTATE_SPECIFIC_EOI):
            state.isr &= ~(1 << level)
            if command == _ROTATE_SPECIFIC_EOI:
                state.lowest = level
        elif command == _SET_PRIORITY:
            state.lowest = level
        elif command in (_SET_ROTATE_AEOI, _CLEAR_ROTATE_AEOI):
            state.rotate_on_auto_eoi = command == _SET_ROTATE_AEOI

    def _highest_in_service(self) -> int | None:
        for step in range(1, 9):
            irq = self.state.lowest + step & 7
            if self.state.isr & 1 << irq:
                return irq
        return None


class Pic8259Pair:
    """Master and slave; the output goes to LINT0 of the boot CPU's local APIC as ExtINT."""

    def __init__(self, set_intr: Callable[[bool], None]) -> None:
        # Runtime glue.
        self._set_intr = set_intr
        self.master = Pic8259(LEVEL_CAPABLE[0], self._master_changed)
        self.slave = Pic8259(LEVEL_CAPABLE[1], self._slave_changed)
        # Volatile state.
        self.intr = False

    def attach(self, bus: PortBus) -> None:
        """Puts both chips and the edge/level registers at their ports."""
        for index, (port, chip) in enumerate(
            ((MASTER_PORT, self.master), (SLAVE_PORT, self.slave))
        ):
            bus.map_port(port, chip.read_command, chip.write_command)
            bus.map_port(port + 1, chip.read_data, chip.write_data)
            bus.map_port(ELCR_PORT + index, chip.read_elcr, chip.write_elcr)

    def set_irq(self, irq: int, level: bool) -> None:
        """ISA interrupt *irq* (0 to 15, 2 is the cascade) goes high or low."""
        if irq >= 8:
            self.slave.set_irq(irq - 8, level)
        elif irq != CASCADE_IRQ:
            self.master.set_irq(irq, level)

    def peek(self) -> int:
        """The vector that `acknowledge` would return."""
        irq = self.master.pending()
        if irq is None:
            return self.master.state.base + SPURIOUS_IRQ
        if irq != CASCADE_IRQ:
            return self.master.state.base + irq
        slave_irq = self.slave.pending()
        return self.slave.state.base + (SPURIOUS_IRQ if slave_irq is None else slave_irq)

    def acknowledge(self) -> int:
        """INTA cycle: the vector of the interrupt that is served."""
        irq = self.master.acknowledge()
        if irq == CASCADE_IRQ:
            slave_irq = self.slave.acknowledge()
            # The slave drops its output at INTA; what it has left makes a new edge.
            self.master.set_irq(CASCADE_IRQ, False)
            self._slave_changed()
            return self.slave.state.base + slave_irq
        return self.master.state.base + irq

    def _slave_changed(self) -> None:
        self.master.set_irq(CASCADE_IRQ, self.slave.pending() is not None)

    def _master_changed(self) -> None:
        intr = self.master.pending() is not None
        if intr != self.intr:
            self.intr = intr
            self._set_intr(intr)
