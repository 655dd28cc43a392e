# SPDX-License-Identifier: MIT
"""Which vCPU runs next: round robin with a time slice, the same every time.

Spec: none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from svsmd.host.vcpu import Vcpu

DEFAULT_TIME_SLICE: Final = 1_000_000
"""Ticks that a vCPU runs before the next one that can run gets its turn: 1 ms."""


class Scheduler:
    """Round robin over `vcpus`, which are ordered by index.

    A vCPU keeps its turn until its slice of `time_slice` ticks is over or it has nothing to run.
    Nothing but the order of the calls and the clock decides, so that runs repeat exactly.
    """

    def __init__(self, vcpus: Sequence[Vcpu], time_slice: int = DEFAULT_TIME_SLICE) -> None:
        """ValueError if `vcpus` is empty or `time_slice` is not positive."""
        if not vcpus:
            raise ValueError("a machine has one vCPU at least")
        if time_slice <= 0:
            raise ValueError(f"a time slice of {time_slice} ticks is not positive")
        # Fixed configuration.
        self._vcpus: Final = tuple(vcpus)
        self._time_slice: Final = time_slice
        # Volatile state.
        self._turn = 0
        self._slice_end = 0

    @property
    def turn(self) -> int:
        """Index of the vCPU whose turn it is."""
        return self._turn

    def peek(self, now: int) -> Vcpu | None:
        """Return the vCPU that `pick` would return now."""
        vcpu = self._vcpus[self._turn]
        if now < self._slice_end and vcpu.can_run():
            return vcpu
        count = len(self._vcpus)
        # The one whose slice is over comes last, so that it goes on if it is alone.
        for step in range(1, count + 1):
            vcpu = self._vcpus[(self._turn + step) % count]
            if vcpu.can_run():
                return vcpu
        return None

    def pick(self, now: int) -> tuple[Vcpu, int] | None:
        """Return the vCPU that runs at `now` and when its slice ends; None if all are halted."""
        vcpu = self.peek(now)
        if vcpu is None:
            return None
        if vcpu.index != self._turn or now >= self._slice_end:
            self._turn = vcpu.index
            self._slice_end = now + self._time_slice
        return vcpu, self._slice_end
