# SPDX-License-Identifier: MIT
"""Mistakes of the user: one line that says what is wrong, exit code 2, nothing left running."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.images import image_path
from tests.elf_kernel import elf_kernel

pytestmark = pytest.mark.e2e

Complain = Callable[..., str]


@pytest.fixture
def complain(svsmd_program: Path) -> Complain:
    """Runs `svsmd run`, which must refuse; the line that it says."""

    def run(*arguments: str, hint: str = "") -> str:
        done = subprocess.run(
            [svsmd_program, "run", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done
        assert done.stdout == ""
        complaints = [line for line in done.stderr.splitlines() if line.startswith("svsmd: ")]
        assert done.stderr.splitlines() == complaints, done.stderr
        # What has been opened before the mistake was found is announced; the rest is the mistake.
        said = [line for line in complaints if ": gdb -ex" not in line and ": nc " not in line]
        assert len(said) == 1 or (len(said) == 2 and said[1].startswith("svsmd: hint: ")), said
        assert hint in "".join(said[1:]), said
        return said[0]

    return run


@pytest.mark.parametrize(
    "content",
    [b"", b"\x7fELF", b"\x7fELF\2\1\1" + bytes(60), b"This is not a kernel.\n" * 100, bytes(4096)],
)
def test_broken_kernel(complain: Complain, tmp_path: Path, content: bytes) -> None:
    kernel = tmp_path / "broken"
    kernel.write_bytes(content)
    complain(f"--kernel={kernel}")


@pytest.mark.parametrize("keep", [100, 5000])
def test_truncated_kernel(complain: Complain, tmp_path: Path, keep: int) -> None:
    kernel = tmp_path / "truncated"
    kernel.write_bytes(image_path("demo").read_bytes()[:keep])
    complain(f"--kernel={kernel}")


def test_kernel_without_what_it_takes(complain: Complain, tmp_path: Path) -> None:
    """What it says stands in its image; that it is no kernel does not come to light here."""
    kernel = tmp_path / "linux"
    messages = b"\0Linux version 6.1.0 (x)\0Kernel command line: %s\0 SEV-SNP\0"
    kernel.write_bytes(elf_kernel(bytes(16)) + messages)
    line = complain(f"--kernel={kernel}", hint="--no-svsm")
    assert "Linux 6.1.0) cannot run under an SVSM" in line


def test_more_than_the_memory_holds(complain: Complain, tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    with initrd.open("wb") as file:
        file.truncate(600 << 20)
    line = complain(f"--kernel={image_path('demo')}", f"--initrd={initrd}", hint="--memory 1G")
    assert "the initrd another 600 MiB, there are 508 MiB" in line
    kernel = tmp_path / "far"
    kernel.write_bytes(elf_kernel(bytes(16), at=1 << 30))
    assert "too little memory" in complain(f"--kernel={kernel}", hint="--memory 2G")


def test_missing_files(complain: Complain, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert str(missing) in complain(f"--kernel={missing}")
    assert str(missing) in complain(f"--kernel={image_path('demo')}", f"--initrd={missing}")
    assert str(tmp_path) in complain(f"--kernel={tmp_path}")


@pytest.mark.parametrize("option", ["--gdb=tcp", "--serial=tcp", "--serial=telnet"])
def test_port_in_use(complain: Complain, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        defaults = ["--gdb=tcp:127.0.0.1:0", "--serial=tcp:127.0.0.1:0"]
        line = complain(*defaults, f"{option}:127.0.0.1:{port}")
        assert str(port) in line
        assert "in use" in line


@pytest.mark.parametrize(
    "size", ["0", "0M", "1M", "33M1", "65M", "-512M", "1000000G", "999999999999G", "512", "lots"]
)
def test_memory_that_makes_no_sense(complain: Complain, size: str) -> None:
    complain(f"--memory={size}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--clock=fast",),
        ("--on-reboot=sometimes",),
        ("--gdb=carrier-pigeon",),
        ("--gdb=tcp:127.0.0.1:99999",),
        ("--gdb=telnet:127.0.0.1:0",),
        ("--gdb=null", "-S"),
        ("--serial=tcp:",),
        ("--serial=unix:",),
        ("--serial=tcp:0.0.0.0:0",),
        ("--serial=stdio", "--svsm-console=stdio"),
        ("--seed=xyz",),
        ("--seed=",),
        ("--rtc=yesterday",),
        ("--rtc=-1",),
        ("--cpus=0",),
        ("--cpus=many",),
        ("--guest-vmpl=0",),
        ("--guest-vmpl=4",),
        ("--no-svsm", "--guest-vmpl=2"),
        ("--time-limit=0",),
        ("--time-limit=soon",),
        ("--append=" + "x" * 5000,),
        ("--name=../elsewhere",),
        ("--frobnicate",),
        ("windows",),
    ],
    ids=" ".join,
)
def test_unknown_values(complain: Complain, arguments: tuple[str, ...]) -> None:
    complain(*arguments)
