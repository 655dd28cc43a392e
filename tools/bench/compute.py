# SPDX-License-Identifier: MIT
"""What computing costs: guest code in the machine beside the same bytes on the bare engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tools.bench.guest_code import snippet
from tools.bench.machines import FullMachine, RawEngine
from tools.bench.registry import Bound, Result, in_turns, register

PEER: Final = "raw Unicorn"
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Work:
    """Guest code: its sources, how often it does its work in one run, and how much that is."""

    name: str
    sources: tuple[str, ...]
    amount: int
    unit: str
    each: float
    bound: Bound | None = None


TIGHT_LOOP: Final = Work(
    "ALU loop of five instructions", ("tight_loop.S",), 40_000_000, "MIPS", 5e-6, Bound(0.55)
)
WORK: Final = (
    TIGHT_LOOP,
    Work(
        "SHA-256, compiled C", ("sha256_work.c", "sha256.c", "string.c"), 200,
        "MiB/s", 0x1_0000 / MIB, Bound(0.8),
    ),
    Work("memory copy, compiled C", ("copy.c",), 60, "MiB/s", 4.0, Bound(0.8)),
    Work("memory copy, REP MOVSQ", ("rep_movs.S",), 15, "MiB/s", 4.0),
)  # fmt: skip


@register("compute")
def compute() -> list[Result]:
    """Guest code that computes, in the machine and on the bare engine."""
    results = []
    for work in WORK:
        code = snippet(*work.sources)
        ours, raw = FullMachine(code, work.amount), RawEngine(code, work.amount)
        # Both do the same work, whatever it takes in instructions: times become rates.
        total = work.amount * work.each
        seconds = in_turns(ours.run, raw.run)
        figures = [[total / value for value in side] for side in seconds]
        results.append(
            Result(
                name=work.name,
                unit=work.unit,
                figures=figures[0],
                peer=PEER,
                peer_figures=figures[1],
                bound=work.bound,
            )
        )
    return results
