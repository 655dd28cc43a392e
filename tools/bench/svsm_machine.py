# SPDX-License-Identifier: MIT
"""The demo guest under an SVSM that runs the benchmarks' program, without a daemon round it.

The program has vCPU 1 for itself, where no guest runs; guest and echo module share vCPU 0.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from svsmd.config import DEMO_RTC, DEMO_SEED, MachineConfig
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import Idle, Stopped
from tools.build_images import ROOT
from tools.make_archive import make_archive

SLICE: Final = 2_000_000
_PROMPT: Final = b"demo> "
_MEMORY_REPORT: Final = "memory: "
_CONFIGURATION: Final = b"""\
[[program]]
path = "/bin/echo"
capabilities = ["serve_protocol"]
protocols = [0xC0010001]
cpus = [0]

[[program]]
path = "/bin/bench"
capabilities = ["spawn", "register"]
services = ["bench"]
cpus = [1]
children = 1
"""
_GUEST: Final = re.compile(rb"bench \w+: (\d+) [^,]+, (\d+) ticks")
_PROGRAM: Final = re.compile(r"bench: (begin|end) ([^:]+)(?:: (\d+) times, (\d+) ticks)?$")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one of something takes: microseconds of this computer, ticks of the machine's clock."""

    microseconds: float
    ticks: float


def _programs() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as build:
        for directory in ("tools/bench/modules", "svsmd/modules"):
            subprocess.run(
                ["make", "-s", "-C", ROOT / "svsmd" / "modules", f"MODULES={ROOT / directory}",
                 f"BUILD={build}"],
                check=True,
            )  # fmt: skip
        return {f"/bin/{name}": (Path(build) / name).read_bytes() for name in ("bench", "echo")}


class SvsmMachine:
    """The machine at the guest's prompt, and what its boot took."""

    def __init__(self) -> None:
        self._costs: dict[str, Cost] = {}
        self._began = 0.0
        self._lines: list[str] = []
        self._console = bytearray()
        self._machine = self._build()
        begin = time.perf_counter()
        self._run(lambda: any(line.startswith(_MEMORY_REPORT) for line in self._lines), 10_000)
        seconds = time.perf_counter() - begin
        self.boot: Final = Cost(seconds * 1e6, self._machine.clock_now)
        """From the first instruction to the SVSM's report about its memory, the end of its boot."""
        self._run(lambda: _PROMPT in self._console)

    def _build(self) -> Machine:
        with tempfile.TemporaryDirectory() as directory:
            archive = Path(directory) / "archive.tar"
            archive.write_bytes(make_archive({"/svsm.toml": _CONFIGURATION, **_programs()}))
            machine = build_machine(
                MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC, cpus=2, archive=archive)
            )
        machine.on_console = self._console.extend
        machine.on_svsm_console = self._log
        return machine

    def in_guest(self, name: str) -> Cost:
        """Run one of the demo guest's own benchmarks."""
        self._console.clear()
        begin = time.perf_counter()
        self._machine.console_write(f"bench {name}\r".encode())
        self._run(lambda: _PROMPT in self._console)
        seconds = time.perf_counter() - begin
        match = _GUEST.search(self._console)
        if match is None:
            raise ValueError(f"the demo guest says nothing of `bench {name}`")
        count, ticks = map(int, match.groups())
        return Cost(seconds / count * 1e6, ticks / count)

    def in_program(self) -> dict[str, Cost]:
        """One round of what the program at CPL 3 does, by name."""
        self._lines.clear()
        self._run(lambda: any(line.endswith("is over") for line in self._lines))
        return dict(self._costs)

    def _log(self, data: bytes) -> None:
        now = time.perf_counter()
        line = data.decode().rstrip("\n")
        self._lines.append(line)
        match = _PROGRAM.match(line)
        if match is None:
            return
        if match[1] == "begin":
            self._began = now
        else:
            count = int(match[3])
            self._costs[match[2]] = Cost((now - self._began) / count * 1e6, int(match[4]) / count)

    def _run(self, done: Callable[[], bool], max_ticks: int = SLICE) -> None:
        machine = self._machine
        while not done():
            match machine.run_slice(max_ticks):
                case Idle(int() as deadline) if not done():
                    machine.skip_idle(max(0, deadline - machine.clock_now))
                case Stopped() | Idle(int()):
                    pass
                case other:
                    raise RuntimeError(f"the machine ends with {other}:\n" + "\n".join(self._lines))
