# SPDX-License-Identifier: MIT
"""The breakpoints that a debugger has in a machine, with their conditions, commands and counts.

Debuggers take their breakpoints out whenever the machine stops, and put them in again to go on. The
counts of one that was taken out are kept until the machine goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from svsmd.gdbstub.agent.commands import Console, run_commands
from svsmd.gdbstub.agent.packet import NO_OPTIONS, Options
from svsmd.gdbstub.target import ANY_WORLD, BreakpointKind
from svsmd.gdbstub.world_filter import Code
from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.debug_support import DebugSupport


class _Key(NamedTuple):
    address: int
    physical: bool
    kind: BreakpointKind
    pid: int


@dataclass(slots=True)
class _Entry:
    breakpoint: Breakpoint
    options: Options = NO_OPTIONS
    inserted: bool = True


@dataclass(slots=True)
class MachineBreakpoints:
    """All of a machine.

    Args:
        debug: what the machine's silicon is asked with; a reset gives it another one.
        console: where commands print.
    """

    debug: Callable[[], DebugSupport]
    console: Console = field(default_factory=Console)
    _entries: dict[_Key, _Entry] = field(default_factory=dict)

    def insert(
        self,
        pid: int,
        kind: BreakpointKind,
        address: int,
        options: Options,
        code: Code,
        *,
        physical: bool,
    ) -> None:
        """See SupportsBreakpoints.insert_breakpoint; `code` is the process's."""
        key = _Key(address, physical, kind, pid)
        old = self._entries.get(key)
        breakpoint_ = Breakpoint(
            address,
            tuple(expression.program for expression in options.conditions),
            vmpl=code.vmpl,
            accepts=code.accepts,
            physical=physical,
            on_hit=partial(self._run_commands, options) if options.commands else None,
        )
        if old is not None:
            if old.inserted:
                self.debug().remove_breakpoint(old.breakpoint)
            breakpoint_.hits = old.breakpoint.hits
            breakpoint_.evaluations = old.breakpoint.evaluations
        self._entries[key] = _Entry(breakpoint_, options)
        self.debug().add_breakpoint(breakpoint_)

    def _run_commands(self, options: Options) -> bool:
        run_commands(options.commands, self.debug().view, self.console)
        return False

    def remove(self, pid: int, kind: BreakpointKind, address: int, *, physical: bool) -> None:
        """See SupportsBreakpoints.remove_breakpoint."""
        entry = self._entries[_Key(address, physical, kind, pid)]
        self.debug().remove_breakpoint(entry.breakpoint)
        entry.inserted = False

    def forget_removed(self) -> None:
        """See SupportsBreakpoints.forget_removed_breakpoints."""
        for key in [key for key, entry in self._entries.items() if not entry.inserted]:
            del self._entries[key]

    def table(self) -> str:
        """All that are there, or were when the machine last ran, with their counts."""
        self.debug().count_evaluations()
        lines = []
        for key, entry in sorted(self._entries.items()):
            owner = "" if key.pid == ANY_WORLD else f"process {key.pid}, "
            what = [f"{owner}{key.kind.name.lower()}, {_count(entry.breakpoint.hits, 'hit')}"]
            if entry.options.conditions:
                what.append(_count(entry.breakpoint.evaluations, "evaluation of its condition"))
            if entry.options.commands:
                what.append("prints and goes on")
            space = "gpa " if key.physical else ""
            lines.append(f"{space}{key.address:#018x}: {', '.join(what)}\n")
        return "".join(lines) or "there are no breakpoints\n"


def _count(number: int, what: str) -> str:
    """A number of things; the plural's s is the first word's."""
    first, space, rest = what.partition(" ")
    return f"{number} {first}{'' if number == 1 else 's'}{space}{rest}"
