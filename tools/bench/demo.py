# SPDX-License-Identifier: MIT
"""A demo guest on pipes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final, Self

SVSMD: Final = Path(sys.executable).with_name("svsmd")
_PROMPT: Final = b"demo> "
_BENCH = re.compile(rb"bench \w+: (\d+) ([^,]+), (\d+) ticks")


class DemoShell:
    """`svsmd run demo` at its prompt; a context manager, which ends it."""

    def __init__(self, *options: str) -> None:
        self._process = subprocess.Popen(
            [SVSMD, "run", "demo", "--serial=stdio", "--gdb=null", "-q", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.read_to_prompt()

    @property
    def pid(self) -> int:
        """The daemon."""
        return self._process.pid

    def read_to_prompt(self) -> bytes:
        """Output up to the next prompt. EOFError: there is none."""
        assert self._process.stdout is not None
        output = b""
        while not output.endswith(_PROMPT):
            data = self._process.stdout.read(4096)
            if not data:
                raise EOFError(output.decode(errors="replace"))
            output += data
        return output

    def run(self, line: str) -> bytes:
        """Type a line; what the guest says to it."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\r")
        return self.read_to_prompt()

    def bench(self, name: str) -> int:
        """Runs one of the guest's own benchmarks; how much work it was."""
        match = _BENCH.search(self.run(f"bench {name}"))
        if match is None:
            raise ValueError(f"the demo guest says nothing of `bench {name}`")
        return int(match[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.communicate()
