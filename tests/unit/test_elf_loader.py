# SPDX-License-Identifier: MIT
"""The ELF loader: what it takes, and one clear line for each thing that it refuses."""

import struct
from typing import NamedTuple

import pytest

from svsmd.host.elf_loader import load_elf
from svsmd.host.loader_error import LoaderError

MEMORY = (range(0x10_0000, 0x100_0000),)
R, W, X = 4, 2, 1


class Load(NamedTuple):
    """One PT_LOAD of a made-up file."""

    paddr: int
    data: bytes
    memsz: int | None = None
    vaddr: int | None = None
    flags: int = R | X
    filesz: int | None = None
    offset: int | None = None


def elf(*loads: Load, entry: int = 0x10_0000, **patches: bytes) -> bytes:
    """An ELF64 x86-64 executable; *patches* are ``at_0x10=b"…"``."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, entry, 64, 0, 0, 64, 56, len(loads),
        0, 0, 0,
    )  # fmt: skip
    table, body = b"", b""
    start = 64 + 56 * len(loads)
    for load in loads:
        table += struct.pack(
            "<IIQQQQQQ",
            1,
            load.flags,
            start + len(body) if load.offset is None else load.offset,
            load.paddr if load.vaddr is None else load.vaddr,
            load.paddr,
            len(load.data) if load.filesz is None else load.filesz,
            len(load.data) if load.memsz is None else load.memsz,
            0x1000,
        )
        body += load.data
    image = bytearray(header + table + body)
    for place, value in patches.items():
        offset = int(place.removeprefix("at_"), 16)
        image[offset : offset + len(value)] = value
    return bytes(image)


def test_segments_are_sorted_and_zero_filled():
    image = load_elf(
        elf(
            Load(0x20_0000, b"data", memsz=0x5000, flags=R | W),
            Load(0x10_0000, b"\x90" * 16),
            entry=0x10_0004,
        ),
        MEMORY,
    )
    assert image.entry == 0x10_0004
    assert [(s.paddr, s.data, s.memsz) for s in image.segments] == [
        (0x10_0000, b"\x90" * 16, 16),
        (0x20_0000, b"data", 0x5000),
    ]
    assert (image.start, image.end) == (0x10_0000, 0x20_5000)


def test_virtual_entry_is_translated():
    high = 0xFFFF_FFFF_8000_0000
    image = load_elf(elf(Load(0x10_0000, b"\x90" * 16, vaddr=high), entry=high + 8), MEMORY)
    assert image.entry == 0x10_0008


def test_an_entry_may_lie_in_data():
    image = load_elf(elf(Load(0x10_0000, b"\x90" * 16, flags=R | W), entry=0x10_0008), MEMORY)
    assert image.entry == 0x10_0008


def test_an_executable_segment_goes_first():
    high = 0xFFFF_FFFF_8000_0000
    data = Load(0x20_0000, b"data", vaddr=0x10_0000, flags=R | W)
    code = Load(0x10_0000, b"\x90" * 16, vaddr=high)
    assert load_elf(elf(data, code, entry=0x10_0000), MEMORY).entry == 0x10_0000


def test_empty_and_other_program_headers_are_skipped():
    data = elf(Load(0x10_0000, b"\x90"), Load(0, b"", memsz=0), Load(0x5, b"note"), at_0xb0=b"\4")
    assert len(load_elf(data, MEMORY).segments) == 1


def test_section_headers_do_not_matter():
    data = elf(Load(0x10_0000, b"\x90"), at_0x28=b"\xff" * 8, at_0x3a=b"\xff" * 6)
    assert load_elf(data, MEMORY).entry == 0x10_0000


CODE = Load(0x10_0000, b"\x90" * 16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither a bzImage nor an ELF"),
        (b"#!/bin/sh", "neither a bzImage nor an ELF"),
        (elf(CODE)[:40], "truncated in its header"),
        (elf(CODE)[:80], "truncated in its program headers"),
        (elf(CODE)[:-1], "truncated: its segment"),
        (elf(CODE, at_0x4=b"\1"), "not 64-bit"),
        (elf(CODE, at_0x5=b"\2"), "not 64-bit"),
        (elf(CODE, at_0x12=b"\xb7\0"), "EM_AARCH64"),
        (elf(CODE, at_0x12=b"\xee\xee"), "for 61166, not for x86-64"),
        (elf(CODE, at_0x10=b"\1\0"), "ET_REL"),
        (elf(CODE, at_0x36=b"\x20\0"), "program headers of 32 bytes"),
        (elf(CODE, at_0x38=b"\0\0"), "0 program headers"),
        (elf(CODE, at_0x38=b"\xff\xff"), "65535 program headers"),
        (elf(CODE, at_0x20=b"\xff" * 8), "truncated in its program headers"),
        (elf(Load(0x10_0000, b"", memsz=0)), "nothing to load"),
        (elf(CODE._replace(memsz=8)), "more bytes in the file than in memory"),
        (elf(CODE._replace(offset=1 << 63)), "truncated: its segment"),
        (elf(CODE._replace(paddr=0x1000, vaddr=0)), "0x1000 lies below all memory for kernels"),
        (elf(CODE._replace(paddr=0xFF_FFF8, vaddr=0)), "does not fit into memory"),
        (elf(CODE._replace(memsz=1 << 63)), "does not fit into memory"),
        (elf(CODE._replace(paddr=(1 << 64) - 8)), "does not fit into memory"),
        (elf(CODE, Load(0x10_000F, b"x")), "overlap"),
        (elf(CODE, entry=0x10_0010), "outside its segments"),
        (elf(CODE, entry=0), "outside its segments"),
    ],
)
def test_refusals(data, message):
    with pytest.raises(LoaderError, match=message) as caught:
        load_elf(data, MEMORY)
    assert "\n" not in str(caught.value)
