# SPDX-License-Identifier: MIT
"""One file of gdb's testsuite against one stub, in a directory of its own.

There is no configured build of gdb: what `configure` would write into site.exp is written here.

Spec: runtest(1); DejaGnu manual, "Site configuration", "Board description files"; README
of gdb/testsuite.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from tools.gdb_testsuite.packages import Unpacked

HERE: Final = Path(__file__).resolve().parent
_RESULT: Final = re.compile(r"^([A-Z]+): (.*)$", re.MULTILINE)
_OUTCOMES: Final = (
    "PASS", "FAIL", "XPASS", "XFAIL", "KPASS", "KFAIL", "UNRESOLVED", "UNTESTED", "UNSUPPORTED",
    "DUPLICATE", "PATH", "ERROR",
)  # fmt: skip
BAD: Final = frozenset(("FAIL", "UNRESOLVED", "KPASS", "XPASS", "ERROR"))
"""What a test may not come out as. A known failure of gdb itself (KFAIL, XFAIL) is none of ours."""
_FAREWELL_SECONDS: Final = 10.0
_STALE_SERVER: Final = "Remote debugging from host"
"""What gdbserver says, and one_program.py does not."""


class Stub(Enum):
    """What is tested: its board."""

    SVSMD = "svsmd-program"
    GDBSERVER = "native-gdbserver"


@dataclass(frozen=True, slots=True)
class Result:
    """What has come out.

    Attributes:
        counts: tests, by outcome.
        bad: tests that came out as one of `BAD`: outcome and name.
        late: the time was up before the end of the file.
    """

    counts: Mapping[str, int]
    bad: tuple[str, ...]
    late: bool = False


def run_file(tools: Unpacked, stub: Stub, name: str, directory: Path, seconds: float) -> Result:
    """Run `name`, such as "gdb.base/break.exp"; logs are left in `directory`, which must be new."""
    directory.mkdir(parents=True)
    server = tools.program("gdbserver")
    if stub is Stub.SVSMD:
        server = directory / "server"
        command = shlex.join((sys.executable, str(HERE / "one_program.py")))
        server.write_text(f'#!/bin/sh\nunset LD_LIBRARY_PATH\nexec {command} "$@"\n')
        server.chmod(0o755)
    (directory / "site.exp").write_text(_site(tools, directory, server))
    command_line = (tools.program("runtest"), f"--target_board={stub.value}", name)
    with (directory / "output").open("wb") as output:
        process = subprocess.Popen(
            command_line, cwd=directory, env=tools.environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(seconds)
            late = False
        except subprocess.TimeoutExpired:
            late = True
            process.terminate()  # it closes what it has started
            try:
                process.wait(_FAREWELL_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    log = (directory / "gdb.log").read_text(errors="replace")
    if stub is Stub.SVSMD and _STALE_SERVER in log:
        raise AssertionError(f"{name} was run against gdbserver")
    return parse_summary((directory / "gdb.sum").read_text(errors="replace"), late=late)


def parse_summary(summary: str, *, late: bool) -> Result:
    """What gdb.sum says."""
    found = [match.groups() for match in _RESULT.finditer(summary) if match[1] in _OUTCOMES]
    # Where it ran does not matter.
    bad = tuple(
        f"{outcome}: {text.partition('.exp: ')[2]}" for outcome, text in found if outcome in BAD
    )
    return Result(Counter(outcome for outcome, _ in found), bad, late)


def _site(tools: Unpacked, directory: Path, server: Path) -> str:
    machine = "x86_64-pc-linux-gnu"
    values = {
        "srcdir": tools.testsuite,
        "objdir": directory,
        **{f"{name}_triplet": machine for name in ("target", "build", "host")},
        **{f"{name}_alias": machine for name in ("target", "build", "host")},
        "tool": "gdb",
        "GDB": "/usr/bin/gdb",
        # This one wins over what a board says.
        "GDBSERVER": server,
        "gdb_data_directory": "/usr/share/gdb",
        "CC_FOR_TARGET": "gcc",
        "CFLAGS": "",
    }
    lines = [f"set {name} {{{value}}}" for name, value in values.items()]
    lines += [
        f"lappend boards_dir {{{path}}}" for path in (HERE / "boards", tools.testsuite / "boards")
    ]
    return "\n".join(lines) + "\n"
