# SPDX-License-Identifier: MIT
"""Make an initial RAM disk with Linux's SEV guest driver and a program that asks it for reports.

    python tools/sev_guest_initrd.py OUTPUT KERNEL

It is the one of tools/make_initrd.py with the modules of /dev/sev-guest, which are loaded at start,
and /bin/snp_report (tests/data/guest/snp_report.c), compiled with the system's C compiler.

Spec: docs/attestation.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

# Run as a program, this file has nothing of the source tree in sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.apt_packages import AptError
from tools.kernel_modules import SEV_GUEST_MODULES, fetch_modules
from tools.make_initrd import find_busybox, initrd

SOURCE: Final = Path(__file__).resolve().parent.parent / "tests/data/guest/snp_report.c"
FLAGS: Final = ("-static", "-Os", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def compile_program(source: Path) -> bytes:
    """A static program.

    Raises:
        OSError: there is no C compiler.
        subprocess.CalledProcessError: it refuses the source; it says why on stderr.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / source.stem
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, *FLAGS, "-o", output, source], check=True)
        return output.read_bytes()


def sev_guest_initrd(kernel: Path) -> bytes:
    """The archive for a kernel.

    Raises:
        AptError: busybox or the modules cannot be had.
        OSError, subprocess.CalledProcessError: as `compile_program`.
    """
    modules = fetch_modules(kernel, SEV_GUEST_MODULES)
    programs = {SOURCE.stem: compile_program(SOURCE)}
    return initrd(find_busybox().read_bytes(), modules, programs)


def main(arguments: list[str]) -> int:
    """Command line; 0 = done, 1 = one line on stderr says why not, 2 = usage."""
    if len(arguments) != 2:
        print("usage: sev_guest_initrd.py OUTPUT KERNEL", file=sys.stderr)
        return 2
    output, kernel = map(Path, arguments)
    try:
        output.write_bytes(sev_guest_initrd(kernel))
    except (AptError, OSError, subprocess.CalledProcessError) as error:
        print(f"sev_guest_initrd: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
