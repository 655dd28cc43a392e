# SPDX-License-Identifier: MIT
"""The machine's clock: ticks, one for each instruction that any vCPU retires.

Ticks are what RDTSC returns and what every timer counts, at a nominal 1 GHz. While all vCPUs are
halted the clock jumps. Nothing else moves it, so a run depends on its inputs alone.
"""

from __future__ import annotations

from typing import Final, Protocol

TICKS_PER_SECOND: Final = 1_000_000_000
"""Frequency of the TSC in hertz."""


class TickCounter(Protocol):
    """Where the engine counts."""

    ticks: int


class Clock:
    """The one clock of a machine."""

    def __init__(self, counter: TickCounter) -> None:
        self._counter = counter

    @property
    def now(self) -> int:
        """Ticks since power-on."""
        return self._counter.ticks

    def advance(self, ticks: int) -> None:
        """Lets time pass without instructions: an idle machine, or work that costs time."""
        if ticks < 0:
            raise ValueError("time does not run backwards")
        self._counter.ticks += ticks
