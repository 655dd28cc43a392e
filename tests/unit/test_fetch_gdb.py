# SPDX-License-Identifier: MIT
"""Which gdb has the Debug Adapter Protocol."""

from pathlib import Path

import pytest

from tools import fetch_gdb
from tools.fetch_gdb import WHEEL, version_of


def program(path: Path, says: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ("GNU gdb (Debian 13.1-3) 13.1", 13),
        ("GNU gdb (GDB) 18.1", 18),
        ("GNU gdb (Ubuntu 15.0.50.20240403-0ubuntu1) 15.0.50.20240403-git", 15),
        ("GNU gdb (GDB) Fedora Linux 16.3-1.fc42", 16),
        ("something else 15.1", 0),
    ],
)
def test_version(tmp_path: Path, says: str, version: int) -> None:
    assert version_of(program(tmp_path / "gdb", says)) == version


def test_no_program(tmp_path: Path) -> None:
    assert version_of(tmp_path / "nobody") == 0


def test_the_systems_own_is_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it is new enough; else the one in the cache, which is not fetched again."""
    cached = program(tmp_path / "cache" / WHEEL / "bin" / "gdb", "GNU gdb (GDB) 18.1")
    monkeypatch.setattr(fetch_gdb, "cache_directory", lambda: tmp_path / "cache")
    own = program(tmp_path / "gdb", "GNU gdb (GDB) 14.1")
    monkeypatch.setattr("shutil.which", lambda name: str(own))
    assert fetch_gdb.fetch_gdb() == own
    program(own, "GNU gdb (Debian 13.1-3) 13.1")
    assert fetch_gdb.fetch_gdb() == cached
