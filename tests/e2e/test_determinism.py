# SPDX-License-Identifier: MIT
"""Time is counted in instructions: runs repeat to the tick, whatever a debugger does."""

import re
import time
from collections.abc import Callable

import pytest

from svsmd.images import image_path
from tests.e2e.test_selftest import check_output
from tests.linux_shell import BOOT_SECONDS
from tests.svsmd_process import Linux, SvsmdProcess
from tools.make_initrd import READY, find_busybox, initrd

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
OPTIONS = ("demo", "--append=selftest", "--serial=stdio", "--clock=virtual", "-v")
STEPS = 100

FUNCTION = "do_exit"
"""Of the kernel: each process runs it once."""
PROCESSES = 30
HITS = 20
LATE_SECONDS = 2.0
SCRIPT = f"""\
grep -m 1 ' {FUNCTION}$' /proc/kallsyms
i=0
while [ $i -lt {PROCESSES} ]; do
  head -c 100000 /dev/urandom | sha256sum
  (sleep 0.01; echo $i) &
  i=$((i + 1))
done
wait
sleep 1
cat /proc/interrupts /proc/stat /proc/vmstat
poweroff -f
"""
"""Processes, pipes, timers, idle time and random numbers; what it counted is in the output."""
REPEATABLE = ("--append=console=ttyS0", "--clock=virtual", "--seed=5eed", "--rtc=1767225600", "-v")


def clock(machine: SvsmdProcess) -> str:
    """Says at which tick the run ended."""
    (line,) = [line for line in machine.stderr.splitlines() if line.startswith("svsmd: clock ")]
    return line


def finish(machine: SvsmdProcess) -> tuple[str, str]:
    """What the guest printed, and the tick at which it ended."""
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    check_output(output)
    return output, clock(machine)


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


@pytest.fixture(scope="module")
def busy_linux(linux: Linux, tmp_path_factory: pytest.TempPathFactory) -> Linux:
    """The kernel, and an initrd that does what it does without a typist."""
    path = tmp_path_factory.mktemp("busy") / "initrd.cpio"
    path.write_bytes(initrd(find_busybox().read_bytes(), script=SCRIPT))
    return Linux(linux.kernel, path)


def debug(address: str, hits: int) -> list[str]:
    """Commands that stop a guest there again and again, step on, look round, and leave it."""
    rounds = ["continue", f"stepi {STEPS}"] * hits
    return [f"break *{address}", *rounds, "info registers", "x/20i $pc", "delete", "continue"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("cpus", [1, 4])
def test_linux_boots_repeat(svsmd: Start, busy_linux: Linux, gdb_program: str, cpus: int) -> None:
    images = (f"--kernel={busy_linux.kernel}", f"--initrd={busy_linux.initrd}", f"--cpus={cpus}")

    def start(*options: str) -> SvsmdProcess:
        return svsmd(*images, *REPEATABLE, *options)

    def end(machine: SvsmdProcess) -> str:
        assert machine.wait(BOOT_SECONDS) == 0, machine.stderr
        return clock(machine)

    def whole_run() -> tuple[str, str]:
        machine = start("--serial=stdio")
        output = machine.stdout.read_to_end(BOOT_SECONDS)
        return output, end(machine)

    first = output, ticks = whole_run()
    assert "reboot: Power down" in output
    found = re.search(rf"^([0-9a-f]{{16}}) T {FUNCTION}$", output, re.MULTILINE)
    assert found is not None, output
    address = f"0x{found[1]}"
    assert whole_run() == first

    # Nobody looks, or somebody comes late.
    assert end(start("--serial=null", "--gdb=null")) == ticks
    machine = start()
    machine.said("console: (.*)")
    time.sleep(LATE_SECONDS)
    console = machine.console()
    console.expect("reboot: Power down", BOOT_SECONDS)
    assert end(machine) == ticks

    # A debugger that is there from the start, and one that comes while the guest runs.
    for stopped in (True, False):
        machine = start("-S") if stopped else start()
        if not stopped:
            machine.console().expect(READY, BOOT_SECONDS)
        gdb = machine.gdb(
            # It stands in the SVSM at first: the breakpoint is one of the guest.
            gdb_program, *((f"stepi {STEPS}", "inferior 1") if stopped else ("info threads",)),
            *debug(address, HITS), seconds=BOOT_SECONDS,
        )  # fmt: skip
        assert gdb.count("Breakpoint 1, 0x") == HITS, gdb
        assert "exited normally" in gdb, gdb
        assert end(machine) == ticks
