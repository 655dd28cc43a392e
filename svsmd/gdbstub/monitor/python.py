# SPDX-License-Identifier: MIT
"""`monitor python`: the extension of gdb, for gdb's Python to execute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from svsmd.gdbstub import extension
from svsmd.gdbstub.machine_view import MachineView
from svsmd.gdbstub.target import MonitorCommand, TargetError


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def python(arguments: Sequence[str]) -> str:
        if arguments:
            raise TargetError("python takes no arguments")
        return extension.script()

    text = 'the gdb extension: python exec(gdb.execute("monitor python", False, True))'
    return {"python": MonitorCommand("", text, python)}
