# SPDX-License-Identifier: MIT
"""What runs gdb's testsuite, and other debuggers: packages, unpacked into the cache.

gdb's sources are those of the release that runs here, so that they fit its gdb. Nothing is
installed, and what is in the cache already is taken from there, without network.

Spec: tools/apt_packages.py; dpkg-query(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.apt_packages import AptError, cache_directory, os_release, release_root, unpack_archive

TESTSUITE_PACKAGES: Final = ("dejagnu", "gdb-source", "gdbserver")
LLDB_PACKAGES: Final = ("lldb",)
_SOURCE: Final = "usr/src/gdb.tar.xz"
_TESTSUITE: Final = "gdb/gdb/testsuite"
_COMPLETE: Final = ".complete"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Packages below a directory of the cache.

    Attributes:
        root: what is / in them.
    """

    root: Path

    def program(self, name: str) -> Path:
        """One of their programs."""
        return self.root / "usr/bin" / name

    @property
    def testsuite(self) -> Path:
        """gdb/testsuite of gdb's sources."""
        return self.root / _TESTSUITE

    @property
    def environment(self) -> Mapping[str, str]:
        """For their programs, which find each other and their libraries with it."""
        libraries = {str(path.parent) for path in (self.root / "usr/lib").glob("**/lib*.so.*")}
        return {
            **os.environ,
            "PATH": f"{self.root / 'usr/bin'}:{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": ":".join(sorted(libraries)),
        }


def unpacked(packages: Sequence[str]) -> Unpacked:
    """These packages, and what they depend on and this system has not installed.

    Raises:
        AptError: they cannot be had.
    """
    release = os_release().get("VERSION_CODENAME", "")
    place = cache_directory() / "unpacked" / f"{release}-{'-'.join(packages)}"
    if not (place / _COMPLETE).is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as directory:
            tree = Path(directory) / "root"
            installed = _installed()
            for archive in release_root().download(packages):
                name = archive.name.partition("_")[0]
                if name in packages or name not in installed:
                    unpack_archive(archive, tree)
            _unpack_testsuite(tree)
            (tree / _COMPLETE).touch()
            tree.rename(place)
    return Unpacked(place)


def _installed() -> frozenset[str]:
    """Packages that this system has."""
    query = ("dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package}\n")
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    lines = (line.split() for line in done.stdout.splitlines())
    return frozenset(name for status, name in lines if status == "installed")


def _unpack_testsuite(tree: Path) -> None:
    """gdb/testsuite of gdb's sources, if they are there."""
    source = tree / _SOURCE
    if not source.is_file():
        return
    try:
        with tarfile.open(source) as tar:
            members = [each for each in tar if each.name.startswith(f"{_TESTSUITE}/")]
            tar.extractall(tree, members, filter="data")
    except tarfile.TarError as error:
        raise AptError(f"{source.name} cannot be unpacked: {error}") from None
    source.unlink()
