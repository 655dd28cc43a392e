# SPDX-License-Identifier: MIT
"""A Linux guest on pipes: under the SVSM, and in a plain VM of QEMU's."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tools.bench.demo import SVSMD
from tools.bench.gdb_stub import QEMU
from tools.fetch_kernel import fetch_kernel
from tools.make_initrd import find_busybox, initrd

PEER: Final = "QEMU TCG, plain VM"
MEMORY: Final = "512M"
APPEND: Final = "console=ttyS0"
_KEPT: Final = 4096
"""Bytes of output that are kept for who wants to know what went wrong."""
_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Images:
    """A kernel and an initrd."""

    kernel: Path
    initrd: Path

    def svsmd(self, *options: str) -> list[str]:
        """Command line that boots them under the SVSM."""
        return [
            str(SVSMD), "run", f"--kernel={self.kernel}", f"--initrd={self.initrd}",
            f"--append={APPEND}", f"--memory={MEMORY}", "--serial=stdio", "--gdb=null", "-q",
            *options,
        ]  # fmt: skip

    def qemu(self) -> list[str]:
        """Command line that boots them in a plain VM."""
        return [
            QEMU, "-accel", "tcg", "-m", MEMORY, "-nographic", "-no-reboot",
            "-kernel", str(self.kernel), "-initrd", str(self.initrd), "-append", APPEND,
        ]  # fmt: skip

    def both(self, *options: str) -> list[list[str]]:
        """Both command lines; only ours where QEMU is not installed."""
        commands = [self.svsmd(*options)]
        if shutil.which(QEMU) is not None:
            commands.append(self.qemu())
        return commands


@contextmanager
def linux_images(programs: Mapping[str, bytes] | None = None) -> Iterator[Images]:
    """The kernel of the tests, and an initrd with a shell and these programs.

    Raises:
        AptError, OSError: there is none.
    """
    given = os.environ.get("SVSMD_TEST_KERNEL")
    kernel = Path(given) if given else fetch_kernel()
    disk = initrd(find_busybox().read_bytes(), programs=programs)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "initrd.cpio"
        path.write_bytes(disk)
        yield Images(kernel, path)


class LinuxVm:
    """A process whose standard input and output are a guest's console; ends with the context."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self._output = b""

    def expect(self, text: str) -> str:
        """Reads until a text comes; the last that came before it. EOFError: none comes."""
        wanted = text.encode()
        assert self._process.stdout is not None
        while wanted not in self._output:
            data = self._process.stdout.read(1 << 16)
            if not data:
                last = self._output[-_KEPT:].decode(errors="replace")
                raise EOFError(f"{self._process.args!r} ended before {text!r}: {last}")
            self._output = self._output[-len(wanted) - _KEPT :] + data
        before, _, self._output = self._output.partition(wanted)
        return before.decode(errors="replace")

    def type(self, line: str) -> None:
        """Types a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\r")

    @property
    def peak_mib(self) -> float:
        """MiB of physical memory that the process has had at most."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        match = _PEAK.search(status)
        if match is None:
            raise ValueError(f"{self._process.args!r} has no VmHWM")
        return int(match[1]) / 1024

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()
