# SPDX-License-Identifier: MIT
"""What the SVSM costs, in time and in instructions, beside what the silicon alone takes for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tools.bench.machines import WorldSwitches
from tools.bench.registry import ROUNDS, Result, register
from tools.bench.svsm_machine import Cost, SvsmMachine

SWITCHES: Final = 50_000
PEER: Final = "a raw world switch"
_IN_GUEST: Final = {
    "svsm": "call of the guest to the core and back",
    "module": "call of the guest to a module and back",
}
_IN_PROGRAM: Final = {
    "system call": "system call of a module (getpid)",
    "context switch": "sched_yield of a module to another one",
    "message": "message from a module to another one, and its answer",
}


@register("svsm")
def svsm() -> list[Result]:
    """The SVSM: its calls, its modules and its boot, in microseconds and in ticks."""
    raw = WorldSwitches()
    machine = SvsmMachine()
    measured: dict[str, list[Cost]] = {}
    switches: list[Cost] = []
    for round_ in range(ROUNDS + 1):
        costs = {text: machine.in_guest(name) for name, text in _IN_GUEST.items()}
        program = machine.in_program()
        costs |= {text: program[name] for name, text in _IN_PROGRAM.items()}
        seconds, ticks = raw.run(SWITCHES)
        if round_ == 0:
            continue  # warms up
        switches.append(Cost(seconds / SWITCHES * 1e6, ticks / SWITCHES))
        for text, cost in costs.items():
            measured.setdefault(text, []).append(cost)
    measured["boot of the SVSM with two vCPUs, both stages"] = [machine.boot]
    return [
        _result(name, unit, part, costs, switches)
        for name, costs in measured.items()
        for unit, part in (("µs", _microseconds), ("ticks", _ticks))
    ]


def _microseconds(cost: Cost) -> float:
    return cost.microseconds


def _ticks(cost: Cost) -> float:
    return cost.ticks


def _result(
    name: str,
    unit: str,
    part: Callable[[Cost], float],
    costs: list[Cost],
    switches: list[Cost],
) -> Result:
    return Result(
        name=name,
        unit=unit,
        figures=[part(cost) for cost in costs],
        peer=PEER,
        peer_figures=[part(cost) for cost in switches[: len(costs)]],
    )
