# SPDX-License-Identifier: MIT
"""Install the programs that the tests or the benchmarks drive, or say what to install.

    python tools/setup_test_tools.py [test] [bench]

Only root on a system with apt gets something installed. Anybody else gets one line; what cannot
run without a program is skipped later, and the tests say so at their end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.programs import find_program

PROGRAMS: Final = {
    "test": {
        "gdb": "gdb",
        "iasl": "acpica-tools",
        "mke2fs": "e2fsprogs",
        "musl-gcc": "musl-tools",
        "qemu-system-x86_64": "qemu-system-x86",
        "telnet": "inetutils-telnet",
    },
    "bench": {"gdb": "gdb", "qemu-system-x86_64": "qemu-system-x86"},
}
"""What each purpose needs: program, and the package that has it."""


def missing_packages(purposes: list[str]) -> list[str]:
    """Packages of the programs that are not here."""
    wanted = {name: package for purpose in purposes for name, package in PROGRAMS[purpose].items()}
    return sorted({package for name, package in wanted.items() if find_program(name) is None})


def install(packages: list[str]) -> bool:
    """Let apt install packages; its output is shown only if it fails."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # An image without package lists needs the update; where the lists are there, it may well fail
    # for a source that has nothing to do with these packages.
    command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", *packages]
    for attempt in (command, ["apt-get", "-qq", "update"], command):
        done = subprocess.run(
            attempt, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if attempt is command and done.returncode == 0:
            return True
    sys.stderr.write(done.stderr.decode(errors="replace"))
    return False


def main(arguments: list[str]) -> int:
    """Command line; 0 unless the usage is wrong: without the programs the tests skip."""
    purposes = arguments or ["test"]
    unknown = set(purposes) - set(PROGRAMS)
    if unknown:
        print(f"setup_test_tools: no such purpose: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    packages = missing_packages(purposes)
    if not packages:
        return 0
    able = os.geteuid() == 0 and shutil.which("apt-get") is not None
    if able:
        print(f"installing {' '.join(packages)}")
        if install(packages):
            return 0
    print(f"please install what is missing here: apt install {' '.join(packages)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
