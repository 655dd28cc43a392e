# SPDX-License-Identifier: MIT
"""Executables with headers that mean nothing: ENOEXEC, or segments that lie where they may."""

from __future__ import annotations

import struct
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svsmd.core.tasks.address_space import (
    MMAP_TOP,
    USER_START,
    Access,
    AddressSpace,
    Contents,
    Quota,
)
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.executable import PIE_BASE, SEGMENTS_MAX, Executable, read_executable
from svsmd.snp.types import PAGE_SIZE
from tests.process_memory import process_memory

EHDR: Final = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR: Final = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_PHDR, PT_TLS, PT_GNU_STACK = (
    1, 2, 3, 4, 6, 7, 0x6474E551,
)  # fmt: skip
R, W, X = 4, 2, 1
BASE = 0x40_0000
IDENTITY = b"\x7fELF\x02\x01\x01" + bytes(9)

Header = tuple[int, int, int, int, int, int, int, int]

TEXT: Header = (PT_LOAD, R | X, 0, BASE, BASE, 0x1200, 0x1200, 0x1000)
DATA: Header = (PT_LOAD, R | W, 0x1200, BASE + 0x2200, 0, 0x300, 0x5000, 0x1000)
STACK: Header = (PT_GNU_STACK, R | W, 0, 0, 0, 0, 0, 16)


def elf(
    headers: list[Header],
    *,
    kind: int = 2,
    entry: int = BASE + 0x1000,
    size: int = 0x1500,
    **fields: int,
) -> bytes:
    """A file with these program headers behind the file header."""
    values = {
        "machine": 62, "version": 1, "phoff": 64, "shoff": 0, "flags": 0, "ehsize": 64,
        "phentsize": 56, "phnum": len(headers), "shentsize": 64, "shnum": 0, "shstrndx": 0,
    }  # fmt: skip
    values |= fields
    start = EHDR.pack(
        IDENTITY, kind, values["machine"], values["version"], entry, values["phoff"],
        values["shoff"], values["flags"], values["ehsize"], values["phentsize"], values["phnum"],
        values["shentsize"], values["shnum"], values["shstrndx"],
    )  # fmt: skip
    data = start + b"".join(PHDR.pack(*header) for header in headers)
    return data.ljust(size, b"\x90")[:size]


GOOD = elf([TEXT, DATA, STACK])


def check(executable: Executable) -> None:
    """It can be mapped as it is, and never where it must not."""
    end = USER_START
    for segment in executable.segments:
        assert segment.start % PAGE_SIZE == 0
        assert segment.size % PAGE_SIZE == 0
        assert end <= segment.start < segment.start + segment.size <= MMAP_TOP
        assert segment.access & (Access.WRITE | Access.EXECUTE) != Access.WRITE | Access.EXECUTE
        assert len(segment.data) <= segment.size
        end = segment.start + segment.size
    assert executable.end == end
    assert any(
        s.start <= executable.entry < s.start + s.size and s.access & Access.EXECUTE
        for s in executable.segments
    )
    assert 0 < executable.header_count <= SEGMENTS_MAX
    memory, cpu, pages = process_memory()
    space = AddressSpace(cpu, pages, Quota(200))
    for segment in executable.segments:
        space.map(cpu, segment.start, segment.size, segment.access, Contents(segment.data))
    if executable.headers:
        assert len(space.read(cpu, executable.headers, 56 * executable.header_count))
    assert memory.ticks


def test_what_is_loaded_where() -> None:
    executable = read_executable(GOOD)
    check(executable)
    text, data = executable.segments
    assert (text.start, text.size, text.access) == (BASE, 0x2000, Access.READ | Access.EXECUTE)
    assert text.data == GOOD[:0x1200]
    assert (data.start, data.size) == (BASE + 0x2000, 0x6000)
    assert data.data == bytes(0x200) + GOOD[0x1200:0x1500]
    assert executable.entry == BASE + 0x1000
    assert (executable.headers, executable.header_count) == (BASE + 64, 3)


def test_a_pie_is_moved() -> None:
    text = (PT_LOAD, R | X, 0, 0, 0, 0x1200, 0x1200, 0x1000)
    executable = read_executable(elf([text], kind=3, entry=0x1000))
    check(executable)
    assert executable.entry == PIE_BASE + 0x1000
    assert executable.segments[0].start == PIE_BASE
    assert executable.headers == PIE_BASE + 64


