# SPDX-License-Identifier: MIT
"""Run files of gdb's testsuite against gdbserver and svsmd, and print what comes out.

    python -m tools.gdb_testsuite [--quick] [--svsmd-only] [--logs DIRECTORY] [FILE...]

Without FILEs, such as gdb.base/break.exp, all of files.toml are run; with --quick those that the
project's own tests run. The exit code is 0 if svsmd does as that file says, 1 if not, 2 if there is
nothing to run it with.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from tools.apt_packages import AptError
from tools.gdb_testsuite.expected import Expectation, expectations
from tools.gdb_testsuite.packages import TESTSUITE_PACKAGES, Unpacked, unpacked
from tools.gdb_testsuite.runs import BAD, Result, Stub, run_file

FILE_SECONDS: Final = 180.0
"""How long one file may take."""
_HEADER: Final = ("file", "gdbserver: pass", "fail", "svsmd: pass", "fail")


def run(
    tools: Unpacked, chosen: Iterable[Expectation], stubs: Sequence[Stub], logs: Path
) -> list[str]:
    """Run files, print a row for each, and return what is not as expected of svsmd."""
    rows: list[tuple[str, ...]] = [_HEADER]
    complaints = []
    sums = [0] * (len(_HEADER) - 1)
    for expectation in chosen:
        row = [expectation.name]
        for number, stub in enumerate((Stub.GDBSERVER, Stub.SVSMD)):
            if stub not in stubs:
                row += ["-", "-"]
                continue
            directory = logs / stub.value / expectation.name
            result = run_file(tools, stub, expectation.name, directory, FILE_SECONDS)
            counts = _counts(result)
            row += map(str, counts)
            for column, count in enumerate(counts):
                sums[2 * number + column] += count
            if stub is Stub.SVSMD:
                complaints += expectation.complaints(result)
        rows.append(tuple(row))
        print("  ".join(row), file=sys.stderr, flush=True)
    rows.append(("all", *map(str, sums)))
    print(table(rows))
    return complaints


def _counts(result: Result) -> tuple[int, int]:
    bad = sum(count for outcome, count in result.counts.items() if outcome in BAD)
    return result.counts.get("PASS", 0), bad


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows in Markdown; the first one is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines)


def _chosen(names: Sequence[str], *, quick: bool) -> list[Expectation]:
    known = expectations()
    if names:
        by_name = {each.name: each for each in known}
        return [by_name.get(name) or Expectation(name, 0, {}) for name in names]
    return [each for each in known if each.quick or not quick]


def main(arguments: Sequence[str]) -> int:
    """Command line; see above."""
    parser = argparse.ArgumentParser(prog="tools.gdb_testsuite")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--svsmd-only", action="store_true")
    parser.add_argument("--logs", type=Path, help="where the logs of all files are left")
    parser.add_argument("files", nargs="*", metavar="FILE")
    options = parser.parse_args(arguments)
    stubs = [Stub.SVSMD] if options.svsmd_only else list(Stub)
    try:
        tools = unpacked(TESTSUITE_PACKAGES)
    except (AptError, OSError) as error:
        print(f"gdb_testsuite: {error}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        logs = Path(temporary) if options.logs is None else options.logs.resolve()
        if options.logs is not None:
            shutil.rmtree(logs, ignore_errors=True)
        complaints = run(tools, _chosen(options.files, quick=options.quick), stubs, logs)
    for line in complaints:
        print(line, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
