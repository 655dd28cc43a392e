# SPDX-License-Identifier: MIT
"""The guest's files: read once, a kernel unpacked in the background once."""

import gzip
from pathlib import Path

import pytest

from svsmd.config import Decompress, MachineConfig
from svsmd.errors import UserError
from svsmd.host import bzimage as unpacker
from svsmd.host.loader_error import LoaderError
from svsmd.payload import Payload, read_payload
from tests.unit.test_bzimage import KERNEL, bzimage

PACKED = gzip.compress(KERNEL, mtime=0)


def config(path: Path, **options: object) -> MachineConfig:
    return MachineConfig(seed=b"x", rtc=0, kernel=path, **options)  # type: ignore[arg-type]


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(PACKED))
    return path


def test_a_kernel_is_unpacked_in_the_background_once(kernel: Path) -> None:
    payload = read_payload(config(kernel, append="words"))
    assert (payload.kernel, payload.initrd, payload.append) == (bzimage(PACKED), None, "words")
    assert payload.unpack(b"the result is there already") == KERNEL
    # A restart asks again, and gets its own.
    assert payload.unpack(PACKED) == KERNEL
    with pytest.raises(LoaderError):
        payload.unpack(b"no payload at all")


def test_what_unpacks_itself_is_left_alone(kernel: Path) -> None:
    payload = read_payload(config(kernel, decompress=Decompress.GUEST))
    with pytest.raises(LoaderError):
        payload.unpack(b"nothing has been unpacked")


def test_errors_come_when_the_kernel_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(PACKED[: len(PACKED) // 2]))
    payload = read_payload(config(path))
    with pytest.raises(LoaderError, match="corrupt"):
        payload.unpack(b"")


def test_an_elf_is_nothing_to_unpack(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(KERNEL)
    payload = read_payload(config(path))
    assert payload.kernel == KERNEL
    assert payload.unpack(PACKED) == KERNEL


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_payload(config(tmp_path / "nothing"))


def test_a_payload_without_a_thread() -> None:
    assert Payload(KERNEL, None, "").unpack(PACKED) == unpacker.decompress_payload(PACKED)
