# SPDX-License-Identifier: MIT
"""A stock Linux kernel is the judge: at VMPL2 under the core, RMP enforced, up to a shell."""

from collections.abc import Callable

import pytest

from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Linux, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

COMMAND_LINE = "console=ttyS0"


def boot(svsmd: Start, linux: Linux, *options: str) -> None:
    """Boot to a shell, look round, power off."""
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", f"--append={COMMAND_LINE}", *options
    )
    console = machine.console()
    release = console.expect(r"SVMBOOT: shell (\S+)", BOOT_SECONDS)[1]
    assert release in linux.kernel.name
    console.expect(PROMPT)
    # The echo of what is typed must not look like the answer.
    console.send("echo $((6 * 7)) $(uname -m)\r")
    console.expect("^42 x86_64")
    console.send("dmesg | grep -c 'SNP running at VMPL2'\r")
    console.expect("^1$")
    console.send("dmesg | grep 'Memory Encryption Features'\r")
    console.expect(r"active: (AMD )?SEV SEV-ES SEV-SNP")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    # "WARNING: CPU" is how the kernel reports its own; a vulnerability's advice says WARNING too.
    for bad in ("Oops", "BUG:", "Call Trace", "WARNING: CPU"):
        assert bad not in console.transcript, console.transcript


def test_boot(svsmd: Start, linux: Linux) -> None:
    boot(svsmd, linux)


@pytest.mark.slow
def test_a_kernel_unpacks_itself(svsmd: Start, linux: Linux) -> None:
    boot(svsmd, linux, "--decompress=guest")
