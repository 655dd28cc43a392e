# SPDX-License-Identifier: MIT
"""A Linux with a shell, and an interactive gdb that knows its kernel."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Console, Linux, Program, SvsmdProcess
from tools.apt_packages import AptError, os_release
from tools.fetch_kernel import fetch_kernel

Start = Callable[..., SvsmdProcess]

OPENED: Final = "/proc/version"
CURRENT: Final = (
    # Before 6.15 in a structure, then a variable of its own.
    "((struct pcpu_hot *)($gs_base + (long)&pcpu_hot))->current_task",
    "*(struct task_struct **)($gs_base + (long)&current_task)",
)
ON_DEBIAN: Final = os_release().get("ID") == "debian"
STOCK: Final = "stock"
"""The kernel of the other tests."""


def kernel_of(suite: str, linux: Linux) -> Path:
    """That kernel, or the one of a suite of Debian."""
    try:
        return linux.kernel if suite == STOCK else fetch_kernel(suite)
    except (AptError, OSError) as error:
        pytest.skip(f"no kernel of {suite}: {error}")


def boot(svsmd: Start, linux: Linux, *options: str) -> tuple[SvsmdProcess, Console]:
    """A machine with a shell at its console."""
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", "--append=console=ttyS0", *options
    )
    console = machine.console()
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    return machine, console


@contextmanager
def attached(machine: SvsmdProcess, gdb: str, symbols: Path | None = None) -> Iterator[Program]:
    """An interactive gdb, with a kernel's symbols if it does not get them from the machine."""
    with Program(machine.gdb_command(gdb, "echo attached\\n", symbols=symbols)) as session:
        session.expect("^attached")
        yield session


def frames(gdb: Program) -> list[str]:
    """The functions of a backtrace, innermost first: "??" where gdb knows none."""
    start = len(gdb.transcript)
    gdb.send("backtrace")
    gdb.send("echo that is all\\n")
    gdb.expect("that is all")
    text = gdb.transcript[start:]
    assert "Backtrace stopped" not in text, text
    pattern = r"#\d+ +(?:0x[0-9a-f]+ in )?(<signal handler called>|[\w.]+ \(|\?\? \()"
    return [found.removesuffix(" (") for found in re.findall(pattern, text)]


def assert_in_order(found: list[str], expected: list[str]) -> None:
    """What is expected is there in that order, with anything in between."""
    rest = iter(found)
    assert all(name in rest for name in expected), found


def number(gdb: Program, expression: str) -> int:
    """The value of an expression."""
    gdb.send(f'printf "value %ld.\\n", (long)({expression})')
    return int(gdb.expect(r"value (-?\d+)\.")[1])


def work_and_power_off(machine: SvsmdProcess, console: Console) -> None:
    """Nothing is wrong with the guest after all this."""
    console.send("echo $((6 * 7))\r")
    console.expect("^42$")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    assert not re.search(r"Oops|BUG:|Call Trace|WARNING: CPU", console.transcript)
