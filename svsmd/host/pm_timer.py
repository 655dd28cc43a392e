# SPDX-License-Identifier: MIT
"""The ACPI power management timer: a 32-bit counter of 3.579545 MHz.

Spec: ACPI 6.5, 4.8.3.3. Deviations: the carry event (TMR_STS) is not raised: there is no SCI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from svsmd.host.port_bus import PortBus
from svsmd.host.timers import TICKS_PER_SECOND

PM_TIMER_PORT: Final = 0x608
PM_TIMER_HZ: Final = 3_579_545


class PmTimer:
    """A function of the clock; there is no state."""

    def __init__(self, now: Callable[[], int]) -> None:
        # Runtime glue.
        self._now = now

    def attach(self, bus: PortBus) -> None:
        """Puts the counter at its port, for 32-bit reads; writes are ignored."""
        bus.map_port(PM_TIMER_PORT, self.read, None, 4)

    def read(self) -> int:
        """The counter."""
        return self._now() * PM_TIMER_HZ // TICKS_PER_SECOND & 0xFFFF_FFFF
