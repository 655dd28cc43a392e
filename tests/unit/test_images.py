# SPDX-License-Identifier: MIT
"""The compiled guest code: what its ELF files must offer, and that the build repeats itself."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from svsmd import images
from svsmd.images import IMAGES, ImageMissingError, image_path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import build_images

PF_X, PF_W, PF_R = 1, 2, 4
SVSM_IMAGE_VIRT = 0xFFFF_FFFF_8000_0000
SVSM_IMAGE_MAX = 0x80000
DEMO_BASE = 0x20_0000

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if shutil.which("cc") is not None:
        build_images.build(IMAGES)


def elf(name: str) -> ELFFile:
    return ELFFile(io.BytesIO(image_path(name).read_bytes()))


def symbols(name: str) -> dict[str, int]:
    table = elf(name).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    return {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}


@pytest.mark.parametrize("name", IMAGES)
def test_is_a_static_x86_64_program(name: str) -> None:
    file = elf(name)
    assert file.elfclass == 64
    assert file["e_machine"] == "EM_X86_64"
    assert file["e_type"] == "ET_EXEC"
    assert {segment["p_type"] for segment in file.iter_segments()} == {"PT_LOAD"}
    assert not any(section.name.startswith(".rela") for section in file.iter_sections())


@pytest.mark.parametrize("name", IMAGES)
def test_segments_are_page_aligned_and_never_writable_and_executable(name: str) -> None:
    flags = []
    for segment in elf(name).iter_segments():
        assert segment["p_vaddr"] % 4096 == 0
        assert segment["p_paddr"] % 4096 == 0
        assert segment["p_flags"] & (PF_W | PF_X) != PF_W | PF_X
        flags.append(segment["p_flags"])
    assert flags == [PF_R | PF_X, PF_R, PF_R | PF_W]


@pytest.mark.parametrize("name", IMAGES)
def test_entry_lies_in_the_text_segment(name: str) -> None:
    file = elf(name)
    (text,) = [s for s in file.iter_segments() if s["p_flags"] & PF_X]
    assert text["p_vaddr"] <= file["e_entry"] < text["p_vaddr"] + text["p_filesz"]


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("demo", {"main.c", "svsm.c", "vc.c", "selftest_fault.c", "vectors.S", "user.S"}),
        ("svsm", {"start.S", "gate.S", "cpu.c"}),
    ],
)
def test_debug_information_names_every_source(name: str, sources: set[str]) -> None:
    file = elf(name)
    assert file.has_dwarf_info()
    named = set()
    for unit in file.get_dwarf_info().iter_CUs():
        attributes = unit.get_top_DIE().attributes
        named.add(Path(attributes["DW_AT_name"].value.decode()).name)
        # Nothing of the computer that built it.
        assert attributes["DW_AT_comp_dir"].value == b"."
    assert sources <= named


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("demo", {"demo_start", "demo_main", "demo_busy_loop", "demo_counter", "vc_handle"}),
        (
            "svsm",
            {
                "svsm_start32",
                "svsm_gate_loop",
                "svsm_core_gate",
                "svsm_exception_gate",
                "svsm_cpu_start",
                "svsm_boot_cpu",
                "svsm_pml4",
            },
        ),
    ],
)
def test_symbols(name: str, wanted: set[str]) -> None:
    assert wanted <= symbols(name).keys()


def test_demo_lies_at_its_physical_address() -> None:
    for segment in elf("demo").iter_segments():
        assert segment["p_vaddr"] == segment["p_paddr"]
        assert segment["p_paddr"] >= DEMO_BASE
        assert segment["p_paddr"] + segment["p_memsz"] <= 2 * DEMO_BASE


def test_svsm_is_linked_high_and_loaded_from_offset_zero() -> None:
    segments = list(elf("svsm").iter_segments())
    for segment in segments:
        assert segment["p_vaddr"] - segment["p_paddr"] == SVSM_IMAGE_VIRT
        assert segment["p_paddr"] + segment["p_memsz"] <= SVSM_IMAGE_MAX
    assert segments[0]["p_paddr"] == 0
    assert elf("svsm")["e_entry"] == symbols("svsm")["svsm_start32"]


def test_svsm_gates_are_ud2() -> None:
    file = elf("svsm")
    text = next(file.iter_segments())
    for gate in ("svsm_core_gate", "svsm_exception_gate"):
        offset = symbols("svsm")[gate] - text["p_vaddr"]
        assert text.data()[offset : offset + 2] == b"\x0f\x0b"


def test_svsm_page_tables_are_pages() -> None:
    levels = ("svsm_pml4", "svsm_pdpt_", "svsm_pd_", "svsm_pt_")
    tables = {name: at for name, at in symbols("svsm").items() if name.startswith(levels)}
    assert len(tables) == 7
    assert all(at % 4096 == 0 for at in tables.values())


def test_demo_self_tests_are_in_the_image() -> None:
    table = symbols("demo")
    assert (table["selftests_end"] - table["selftests_start"]) // 16 >= 40


@needs_compiler
@pytest.mark.parametrize("image", build_images.IMAGES, ids=lambda image: image.name)
def test_build_repeats_itself_without_a_warning(
    image: build_images.Image, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = build_images.find_compiler()
    again = build_images.build_image(image, compiler, tmp_path / f"{image.name}.elf")
    assert again.read_bytes() == image.output.read_bytes()
    assert capfd.readouterr().err == ""


def test_missing_compiler_is_one_clear_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_images, "is_current", lambda output, inputs: False)
    assert build_images.main(["demo", "--cc", "no-such-compiler"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_missing_image_says_how_to_build_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(images, "files", lambda package: tmp_path)
    with pytest.raises(ImageMissingError, match=r"tools/build_images\.py"):
        image_path("demo")


def test_unknown_image_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no image is called"):
        image_path("../types")
