# SPDX-License-Identifier: MIT
"""Whose breakpoints stop the code that executes now.

The engine sees by itself at which VMPL code executes. Which of the programs at VMPL0 it is of is
asked at each hit, while the machine runs: a breakpoint of somebody else costs a look, not a stop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from svsmd.gdbstub.target import ANY_WORLD, ThreadId

PROGRAM_PID: Final = 16
"""Plus the number of its task: pid of a program. Below are the worlds: VMPL + 1."""


class Code(NamedTuple):
    """Attributes of a `Breakpoint` that is for some code only."""

    vmpl: int | None
    accepts: Callable[[], bool] | None


def code_of(pid: int, executing: Callable[[], ThreadId]) -> Code:
    """That of process `pid`; `executing` tells the thread that is about to execute.

    VMPL0 is shared by the SVSM and all programs, page tables of the SVSM included.
    """
    if pid == ANY_WORLD:
        return Code(None, None)
    if 1 < pid < PROGRAM_PID:
        return Code(pid - 1, None)
    return Code(0, lambda: executing().pid == pid)
