# SPDX-License-Identifier: MIT
"""What leaving the guest's code costs: the clock, RDTSC, CPUID."""

from __future__ import annotations

import time
from typing import Final

from tools.bench.compute import PEER, TIGHT_LOOP
from tools.bench.demo import DemoShell
from tools.bench.guest_code import snippet
from tools.bench.machines import FullMachine, RawEngine
from tools.bench.registry import Result, in_turns, register

RDTSC_READS: Final = 300_000
CPUID_EXITS: Final = 100_000


@register("clock")
def clock() -> list[Result]:
    """The virtual clock and RDTSC."""
    code, total = snippet(*TIGHT_LOOP.sources), TIGHT_LOOP.amount * TIGHT_LOOP.each
    counted = RawEngine(code, TIGHT_LOOP.amount, counted=True)
    uncounted = RawEngine(code, TIGHT_LOOP.amount)
    with_clock, without = in_turns(lambda: total / counted.run(), lambda: total / uncounted.run())
    code = snippet("rdtsc.S")
    ours = FullMachine(code, RDTSC_READS)
    raw = RawEngine(code, RDTSC_READS, native_rdtsc=True)
    reads, raw_reads = in_turns(
        lambda: RDTSC_READS / ours.run() / 1e6, lambda: RDTSC_READS / raw.run() / 1e6
    )
    return [
        Result(
            name="ALU loop on the bare engine, with the clock",
            unit="MIPS",
            figures=with_clock,
            peer="without the clock",
            peer_figures=without,
        ),
        Result(
            name="RDTSC in a loop",
            unit="million/s",
            figures=reads,
            peer=f"{PEER}, which reads the computer's own counter",
            peer_figures=raw_reads,
        ),
    ]


@register("vc")
def vc() -> list[Result]:
    """#VC in the guest, beside an exit of the bare engine into Python."""
    raw = RawEngine(snippet("cpuid.S"), CPUID_EXITS)
    with DemoShell() as shell:

        def in_guest() -> float:
            begin = time.perf_counter()
            count = shell.bench("cpuid")
            return count / (time.perf_counter() - begin)

        vcs, exits = in_turns(in_guest, lambda: CPUID_EXITS / raw.run())
    return [
        Result(
            name="CPUID of the demo guest: #VC, answered by its own handler",
            unit="#VC/s",
            figures=vcs,
            peer="CPUID as an exit of raw Unicorn into an almost empty Python function",
            peer_figures=exits,
        ),
    ]
