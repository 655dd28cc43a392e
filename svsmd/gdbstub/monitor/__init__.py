# SPDX-License-Identifier: MIT
"""The commands of `monitor`, one module for each family.

Each has a function `commands` that is given a `MachineView` and returns its commands by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from svsmd.gdbstub.machine_view import MachineView
from svsmd.gdbstub.monitor import faults, info, memory_dump, python, rmp, vmsa
from svsmd.gdbstub.target import MonitorCommand


def monitor_commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """All of them."""
    found: dict[str, MonitorCommand] = {}
    for family in (info, rmp, vmsa, faults, memory_dump, python):
        found |= family.commands(view)
    return found
