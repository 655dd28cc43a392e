# SPDX-License-Identifier: MIT
"""The engine's callbacks in C and in Python do the same. Other test files run with both, too."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from svsmd.config import MIB, MachineConfig
from svsmd.host import port_cells
from svsmd.machine import build_machine
from svsmd.slice_end import Ended, Idle
from svsmd.snp import cpu_unicorn


def selftest() -> tuple[int, bytes]:
    """Ticks and output of the demo guest's self-test."""
    machine = build_machine(
        MachineConfig(seed=b"twins", rtc=1_767_225_600, memory=64 * MIB, append="selftest")
    )
    console = bytearray()
    machine.on_console = console.extend
    while not isinstance(end := machine.run_slice(), Ended):
        if isinstance(end, Idle):
            assert end.deadline is not None
            machine.skip_idle(max(0, end.deadline - machine.clock_now))
    assert end.exit_code == 0, bytes(console[-300:])
    return machine.clock_now, bytes(console)


def test_selftest_ends_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    native = selftest()
    monkeypatch.setattr(cpu_unicorn, "native_library", lambda: Path("/nowhere/accel.so"))
    assert selftest() == native


def test_python_gets_no_help_from_native_code() -> None:
    """What native code has changed in the engine stays changed, in its own process only."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "python",
            "tests/unit/test_engine.py::test_each_snippet_stopped_everywhere",
        ],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_native_ports_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cells = selftest()
    monkeypatch.setattr(port_cells, "native_library", lambda: Path("/nowhere/port_cells.so"))
    assert selftest() == with_cells


def test_without_native_code_it_says_so(
    caplog: pytest.LogCaptureFixture, both_callbacks: str
) -> None:
    with caplog.at_level(logging.WARNING):
        build_machine(MachineConfig(seed=b"twins", rtc=0, memory=64 * MIB))
    said = any("the engine runs slowly" in record.message for record in caplog.records)
    assert said == (both_callbacks == "python")
