# SPDX-License-Identifier: MIT
"""`monitor run-control`: who may run and change the machine, and how to get it or leave it.

Spec: docs/gdb.md, "Several debuggers".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from svsmd.gdbstub.packets.context import Context
from svsmd.gdbstub.target import MonitorCommand, RunControl, TargetError

_NAME: Final = "run-control"
_USAGE: Final = "[take [--force] | give]"
_STALE: Final = """\
this debugger has the run control, and the machine stands still. gdb does not know yet where it is:
  maintenance flush register-cache
  maintenance flush dcache"""


def commands(ctx: Context) -> Mapping[str, MonitorCommand]:
    """The command, as a client gives it; none where there is one client at a time."""
    control = ctx.control
    if control is None:
        return {}

    def run(arguments: Sequence[str]) -> str:
        return _run(ctx, control, list(arguments))

    return {_NAME: MonitorCommand(_USAGE, "who may run the machine; get that, or leave it", run)}


def _run(ctx: Context, control: RunControl, arguments: list[str]) -> str:
    match arguments:
        case []:
            return control.describe()
        case ["take"] | ["take", "--force"] if ctx.in_control:
            return "this debugger has the run control already"
        case ["take", *force]:
            if force not in ([], ["--force"]):
                raise TargetError(f"usage: {_NAME} {_USAGE}")
            control.take(force=bool(force))
            return _STALE
        case ["give"]:
            if not ctx.in_control:
                raise TargetError("this debugger has not got it")
            control.give()
            return "this debugger only reads from now on"
        case _:
            raise TargetError(f"usage: {_NAME} {_USAGE}")
