# SPDX-License-Identifier: MIT
"""A Linux that has nothing to do leaves its computer alone, and is there when a key is pressed."""

import os
import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.linux_shell import Shell
from tests.svsmd_process import Linux, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

SETTLE_SECONDS: Final = 5.0
SECONDS: Final = 5.0
CPU_SHARE: Final = 0.1
"""Of one CPU. It is 0.01 to 0.04 where nothing else runs."""
ECHO_SECONDS: Final = 0.03


def cpu_seconds(pid: int) -> float:
    """What a process has used, in user mode and in the kernel."""
    # Behind the name in parentheses: state is field 3, utime and stime are 14 and 15 (proc(5)).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("serial", ["tcp", "telnet"])
@pytest.mark.parametrize(
    "options",
    [("--cpus=1",), ("--cpus=4",), ("--cpus=1", "--no-svsm"), ("--cpus=4", "--no-svsm")],
    ids=" ".join,
)
def test_nothing_to_do(svsmd: Start, linux: Linux, options: tuple[str, ...], serial: str) -> None:
    shell = Shell(svsmd, linux, *options, f"--serial={serial}:127.0.0.1:0")
    time.sleep(SETTLE_SECONDS)
    begin, before = time.monotonic(), cpu_seconds(shell.machine.pid)
    time.sleep(SECONDS)
    used = cpu_seconds(shell.machine.pid) - before
    assert used < CPU_SHARE * (time.monotonic() - begin)
    echoes = []
    for letter in string.ascii_lowercase:
        begin = time.monotonic()
        shell.console.send(letter)
        shell.console.expect(letter)
        echoes.append(time.monotonic() - begin)
        time.sleep(0.05)
    assert statistics.median(echoes) < ECHO_SECONDS, sorted(echoes)
    shell.console.send("\x15")
    shell.power_off()
