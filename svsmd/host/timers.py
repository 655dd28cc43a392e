# SPDX-License-Identifier: MIT
"""Deadlines of the devices, in ticks of the machine's clock.

Spec: none (1 tick = 1 guest instruction = 1 ns of machine time). Deterministic: deadlines that fall
together run in the order in which they were armed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

TICKS_PER_SECOND: Final = 1_000_000_000
"""Nominal frequency of the clock and of the TSC."""
MIN_SWEEP: Final = 64
"""Entries of the heap below which stale ones do not matter."""


class Timer:
    """One timer of one device: idle, or armed for one deadline."""

    __slots__ = ("_callback", "_queue", "_seq", "deadline")

    def __init__(self, queue: TimerQueue, callback: Callable[[], None]) -> None:
        self._queue = queue
        self._callback = callback
        self._seq = 0
        self.deadline: int | None = None
        """Tick at which the callback runs, or None."""

    def arm(self, deadline: int) -> None:
        """Runs the callback at *deadline* (or at the next opportunity, if it has passed), once.

        An earlier deadline of this timer is forgotten.
        """
        self.deadline = deadline
        self._seq = self._queue._push(deadline, self)

    def cancel(self) -> None:
        """Forgets the deadline, if there is one."""
        self.deadline = None

    def _is_current(self, seq: int) -> bool:
        return self.deadline is not None and self._seq == seq

    def _fire(self) -> None:
        self.deadline = None
        self._callback()


class TimerQueue:
    """A heap of (deadline, sequence number, timer); cancelled ones are skipped as they surface."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._seq = 0
        self._sweep_at = MIN_SWEEP

    def timer(self, callback: Callable[[], None]) -> Timer:
        """A new idle timer."""
        return Timer(self, callback)

    @property
    def next_deadline(self) -> int | None:
        """The earliest armed deadline, in ticks."""
        heap = self._heap
        while heap:
            deadline, seq, timer = heap[0]
            if timer._is_current(seq):
                return deadline
            heapq.heappop(heap)
        return None

    def run_due(self, now: int) -> int:
        """Runs the callbacks of all deadlines up to *now*; returns how many.

        A timer that re-arms itself for *now* or earlier runs again only at the next call, so that
        a device cannot hold the machine up.
        """
        due: list[tuple[int, Timer]] = []
        while (deadline := self.next_deadline) is not None and deadline <= now:
            _, seq, timer = heapq.heappop(self._heap)
            due.append((seq, timer))
        count = 0
        for seq, timer in due:
            # An earlier callback of this round may have cancelled or re-armed it.
            if timer._is_current(seq):
                timer._fire()
                count += 1
        return count

    def _push(self, deadline: int, timer: Timer) -> int:
        self._seq += 1
        if len(self._heap) >= self._sweep_at:
            # Timers that are re-armed before they expire leave stale entries behind.
            self._heap = [entry for entry in self._heap if entry[2]._is_current(entry[1])]
            heapq.heapify(self._heap)
            self._sweep_at = max(MIN_SWEEP, 2 * len(self._heap))
        heapq.heappush(self._heap, (deadline, self._seq, timer))
        return self._seq
