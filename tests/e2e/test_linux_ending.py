# SPDX-License-Identifier: MIT
"""Ways for a stock Linux to end that are neither `poweroff` nor `reboot`: what is said of them."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.linux_shell import Shell
from tests.svsmd_process import Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.fetch_kernel import fetch_kernel

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

PAYLOAD_LENGTH = 0x24C
"""In the setup header."""


def test_init_dies(svsmd: Start, linux: Linux) -> None:
    """A panic; with panic=-1 the kernel then resets the machine at once."""
    shell = Shell(svsmd, linux, "--on-reboot=exit", append="panic=-1")
    # Init is the shell's parent, and signals that it does not handle do not kill it.
    shell.console.send("echo 1 > /proc/sys/kernel/sysrq; kill -SEGV 1; kill -9 1; exit\r")
    shell.console.expect("Attempted to kill init!")
    assert shell.machine.wait() == 0, shell.machine.stderr
    assert "the guest reset the machine" in shell.machine.stderr


@pytest.mark.parametrize("options", [(), ("--on-reboot=exit",)])
def test_reset_by_triple_fault(svsmd: Start, linux: Linux, options: tuple[str, ...]) -> None:
    """What the kernel means by it, nobody outside can tell."""
    shell = Shell(svsmd, linux, *options, append="reboot=t")
    shell.console.send("reboot -f\r")
    assert shell.machine.wait() == 4, shell.machine.stderr
    assert "the guest crashed: vCPU 0 at VMPL2: triple fault (" in shell.machine.stderr


def test_a_kernel_that_wants_vmpl0(svsmd: Start, tmp_path: Path) -> None:
    """Linux 6.1 under an SVSM, which svsmd would refuse if it could look into the image.

    Its own code that unpacks it does not go by the header's length of the payload.
    """
    try:
        image = bytearray(fetch_kernel("bookworm").read_bytes())
    except (AptError, OSError) as error:
        pytest.skip(f"no old Linux: {error}")
    struct.pack_into("<I", image, PAYLOAD_LENGTH, 1000)
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(image)
    machine = svsmd(f"--kernel={kernel}", "--decompress=guest")
    assert machine.wait() == 3, machine.stderr
    assert (
        "the guest asked to be terminated (vCPU 0, VMPL2), reason set 1, code 0x3: "
        "it does not run at VMPL0 and cannot do without" in machine.stderr
    )
