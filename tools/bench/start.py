# SPDX-License-Identifier: MIT
"""How soon the guest is there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence

from tools.bench.demo import SVSMD
from tools.bench.registry import Bound, Result, in_turns, register


def _seconds_to_first_byte(command: Sequence[object]) -> float:
    # As installed: the first round compiles, the others find the compiled files.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.kill()
    process.communicate()
    if not first:
        raise EOFError(f"{command} says nothing")
    return seconds


def _interpreter() -> float:
    return _seconds_to_first_byte([sys.executable, "-c", "import os; os.write(1, b'.')"])


def _first_instruction() -> float:
    return _seconds_to_first_byte([sys.executable, "-m", "tools.bench.first_instruction"])


def _first_character() -> float:
    return _seconds_to_first_byte(
        [SVSMD, "run", "demo", "--serial=stdio", "--gdb=tcp:127.0.0.1:0", "-q"]
    )


@register("start")
def start() -> list[Result]:
    """From the command to the guest, less what an empty program of Python takes."""
    empty, instruction, character = in_turns(_interpreter, _first_instruction, _first_character)
    return [
        Result(
            name="start to first instruction, 512 MiB, under the SVSM",
            unit="s",
            figures=[a - b for a, b in zip(instruction, empty, strict=True)],
            bound=Bound(0.5, at_most=True),
        ),
        Result(
            name="start to first character of the demo guest",
            unit="s",
            figures=[a - b for a, b in zip(character, empty, strict=True)],
        ),
        Result(name="`python -c pass`, in the same rounds", unit="s", figures=empty),
    ]
