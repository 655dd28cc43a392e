# SPDX-License-Identifier: MIT
"""What the C compiler makes of a header of the native code, for comparison with Python's side."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest


def c_values(header: Path, expressions: Mapping[str, str], scratch: Path) -> dict[str, int]:
    """The values of integer expressions in C, by name; skips the test if there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, program = scratch / "values.c", scratch / "values"
    prints = (f'printf("{name} %ld\\n", (long)({text}));\n' for name, text in expressions.items())
    source.write_text(
        f'#include <stdio.h>\n#include "{header.name}"\nint main(void) {{\n{"".join(prints)}}}\n'
    )
    subprocess.run([compiler, "-I", header.parent, source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in map(str.split, printed.splitlines())}
