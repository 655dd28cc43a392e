# SPDX-License-Identifier: MIT
"""Secure TSC, judged by stock Linux kernels: one that knows it, and one that does not."""

from collections.abc import Callable

import pytest

from svsmd.errors import ExitCode
from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.fetch_kernel import fetch_kernel

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

UNPACK_SECONDS = 400.0
"""In the guest, a kernel takes its time to unpack itself."""
UNPACK = "--decompress=guest"


def kernel_of(suite: str, linux: Linux) -> Linux:
    """A kernel of Debian's, and the initrd with a shell."""
    try:
        return Linux(fetch_kernel(suite), linux.initrd)
    except (AptError, OSError) as error:
        pytest.skip(f"no Linux of {suite}: {error}")


def start(svsmd: Start, linux: Linux, *options: str) -> SvsmdProcess:
    return svsmd(
        f"--kernel={linux.kernel}",
        f"--initrd={linux.initrd}",
        "--append=console=ttyS0",
        "--secure-tsc",
        *options,
    )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--cpus=2",),
        ("--cpus=4",),
        ("--no-svsm",),
        ("--no-svsm", "--cpus=2"),
        ("--no-svsm", "--cpus=4"),
        (UNPACK,),
    ],
    ids=" ".join,
)
def test_a_kernel_that_knows_it(svsmd: Start, linux: Linux, options: tuple[str, ...]) -> None:
    machine = start(svsmd, kernel_of("sid", linux), *options)
    console = machine.console()
    console.expect("SVMBOOT: shell", UNPACK_SECONDS if UNPACK in options else BOOT_SECONDS)
    console.expect(PROMPT)
    vmpl = 0 if "--no-svsm" in options else 2
    cpus = next((option[-1] for option in options if option.startswith("--cpus=")), "1")
    for command, answer in (
        (f"dmesg | grep -c 'SNP running at VMPL{vmpl}'", "^1$"),
        ("dmesg | grep 'SEV: Status'", "SEV-SNP SecureTSC"),
        # Of GUEST_TSC_FREQ: what is calibrated is a little off.
        ("dmesg | grep 'tsc: Detected'", r"Detected 1000\.000 MHz"),
        ("dmesg | grep -c -e 'calibration' -e 'TSC unstable' -e 'time warp'", "^0$"),
        ("cat /sys/devices/system/clocksource/clocksource0/current_clocksource", "^tsc$"),
        ("nproc", f"^{cpus}$"),
    ):
        console.send(f"{command}\r")
        console.expect(answer)
        console.expect(PROMPT)
    console.send("poweroff -f\r")
    assert machine.wait() == ExitCode.OK, machine.stderr
    for bad in ("Oops", "BUG:", "Call Trace", "WARNING: CPU"):
        assert bad not in console.transcript, console.transcript


@pytest.mark.parametrize("options", [(), ("--no-svsm",)], ids=["under-an-svsm", "without-one"])
def test_a_kernel_that_starts_again(svsmd: Start, linux: Linux, options: tuple[str, ...]) -> None:
    machine = start(svsmd, kernel_of("sid", linux), "--cpus=2", *options)
    console = machine.console()
    for command in ("reboot", "poweroff"):
        console.expect("SVMBOOT: shell", BOOT_SECONDS)
        console.expect(PROMPT)
        console.send("dmesg | grep 'SEV: Status'; nproc\r")
        console.expect("SEV-SNP SecureTSC")
        console.expect("^2$")
        console.send(f"{command} -f\r")
    assert machine.wait() == ExitCode.OK, machine.stderr


@pytest.mark.parametrize(("options", "vmpl"), [((), 2), (("--no-svsm",), 0)])
def test_a_kernel_that_does_not(
    svsmd: Start, linux: Linux, options: tuple[str, ...], vmpl: int
) -> None:
    """The decompressor of Linux before 6.14 says so: SNP features that it does not support."""
    machine = start(svsmd, kernel_of("trixie", linux), UNPACK, *options)
    assert machine.wait(BOOT_SECONDS) == ExitCode.GUEST_TERMINATED
    words = f"terminated (vCPU 0, VMPL{vmpl}), reason set 0, code 0x2: SEV-SNP, or a feature"
    assert words in machine.stderr
