# SPDX-License-Identifier: MIT
"""A stock Linux that reboots, and one that panics, under an SVSM that stays and without one."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Console, Linux, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

NCPUS = 2


def look_round(console: Console, marker: str) -> None:
    """A shell, all vCPUs, and nothing of what an earlier guest has left."""
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    console.send(f"nproc; ls /; touch /{marker}\r")
    console.expect(f"^{NCPUS}$")
    listing = console.expect(rf"(?s)^bin.*{PROMPT}")[0]
    assert "guest-" not in listing


@pytest.mark.parametrize("options", [(), ("--no-svsm",)], ids=["under-an-svsm", "without-one"])
@pytest.mark.parametrize("how", ["reboot -f", "echo c > /proc/sysrq-trigger"])
def test_a_guest_that_starts_again(
    svsmd: Start, linux: Linux, tmp_path: Path, options: tuple[str, ...], how: str
) -> None:
    log = tmp_path / "svsm.log"
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}",
        "--append=console=ttyS0 panic=-1", f"--cpus={NCPUS}", f"--svsm-console=file:{log}",
        "-v", *options,
    )  # fmt: skip
    console = machine.console()
    for number in range(2):
        look_round(console, f"guest-{number}")
        console.send(f"{how}\r")
    look_round(console, "guest-2")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    assert machine.stderr.count("the guest reset the machine; ") == 2
    restarts = re.findall(r"^the guest starts again: restart (\d)$", log.read_text(), re.MULTILINE)
    assert restarts == ([] if options else ["1", "2"])


@pytest.mark.parametrize("how", ["reboot -f", "echo c > /proc/sysrq-trigger"])
def test_a_guest_that_may_not(svsmd: Start, linux: Linux, how: str) -> None:
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}",
        "--append=console=ttyS0 panic=-1", "--on-reboot=exit",
    )  # fmt: skip
    console = machine.console()
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    console.send(f"{how}\r")
    assert machine.wait() == 0, machine.stderr
    assert "the guest reset the machine" in machine.stderr
