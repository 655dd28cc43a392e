# SPDX-License-Identifier: MIT
"""Stage 2's ELF loader, compiled for this computer: good files, and files that are not.

Its file and its memory end at pages that fault, so that one byte too far is a signal, not luck.
"""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import build_images

ROOT = build_images.ROOT
NATIVE = ROOT / "svsmd" / "core" / "native"
STAGES = NATIVE / "stages"
DATA = ROOT / "tests" / "data" / "boot"
LINKED = 0xFFFF_FFFF_8000_0000
PAGE = 0x1000
W_X = 3

PHOFF, PHNUM, SHNUM = 0x20, 0x38, 0x3C
PH_TYPE, PH_FLAGS, PH_OFFSET, PH_VADDR, PH_FILESZ, PH_MEMSZ = 0, 4, 8, 16, 32, 40

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@dataclass(frozen=True)
class Segment:
    offset: int
    memory_size: int
    file_offset: int
    file_size: int
    flags: int


@dataclass(frozen=True)
class Loaded:
    linked: int
    size: int
    entry: int
    relocations: int
    symbols: tuple[int, int]
    strings: tuple[int, int]
    segments: tuple[Segment, ...]
    memory: bytes


class Loader:
    """The compiled program, and a kernel with relocations."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = directory / "load_elf"
        # A compiler may lack the library of its sanitizer.
        for flags in (("-fsanitize=undefined", "-fno-sanitize-recover"), ()):
            done = subprocess.run(
                ["cc", "-O1", "-Wall", "-Wextra", *flags, f"-I{STAGES}", DATA / "load_elf.c",
                 STAGES / "elf.c", "-o", self.program],
                check=False, capture_output=True,
            )  # fmt: skip
            if not done.returncode:
                break
        compile_flags, link_flags = build_images.MOVABLE
        built, output = directory / "pointers.o", directory / "pointers.elf"
        subprocess.run(
            ["cc", *build_images.FREESTANDING, *compile_flags, "-c", DATA / "pointers.c",
             "-o", built],
            check=True,
        )  # fmt: skip
        subprocess.run(
            ["cc", *build_images.LINK, *link_flags, f"-Wl,-T,{NATIVE / 'svsm.lds'}", built,
             "-o", output],
            check=True,
        )  # fmt: skip
        self.kernel = output.read_bytes()

    def load(self, data: bytes, virt: int = LINKED) -> Loaded | str:
        """What it makes of a file: the plan and the memory, or its complaint."""
        path = self.directory / "file"
        path.write_bytes(data)
        done = subprocess.run(
            [self.program, path, hex(virt)], check=False, capture_output=True, text=True
        )
        if done.returncode == 1 and not done.stderr:
            return done.stdout.strip()
        assert done.returncode == 0, (done.returncode, done.stderr)
        first, *rest = [[int(n, 0) for n in line.split()] for line in done.stdout.splitlines()]
        linked, size, entry, relocations = first[:4]
        return Loaded(
            linked,
            size,
            entry,
            relocations,
            (first[4], first[5]),
            (first[6], first[7]),
            tuple(Segment(*line) for line in rest),
            path.with_suffix(".memory").read_bytes(),
        )


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    return Loader(tmp_path_factory.mktemp("loader"))


def model(data: bytes, virt: int) -> bytes:
    """What the memory has to be, by another reader of ELF files."""
    file = ELFFile(io.BytesIO(data))
    segments = [s for s in file.iter_segments() if s["p_type"] == "PT_LOAD"]
    end = max(s["p_vaddr"] + s["p_memsz"] for s in segments) - LINKED
    memory = bytearray(-(-end // PAGE) * PAGE)
    for s in segments:
        at = s["p_vaddr"] - LINKED
        memory[at : at + s["p_filesz"]] = s.data()
    relocations = file.get_section_by_name(".rela.dyn")
    assert isinstance(relocations, RelocationSection)
    for relocation in relocations.iter_relocations():
        assert relocation["r_info_type"] == 8
        value = relocation["r_addend"] - LINKED + virt & (1 << 64) - 1
        struct.pack_into("<Q", memory, relocation["r_offset"] - LINKED, value)
    return bytes(memory)


@pytest.mark.parametrize("virt", [LINKED, LINKED + 0x1234_5000, 0xFFFF_8000_0010_0000, 0x20_0000])
def test_kernel_is_loaded_and_relocated(loader: Loader, virt: int) -> None:
    loaded = loader.load(loader.kernel, virt)
    assert isinstance(loaded, Loaded)
    assert loaded.memory == model(loader.kernel, virt)
    assert loaded.relocations >= 6
    assert loaded.linked == LINKED
    assert [s.flags for s in loaded.segments] == [5, 4, 6]
    offset, size = loaded.strings
    assert b"\0pointers\0" in loader.kernel[offset : offset + size]


def patched(data: bytes, offset: int, layout: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(layout, out, offset, value)
    return bytes(out)


def header_of(data: bytes, index: int, field: int) -> int:
    """Offset of a field of a program header."""
    return int.from_bytes(data[PHOFF : PHOFF + 8], "little") + 56 * index + field


@pytest.mark.parametrize(
    ("offset", "layout", "value", "complaint"),
    [
        (0, "<B", 0, "no ELF of 64 bits"),
        (4, "<B", 1, "no ELF of 64 bits"),
        (5, "<B", 2, "no ELF of 64 bits"),
        (0x10, "<H", 1, "another type"),
        (0x12, "<H", 183, "another type"),
        (0x18, "<Q", 0, "an entry point"),
        (0x18, "<Q", LINKED + PAGE, "an entry point"),
        (PHOFF, "<Q", 1 << 63, "program headers"),
        (PHOFF, "<Q", (1 << 64) - 8, "program headers"),
        (0x36, "<H", 32, "program headers"),
        (PHNUM, "<H", 0xFFFF, "program headers"),
        (PHNUM, "<H", 0, "an address"),
        (PHNUM, "<H", 3, "an address"),
    ],
)
def test_hostile_file_headers(
    loader: Loader, offset: int, layout: str, value: int, complaint: str
) -> None:
    answer = loader.load(patched(loader.kernel, offset, layout, value))
    assert isinstance(answer, str)
    assert answer.startswith(complaint)


@pytest.mark.parametrize(
    ("index", "field", "layout", "value", "complaint"),
    [
        (0, PH_FLAGS, "<I", 7, "a segment that is writable"),
        (2, PH_FLAGS, "<I", 3, "a segment that is writable"),
        (1, PH_FLAGS, "<I", 2, "a segment that is writable"),
        (0, PH_OFFSET, "<Q", 1 << 63, "a segment beyond"),
        (0, PH_OFFSET, "<Q", (1 << 64) - 1, "a segment beyond"),
        (1, PH_FILESZ, "<Q", 1 << 63, "a segment beyond"),
        (1, PH_FILESZ, "<Q", (1 << 64) - 1, "a segment beyond"),
        (1, PH_MEMSZ, "<Q", 0, "a segment with more"),
        (1, PH_MEMSZ, "<Q", 1, "a segment with more"),
        (2, PH_MEMSZ, "<Q", 1 << 63, "more memory"),
        (2, PH_MEMSZ, "<Q", (1 << 64) - 1, "more memory"),
        (2, PH_MEMSZ, "<Q", 0x20_0000, "more memory"),
        (2, PH_VADDR, "<Q", LINKED, "segments that overlap"),
        (2, PH_VADDR, "<Q", LINKED - PAGE, "segments that overlap"),
        (1, PH_VADDR, "<Q", LINKED + PAGE + 8, "a segment that does not"),
        (1, PH_VADDR, "<Q", (1 << 64) - PAGE, "more memory"),
        (2, PH_TYPE, "<I", 3, "an interpreter"),
        (2, PH_TYPE, "<I", 7, "an interpreter"),
        (0, PH_TYPE, "<I", 0, "an entry point"),
        (2, PH_TYPE, "<I", 2, "two dynamic|an address"),
        (3, PH_OFFSET, "<Q", 1 << 40, "a dynamic section"),
        (3, PH_FILESZ, "<Q", 0, "an address"),
        (3, PH_FILESZ, "<Q", (1 << 64) - 1, "a dynamic section"),
    ],
)
def test_hostile_program_headers(
    loader: Loader, index: int, field: int, layout: str, value: int, complaint: str
) -> None:
    at = header_of(loader.kernel, index, field)
    answer = loader.load(patched(loader.kernel, at, layout, value))
    assert isinstance(answer, str)
    assert answer.startswith(tuple(complaint.split("|")))


def section_of(data: bytes, name: str) -> Section:
    section = ELFFile(io.BytesIO(data)).get_section_by_name(name)
    assert section is not None
    return section


def dynamic_entry(data: bytes, tag: int) -> int:
    """File offset of the value of an entry of the dynamic section."""
    section = section_of(data, ".dynamic")
    for at in range(section["sh_offset"], section["sh_offset"] + section["sh_size"], 16):
        if int.from_bytes(data[at : at + 8], "little") == tag:
            return at + 8
    raise AssertionError(f"no tag {tag}")


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        (7, 0),
        (7, LINKED - PAGE),
        (7, (1 << 64) - 8),
        (7, LINKED + 0x1F_0000),
        (8, 25),
        (8, (1 << 64) - 16),
        (8, 24 << 40),
        (9, 16),
    ],
)
def test_hostile_dynamic_section(loader: Loader, tag: int, value: int) -> None:
    data = patched(loader.kernel, dynamic_entry(loader.kernel, tag), "<Q", value)
    assert loader.load(data) == "relocations that are not in the file"


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        (0, LINKED - 8, "a relocation outside"),
        (0, LINKED + 0x20_0000, "a relocation outside"),
        (0, (1 << 64) - 1, "a relocation outside"),
        (0, 0, "a relocation outside"),
        (8, 1, "a relocation of another kind"),
        (8, 37, "a relocation of another kind"),
        (8, 1 << 32 | 8, "a relocation of another kind"),
    ],
)
def test_hostile_relocations(loader: Loader, field: int, value: int, complaint: str) -> None:
    section = section_of(loader.kernel, ".rela.dyn")
    data = patched(loader.kernel, section["sh_offset"] + 24 + field, "<Q", value)
    answer = loader.load(data)
    assert isinstance(answer, str)
    assert answer.startswith(complaint)


def test_relocation_kinds_that_it_does_not_know(loader: Loader) -> None:
    at = dynamic_entry(loader.kernel, 9) - 8
    for tag in (1, 2, 17, 36):
        answer = loader.load(patched(loader.kernel, at, "<Q", tag))
        assert answer == "relocations of another kind, or other files"


def test_file_without_a_section_table_has_no_symbols(loader: Loader) -> None:
    for offset, layout, value in ((0x28, "<Q", 1 << 63), (SHNUM, "<H", 0), (0x3A, "<H", 1)):
        loaded = loader.load(patched(loader.kernel, offset, layout, value))
        assert isinstance(loaded, Loaded)
        assert loaded.symbols == loaded.strings == (0, 0)
        assert loaded.memory == model(loader.kernel, LINKED)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    changes=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 0x120), st.integers(0, 1 << 16)),
            st.sampled_from(("<B", "<H", "<I", "<Q")),
            st.one_of(
                st.sampled_from((0, 1, 7, 8, PAGE, LINKED, 1 << 63, (1 << 64) - 1)),
                st.integers(0, (1 << 64) - 1),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    length=st.none() | st.integers(0, 1 << 14),
)
@example(changes=[(0, "<B", 0x7F)], length=0)
@example(changes=[(0, "<B", 0x7F)], length=63)
@example(changes=[(0, "<B", 0x7F)], length=64)
def test_nothing_in_a_file_makes_it_leave_its_memory(
    loader: Loader, changes: list[tuple[int, str, int]], length: int | None
) -> None:
    data = bytearray(loader.kernel)
    for offset, layout, value in changes:
        size = struct.calcsize(layout)
        at = offset % (len(data) - size)
        struct.pack_into(layout, data, at, value & (1 << 8 * size) - 1)
    answer = loader.load(bytes(data[:length]))
    if isinstance(answer, str):
        assert answer
        return
    end = 0
    for segment in answer.segments:
        assert segment.offset >= end
        assert segment.offset % PAGE == 0
        end = -(-(segment.offset + segment.memory_size) // PAGE) * PAGE
        assert segment.flags & W_X != W_X
        assert segment.file_size <= segment.memory_size
    assert end == answer.size <= 0x20_0000
    assert any(
        s.flags & 1 and s.offset <= answer.entry < s.offset + s.file_size for s in answer.segments
    )
