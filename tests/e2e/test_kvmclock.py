# SPDX-License-Identifier: MIT
"""A stock Linux takes date, frequency and time from kvmclock, on each of its vCPUs."""

import re
from collections.abc import Callable

import pytest

from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Console, Linux, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

POWER_ON = 1_767_225_600
CLOCKSOURCE = "/sys/devices/system/clocksource/clocksource0"
# Without a driver for the RTC the date can only come from the hypervisor.
COMMAND_LINE = "console=ttyS0 initcall_blacklist=cmos_init"


def shell(console: Console, command: str) -> str:
    """Output of a command that has to succeed, its echo included."""
    before = len(console.transcript)
    console.send(f"{command}; echo exit $?\r")
    code = console.expect(r"^exit (\d+)$")[1]
    console.expect(PROMPT)
    output = console.transcript[before:]
    assert code == "0", output
    return output


def uptimes(console: Console, ncpus: int) -> list[float]:
    """The kernel's monotonic clock, read on all vCPUs in turn, the boot CPU's last."""
    cpus = [n % ncpus for n in reversed(range(4))]
    reads = "; ".join(f"taskset {1 << cpu:x} cat /proc/uptime" for cpu in cpus)
    found = re.findall(r"^(\d+\.\d\d) \d+\.\d\d$", shell(console, reads), re.MULTILINE)
    assert len(found) == 4
    return [float(value) for value in found]


@pytest.mark.parametrize(
    ("ncpus", "options"),
    [(1, ()), (2, ()), (2, ("--no-svsm",))],
    ids=["under-an-svsm", "two-vcpus", "without-an-svsm"],
)
def test_kvmclock(svsmd: Start, linux: Linux, ncpus: int, options: tuple[str, ...]) -> None:
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", f"--append={COMMAND_LINE}",
        f"--cpus={ncpus}", f"--rtc={POWER_ON}", *options,
    )  # fmt: skip
    console = machine.console()
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    shell(console, "dmesg -n 1")
    messages = shell(console, "dmesg")
    assert "kvm-clock: Using msrs 4b564d01 and 4b564d00" in messages
    assert "tsc: Detected 1000.000 MHz processor" in messages
    assert "PIT calibration" not in messages
    assert re.search("^tsc.* kvm-clock", shell(console, f"cat {CLOCKSOURCE}/available_clocksource"),
                     re.MULTILINE)  # fmt: skip

    def seconds() -> int:
        found = re.search(r"^(\d+)$", shell(console, "date +%s"), re.MULTILINE)
        assert found is not None
        return int(found[1]) - POWER_ON

    before = uptimes(console, ncpus)
    assert before == sorted(before)
    assert abs(seconds() - before[-1]) < 2
    shell(console, f"echo kvm-clock > {CLOCKSOURCE}/current_clocksource")
    shell(console, "sleep 2")
    assert "\nkvm-clock\n" in shell(console, f"cat {CLOCKSOURCE}/current_clocksource")
    after = uptimes(console, ncpus)
    assert after == sorted(after)
    assert after[0] >= before[-1] + 2
    assert abs(seconds() - after[-1]) < 2

    assert "unstable" not in shell(console, "dmesg")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    for bad in ("Oops", "BUG:", "Call Trace", "WARNING: CPU"):
        assert bad not in console.transcript, console.transcript
