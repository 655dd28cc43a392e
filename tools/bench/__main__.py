# SPDX-License-Identifier: MIT
"""Run the benchmarks and keep what they say in docs/performance.md.

    python -m tools.bench [--json FILE] [NAME...]

With names, only these run, and the page stays as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

from tools.bench import (
    compute,
    exits,
    gdb_points,
    gdb_stub,
    linux_boot,
    linux_work,
    resident,
    start,
    svsm,
)
from tools.bench.registry import BENCHMARKS, Result
from tools.bench.report import as_json, table, title, write_page

MODULES: Final[tuple[ModuleType, ...]] = (
    compute, exits, svsm, start, resident, gdb_stub, gdb_points, linux_boot, linux_work,
)  # fmt: skip
"""What registers benchmarks: importing it is enough."""


def main(arguments: Sequence[str]) -> int:
    """Command line; 0 = done, 2 = usage."""
    parser = argparse.ArgumentParser(prog="bench", description="Run the benchmarks.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE too")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    sections: dict[str, list[Result]] = {}
    for name in options.names or BENCHMARKS:
        sections[name] = BENCHMARKS[name]()
        print(f"{title(name)}\n\n{table(sections[name])}\n", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(sections), indent=2) + "\n", encoding="utf-8")
    if not options.names:
        write_page(sections)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
