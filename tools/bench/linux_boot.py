# SPDX-License-Identifier: MIT
"""A stock Linux kernel from the command to its shell, beside a plain VM of QEMU's."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.apt_packages import AptError
from tools.bench.demo import SVSMD
from tools.bench.gdb_stub import QEMU, QEMU_MISSING
from tools.bench.registry import SLOW_ROUNDS, Bound, Result, in_turns, register
from tools.fetch_kernel import fetch_kernel
from tools.make_initrd import READY, find_busybox, initrd

MEMORY: Final = "512M"
APPEND: Final = "console=ttyS0"
BOOTS: Final = (
    ("a stock Debian kernel, unpacked by the host", (), Bound(1.2, at_most=True)),
    (
        "a stock Debian kernel, unpacked by itself",
        ("--decompress=guest",),
        Bound(2.0, at_most=True),
    ),
)
"""What is booted: its name, svsmd's options for it, and the bound."""


def seconds_to(text: str, command: Sequence[object]) -> float:
    """From the start of a program until it prints a text; EOFError if it does not."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    assert process.stdout is not None
    output = b""
    try:
        while text.encode() not in output:
            data = process.stdout.read(1 << 16)
            if not data:
                raise EOFError(f"{command[0]} ended: {output[-400:].decode(errors='replace')}")
            output = output[-len(text) * 2 - 4096 :] + data
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.communicate()


def _boot(kernel: Path, disk: Path, name: str, options: Sequence[str], bound: Bound) -> Result:
    images = [f"--kernel={kernel}", f"--initrd={disk}", f"--append={APPEND}", *options]
    ours = [SVSMD, "run", *images, "--serial=stdio", "--gdb=null", "-q", f"--memory={MEMORY}"]
    qemu = [
        QEMU, "-accel", "tcg", "-m", MEMORY, "-nographic", "-no-reboot",
        "-kernel", kernel, "-initrd", disk, "-append", APPEND,
    ]  # fmt: skip
    present = shutil.which(QEMU) is not None
    sides = [ours, qemu] if present else [ours]
    figures = in_turns(
        *(lambda c=command: seconds_to(READY, c) for command in sides),
        rounds=SLOW_ROUNDS,
        warm_up=False,
    )
    return Result(
        name=name,
        unit="s",
        figures=figures[0],
        peer="QEMU TCG, plain VM",
        peer_figures=figures[1] if present else (),
        bound=bound,
        note="" if present else QEMU_MISSING,
    )


@register("linux")
def linux() -> list[Result]:
    """Linux under the SVSM, from the command to its shell."""
    try:
        given = os.environ.get("SVSMD_TEST_KERNEL")
        kernel = Path(given) if given else fetch_kernel()
        disk = initrd(find_busybox().read_bytes())
    except (AptError, OSError) as error:
        return [Result(name="Linux boot", unit="s", note=f"no kernel: {error}")]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "initrd.cpio"
        path.write_bytes(disk)
        return [_boot(kernel, path, *boot) for boot in BOOTS]
