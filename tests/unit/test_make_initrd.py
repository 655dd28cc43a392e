# SPDX-License-Identifier: MIT
"""The cpio archive, read back by a reader of its own."""

import os
import stat
from pathlib import Path

from tools.make_initrd import INIT, SCRIPT, Entry, initrd, is_static, newc


def read_newc(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Names with mode, contents and device number (buffer-format.rst)."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        assert fields[2:4] == [0, 0], "owned by root"
        assert fields[5] == 0, "no date"
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        at = -(-(at + 110 + name_size) // 4) * 4
        content = data[at : at + size]
        at = -(-(at + size) // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        found[name] = mode, content, (fields[9], fields[10])


def test_newc() -> None:
    entries = [Entry("a", stat.S_IFREG | 0o644, b"12345"), Entry("bin", stat.S_IFDIR | 0o755)]
    assert read_newc(newc(entries)) == {
        "a": (stat.S_IFREG | 0o644, b"12345", (0, 0)),
        "bin": (stat.S_IFDIR | 0o755, b"", (0, 0)),
    }


def test_initrd() -> None:
    archive = initrd(b"busybox")
    assert archive == initrd(b"busybox")
    files = read_newc(archive)
    assert files["bin/busybox"] == (stat.S_IFREG | 0o755, b"busybox", (0, 0))
    assert files["init"][1].decode() == INIT
    assert files["dev/console"][0] == stat.S_IFCHR | 0o600
    assert files["dev/console"][2] == (5, 1)
    assert SCRIPT not in files


def test_a_script_takes_the_place_of_the_shell() -> None:
    files = read_newc(initrd(b"busybox", script="poweroff -f\n"))
    assert files[SCRIPT][1] == b"poweroff -f\n"
    init = files["init"][1].decode()
    assert init == INIT
    assert init.index(f"exec sh /{SCRIPT}") < init.index("exec sh -i")


def test_is_static(tmp_path: Path) -> None:
    script = tmp_path / "busybox"
    script.write_text("#!/bin/sh\n")
    assert not is_static(script)
    assert not is_static(Path(os.path.realpath("/bin/sh")))
