# SPDX-License-Identifier: MIT
"""The 8254 programmable interval timer and the system control port 0x61 of a PC.

Spec: Intel 82C54 data sheet (231244-006): control word, counter latch and read-back commands, modes
0 to 5; Intel ICH9 data sheet 13.7.1 (NMI status and control, port 0x61).
Channel 0 drives IRQ 0, channel 1 nothing, channel 2 the speaker, with its gate at port 0x61.
Deviations: a new count in modes 2 and 3 takes effect at once and not at the end of the period, and
loading takes no clock. Counters are functions of the machine's clock, not stepped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TICKS_PER_SECOND, TimerQueue

PIT_PORT: Final = 0x40
CONTROL_PORT: Final = 0x43
SYSTEM_CONTROL_PORT: Final = 0x61
PIT_HZ: Final = 1_193_182
MAX_COUNT: Final = 0x1_0000
BCD_MAX_COUNT: Final = 10_000
"""What a count of 0 stands for, in binary and in BCD."""
READ_BACK: Final = 3
"""Channel number that makes a control word a read-back command."""
REFRESH_TICKS: Final = 15_085
"""Half a period of the memory refresh bit: 18 clocks of the PIT."""


class Mode(IntEnum):
    """Counter modes."""

    TERMINAL_COUNT = 0
    ONE_SHOT = 1
    RATE_GENERATOR = 2
    SQUARE_WAVE = 3
    SOFTWARE_STROBE = 4
    HARDWARE_STROBE = 5


class Access(IntEnum):
    """RW bits of the control word."""

    LATCH = 0
    LOW_BYTE = 1
    HIGH_BYTE = 2
    BOTH = 3


class ReadBack(IntFlag):
    """Read-back command; COUNT and STATUS are active low."""

    CHANNEL_0 = 1 << 1
    STATUS_N = 1 << 4
    COUNT_N = 1 << 5


class SystemControl(IntFlag):
    """Port 0x61."""

    TIMER2_GATE = 1 << 0
    SPEAKER = 1 << 1
    REFRESH = 1 << 4
    TIMER2_OUT = 1 << 5
    WRITABLE = 0x0F


STATUS_OUT: Final = 1 << 7
STATUS_NULL_COUNT: Final = 1 << 6

_PERIODIC: Final = frozenset((Mode.RATE_GENERATOR, Mode.SQUARE_WAVE))
_GATE_TRIGGERED: Final = frozenset((Mode.ONE_SHOT, Mode.HARDWARE_STROBE))


def clocks_at(ticks: int) -> int:
    """Clocks of the PIT that have passed at *ticks* of the machine."""
    return ticks * PIT_HZ // TICKS_PER_SECOND


def ticks_at(clocks: int) -> int:
    """The first tick at which *clocks* of the PIT have passed."""
    return -(-clocks * TICKS_PER_SECOND // PIT_HZ)


def _from_bcd(value: int) -> int:
    return sum((value >> 4 * digit & 0xF) * 10**digit for digit in range(4))


def _to_bcd(value: int) -> int:
    return sum((value // 10**digit % 10) << 4 * digit for digit in range(4))


@dataclass(slots=True)
class ChannelState:
    """Everything of one counter."""

    mode: Mode = Mode.TERMINAL_COUNT
    access: Access = Access.BOTH
    bcd: bool = False
    gate: bool = True
    reload: int | None = None
    """Clocks per count, or None until a count has been written."""
    start: int | None = None
    """Clock of the PIT when counting started; None while the counter stands still."""
    elapsed: int = 0
    """Clocks counted when it stopped standing at a low gate."""
    low_byte: int | None = None
    """First byte of a two-byte count that is being written."""
    read_high_next: bool = False
    latched_count: int | None = None
    latched_status: int | None = None


class Channel:
    """One counter of the 8254."""

    def __init__(self, clock: Callable[[], int], changed: Callable[[], None]) -> None:
        # Runtime glue.
        self._clock = clock
        self._changed = changed
        # Volatile state.
        self.state = ChannelState()

    def control(self, access: Access, mode: Mode, bcd: bool) -> None:
        """A control word that programs this counter: it stops until a count is written."""
        self.state = ChannelState(mode=mode, access=access, bcd=bcd, gate=self.state.gate)
        self._changed()

    def write(self, value: int) -> None:
        """One byte of the count."""
        state = self.state
        if state.access is Access.LOW_BYTE:
            self._load(value)
        elif state.access is Access.HIGH_BYTE:
            self._load(value << 8)
        elif state.low_byte is None:
            state.low_byte = value
            if state.mode is Mode.TERMINAL_COUNT:
                # The first byte stops the count of mode 0 and takes OUT low.
                state.reload = state.start = None
                self._changed()
        else:
            low, state.low_byte = state.low_byte, None
            self._load(value << 8 | low)

    def read(self) -> int:
        """The latched status, or one byte of the latched or the running count."""
        state = self.state
        if state.latched_status is not None:
            status, state.latched_status = state.latched_status, None
            return status
        count = self.count() if state.latched_count is None else state.latched_count
        if state.access is Access.LOW_BYTE:
            state.latched_count = None
            return count & 0xFF
        if state.access is Access.HIGH_BYTE:
            state.latched_count = None
            return count >> 8
        high = state.read_high_next
        state.read_high_next = not high
        if high:
            state.latched_count = None
            return count >> 8
        return count & 0xFF

    def counting_down(self) -> tuple[int, int, bool] | None:
        """Start, count and whether the high byte is read next, of a binary mode 0 that counts.

        None while a read answers anything else than one byte of that in turn.
        """
        state = self.state
        if state.mode is not Mode.TERMINAL_COUNT or state.access is not Access.BOTH or state.bcd:
            return None
        if state.latched_status is not None or state.latched_count is not None:
            return None
        if state.reload is None or state.start is None:
            return None
        return state.start, state.reload, state.read_high_next

    def latch_count(self) -> None:
        """Counter latch command; a second one is ignored until the first has been read."""
        if self.state.latched_count is None:
            self.state.latched_count = self.count()

    def latch_status(self) -> None:
        """Read-back of the status byte."""
        state = self.state
        if state.latched_status is None:
            state.latched_status = (
                (STATUS_OUT if self.out() else 0)
                | (STATUS_NULL_COUNT if state.reload is None else 0)
                | state.access << 4
                | state.mode << 1
                | state.bcd
            )

    def set_gate(self, level: bool) -> None:
        """GATE goes high or low."""
        state = self.state
        if level == state.gate:
            return
        state.gate = level
        if state.reload is None:
            return
        if level:
            # A rising edge triggers modes 1 and 5, restarts 2 and 3, and continues 0 and 4.
            continues = state.mode in (Mode.TERMINAL_COUNT, Mode.SOFTWARE_STROBE)
            state.start = self._clock() - (state.elapsed if continues else 0)
        elif state.mode not in _GATE_TRIGGERED:
            state.elapsed = self._elapsed()
            state.start = None
        self._changed()

    def count(self) -> int:
        """The counting element as a guest reads it: 16 bits, BCD if so programmed."""
        state = self.state
        if state.reload is None:
            return 0
        elapsed = self._elapsed()
        if state.mode is Mode.SQUARE_WAVE:
            value = state.reload - 2 * elapsed % state.reload & ~1
        elif state.mode is Mode.RATE_GENERATOR:
            value = state.reload - elapsed % state.reload
        else:
            value = state.reload - elapsed
        if state.bcd:
            return _to_bcd(value % BCD_MAX_COUNT)
        return value & 0xFFFF

    def out(self) -> bool:
        """Level of OUT."""
        state = self.state
        if state.reload is None:
            return state.mode is not Mode.TERMINAL_COUNT
        if state.mode in _PERIODIC and not state.gate:
            return True
        elapsed = self._elapsed()
        match state.mode:
            case Mode.TERMINAL_COUNT:
                return elapsed >= state.reload
            case Mode.ONE_SHOT:
                return state.start is None or elapsed >= state.reload
            case Mode.RATE_GENERATOR:
                return elapsed % state.reload != state.reload - 1
            case Mode.SQUARE_WAVE:
                return elapsed % state.reload < (state.reload + 1) // 2
            case Mode.SOFTWARE_STROBE | Mode.HARDWARE_STROBE:
                return state.start is None or elapsed != state.reload

    def next_rise(self) -> int | None:
        """The next clock of the PIT (after now) at which OUT rises; None if it will not."""
        state = self.state
        if state.reload is None or state.start is None:
            return None
        elapsed = self._elapsed()
        if state.mode in _PERIODIC:
            return state.start + (elapsed // state.reload + 1) * state.reload
        end = state.reload
        if state.mode in (Mode.SOFTWARE_STROBE, Mode.HARDWARE_STROBE):
            end += 1
        return state.start + end if elapsed < end else None

    def _load(self, value: int) -> None:
        state = self.state
        if state.bcd:
            count = _from_bcd(value) or BCD_MAX_COUNT
        else:
            count = value or MAX_COUNT
        if state.mode in _PERIODIC:
            # A count of 1 is illegal in these modes.
            count = max(count, 2)
        state.reload = count
        state.elapsed = 0
        state.start = None
        if state.mode not in _GATE_TRIGGERED and state.gate:
            state.start = self._clock()
        self._changed()

    def _elapsed(self) -> int:
        start = self.state.start
        return self.state.elapsed if start is None else self._clock() - start


class Pit8254:
    """Three counters, the control port, and port 0x61."""

    def __init__(
        self, now: Callable[[], int], timers: TimerQueue, set_irq: Callable[[bool], None]
    ) -> None:
        # Runtime glue.
        self._now = now
        self._set_irq = set_irq
        self._timer = timers.timer(self._rise)
        self.channels = (
            Channel(self._clock, self._channel0_changed),
            Channel(self._clock, _nothing),
            Channel(self._clock, _nothing),
        )
        # Volatile state.
        self.control_bits = 0
        """Writable bits of port 0x61."""
        self.channels[2].state.gate = False

    def attach(self, bus: PortBus) -> None:
        """Puts the counters, the control word and port 0x61 at their ports."""
        for index, channel in enumerate(self.channels):
            bus.map_port(PIT_PORT + index, channel.read, channel.write)
        bus.map_port(CONTROL_PORT, None, self.write_control)
        bus.map_port(SYSTEM_CONTROL_PORT, self.read_system_control, self.write_system_control)

    def write_control(self, value: int) -> None:
        """Control word, counter latch or read-back command."""
        channel = value >> 6
        if channel == READ_BACK:
            for index, target in enumerate(self.channels):
                if not value & ReadBack.CHANNEL_0 << index:
                    continue
                if not value & ReadBack.COUNT_N:
                    target.latch_count()
                if not value & ReadBack.STATUS_N:
                    target.latch_status()
            return
        access = Access(value >> 4 & 3)
        if access is Access.LATCH:
            self.channels[channel].latch_count()
            return
        mode = value >> 1 & 7
        # 6 and 7 are other spellings of 2 and 3.
        self.channels[channel].control(
            access, Mode(mode if mode < 6 else mode - 4), bool(value & 1)
        )

    def read_system_control(self) -> int:
        """Port 0x61."""
        value = self.control_bits
        if self._now() // REFRESH_TICKS & 1:
            value |= SystemControl.REFRESH
        if self.channels[2].out():
            value |= SystemControl.TIMER2_OUT
        return value

    def write_system_control(self, value: int) -> None:
        """Port 0x61: bit 0 is the gate of channel 2."""
        self.control_bits = value & SystemControl.WRITABLE
        self.channels[2].set_gate(bool(value & SystemControl.TIMER2_GATE))

    def _clock(self) -> int:
        return clocks_at(self._now())

    def _channel0_changed(self) -> None:
        self._set_irq(self.channels[0].out())
        self._arm()

    def _rise(self) -> None:
        # The low phase may have been shorter than a time slice: the edge must be seen all the same.
        self._set_irq(False)
        self._set_irq(True)
        self._arm()

    def _arm(self) -> None:
        clock = self.channels[0].next_rise()
        if clock is None:
            self._timer.cancel()
        else:
            self._timer.arm(ticks_at(clock))


def _nothing() -> None:
    """Channels 1 and 2 are wired to nothing that looks at their edges."""
