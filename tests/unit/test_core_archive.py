# SPDX-License-Identifier: MIT
"""The archive: what is found in it, and damage that is named."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsmd.core.archive import Archive
from svsmd.core.gate import SvsmPanic
from svsmd.snp.types import PAGE_SIZE
from tests.own_memory import own_memory
from tools.make_archive import make_archive

BASE = 0x10_0000
FILES = {"/svsm.toml": b"# nothing", "/bin/a": b"A" * 5000, "/bin/empty": b"", "/etc/b/c": b"\xff"}


def archive(data: bytes, nbytes: int | None = None) -> tuple[Archive, dict[str, bytes | None]]:
    """What is read from it, and the contents of all its files."""
    memory, cpu = own_memory(BASE, max(PAGE_SIZE, len(data)))
    memory.data[: len(data)] = data
    found = Archive(cpu, BASE, len(data) if nbytes is None else nbytes)
    return found, {path: found.read(cpu, path) for path in found.paths}


def tar(*members: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for member in members:
            file.addfile(member, io.BytesIO(b"x" * member.size))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info


def test_files() -> None:
    found, contents = archive(make_archive(FILES))
    assert contents == FILES
    assert found.paths == tuple(sorted(FILES))


@pytest.mark.parametrize("data", [b"", bytes(10240)])
def test_nothing_is_no_damage(data: bytes) -> None:
    _, contents = archive(data)
    assert contents == {}


def test_zeros_behind_it_are_no_damage() -> None:
    _, contents = archive(make_archive(FILES) + bytes(5 * PAGE_SIZE))
    assert contents == FILES


def test_paths_are_absolute_and_stay_below_the_root() -> None:
    data = tar(
        member("../../etc/x", size=3), member("./y/./z", size=1), member("dir", tarfile.DIRTYPE)
    )
    found, contents = archive(data)
    assert contents == {"/etc/x": b"xxx", "/y/z": b"x"}
    assert found.is_directory("/dir")
    assert found.is_directory("/")
    assert not found.is_directory("/y/z")


def test_links_devices_and_holes_are_no_files() -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
    _, contents = archive(tar(*(member(f"f{n}", kind) for n, kind in enumerate(kinds))))
    assert contents == {}


def damaged(where: int, value: bytes) -> bytes:
    data = bytearray(make_archive(FILES))
    data[where : where + len(value)] = value
    return bytes(data)


SECOND = 512 + 5120
"""Where the header behind the first file lies (/bin/a has 5000 bytes)."""


@pytest.mark.parametrize(
    "data",
    [
        b"no tar file at all".ljust(2000),
        damaged(0, b"\xff" * 20),
        damaged(SECOND, b"changed"),
        damaged(SECOND + 148, b"garbage!"),
        make_archive(FILES)[: SECOND + 100],
        make_archive(FILES)[:600],
        make_archive(FILES) + b"behind the end",
    ],
)
def test_damage_is_a_panic_with_a_reason(data: bytes) -> None:
    with pytest.raises(SvsmPanic, match=r"the archive is damaged: ."):
        archive(data)


@given(st.lists(st.tuples(st.integers(0, 10240 - 1), st.integers(0, 255)), max_size=12))
def test_no_byte_does_more(changes: list[tuple[int, int]]) -> None:
    data = bytearray(make_archive(FILES))
    for where, value in changes:
        data[where] = value
    try:
        _, contents = archive(bytes(data))
    except SvsmPanic as panic:
        assert str(panic).startswith("the archive is damaged: ")  # noqa: PT017
        return
    assert all(each is not None and len(each) <= len(data) for each in contents.values())


@given(st.binary(max_size=1500))
def test_headers_of_pax_do_no_more(text: bytes) -> None:
    header = member("pax", tarfile.XHDTYPE, len(text))
    out = io.BytesIO(header.tobuf(tarfile.USTAR_FORMAT) + text)
    data = out.getvalue().ljust(2048, b"\0") + make_archive(FILES)
    try:
        archive(data)
    except SvsmPanic as panic:
        assert str(panic).startswith("the archive is damaged: ")  # noqa: PT017
