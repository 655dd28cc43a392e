# SPDX-License-Identifier: MIT
"""Mutated ELF files give a LoaderError or a load that keeps every promise, nothing else."""

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.host.elf_loader import ElfImage, load_elf
from svsmd.host.loader_error import LoaderError

MEMORY = (range(0x10_0000, 0x100_0000),)


def _valid_file() -> bytes:
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, 0x10_0000, 64, 0, 0, 64, 56, 2, 0, 0, 0,
    )  # fmt: skip
    text = struct.pack("<IIQQQQQQ", 1, 5, 0xB0, 0x10_0000, 0x10_0000, 32, 32, 0x1000)
    data = struct.pack("<IIQQQQQQ", 1, 6, 0xD0, 0x20_0000, 0x20_0000, 16, 4096, 0x1000)
    return header + text + data + bytes(range(48))


VALID = _valid_file()
INTERESTING = st.sampled_from(
    [0, 1, 2, 0x7F, 0xFF, 0x10_0000, 0x20_0000, 0xFF_FFFF, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]
)
MUTATION = st.tuples(
    st.integers(0, len(VALID) - 1),
    st.one_of(
        st.binary(min_size=1, max_size=8),
        st.builds(lambda value: struct.pack("<Q", value), INTERESTING),
        st.builds(lambda value: struct.pack("<H", value & 0xFFFF), INTERESTING),
    ),
)


def _check(data: bytes, image: ElfImage) -> None:
    previous_end = 0
    for segment in image.segments:
        assert any(ram.start <= segment.paddr and segment.end <= ram.stop for ram in MEMORY), (
            "inside memory"
        )
        assert segment.paddr >= previous_end, "disjoint and sorted"
        assert len(segment.data) <= segment.memsz
        assert segment.data in data
        previous_end = segment.end
    assert any(s.paddr <= image.entry < s.end for s in image.segments)


def _load_or_refuse(data: bytes) -> None:
    refusal = None
    try:
        image = load_elf(data, MEMORY)
    except LoaderError as error:
        refusal = str(error)
    if refusal is None:
        _check(data, image)
    else:
        assert refusal
        assert "\n" not in refusal


def test_the_seed_is_valid():
    image = load_elf(VALID, MEMORY)
    _check(VALID, image)
    assert len(image.segments) == 2


@settings(max_examples=800, deadline=None)
@given(st.lists(MUTATION, min_size=1, max_size=4), st.integers(0, len(VALID)))
def test_mutations(mutations, cut):
    image = bytearray(VALID)
    for offset, value in mutations:
        image[offset : offset + len(value)] = value
    data = bytes(image[: len(image) if cut % 4 else cut])
    _load_or_refuse(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_noise(data):
    for candidate in (data, VALID[:16] + data, VALID[:64] + data):
        _load_or_refuse(candidate)
