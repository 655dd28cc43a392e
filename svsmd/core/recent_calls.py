# SPDX-License-Identifier: MIT
"""The guest's last calls, for whoever looks at a machine from outside: a debugger, `ctl`.

Nothing in the SVSM reads them. Spec: none.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

RECENT_CALLS: Final = 128


class CallRecord(NamedTuple):
    """One call that was answered.

    Attributes:
        apic_id: of the vCPU that made it.
        rcx: its first argument.
        result: RAX as the guest gets it.
        began: TSC when it was taken.
        ticks: how long it took; with a module's call, everything that ran meanwhile.
    """

    apic_id: int
    protocol: int
    call: int
    rcx: int
    result: int
    began: int
    ticks: int


class RecentCalls(deque[CallRecord]):
    """The last `RECENT_CALLS` of them, the latest at the end."""

    def __init__(self) -> None:
        super().__init__(maxlen=RECENT_CALLS)
