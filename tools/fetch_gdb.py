# SPDX-License-Identifier: MIT
"""Find a gdb with the Debug Adapter Protocol, or get one from PyPI, and print its path.

    python tools/fetch_gdb.py

gdb serves the protocol from version 14 on. Where the system's is older, one comes as a wheel into
an environment of its own in the cache, and is not installed. What is in the cache already is taken
from there, without network.

Spec: GDB manual, "Debugger Adapter Protocol".
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.apt_packages import cache_directory

WHEEL: Final = "gdb-for-pwndbg==18.1.0.post1"
"""A gdb with Python in it, for many systems."""
FIRST_VERSION: Final = 14
_SECONDS: Final = 300


class GdbError(Exception):
    """There is none, and none can be had."""


def version_of(gdb: str | Path) -> int:
    """Major version; 0 if that is no gdb."""
    try:
        done = subprocess.run([gdb, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return 0
    # "GNU gdb (Debian 13.1-3) 13.1": the last word of the first line.
    match = re.match(r"GNU gdb .* (\d+)\.\S+$", done.stdout, re.MULTILINE)
    return int(match[1]) if match else 0


def fetch_gdb() -> Path:
    """A gdb that has the protocol. Raises `GdbError`."""
    installed = shutil.which("gdb")
    if installed is not None and version_of(installed) >= FIRST_VERSION:
        return Path(installed)
    directory = cache_directory() / WHEEL
    gdb = directory / "bin" / "gdb"
    if version_of(gdb) < FIRST_VERSION:
        venv.create(directory, with_pip=True, clear=True)
        python = str(directory / "bin" / "python")
        command = [python, "-m", "pip", "install", "--quiet", WHEEL]
        try:
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
        except subprocess.CalledProcessError as error:
            raise GdbError(error.stderr.strip().rpartition("\n")[2]) from None
        except subprocess.TimeoutExpired:
            raise GdbError(f"{WHEEL} did not come") from None
    if version_of(gdb) < FIRST_VERSION:
        raise GdbError(f"{WHEEL} does not run here")
    return gdb


if __name__ == "__main__":
    try:
        print(fetch_gdb())
    except GdbError as error:
        sys.exit(f"fetch_gdb: {error}")
