# SPDX-License-Identifier: MIT
"""Frames of a program at CPL 3: where it was when it was killed, and what its code is called.

The program may have put anything into its registers and its stack. So they are read where it could
read them itself and a page is there already: a backtrace takes no memory and makes no page, and its
work is bounded by its frames. The host reads the log: what gets there is addresses of code, and
what the program's file calls them.

Spec: none.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from svsmd.core import costs
from svsmd.core.backtrace.frames import Backtrace, Location
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.backtrace.unwinder import Module, unwind
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Access, AddressSpace
from svsmd.core.trap_frame import TrapFrame

FRAMES_MAX: Final = 16
"""Of a program that was killed. It shares the log with all others."""


def module_of(cpu: PerCpu, space: AddressSpace, symbols: Symbols) -> Module:
    """A program for the unwinder. Code is what may be executed; without symbols it has no names."""

    def lookup(address: int) -> Location | None:
        cpu.port.charge(costs.SYMBOL)
        region = space.region_at(address)
        if region is None or not region.access & Access.EXECUTE:
            return None
        return symbols.lookup(address) or Location()

    return Module(partial(space.peek, cpu), lookup)


def frames_of(module: Module, frame: TrapFrame) -> Backtrace:
    """Where a program was that left CPL 3 with these registers, and who had called it."""
    return unwind(
        module.read, frame.rip, frame.rbp, frame.rsp, module=module, user=True, limit=FRAMES_MAX
    )
