# SPDX-License-Identifier: MIT
"""What somebody who stands beside the machine may know of a program: for debuggers.

Looking has no effect: no ticks, no accesses of VMPL0, nothing that changes.

Spec: none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from svsmd.core.trap_frame import TrapFrame
from svsmd.snp.types import Gpa


@dataclass(frozen=True, slots=True)
class ProgramView:
    """A program that has not ended, as it is now.

    Attributes:
        number: that of its task, which no other task ever has.
        name: of its task.
        path: its file in the archive.
        doing: what it does, in a few words.
        entry: address at which it began.
        loaded_on: APIC id of the CPU that has its page tables and registers; None if none has.
        in_user: that CPU was told to go on at CPL 3. Up to the next call of the gate its registers
            are in the CPU, or in the frame that native code restores or makes.
        frame: while it is served: the registers that CPL 3 was left with, RAX maybe a result.
        state: while no CPU has it: GPA of FXSAVE area and frame (`process.STATE_SIZE` bytes).
        fs_base: its FS base.
        table: GPA of the topmost of its page tables, which has 3 levels.
        untouched: given the address of a page that no table maps: the bytes that it begins with,
            zeros behind them; None if it has no such page, or shares it.
    """

    number: int
    name: str
    path: str
    doing: str
    entry: int
    loaded_on: int | None
    in_user: bool
    frame: TrapFrame | None
    state: Gpa
    fs_base: int
    table: Gpa
    untouched: Callable[[int], bytes | None]
