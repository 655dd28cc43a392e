# SPDX-License-Identifier: MIT
"""Make the project's environment: a virtual environment with svsmd, editable, and its tools.

    python3 tools/make_env.py DIRECTORY

Needs nothing but Python's standard library. The last step is the only one that needs the network.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
MIN_PYTHON: Final = (3, 11)
MIN_PIP: Final = "pip>=25.1"
"""The first pip that installs dependency groups."""


def apt_install(package: str) -> bool:
    """Install a Debian or Ubuntu package, if that is possible here."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], env=environment, check=False)
    command = ["apt-get", "-qq", "install", "--yes", "--no-install-recommends", package]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def main(arguments: list[str]) -> int:
    """Command line; 0 = the environment is there, 1 = one line says why not, 2 = usage."""
    if len(arguments) != 1:
        print("usage: make_env.py DIRECTORY", file=sys.stderr)
        return 2
    if sys.version_info < MIN_PYTHON:
        wanted = ".".join(map(str, MIN_PYTHON))
        print(
            f"make_env: this is Python {sys.version.split()[0]}, svsmd needs {wanted} or newer: "
            f"make PYTHON=/path/to/python{wanted}",
            file=sys.stderr,
        )
        return 1
    directory = Path(arguments[0])
    python = directory / "bin" / "python"
    # Debian and Ubuntu keep part of the venv module in a package of its own.
    package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    if importlib.util.find_spec("ensurepip") is None and not apt_install(package):
        print(f"make_env: Python cannot make environments: apt install {package}", file=sys.stderr)
        return 1
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
        subprocess.run([*pip, "--upgrade", MIN_PIP], check=True)
        subprocess.run([*pip, "--editable", ".", "--group", "dev"], cwd=ROOT, check=True)
    except subprocess.CalledProcessError as error:
        print(f"make_env: {' '.join(map(str, error.cmd))} failed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