WRONG = {
    "empty": b"",
    "no ELF": b"\x7fELG" + GOOD[4:],
    "only a name": b"\x7fELF",
    "cut in its header": GOOD[:63],
    "cut in its program headers": GOOD[:100],
    "32-bit": GOOD[:4] + b"\x01" + GOOD[5:],
    "big-endian": GOOD[:5] + b"\x02" + GOOD[6:],
    "relocatable": elf([TEXT], kind=1),
    "core": elf([TEXT], kind=4),
    "AArch64": elf([TEXT], machine=183),
    "version": elf([TEXT], version=2),
    "no program headers": elf([]),
    "too many": elf([TEXT] + [STACK] * SEGMENTS_MAX),
    "size of a header": elf([TEXT], phentsize=32),
    "headers behind the end": elf([TEXT], phoff=0x14F0),
    "headers far away": elf([TEXT], phoff=(1 << 64) - 1),
    "interpreter": elf([TEXT, (PT_INTERP, R, 0, 0, 0, 8, 8, 1)]),
    "executable stack": elf([TEXT, (PT_GNU_STACK, R | W | X, 0, 0, 0, 0, 0, 16)]),
    "writable text": elf([(PT_LOAD, R | W | X, *TEXT[2:])]),
    "unreadable": elf([(PT_LOAD, X, *TEXT[2:])]),
    "nothing to load": elf([STACK]),
    "entry in data": elf([TEXT, DATA], entry=BASE + 0x2300),
    "entry nowhere": elf([TEXT], entry=0),
    "overlap": elf([TEXT, (PT_LOAD, R, 0, BASE + 0x1000, 0, 0x100, 0x100, 0x1000)]),
    "wrong order": elf([DATA, TEXT]),
    "file larger than memory": elf([(PT_LOAD, R | X, 0, BASE, BASE, 0x1200, 0x1000, 0x1000)]),
    "behind the end of the file": elf([(PT_LOAD, R | X, 0, BASE, BASE, 0x1501, 0x1501, 0x1000)]),
    "offset wraps": elf([TEXT, (PT_LOAD, R, (1 << 64) - 0x1000, BASE + 0x3000, 0, 4096, 4096, 1)]),
    "not congruent": elf([(PT_LOAD, R | X, 0x10, BASE, BASE, 0x1000, 0x1000, 0x1000)]),
    "at null": elf([(PT_LOAD, R | X, 0, 0, 0, 0x1200, 0x1200, 0x1000)], entry=0x100),
    "kernel half": elf([TEXT, (PT_LOAD, R, 0, 0xFFFF_FFFF_8000_0000, 0, 0x100, 0x100, 0x1000)]),
    "end of the half": elf([TEXT, (PT_LOAD, R, 0, MMAP_TOP - 0x1000, 0, 0x100, 0x3000, 0x1000)]),
    "memory wraps": elf([(PT_LOAD, R | X, 0, BASE, BASE, 0x1200, (1 << 64) - BASE, 0x1000)]),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_refused(what: str) -> None:
    with pytest.raises(CallFailed) as caught:
        read_executable(WRONG[what])
    assert caught.value.errno is Errno.ENOEXEC


numbers = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from(
        [0, 1, 56, 64, PAGE_SIZE, BASE, BASE + 0x1000, MMAP_TOP, 1 << 47, (1 << 64) - 1]
    ),
    st.integers(0, 0x3000),
)


@st.composite
def program_headers(draw: st.DrawFn) -> Header:
    header = list(draw(st.sampled_from([TEXT, DATA, STACK])))
    if draw(st.booleans()):
        header[0] = draw(st.sampled_from([*range(8), PT_GNU_STACK, 0x7000_0000, 0xFFFF_FFFF]))
    if draw(st.booleans()):
        header[1] = draw(st.integers(0, 8))
    for index in draw(st.lists(st.integers(2, 7), max_size=3)):
        header[index] = draw(numbers)
    kind, flags, offset, address, physical, in_file, in_memory, align = header
    return kind, flags, offset, address, physical, in_file, in_memory, align


def read_or_refuse(data: bytes) -> Executable | None:
    """None for ENOEXEC; any other failure is one of the test."""
    try:
        return read_executable(data)
    except CallFailed as error:
        if error.errno is not Errno.ENOEXEC:
            raise
        return None


@given(
    st.lists(program_headers(), max_size=6),
    st.sampled_from([2, 3]),
    numbers,
    st.dictionaries(st.sampled_from(["phoff", "shoff"]), numbers, max_size=1),
    st.dictionaries(
        st.sampled_from(["phnum", "phentsize", "shentsize", "shnum", "shstrndx"]),
        st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 1, 56, 0xFFFF])),
        max_size=2,
    ),
)
@example([TEXT, DATA], 2, BASE + 0x1000, {"shoff": 64}, {"shnum": 0, "shentsize": 0})
@example(
    [TEXT, (PT_DYNAMIC, 6, 0, 0, 0, 8, 8, 8)], 2, BASE + 0x1000, {"shoff": 64}, {"shnum": 0xFFFF}
)
def test_no_header_does_harm(
    headers: list[Header], kind: int, entry: int, far: dict[str, int], near: dict[str, int]
) -> None:
    executable = read_or_refuse(elf(headers, kind=kind, entry=entry, **far, **near))
    if executable is not None:
        check(executable)


@given(st.lists(st.tuples(st.integers(0, 64 + 3 * 56 - 1), st.integers(0, 255)), max_size=8))
def test_no_byte_does_harm(changes: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD)
    for where, value in changes:
        data[where] = value
    executable = read_or_refuse(bytes(data))
    if executable is not None:
        check(executable)


@given(st.binary(max_size=300))
def test_no_garbage_does_harm(data: bytes) -> None:
    with pytest.raises(CallFailed):
        read_executable(b"\x7fELF\x02\x01\x01" + data)
