# SPDX-License-Identifier: MIT
"""A 16550A serial port: COM1 of the machine.

Spec: National Semiconductor PC16550D data sheet (June 1995), section 8 (registers); section and
table numbers below are that document's. Gating of the IRQ by OUT2 is the PC's wiring.
Deviations: characters take no time on the line. Hence the transmitter is always empty again at
once, and the character timeout is signalled as soon as the FIFO is below its trigger level.
Parity, framing and break errors do not occur.

What is typed on the host waits in an unbounded buffer, the "other end of the line", and moves into
the receiver only while the guest listens: it asserts RTS, enables the receive interrupt, or polls
LSR `LISTENING_POLLS` times with nothing else in between (firmware that never sets RTS). So nothing
typed before or between two drivers is lost, and the receiver never overruns but in loopback.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Final

from svsmd.host.port_bus import PortBus

COM1_PORT: Final = 0x3F8
COM1_IRQ: Final = 4
UART_PORTS: Final = 8
FIFO_SIZE: Final = 16
LISTENING_POLLS: Final = 4
TRIGGER_LEVELS: Final = (1, 4, 8, 14)
"""Receiver trigger levels by FCR[7:6]."""
_BYTES: Final = tuple(bytes((value,)) for value in range(256))


class Ier(IntFlag):
    """Interrupt enable register (8.6)."""

    ERBFI = 1 << 0
    ETBEI = 1 << 1
    ELSI = 1 << 2
    EDSSI = 1 << 3
    ALL = 0x0F


class Iir(IntEnum):
    """Interrupt identification (table IV), highest priority first, `NONE` last."""

    RECEIVER_LINE_STATUS = 0x06
    RECEIVED_DATA = 0x04
    CHARACTER_TIMEOUT = 0x0C
    TRANSMITTER_EMPTY = 0x02
    MODEM_STATUS = 0x00
    NONE = 0x01


IIR_FIFO_ENABLED: Final = 0xC0


class Fcr(IntFlag):
    """FIFO control register (8.4), without the trigger level in bits 7:6."""

    ENABLE = 1 << 0
    RECEIVER_RESET = 1 << 1


FCR_TRIGGER_SHIFT: Final = 6
LCR_DLAB: Final = 1 << 7
"""Divisor latch access bit (8.1)."""


class Mcr(IntFlag):
    """Modem control register (8.7)."""

    DTR = 1 << 0
    RTS = 1 << 1
    OUT1 = 1 << 2
    OUT2 = 1 << 3
    LOOP = 1 << 4
    ALL = 0x1F


class Lsr(IntFlag):
    """Line status register (8.3)."""

    DR = 1 << 0
    OE = 1 << 1
    THRE = 1 << 5
    TEMT = 1 << 6


class Msr(IntFlag):
    """Modem status register (8.8)."""

    DCTS = 1 << 0
    DDSR = 1 << 1
    TERI = 1 << 2
    DDCD = 1 << 3
    CTS = 1 << 4
    DSR = 1 << 5
    RI = 1 << 6
    DCD = 1 << 7


_PEER_PRESENT: Final = int(Msr.CTS | Msr.DSR | Msr.DCD)
_MSR_DELTAS: Final = 0x0F
# Plain ints for the paths that run for every character.
_LSR_EMPTY: Final = int(Lsr.THRE | Lsr.TEMT)
_LSR_DR: Final = int(Lsr.DR)
_MCR_LOOP: Final = int(Mcr.LOOP)
_MCR_RTS: Final = int(Mcr.RTS)
_IER_ERBFI: Final = int(Ier.ERBFI)
_IER_ETBEI: Final = int(Ier.ETBEI)


@dataclass(slots=True)
class UartState:
    """Everything that a reset or a snapshot of the chip and its line is about."""

    ier: int = 0
    lcr: int = 0
    mcr: int = 0
    scr: int = 0
    divisor: int = 0
    modem: int = _PEER_PRESENT
    """MSR as the guest will read it: lines and deltas."""
    fifo_enabled: bool = False
    trigger: int = 1
    overrun: bool = False
    transmitter_interrupt: bool = False
    """THR became empty, and IIR has not been read since."""
    irq: bool = False
    polls: int = 0
    """LSR reads since any other register was touched."""
    receiver: deque[int] = field(default_factory=deque)
    """The receiver FIFO, or RBR if FIFOs are off."""
    line: deque[int] = field(default_factory=deque)
    """Characters typed on the host that the guest has not been sent yet."""


class Uart16550:
    """The chip and its wiring."""

    def __init__(self, set_irq: Callable[[bool], None], on_tx: Callable[[bytes], None]) -> None:
        # Runtime glue.
        self._set_irq = set_irq
        self._on_tx = on_tx
        # Volatile state.
        self.state = UartState()

    def attach(self, bus: PortBus, base: int = COM1_PORT) -> None:
        """Puts the eight registers at *base*."""
        registers = (
            (self.read_data, self.write_data),
            (self.read_ier, self.write_ier),
            (self.read_iir, self.write_fcr),
            (self.read_lcr, self.write_lcr),
            (self.read_mcr, self.write_mcr),
            (self.read_lsr, None),
            (self.read_msr, None),
            (self.read_scr, self.write_scr),
        )
        for offset, (read, write) in enumerate(registers):
            bus.map_port(base + offset, read, write)

    def reset(self) -> None:
        """Master reset (table I); what waits on the line stays there."""
        line = self.state.line
        irq = self.state.irq
        self.state = UartState(line=line)
        if irq:
            self._set_irq(False)

    # The host's end of the line

    def receive(self, data: bytes) -> None:
        """Sends *data* to the guest, as soon as it listens."""
        self.state.line.extend(data)
        self._refill()

    @property
    def waiting(self) -> int:
        """Characters typed that the guest has not read."""
        return len(self.state.line) + len(self.state.receiver)

    def quiet_line(self) -> tuple[int, int] | None:
        """What LSR reads as, and the polls so far.

        None while reading LSR or writing THR does more than to count polls and to send.
        """
        state = self.state
        if state.line or state.overrun or state.ier & _IER_ETBEI:
            return None
        if state.lcr & LCR_DLAB or state.mcr & _MCR_LOOP:
            return None
        return _LSR_EMPTY | _LSR_DR if state.receiver else _LSR_EMPTY, state.polls

    def line_was_used(self, sent: bytes, polls: int) -> None:
        """Somebody answered for a quiet line: what was written to THR, and the polls now."""
        if sent:
            self._on_tx(sent)
            self.state.transmitter_interrupt = True
        self.state.polls = polls

    # Registers

    def read_data(self) -> int:
        """RBR, or DLL."""
        state = self.state
        if state.lcr & LCR_DLAB:
            return state.divisor & 0xFF
        state.polls = 0
        if not state.receiver:
            return 0
        value = state.receiver.popleft()
        self._refill()
        return value

    def write_data(self, value: int) -> None:
        """THR, or DLL."""
        state = self.state
        if state.lcr & LCR_DLAB:
            state.divisor = state.divisor & 0xFF00 | value
            return
        state.polls = 0
        if state.ier & _IER_ETBEI and state.transmitter_interrupt:
            # The request goes away with the write and comes back when the character is out: an
            # edge-triggered interrupt controller has to see both.
            state.transmitter_interrupt = False
            self._update()
        if state.mcr & _MCR_LOOP:
            self._loop_back(value)
        else:
            self._on_tx(_BYTES[value])
        state.transmitter_interrupt = True
        if state.ier:
            self._update()

    def read_ier(self) -> int:
        """IER, or DLM."""
        state = self.state
        return state.divisor >> 8 if state.lcr & LCR_DLAB else state.ier

    def write_ier(self, value: int) -> None:
        """IER, or DLM."""
        state = self.state
        if state.lcr & LCR_DLAB:
            state.divisor = value << 8 | state.divisor & 0xFF
            return
        value &= Ier.ALL
        if value & _IER_ETBEI and not state.ier & _IER_ETBEI:
            # THR is empty, and enabling its interrupt says so at once; drivers count on it.
            state.transmitter_interrupt = True
        state.ier = value
        state.polls = 0
        self._refill()

    def read_iir(self) -> int:
        """IIR; reading it takes back the transmitter's request if it is the one reported (8.5)."""
        state = self.state
        state.polls = 0
        source = self._source()
        if source is Iir.TRANSMITTER_EMPTY:
            state.transmitter_interrupt = False
            self._update()
        return source | IIR_FIFO_ENABLED if state.fifo_enabled else source.value

    def write_fcr(self, value: int) -> None:
        """FCR: switching the FIFOs on or off empties them."""
        state = self.state
        enable = bool(value & Fcr.ENABLE)
        if enable != state.fifo_enabled or value & Fcr.RECEIVER_RESET:
            state.receiver.clear()
        state.fifo_enabled = enable
        state.trigger = TRIGGER_LEVELS[value >> FCR_TRIGGER_SHIFT] if enable else 1
        state.polls = 0
        self._refill()

    def read_lcr(self) -> int:
        """LCR."""
        return self.state.lcr

    def write_lcr(self, value: int) -> None:
        """LCR; only DLAB has an effect."""
        self.state.lcr = value

    def read_mcr(self) -> int:
        """MCR."""
        return self.state.mcr

    def write_mcr(self, value: int) -> None:
        """MCR: in loopback its outputs become the modem's lines (8.7)."""
        state = self.state
        state.mcr = value & Mcr.ALL
        state.polls = 0
        lines = _looped_lines(state.mcr) if state.mcr & _MCR_LOOP else _PEER_PRESENT
        changed = state.modem ^ lines
        deltas = state.modem & _MSR_DELTAS
        for line, delta in ((Msr.CTS, Msr.DCTS), (Msr.DSR, Msr.DDSR), (Msr.DCD, Msr.DDCD)):
            if changed & line:
                deltas |= delta
        if changed & Msr.RI and not lines & Msr.RI:
            deltas |= Msr.TERI
        state.modem = lines | deltas
        self._refill()

    def read_lsr(self) -> int:
        """LSR; reading it clears the overrun error."""
        state = self.state
        state.polls += 1
        if state.line and state.polls >= LISTENING_POLLS:
            self._refill()
        value = _LSR_EMPTY | _LSR_DR if state.receiver else _LSR_EMPTY
        if state.overrun:
            state.overrun = False
            value |= Lsr.OE
            self._update()
        return value

    def read_msr(self) -> int:
        """MSR; reading it clears the deltas."""
        state = self.state
        state.polls = 0
        value = state.modem
        if value & _MSR_DELTAS:
            state.modem = value & ~_MSR_DELTAS
            self._update()
        return value

    def read_scr(self) -> int:
        """Scratch register."""
        return self.state.scr

    def write_scr(self, value: int) -> None:
        """Scratch register."""
        self.state.scr = value

    # Inside

    def _loop_back(self, value: int) -> None:
        state = self.state
        if state.fifo_enabled:
            if len(state.receiver) < FIFO_SIZE:
                state.receiver.append(value)
            else:
                # The character in the shift register is lost, the FIFO stays (8.3, OE).
                state.overrun = True
        else:
            state.overrun = state.overrun or bool(state.receiver)
            state.receiver.clear()
            state.receiver.append(value)

    def _refill(self) -> None:
        """Moves waiting characters into the receiver, if the guest listens, and updates the IRQ."""
        state = self.state
        if state.line and not state.mcr & _MCR_LOOP and self._listens():
            room = FIFO_SIZE if state.fifo_enabled else 1
            while state.line and len(state.receiver) < room:
                state.receiver.append(state.line.popleft())
        self._update()

    def _listens(self) -> bool:
        state = self.state
        return bool(
            state.mcr & _MCR_RTS or state.ier & _IER_ERBFI or state.polls >= LISTENING_POLLS
        )

    def _source(self) -> Iir:
        """The highest request that is enabled (table IV)."""
        state = self.state
        ier = state.ier
        if ier & Ier.ELSI and state.overrun:
            return Iir.RECEIVER_LINE_STATUS
        if ier & _IER_ERBFI and state.receiver:
            if len(state.receiver) >= state.trigger:
                return Iir.RECEIVED_DATA
            return Iir.CHARACTER_TIMEOUT
        if ier & _IER_ETBEI and state.transmitter_interrupt:
            return Iir.TRANSMITTER_EMPTY
        if ier & Ier.EDSSI and state.modem & _MSR_DELTAS:
            return Iir.MODEM_STATUS
        return Iir.NONE

    def _update(self) -> None:
        state = self.state
        wired = state.mcr & (Mcr.OUT2 | Mcr.LOOP) == Mcr.OUT2
        irq = wired and self._source() is not Iir.NONE
        if irq != state.irq:
            state.irq = irq
            self._set_irq(irq)


def _looped_lines(mcr: int) -> int:
    lines = 0
    for output, line in (
        (Mcr.RTS, Msr.CTS),
        (Mcr.DTR, Msr.DSR),
        (Mcr.OUT1, Msr.RI),
        (Mcr.OUT2, Msr.DCD),
    ):
        if mcr & output:
            lines |= line
    return lines
