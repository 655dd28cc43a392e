# SPDX-License-Identifier: MIT
"""The digest of the core's sources, and that the launch digest changes with it."""

import hashlib
import shutil
import struct
from pathlib import Path

import pytest

from svsmd import core
from svsmd.config import MIB, MachineConfig
from svsmd.core_digest import core_digest, core_digest_page, read_core_sources
from svsmd.errors import UserError
from svsmd.images import image_path
from svsmd.machine import Machine, build_machine
from svsmd.snp.types import PAGE_SIZE

CORE = Path(core.__file__).parent


def machine() -> Machine:
    return build_machine(MachineConfig(seed=b"test", rtc=0, memory=64 * MIB))


def test_the_page() -> None:
    sources = read_core_sources()
    assert "core.py" in sources
    assert "protocols/core.py" in sources
    page = core_digest_page(sources)
    assert len(page) == PAGE_SIZE
    magic, version, count, digest = struct.unpack_from("<8s2I48s", page)
    assert (magic, version, count) == (b"SVSMDCD1", 1, len(sources))
    assert digest == core_digest(sources)
    assert not any(page[64:])


def test_the_digest_is_what_the_documentation_says() -> None:
    sources = {"b.py": b"two\r\n", "a/z.py": b"one\n", "a.py": b""}
    text = b"".join(
        name + b"\0" + struct.pack("<Q", len(data)) + data
        for name, data in ((b"a.py", b""), (b"a/z.py", b"one\n"), (b"b.py", b"two\n"))
    )
    assert core_digest(sources) == hashlib.sha384(text).digest()


def test_names_and_borders_of_files_count() -> None:
    digests = {
        core_digest(sources)
        for sources in (
            {"a.py": b"xy", "b.py": b""},
            {"a.py": b"x", "b.py": b"y"},
            {"a.py": b"", "b.py": b"xy"},
            {"a.py": b"xy", "c.py": b""},
            {"a.py": b"xy"},
        )
    }
    assert len(digests) == 5


@pytest.mark.parametrize("name", ["stages", "svsm"])
def test_launch_digest_covers_stages_and_kernel(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine().launch_digest
    image = bytearray(image_path(name).read_bytes())
    image[0x1004] ^= 1  # in the text segment
    changed = tmp_path / "image"
    changed.write_bytes(image)
    monkeypatch.setattr(
        "svsmd.machine.image_path", lambda wanted: changed if wanted == name else image_path(wanted)
    )
    assert machine().launch_digest != before


def test_no_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        read_core_sources(tmp_path)


def test_launch_digest_changes_with_one_byte_of_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine().launch_digest
    copy = tmp_path / "core"
    shutil.copytree(CORE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    assert read_core_sources(copy) == read_core_sources()
    boot = copy / "boot.py"
    boot.write_bytes(boot.read_bytes().replace(b"valid already", b"valid Already"))
    monkeypatch.setattr("svsmd.machine.read_core_sources", lambda: read_core_sources(copy))
    assert machine().launch_digest != before
    # How the sources were checked out does not matter.
    shutil.copyfile(CORE / "boot.py", boot)
    boot.write_bytes(boot.read_bytes().replace(b"\n", b"\r\n"))
    assert machine().launch_digest == before
