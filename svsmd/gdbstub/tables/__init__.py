# SPDX-License-Identifier: MIT
"""The tables of `info os`, one module for each family.

Each has a function `tables` that is given a `MachineView` and returns its tables by name.
"""

from __future__ import annotations

from collections.abc import Mapping

from svsmd.gdbstub.machine_view import MachineView
from svsmd.gdbstub.tables import core, memory, vcpus
from svsmd.gdbstub.target import Table


def machine_tables(view: MachineView) -> Mapping[str, Table]:
    """All of them."""
    found: dict[str, Table] = {}
    for family in (memory, vcpus, core):
        found |= family.tables(view)
    return found
