# SPDX-License-Identifier: MIT
"""The demo guest checks the machine from inside."""

import re
from collections.abc import Callable

import pytest

from tests.svsmd_process import SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
SUMMARY = re.compile(r"^selftest: (\d+) passed, (\d+) failed$", re.MULTILINE)


def check_output(output: str) -> list[str]:
    """Nothing failed, every check has its line, and the count is theirs; what was skipped."""
    lines = [line for line in output.splitlines() if line.startswith(("ok ", "FAIL "))]
    summary = SUMMARY.search(output)
    assert summary is not None, output
    assert summary[2] == "0", output
    assert int(summary[1]) == len(lines) > 50, output
    return [line for line in lines if "(skipped:" in line]


@pytest.mark.parametrize("gdb", ["tcp:127.0.0.1:0", "null"])
def test_selftest(svsmd: Start, gdb: str) -> None:
    machine = svsmd("demo", "--append=selftest", "--serial=stdio", f"--gdb={gdb}")
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    check_output(output)


def test_selftest_with_two_cpus_skips_nothing(svsmd: Start) -> None:
    machine = svsmd("demo", "--append=selftest", "--serial=stdio", "--cpus=2")
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    assert check_output(output) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--memory=64M",),
        ("--memory=4G",),
        ("--no-svsm",),
        ("--guest-vmpl=1",),
        ("--secure-tsc", "--cpus=2"),
    ],
)
def test_selftest_of_other_machines(svsmd: Start, options: tuple[str, ...]) -> None:
    machine = svsmd("demo", "--append=selftest", "--serial=stdio", *options)
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, output + machine.stderr
    check_output(output)


def test_shell(svsmd: Start) -> None:
    """The same by hand, over a socket; and what the other commands say."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("guest at VMPL 2")
    console.expect("demo> ")
    for command, answer in (
        ("help", r"selftest +\[PREFIX\]"),
        ("svsm", "protocol 0, core: versions 1 to 1"),
        ("cpuid 8000001f", "8000001f.0: eax"),
        ("fault ud", "#UD"),
        ("fault pf", "#PF, error code 2"),
        ("fault gp", "#GP"),
        ("fault vc", "#VC, error code 404"),
        ("caa", "at [0-9a-f]+"),
        ("selftest cpu.", r"selftest: \d+ passed, 0 failed"),
        ("nonsense", "nonsense: no such command"),
    ):
        console.send(command + "\r")
        console.expect(answer)
        console.expect("demo> ")
    console.send("off\r")
    assert machine.wait() == 0, machine.stderr
