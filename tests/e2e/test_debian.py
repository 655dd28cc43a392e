# SPDX-License-Identifier: MIT
"""A Debian on an ext4 disk: its own userland runs, and what it writes is in the image."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.linux_shell import BAD, BOOT_SECONDS
from tests.svsmd_process import Console, Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.debian_root import READY, debian_image
from tools.kernel_modules import fetch_modules
from tools.make_initrd import find_busybox, initrd
from tools.programs import find_program

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]

Start = Callable[..., SvsmdProcess]

PROMPT = r"root@\(none\):~# "


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The file system."""
    path = tmp_path / "debian.img"
    try:
        debian_image(path)
    except (AptError, OSError) as error:
        pytest.skip(f"no Debian to boot: {error}")
    return path


@pytest.fixture
def disk_linux(linux: Linux, tmp_path: Path) -> Linux:
    """The kernel, and an initrd with the drivers of svsmd's devices."""
    path = tmp_path / "disk.cpio"
    try:
        path.write_bytes(initrd(find_busybox().read_bytes(), fetch_modules(linux.kernel)))
    except (AptError, OSError) as error:
        pytest.skip(f"no drivers to load: {error}")
    return Linux(linux.kernel, path)


def run(console: Console, command: str) -> str:
    """What a command prints that succeeds, behind what was typed."""
    before = len(console.transcript)
    console.send(f"{command} && echo d'on'e\r")
    console.expect("^done$")
    console.expect(PROMPT)
    return console.transcript[before:]


def in_image(image: Path, program: str, *arguments: str) -> str:
    """The output of one of e2fsprogs' programs."""
    path = find_program(program)
    assert path is not None
    done = subprocess.run([path, *arguments, image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    return done.stdout


def test_debian(svsmd: Start, disk_linux: Linux, image: Path) -> None:
    machine = svsmd(
        f"--kernel={disk_linux.kernel}", f"--initrd={disk_linux.initrd}",
        "--append=console=ttyS0 root=/dev/vda", f"--disk={image}",
    )  # fmt: skip
    console = machine.console()
    console.expect(READY, BOOT_SECONDS)
    console.expect(PROMPT)
    run(console, "busybox dmesg -n 1")
    assert "/dev/vda on / type ext4" in run(console, "mount")
    assert "package management program version" in run(console, "dpkg --version")
    assert "amd64" in run(console, "apt --version")
    assert "GNU bash, version" in run(console, "bash --version")
    assert "[installed,local]" in run(console, "apt list bash 2>/dev/null")
    run(console, "sha256sum /usr/bin/* /usr/lib/x86_64-linux-gnu/*.so* > /root/sums")
    run(console, "echo 3 > /proc/sys/vm/drop_caches && sha256sum --quiet -c /root/sums")
    run(console, "echo from VMPL $(cat /sys/devices/system/cpu/sev/vmpl) > /root/note")
    # Read-only, the file system has nothing in its journal that is not in its place.
    console.send("sync; mount -o remount,ro / && busybox poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    for bad in (*BAD, "EXT4-fs error", "I/O error"):
        assert bad not in console.transcript, console.transcript
    assert in_image(image, "debugfs", "-R", "cat /root/note") == "from VMPL 2\n"
    in_image(image, "e2fsck", "-fn")
