# SPDX-License-Identifier: MIT
"""`info os calls` and `info os modules`: what the guest asked of the SVSM, and its programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final

from svsmd.core.calls import PRIVATE_PROTOCOLS
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.protocols.page_state import PageStateCall
from svsmd.core.result_codes import SvsmCoreResult, SvsmResult
from svsmd.gdbstub.machine_view import MachineView, name_of
from svsmd.gdbstub.target import Table

_CORE: Final = 0
_CALLS: Final[Mapping[int, type[IntEnum]]] = {
    _CORE: SvsmCoreCall,
    PRIVATE_PROTOCOLS.start: PageStateCall,
}


def tables(view: MachineView) -> Mapping[str, Table]:
    """See the package."""

    def calls() -> Iterator[Sequence[str]]:
        core = view.machine.core
        for record in core.recent_calls if core is not None else ():
            yield (
                str(record.apic_id),
                f"{record.protocol:#x}",
                _call(record.protocol, record.call),
                f"{record.rcx:#x}",
                _result(record.protocol, record.result),
                str(record.began),
                str(record.ticks),
            )

    def modules() -> Iterator[Sequence[str]]:
        core = view.machine.core
        for process in core.processes if core is not None else ():
            task = process.task
            waits = f"waits for {task.waits_in.name}" if task.waits_in is not None else ""
            yield (
                str(task.number),
                task.name,
                process.program.path,
                waits or task.state.name.lower(),
                str(task.run_on),
                str(process.quota.used),
                str(process.quota.limit),
                str(task.ticks),
                str(len(process.children)),
            )

    return {
        "calls": Table(
            "SVSM calls",
            "The guest's last calls to the SVSM, the latest at the end",
            ("vcpu", "protocol", "call", "rcx", "result", "tick", "ticks"),
            calls,
        ),
        "modules": Table(
            "Modules",
            "The programs that the SVSM runs at CPL 3",
            ("task", "name", "program", "state", "vcpu", "pages", "limit", "ticks", "children"),
            modules,
        ),
    }


def _call(protocol: int, call: int) -> str:
    names = _CALLS.get(protocol)
    return f"{call:#x}" if names is None else name_of(names, call)


def _result(protocol: int, value: int) -> str:
    """By the name of all protocols, or of the core protocol."""
    name = name_of(SvsmResult, value)
    return name_of(SvsmCoreResult, value) if protocol == _CORE and name[:2] == "0x" else name
