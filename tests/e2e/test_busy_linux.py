# SPDX-License-Identifier: MIT
"""A Linux that is busy on four vCPUs for a while: nothing stalls, and what it computes is right."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.linux_shell import Shell
from tests.svsmd_process import Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.fetch_kernel import fetch_kernel
from tools.make_initrd import find_busybox, initrd

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

Start = Callable[..., SvsmdProcess]

NCPUS: Final = 4
SECONDS: Final = 75.0
PATIENCE: Final = 120.0
"""For a command of a guest that has other things to do."""
BUSY: Final = Path(__file__).parent.parent / "data/guest/busy.sh"
KINDS: Final = ("loop", "sums", "forks", "pipes", "timers")
WATCHDOGS: Final = (
    "rcupdate.rcu_cpu_stall_timeout=3 watchdog_thresh=2 sysctl.kernel.hung_task_timeout_secs=10"
)
"""Sharper than usual: seconds of a busy guest are long, since it counts instructions."""


@pytest.fixture(params=["trixie", "sid"])
def linux(request: pytest.FixtureRequest, tmp_path: Path) -> Linux:
    """The kernel of a suite of Debian, and an initrd with the work."""
    path = tmp_path / "initrd.cpio"
    try:
        kernel = fetch_kernel(request.param)
        path.write_bytes(
            initrd(find_busybox().read_bytes(), programs={BUSY.stem: BUSY.read_bytes()})
        )
    except (AptError, OSError) as error:
        pytest.skip(f"no kernel of {request.param}: {error}")
    return Linux(kernel, path)


def test_nothing_stalls(svsmd: Start, linux: Linux) -> None:
    shell = Shell(svsmd, linux, f"--cpus={NCPUS}", append=WATCHDOGS)
    assert "\n2\n" in shell.run("cat /proc/sys/kernel/watchdog_thresh")
    shell.run("{ busy & }")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(5)
        shell.run("cat /proc/uptime", PATIENCE)
    assert re.search(f"^{NCPUS}$", shell.run("nproc", PATIENCE), re.MULTILINE)
    shell.run("kill -9 -$!", PATIENCE)
    rounds = shell.run("grep -H . /busy/*")
    assert "errors" not in rounds, rounds
    for kind in KINDS:
        assert len(re.findall(rf"^/busy/{kind}\.[12]:\d+$", rounds, re.MULTILINE)) == 2, rounds
    timers = re.search(r"^ *LOC:(( +\d+)+) +Local", shell.run("cat /proc/interrupts"), re.MULTILINE)
    assert timers is not None
    assert len(timers[1].split()) == NCPUS
    assert min(int(count) for count in timers[1].split()) > 100
    # To the transcript, where power_off() looks for what must not be there.
    shell.run("dmesg")
    shell.power_off()
