# SPDX-License-Identifier: MIT
"""A machine without a CPU, for the tests of what is round one: runner, daemon, command line.

Its guest prints in capitals what is typed, and powers off when it reads "off". Tests give it a
script of slices to come before that.
"""

import threading
from collections import deque
from collections.abc import Callable

from svsmd.config import MachineConfig
from svsmd.slice_end import Ended, Idle, SliceEnd, Stopped

SLICE_TICKS = 1000


class FakeMachine:
    """Takes the place of `svsmd.machine.Machine`."""

    launch_digest = bytes(range(48))

    def __init__(self, config: MachineConfig | None = None) -> None:
        self.config = config
        self.on_console: Callable[[bytes], None] = lambda _data: None
        self.on_svsm_console: Callable[[bytes], None] = lambda _data: None
        self.clock_now = 0
        self.script: deque[Callable[[], SliceEnd]] = deque()
        self.idled: list[int] = []
        self.typed = bytearray()
        self.reads_input = True
        self.stop = threading.Event()
        self.slices = 0

    @property
    def console_waiting(self) -> int:
        return len(self.typed)

    def run_slice(self, max_ticks: int = SLICE_TICKS, seconds: float = 0) -> SliceEnd:
        self.slices += 1
        self.clock_now += SLICE_TICKS
        if self.script:
            return self.script.popleft()()
        self.stop.clear()
        if self.typed and self.reads_input:
            data = bytes(self.typed)
            self.typed.clear()
            self.on_console(data.upper())
            if b"off" in data:
                return Ended(0, "the guest powered off")
            return Stopped()
        return Idle(None)

    def spin(self) -> SliceEnd:
        """A slice of a guest that loops; only `request_stop` ends it."""
        assert self.stop.wait(10), "nobody asked the machine to stop"
        self.stop.clear()
        return Stopped()

    def request_stop(self) -> None:
        self.stop.set()

    def skip_idle(self, ticks: int) -> None:
        self.idled.append(ticks)
        self.clock_now += ticks

    def console_write(self, data: bytes) -> None:
        self.typed += data
