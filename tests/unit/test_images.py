# SPDX-License-Identifier: MIT
"""The compiled guest code: what its ELF files must offer, and that the build repeats itself."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import Segment

from svsmd import images
from svsmd.elf_symbols import elf_symbols
from svsmd.errors import UserError
from svsmd.images import IMAGES, ImageMissingError, image_path
from svsmd.svsm_image import load_svsm_image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tools import build_images

PF_X, PF_W, PF_R = 1, 2, 4
SVSM_IMAGE_VIRT = 0xFFFF_FFFF_8000_0000
SVSM_IMAGE_MAX = 0x80000
DEMO_BASE = 0x20_0000
PROGRAMS = [name for name, file in IMAGES.items() if file.endswith(".elf")]

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if shutil.which("cc") is not None:
        build_images.build(PROGRAMS)


def elf(name: str) -> ELFFile:
    return ELFFile(io.BytesIO(image_path(name).read_bytes()))


def symbols(name: str) -> dict[str, int]:
    found = elf_symbols(image_path(name).read_bytes())
    return {symbol: place.start for symbol, place in found.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_is_a_static_x86_64_program(name: str) -> None:
    file = elf(name)
    assert file.elfclass == 64
    assert file["e_machine"] == "EM_X86_64"
    assert file["e_type"] in ({"ET_EXEC"} if name == "demo" else {"ET_EXEC", "ET_DYN"})
    kinds = {segment["p_type"] for segment in file.iter_segments()}
    assert kinds == {"PT_LOAD"} | ({"PT_DYNAMIC"} if name == "svsm" else set())
    if name != "svsm":
        assert not any(section.name.startswith(".rela") for section in file.iter_sections())


def test_svsm_kernel_can_be_relocated() -> None:
    dynamic = elf("svsm").get_section_by_name(".dynamic")
    assert isinstance(dynamic, DynamicSection)
    (flags,) = [tag.entry.d_val for tag in dynamic.iter_tags("DT_FLAGS_1")]
    assert flags & 0x0800_0000  # DF_1_PIE


def load_segments(name: str) -> list[Segment]:
    return [s for s in elf(name).iter_segments() if s["p_type"] == "PT_LOAD"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_segments_are_page_aligned_and_never_writable_and_executable(name: str) -> None:
    flags = []
    for segment in load_segments(name):
        assert segment["p_vaddr"] % 4096 == 0
        assert segment["p_paddr"] % 4096 == 0
        assert segment["p_flags"] & (PF_W | PF_X) != PF_W | PF_X
        flags.append(segment["p_flags"])
    assert flags == [PF_R | PF_X, PF_R, PF_R | PF_W]


@pytest.mark.parametrize("name", PROGRAMS)
def test_entry_lies_in_the_text_segment(name: str) -> None:
    file = elf(name)
    (text,) = [s for s in file.iter_segments() if s["p_flags"] & PF_X]
    assert text["p_vaddr"] <= file["e_entry"] < text["p_vaddr"] + text["p_filesz"]


@pytest.mark.parametrize(
    ("name", "sources"),
    [
        ("demo", {"main.c", "svsm.c", "vc.c", "selftest_fault.c", "vectors.S", "user.S"}),
        ("stages", {"stage1.S", "entry.S", "stage2.c", "elf.c", "validate.c", "ghcb.c"}),
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
                "svsm_start",
                "svsm_gate_loop",
                "svsm_core_gate",
                "svsm_exception_gate",
                "svsm_cpu_start",
                "svsm_boot_cpu",
            },
        ),
        ("stages", {"stage1_start", "stage2_start32", "stage2_main", "stage2_enter_kernel"}),
    ],
)
def test_symbols(name: str, wanted: set[str]) -> None:
    assert wanted <= symbols(name).keys()


def test_demo_lies_at_its_physical_address() -> None:
    for segment in elf("demo").iter_segments():
        assert segment["p_vaddr"] == segment["p_paddr"]
        assert segment["p_paddr"] >= DEMO_BASE
        assert segment["p_paddr"] + segment["p_memsz"] <= 2 * DEMO_BASE


def test_svsm_kernel_is_linked_high() -> None:
    for segment in load_segments("svsm"):
        assert segment["p_vaddr"] >= SVSM_IMAGE_VIRT
    assert elf("svsm")["e_entry"] == symbols("svsm")["svsm_start"]


def test_stages_are_linked_at_0_and_begin_with_stage_1() -> None:
    assert load_segments("stages")[0]["p_vaddr"] == 0
    assert elf("stages")["e_entry"] == symbols("stages")["stage1_start"] == 0


def test_stages_and_kernel_fit_into_their_place() -> None:
    image = load_svsm_image(
        image_path("stages").read_bytes(), image_path("svsm").read_bytes(), bytes(4096)
    )
    assert image.data[image.kernel : image.kernel + 4] == b"\x7fELF"
    assert image.core_digest == len(image.data) - 4096
    assert len(image.data) <= SVSM_IMAGE_MAX


@pytest.mark.parametrize("damaged", ["stages", "svsm"])
def test_damaged_image(damaged: str) -> None:
    files = {name: image_path(name).read_bytes() for name in ("stages", "svsm")}
    for data in (b"", b"\x7fELF", files[damaged][:4096]):
        files[damaged] = data
        with pytest.raises(UserError):
            load_svsm_image(files["stages"], files["svsm"], bytes(4096))


def test_svsm_gates_are_ud2() -> None:
    file = elf("svsm")
    text = next(file.iter_segments())
    for gate in ("svsm_core_gate", "svsm_exception_gate", "svsm_panic_gate"):
        offset = symbols("svsm")[gate] - text["p_vaddr"]
        assert text.data()[offset : offset + 2] == b"\x0f\x0b"


def test_page_tables_of_stage_2_are_pages() -> None:
    tables = [at for name, at in symbols("stages").items() if name.startswith("stage2_p")]
    assert len(tables) == 4
    assert all(at % 4096 == 0 for at in tables)


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


@needs_compiler
def test_archive_repeats_itself_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler = build_images.find_compiler()
    again = build_images.build_archive(compiler, tmp_path / "modules.tar").read_bytes()
    assert again == build_images.ARCHIVE.read_bytes()
    # It is measured at launch: where it was built is no part of it.
    assert str(build_images.ROOT).encode() not in again
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
