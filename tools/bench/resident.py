# SPDX-License-Identifier: MIT
"""How much memory the daemon takes."""

from __future__ import annotations

import re
from pathlib import Path

from tools.bench.demo import DemoShell
from tools.bench.registry import Bound, Result, register

_VM_RSS = re.compile(r"^VmRSS:\s+(\d+) kB$", re.MULTILINE)


def resident_mib(pid: int) -> float:
    """MiB of physical memory that a process has."""
    match = _VM_RSS.search(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
    if match is None:
        raise ValueError(f"/proc/{pid}/status has no VmRSS")
    return int(match[1]) / 1024


@register("resident")
def resident() -> list[Result]:
    """Resident memory of the daemon with the demo guest at its prompt."""
    with DemoShell("--memory=512M") as shell:
        value = resident_mib(shell.pid)
    return [
        Result(
            name="daemon with a demo guest of 512 MiB",
            unit="MiB",
            figures=[value],
            bound=Bound(150, at_most=True),
        )
    ]
