# SPDX-License-Identifier: MIT
"""A disk and an entropy device of a stock Linux under the SVSM."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.linux_shell import BOOT_SECONDS
from tests.svsmd_process import Console, Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.kernel_modules import fetch_modules
from tools.make_initrd import find_busybox, initrd

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

MIB = 1 << 20
PATTERN = (b"svsmd\n" * MIB)[:MIB]


@pytest.fixture(scope="session")
def disk_linux(linux: Linux, tmp_path_factory: pytest.TempPathFactory) -> Linux:
    """The kernel, and an initrd with the drivers of svsmd's devices."""
    path = tmp_path_factory.mktemp("disk") / "initrd.cpio"
    try:
        modules = fetch_modules(linux.kernel)
    except (AptError, OSError) as error:
        pytest.skip(f"no virtio drivers to load: {error}")
    path.write_bytes(initrd(find_busybox().read_bytes(), modules=modules))
    return Linux(linux.kernel, path)


def boot(svsmd: Start, linux: Linux, *options: str) -> tuple[SvsmdProcess, Console]:
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", "--append=console=ttyS0", *options
    )
    console = machine.console()
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    return machine, console


def test_what_is_written_is_in_the_file(svsmd: Start, disk_linux: Linux, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(4 * MIB))
    machine, console = boot(svsmd, disk_linux, f"--disk={image}")
    console.send("yes svsmd | head -c 1048576 > /p; dd if=/p of=/dev/vda bs=64k seek=16\r")
    console.expect(r"^16\+0 records out")
    console.send("sync; echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=64k skip=16 count=16"
                 " of=/q; cmp /p /q && echo as $((6 * 7)) before\r")  # fmt: skip
    console.expect("^as 42 before")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    assert image.read_bytes() == bytes(MIB) + PATTERN + bytes(2 * MIB)


def test_a_read_only_disk_stays_as_it_is(svsmd: Start, disk_linux: Linux, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(PATTERN)
    machine, console = boot(svsmd, disk_linux, f"--disk={image},ro")
    console.send("cat /sys/block/vda/ro /sys/block/vda/size\r")
    console.expect("^1\n2048\n")
    console.send("head -c 12 /dev/vda; echo x > /dev/vda || echo refused $((6 * 7))\r")
    console.expect("^svsmd\nsvsmd\n")
    console.expect("refused 42")
    console.send("poweroff -f\r")
    assert machine.wait() == 0, machine.stderr
    assert image.read_bytes() == PATTERN


def test_entropy_comes_from_the_seed(svsmd: Start, disk_linux: Linux) -> None:
    def entropy(seed: str) -> str:
        options = ("--clock=virtual", f"--seed={seed}", "--rtc=0")
        machine, console = boot(svsmd, disk_linux, *options)
        console.send("cat /sys/class/misc/hw_random/rng_current\r")
        console.expect("^virtio_rng")
        console.send("head -c 32 /dev/hwrng | xxd -p -c 32\r")
        value = console.expect("^[0-9a-f]{64}$")[0]
        console.send("poweroff -f\r")
        assert machine.wait() == 0, machine.stderr
        return value

    first = entropy("11")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert entropy("22") != first
