# SPDX-License-Identifier: MIT
"""Time is counted in instructions: runs repeat to the tick, whatever a debugger does."""

from collections.abc import Callable

import pytest

from svsmd.images import image_path
from tests.e2e.test_selftest import check_output
from tests.svsmd_process import SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
OPTIONS = ("demo", "--append=selftest", "--serial=stdio", "--clock=virtual", "-v")
STEPS = 100


def finish(machine: SvsmdProcess) -> tuple[str, str]:
    """What the guest printed, and the tick at which it ended."""
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    check_output(output)
    (line,) = [line for line in machine.stderr.splitlines() if line.startswith("svsmd: clock ")]
    return output, line


def test_runs_repeat(svsmd: Start, gdb_program: str) -> None:
    first = finish(svsmd(*OPTIONS))
    assert finish(svsmd(*OPTIONS)) == first

    machine = svsmd(*OPTIONS, "-S")
    output = machine.gdb(
        gdb_program,
        f"stepi {STEPS}",
        "break demo_main",
        "break uart_init",
        "tbreak selftest_run",
        "continue",
        f"stepi {STEPS}",
        "continue",
        f"stepi {STEPS}",
        "continue",
        "break svsm_query",
        "continue",
        f"stepi {STEPS}",
        "continue",
        "delete",
        "watch boot_info.command_line",
        "continue",
        symbols=image_path("demo"),
        seconds=180,
    )
    assert output.count("Breakpoint 1, ") == 1, output
    assert "Temporary breakpoint 3, " in output
    assert "exited normally" in output, output
    assert finish(machine) == first
