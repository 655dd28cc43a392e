# SPDX-License-Identifier: MIT
"""The launch-info page: round trip, bad pages, and agreement with the C header."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from svsmd.core import launch_info
from svsmd.core.launch_info import (
    LAUNCH_INFO_SIZE,
    EntryState,
    LaunchInfo,
    LaunchInfoError,
    LaunchRangeFlags,
    RamRange,
    ValidatedRange,
)
from svsmd.snp.types import C_BIT, C_BIT_POSITION, PAGE_SIZE, Gpa
from tests.c_values import c_values

HEADER = Path(launch_info.__file__).with_name("native") / "launch_info.h"
BASE = Gpa(0x1FC0_0000)

INFO = LaunchInfo(
    cbit=C_BIT_POSITION,
    guest_vmpl=2,
    cpu_count=4,
    svsm_base=BASE,
    svsm_size=0x40_0000,
    svsm_vmsa=Gpa(BASE + 0x83000),
    svsm_cpuid=Gpa(BASE + 0x81000),
    svsm_secrets=Gpa(BASE + 0x82000),
    guest_cpuid=Gpa(0x13000),
    guest_secrets=Gpa(0x14000),
    guest_caa=Gpa(BASE + 0x84000),
    svsm_kernel=Gpa(BASE + 0xC000),
    svsm_kernel_size=0x1234,
    svsm_archive=Gpa(BASE + 0x86000),
    svsm_archive_size=0x567,
    svsm_core_digest=Gpa(BASE + 0xE000),
    svsm_ghcb=Gpa(BASE + 0x85000),
    entry=EntryState(0x20_0000, 0x38000, 0x10000, 0x20000 | C_BIT, 0x15000, 31),
    ram=(RamRange(Gpa(0), 0x2000_0000), RamRange(Gpa(1 << 32), 0x4000_0000)),
    validated=(
        ValidatedRange(BASE, 16, LaunchRangeFlags.SVSM),
        ValidatedRange(Gpa(0x20_0000), 128, sha256=bytes(range(32))),
    ),
)


def test_round_trip() -> None:
    page = INFO.to_page()
    assert len(page) == PAGE_SIZE
    assert LaunchInfo.from_page(page) == INFO


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0x00, "<8s", b"SVSMDLI1"),
        (0x08, "<I", 3),
        (0x0C, "<I", 0x448),
        (0x10, "<I", 39),
        (0x14, "<I", 2),
        (0x18, "<I", 4),
        (0x1C, "<I", 2),
        (0x20, "<Q", BASE),
        (0x58, "<Q", BASE + 0x84000),
        (0x60, "<Q", BASE + 0xC000),
        (0x68, "<Q", 0x1234),
        (0x70, "<Q", BASE + 0x86000),
        (0x78, "<Q", 0x567),
        (0x80, "<Q", BASE + 0xE000),
        (0x88, "<Q", BASE + 0x85000),
        (0x90, "<Q", 0x20_0000),
        (0xB8, "<I", 31),
        (0xC0, "<Q", 0),
        (0xC8, "<Q", 0x2000_0000),
        (0xD0, "<Q", 1 << 32),
        (0x140, "<I", 2),
        (0x148, "<Q", BASE),
        (0x150, "<I", 16),
        (0x154, "<I", 1),
        (0x158, "<32s", bytes(32)),
        (0x178, "<Q", 0x20_0000),
        (0x188, "<32s", bytes(range(32))),
    ],
)
def test_offsets(offset: int, layout: str, value: int | bytes) -> None:
    """The offsets that the assertions in launch_info.h hold the C side to."""
    assert struct.unpack_from(layout, INFO.to_page(), offset) == (value,)


def test_c_side_has_the_same_layout(tmp_path: Path) -> None:
    names = re.findall(r"\n\t(?:char|uint\d+_t|struct \w+) (\w+)", HEADER.read_text())
    fields = names[names.index("magic") :]
    expressions = {name: f"offsetof(struct launch_info, {name})" for name in fields}
    # `size` is a field too, whose place the size of the structure takes.
    expressions["size"] = "sizeof(struct launch_info)"
    offsets = c_values(HEADER, expressions, tmp_path)
    assert offsets.pop("size") == LAUNCH_INFO_SIZE
    page = INFO.to_page()
    for field in (name for name in offsets if name.startswith(("svsm_", "guest_"))):
        width = "<I" if field == "guest_vmpl" else "<Q"
        (value,) = struct.unpack_from(width, page, offsets[field])
        assert value == getattr(INFO, field), field


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (0x00, "<Q", 0),
        (0x08, "<I", 1),
        (0x0C, "<I", 0x417),
        (0x10, "<I", 31),
        (0x10, "<I", 52),
        (0x14, "<I", 0),
        (0x14, "<I", 4),
        (0x18, "<I", 0),
        (0x1C, "<I", 9),
        (0x20, "<Q", BASE + PAGE_SIZE),
        (0x28, "<Q", 0),
        (0x28, "<Q", 1 << 63),
        (0x40, "<Q", (1 << 64) - PAGE_SIZE),
        (0x58, "<Q", 0xC000_0000),
        (0x60, "<Q", BASE + 1),
        (0x68, "<Q", 0x40_0000),
        (0x78, "<Q", 1 << 63),
        (0x70, "<Q", BASE - PAGE_SIZE),
        (0x80, "<Q", 1),
        (0x88, "<Q", C_BIT),
        (0xBC, "<I", 1),
        (0xC0, "<Q", 1),
        (0x140, "<I", 17),
        (0x144, "<I", 1),
        (0x148, "<Q", C_BIT),
        (0x150, "<I", 0),
        (0x150, "<I", 0xFFFF_FFFF),
        (0x154, "<I", 2),
        (0x1A8, "<Q", 1),
        (0xFF8, "<Q", 1),
    ],
)
def test_bad_pages_are_refused(offset: int, layout: str, value: int) -> None:
    page = bytearray(INFO.to_page())
    struct.pack_into(layout, page, offset, value)
    with pytest.raises(LaunchInfoError):
        LaunchInfo.from_page(bytes(page))


def test_page_size_is_checked() -> None:
    with pytest.raises(LaunchInfoError):
        LaunchInfo.from_page(INFO.to_page()[:-1])


def test_too_many_ranges_are_refused() -> None:
    with pytest.raises(LaunchInfoError):
        replace(INFO, validated=(ValidatedRange(Gpa(0), 1),) * 17).to_page()
    with pytest.raises(LaunchInfoError):
        replace(INFO, ram=INFO.ram * 5).to_page()
