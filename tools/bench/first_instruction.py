# SPDX-License-Identifier: MIT
"""Starts as `svsmd run demo` does, executes the first instructions, and says so with a byte.

A program by itself: `start` runs it and takes the time.
"""

from __future__ import annotations

import os

import trio

# What `svsmd run` imports is imported here too, needed or not.
from svsmd import cli, daemon
from svsmd.config import DEMO_RTC, DEMO_SEED, MachineConfig
from svsmd.machine import build_machine

USED_BY_RUN = (cli, daemon, trio)


def main() -> None:
    """Builds the machine and gives it one slice that is as short as slices are."""
    machine = build_machine(MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC))
    machine.run_slice(1)
    os.write(1, b".")


if __name__ == "__main__":
    main()
