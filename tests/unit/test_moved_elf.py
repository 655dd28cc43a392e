# SPDX-License-Identifier: MIT
"""ELF files moved to where they are loaded, and what becomes of damaged ones."""

import io

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.gdbstub.dwarf_addresses import address_places
from svsmd.gdbstub.moved_elf import is_position_independent, moved
from svsmd.images import image_path

BASE = 0x1FC0_0000
STAGES = image_path("stages").read_bytes()


def symbols(data: bytes) -> dict[str, int]:
    table = ELFFile(io.BytesIO(data)).get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    return {s.name: s["st_value"] for s in table.iter_symbols() if s["st_shndx"] != "SHN_ABS"}


def functions(data: bytes) -> dict[str, int]:
    """Addresses of functions by the debug information."""
    found = {}
    for unit in ELFFile(io.BytesIO(data)).get_dwarf_info().iter_CUs():
        for entry in unit.iter_DIEs():
            if entry.tag == "DW_TAG_subprogram" and "DW_AT_low_pc" in entry.attributes:
                name = entry.attributes["DW_AT_name"].value.decode()
                found[name] = entry.attributes["DW_AT_low_pc"].value
    return found


def test_everything_moves() -> None:
    assert is_position_independent(STAGES)
    data = moved(STAGES, BASE)
    assert not is_position_independent(data)
    assert len(data) == len(STAGES)
    before, after = symbols(STAGES), symbols(data)
    assert after["stage2_main"] == before["stage2_main"] + BASE
    assert functions(data) == {name: at + BASE for name, at in functions(STAGES).items()}
    assert functions(data)["stage2_main"] == after["stage2_main"]
    file = ELFFile(io.BytesIO(data))
    for old, new in zip(
        ELFFile(io.BytesIO(STAGES)).iter_sections(), file.iter_sections(), strict=True
    ):
        assert new["sh_addr"] == old["sh_addr"] + (BASE if old["sh_flags"] & 2 else 0)
    assert address_places(file) == address_places(ELFFile(io.BytesIO(STAGES)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_moved_or_left_alone(data: st.DataObject) -> None:
    damaged = bytearray(STAGES[: data.draw(st.sampled_from([64, 700, len(STAGES)]))])
    for _ in range(data.draw(st.integers(0, 8))):
        damaged[data.draw(st.integers(16, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert len(moved(bytes(damaged), BASE)) == len(damaged)


def test_what_is_no_elf_file_is_left_alone() -> None:
    assert moved(b"no ELF file", BASE) == b"no ELF file"
