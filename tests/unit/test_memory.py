# SPDX-License-Identifier: MIT
"""Guest memory, its encrypted view, and the entropy source."""

from __future__ import annotations

import ctypes

import pytest

from svsmd.snp import memory as memory_module
from svsmd.snp.entropy import EntropySource
from svsmd.snp.memory import GIB, MIB, GuestMemory, NotRam
from svsmd.snp.memory_encryption import MemoryEncryption
from svsmd.snp.types import PAGE_SIZE

KEY = bytes(range(32))


def test_small_memory_is_one_range():
    memory = GuestMemory(64 * MIB)
    assert memory.ranges == (range(64 * MIB),)
    assert len(memory.buffer) == memory.size == 64 * MIB


def test_large_memory_goes_on_above_the_hole():
    memory = GuestMemory(5 * GIB)
    assert memory.ranges == (range(3 * GIB), range(4 * GIB, 6 * GIB))
    assert memory.offset_of(3 * GIB - 1) == 3 * GIB - 1
    assert memory.offset_of(4 * GIB) == 3 * GIB
    assert memory.offset_of(6 * GIB - 1) == 5 * GIB - 1
    for spa in (0, 3 * GIB - 1, 4 * GIB, 6 * GIB - 1):
        assert memory.spa_of(memory.offset_of(spa)) == spa
    memory.write_u64(6 * GIB - 8, 0x1122_3344_5566_7788)
    assert memory.read_u64(6 * GIB - 8) == 0x1122_3344_5566_7788


@pytest.mark.parametrize(
    ("spa", "nbytes"),
    [
        (-1, 1),
        (3 * GIB, 1),
        (3 * GIB - 4, 8),
        (4 * GIB - 1, 1),
        (4 * GIB - 4, 8),
        (5 * GIB - 7, 8),
        (1 << 64, 1),
        (0, 1 << 64),
    ],
)
def test_holes(spa: int, nbytes: int):
    memory = GuestMemory(4 * GIB)
    assert not memory.contains(spa, nbytes)
    with pytest.raises(NotRam):
        memory.offset_of(spa, nbytes)


def test_a_write_that_does_not_fit_writes_nothing():
    memory = GuestMemory(16 * MIB)
    with pytest.raises(NotRam):
        memory.write(16 * MIB - 2, b"abcd")
    assert memory.read(16 * MIB - 2, 2) == bytes(2)


def test_contains():
    memory = GuestMemory(16 * MIB)
    assert memory.contains(0, 16 * MIB)
    assert not memory.contains(0, 16 * MIB + 1)
    assert not memory.contains(0, 0)


def test_views_are_live_and_the_address_is_theirs():
    memory = GuestMemory(16 * MIB)
    page = memory.page(0x5000)
    page[3] = 0xAB
    assert memory.read(0x5003, 1) == b"\xab"
    assert ctypes.c_ubyte.from_address(memory.address + 0x5003).value == 0xAB
    memory.write(0x5004, b"xy")
    assert bytes(page[4:6]) == b"xy"
    with pytest.raises(ValueError, match="not the start of a page"):
        memory.page(0x5001)


def test_starts_zeroed_and_two_memories_are_apart():
    first, second = GuestMemory(16 * MIB), GuestMemory(16 * MIB)
    first.write(0, b"\xff")
    assert second.read(0, PAGE_SIZE) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("pagemap", ["/proc/self/pagemap", "/nowhere/pagemap"])
def test_clearing(monkeypatch: pytest.MonkeyPatch, pagemap: str):
    """Pages that were never used, that were read only, and that have something in them."""
    monkeypatch.setattr(memory_module, "_PAGEMAP", pagemap)
    memory = GuestMemory(16 * MIB)
    used = (0, 2 * MIB - 1, 6 * MIB + 5 * PAGE_SIZE, 16 * MIB - 1)
    for spa in used:
        memory.write(spa, b"\xff")
    assert memory.read(9 * MIB, 1) == b"\0"
    memory.zero(PAGE_SIZE, 16 * MIB - PAGE_SIZE)
    assert memory.read(0, 1) == b"\xff", "it is not in the range"
    assert memory.buffer[PAGE_SIZE:].tobytes().strip(b"\0") == b""
    memory.zero(0, 1)
    assert memory.buffer.tobytes().strip(b"\0") == b""


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (0, "too small"),
        (-2 * MIB, "too small"),
        (14 * MIB, "too small"),
        (17 * MIB, "multiple of 2 MiB"),
        (16 * MIB + 1, "multiple of 2 MiB"),
        (1 << 50, "too large"),
    ],
)
def test_sizes_that_make_no_sense(size: int, why: str):
    with pytest.raises(ValueError, match=why):
        GuestMemory(size)


def test_ciphertext_depends_on_key_address_and_content():
    engine = MemoryEncryption(KEY)
    page = b"secret! " * 512
    ciphertext = engine.encrypt_page(0x1000, page)
    assert len(ciphertext) == PAGE_SIZE
    assert ciphertext == MemoryEncryption(KEY).encrypt_page(0x1000, page)
    assert ciphertext != engine.encrypt_page(0x2000, page)
    assert ciphertext != MemoryEncryption(KEY[::-1]).encrypt_page(0x1000, page)
    changed = engine.encrypt_page(0x1000, b"S" + page[1:])
    # The granule is 16 bytes: only the block that changed looks different.
    assert changed[:16] != ciphertext[:16]
    assert changed[16:] == ciphertext[16:]


def test_ciphertext_shows_no_plaintext_and_no_pattern():
    ciphertext = MemoryEncryption(KEY).encrypt_page(0, bytes(PAGE_SIZE))
    blocks = {ciphertext[i : i + 16] for i in range(0, PAGE_SIZE, 16)}
    assert len(blocks) == PAGE_SIZE // 16
    assert bytes(16) not in blocks


def test_decrypts_what_it_encrypted():
    engine = MemoryEncryption(KEY)
    page = bytes(i & 0xFF for i in range(PAGE_SIZE))
    assert engine.decrypt_page(0x3000, engine.encrypt_page(0x3000, page)) == page
    assert engine.decrypt_page(0x4000, engine.encrypt_page(0x3000, page)) != page


@pytest.mark.parametrize("key", [bytes(16), bytes(32), b"\1" * 33])
def test_keys_that_are_none(key: bytes):
    with pytest.raises(ValueError, match="key"):
        MemoryEncryption(key)


@pytest.mark.parametrize(("spa", "size"), [(1, PAGE_SIZE), (0, 16)])
def test_encrypts_whole_pages(spa: int, size: int):
    with pytest.raises(ValueError, match="not a page"):
        MemoryEncryption(KEY).encrypt_page(spa, bytes(size))


def test_entropy_repeats_itself():
    first, second = EntropySource(b"seed"), EntropySource(b"seed")
    assert first.read(7) + first.read(25) == second.read(32)
    assert first.position == 32
    assert EntropySource(b"other").read(32) != EntropySource(b"seed").read(32)


def test_entropy_streams_do_not_disturb_each_other():
    source = EntropySource(b"seed")
    untouched = source.stream("rdrand").read(16)
    source.read(1000)
    source.stream("vcek").read(1000)
    assert source.stream("rdrand").read(16) == untouched
    assert source.stream("vcek").read(16) != untouched
    assert EntropySource(b"other").stream("rdrand").read(16) != untouched


def test_entropy_does_not_change_from_version_to_version():
    """A recording names a seed: its bytes must stay what they are."""
    assert EntropySource(b"").read(8).hex() == "5032164013365341"
    assert EntropySource(b"seed").stream("name").read(8).hex() == "11c585883c64e76b"
