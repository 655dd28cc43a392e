# SPDX-License-Identifier: MIT
"""fw_cfg: directory, port and DMA accesses, and accesses that make no sense."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsmd.host.dma import Dma
from svsmd.host.fw_cfg import MAX_NAME, FwCfg
from svsmd.host.port_bus import PortBus
from svsmd.snp.types import PAGE_SIZE

FILES = {"etc/b": b"bee", "etc/a": bytes(range(256)) * 40}
READ, SKIP, SELECT, WRITE = 2, 4, 8, 16
ACCESS, BUFFER = 0x1010, 0x2FF0
PRIVATE = 0x9000


class Rig:
    """The device on a bus, and eight shared pages from 0 on."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.memory = bytearray(8 * PAGE_SIZE)
        self.bus = PortBus()
        FwCfg(FILES if files is None else files, Dma(self._page)).attach(self.bus)

    def _page(self, spa: int) -> memoryview | None:
        if spa >= len(self.memory):
            return None
        return memoryview(self.memory)[spa : spa + PAGE_SIZE]

    def select(self, key: int) -> None:
        self.bus.write(0x510, 2, key)

    def take(self, n: int) -> bytes:
        return bytes(self.bus.read(0x511, 1) for _ in range(n))

    def start(self, address: int) -> None:
        high, low = struct.unpack("<II", address.to_bytes(8, "big"))
        self.bus.write(0x514, 4, high)
        self.bus.write(0x518, 4, low)

    def dma(self, control: int, length: int = 0, address: int = BUFFER) -> int:
        """One access; the control field afterwards."""
        struct.pack_into(">IIQ", self.memory, ACCESS, control, length, address)
        self.start(ACCESS)
        (result,) = struct.unpack_from(">I", self.memory, ACCESS)
        return int(result)

    def directory(self) -> dict[str, tuple[int, int]]:
        self.select(0x19)
        (count,) = struct.unpack(">I", self.take(4))
        found = {}
        for _ in range(count):
            size, key, reserved, name = struct.unpack(">IHH56s", self.take(64))
            assert reserved == 0
            found[name.rstrip(b"\0").decode()] = (key, size)
        return found


def test_signatures() -> None:
    rig = Rig()
    assert rig.take(4) == b"QEMU", "the signature is selected after reset"
    rig.select(1)
    assert rig.take(4) == b"\3\0\0\0"
    register = rig.bus.read(0x514, 4).to_bytes(4, "little") + rig.bus.read(0x518, 4).to_bytes(
        4, "little"
    )
    assert register == b"QEMU CFG"


def test_files_are_found_by_name_and_read_by_port() -> None:
    rig = Rig()
    directory = rig.directory()
    assert {name: size for name, (_, size) in directory.items()} == {
        name: len(data) for name, data in FILES.items()
    }
    assert list(directory) == sorted(directory)
    rig.select(directory["etc/b"][0])
    assert rig.take(6) == b"bee\0\0\0", "there are zeros behind the end"
    rig.select(directory["etc/b"][0])
    assert rig.take(1) == b"b", "selecting starts over"


def test_unknown_keys_are_empty() -> None:
    rig = Rig()
    rig.select(0x7777)
    assert rig.take(3) == bytes(3)


def test_dma_reads_across_pages_and_goes_on_where_it_was() -> None:
    rig = Rig()
    key, size = rig.directory()["etc/a"]
    data = FILES["etc/a"]
    assert rig.dma(key << 16 | SELECT | READ, 5000) == 0
    assert rig.memory[BUFFER : BUFFER + 5000] == data[:5000]
    assert rig.dma(SKIP, 100) == 0
    assert rig.dma(READ, 16) == 0
    assert rig.memory[BUFFER : BUFFER + 16] == data[5100:5116]
    assert rig.dma(key << 16 | SELECT) == 0
    assert rig.take(2) == data[:2]
    assert size == len(data)


@pytest.mark.parametrize(
    ("control", "length", "address"),
    [
        (READ, 16, PRIVATE),
        (READ, 2 * PAGE_SIZE, 7 * PAGE_SIZE),
        (READ, 16, (1 << 64) - 8),
        (READ, (16 << 20) + 1, BUFFER),
        (WRITE, 16, BUFFER),
    ],
)
def test_bad_accesses_fail_and_write_nothing(control: int, length: int, address: int) -> None:
    rig = Rig()
    before = bytes(rig.memory[BUFFER:])
    assert rig.dma(control, length, address) == 1
    assert rig.memory[BUFFER:] == before


def test_an_access_in_private_memory_is_not_one() -> None:
    rig = Rig()
    before = bytes(rig.memory)
    rig.start(PRIVATE)
    rig.start(8 * PAGE_SIZE - 8)
    assert rig.memory == before


def test_files_that_fit_in_no_directory() -> None:
    Rig({"n" * MAX_NAME: b""})
    with pytest.raises(ValueError, match="directory"):
        Rig({"n" * (MAX_NAME + 1): b""})


CONTROLS = st.integers(0, 0xFFFF_FFFF)
LENGTHS, ADDRESSES = st.integers(0, 9000), st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(CONTROLS, LENGTHS, ADDRESSES), max_size=8))
def test_nothing_that_a_guest_asks_for_is_an_error_of_ours(
    accesses: list[tuple[int, int, int]],
) -> None:
    rig = Rig()
    for control, length, address in accesses:
        assert rig.dma(control, length, address) in (0, 1, control)
