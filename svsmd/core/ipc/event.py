# SPDX-License-Identifier: MIT
"""Events: flags that are set and cleared, and waited for.

Spec: none.
"""

from __future__ import annotations

from typing import Final

from svsmd.core.ipc.objects import IpcObject, Ready, Undertaker, Waker
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota

EVENT_PAGES: Final = 1


class Event(IpcObject):
    """A flag that may have handles in several processes."""

    movable = True
    duplicable = True

    def __init__(
        self, waker: Waker, undertaker: Undertaker, quota: Quota, *, signaled: bool
    ) -> None:
        super().__init__(waker, undertaker, quota, EVENT_PAGES)
        self._signaled = signaled

    @property
    def ready(self) -> Ready:
        """SIGNALED, until somebody clears it."""
        return Ready.SIGNALED if self._signaled else Ready.NONE

    def signal(self, cpu: PerCpu) -> None:
        """Set it; who waits goes on."""
        self._signaled = True
        self.changed(cpu)

    def clear(self) -> None:
        """Clear it."""
        self._signaled = False
