# SPDX-License-Identifier: MIT
"""Packages become a file system: no network, no root."""

import subprocess
from pathlib import Path

import pytest

from tools.debian_root import INIT, finish, make_image, unpack
from tools.programs import find_program

pytestmark = pytest.mark.skipif(
    not all(map(find_program, ("dpkg-deb", "mke2fs", "debugfs"))), reason="no Debian tools here"
)


def package(directory: Path, name: str, files: dict[str, str], links: dict[str, str]) -> Path:
    tree = directory / f"tree-{name}"
    for path, text in files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    for path, target in links.items():
        tree.mkdir(exist_ok=True)
        (tree / path).symlink_to(target)
    control = tree / "DEBIAN/control"
    control.parent.mkdir(parents=True)
    control.write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: amd64\nMaintainer: x <x@x>\n"
        "Description: test\n"
    )
    archive = directory / f"{name}_1.0_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", tree, archive], check=True, capture_output=True)
    return archive


def test_image(tmp_path: Path) -> None:
    archives = [
        # The second one has the links that the first one's files go through.
        package(tmp_path, "apt", {"sbin/apt": "program"}, {}),
        package(tmp_path, "base-files", {"usr/sbin/x": "", "etc/y": ""}, {"sbin": "usr/sbin"}),
    ]
    tree = tmp_path / "root"
    unpack(archives, tree)
    finish(tree)
    assert (tree / "usr/sbin/apt").read_text() == "program"
    assert (tree / "sbin").is_symlink()
    status = (tree / "var/lib/dpkg/status").read_text()
    assert status.count("Status: install ok unpacked\n") == 2
    assert "\n\nPackage: " in status
    image = tmp_path / "image"
    make_image(tree, image)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    program = find_program("debugfs")
    assert program is not None
    done = subprocess.run(
        [program, "-R", "cat /usr/sbin/init", image], capture_output=True, text=True, check=True
    )
    assert done.stdout == INIT
