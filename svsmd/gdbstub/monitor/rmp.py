# SPDX-License-Identifier: MIT
"""`monitor rmp`: entries of the Reverse Map Table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from svsmd.gdbstub.machine_view import MachineView, number
from svsmd.gdbstub.target import MonitorCommand, TargetError
from svsmd.gdbstub.why import rmp_text
from svsmd.snp.types import PAGE_SHIFT

MAX_LINES: Final = 64


def commands(view: MachineView) -> Mapping[str, MonitorCommand]:
    """See the package."""

    def rmp(arguments: Sequence[str]) -> str:
        if not 1 <= len(arguments) <= 2:
            raise TargetError("usage: rmp GPA [COUNT]")
        first = number(arguments[0]) >> PAGE_SHIFT
        count = number(arguments[1]) if len(arguments) == 2 else 1
        table = view.machine.silicon.rmp
        lines = [rmp_text(table, page) for page in range(first, first + min(count, MAX_LINES))]
        return "\n".join(lines) + "\n"

    return {"rmp": MonitorCommand("GPA [COUNT]", "RMP entries of pages", rmp)}
