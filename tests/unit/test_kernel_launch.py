# SPDX-License-Identifier: MIT
"""The kernel-launch page: round trip, bad pages, and agreement with the C header."""

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from svsmd.core import kernel_launch
from svsmd.core.kernel_launch import (
    KERNEL_LAUNCH_SIZE,
    KernelLaunch,
    KernelLaunchError,
    MemoryRange,
)
from svsmd.snp.types import PAGE_SIZE, Gpa
from tests.c_values import c_values
from tests.fake_vmpl0 import SVSM_BASE, SVSM_FREE, SVSM_HEAP, FakeVmpl0

HEADER = Path(kernel_launch.__file__).with_name("native") / "kernel_launch.h"


@pytest.fixture(scope="module")
def launch() -> KernelLaunch:
    return FakeVmpl0().kernel_launch()


def test_round_trip(launch: KernelLaunch) -> None:
    page = launch.to_page()
    assert len(page) == PAGE_SIZE
    assert not any(page[KERNEL_LAUNCH_SIZE:])
    assert KernelLaunch.from_page(page) == launch


def test_c_side_has_the_same_layout(tmp_path: Path, launch: KernelLaunch) -> None:
    names = re.findall(r"\n\t(?:char|uint\d+_t|struct \w+) (\w+)", HEADER.read_text())
    fields = names[names.index("magic") :]
    expressions = {name: f"offsetof(struct kernel_launch, {name})" for name in fields}
    expressions["bytes"] = "sizeof(struct kernel_launch)"
    offsets = c_values(HEADER, expressions, tmp_path)
    assert offsets.pop("bytes") == KERNEL_LAUNCH_SIZE
    page = launch.to_page()
    for name in ("magic", "version", "size"):
        offsets.pop(name)
    for field, offset in offsets.items():
        value = getattr(launch, field)
        if isinstance(value, MemoryRange):
            assert struct.unpack_from("<2Q", page, offset) == value, field
        else:
            layout = "<I" if field in {"cbit", "ghcb_version"} else "<Q"
            assert struct.unpack_from(layout, page, offset) == (value,), field
    assert len(offsets) == 20


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heap", MemoryRange(Gpa(SVSM_BASE - PAGE_SIZE), PAGE_SIZE)),
        ("archive", MemoryRange(Gpa(SVSM_BASE), 1 << 63)),
        ("kernel", MemoryRange(Gpa((1 << 64) - PAGE_SIZE), 2 * PAGE_SIZE)),
        ("ghcb", Gpa(SVSM_HEAP + 8)),
        ("page_table", Gpa(0)),
        ("core_digest", Gpa(1 << 40)),
    ],
)
def test_what_is_outside_of_the_region_is_refused(
    launch: KernelLaunch, field: str, value: object
) -> None:
    page = replace(launch, **{field: value}).to_page()  # type: ignore[arg-type]
    with pytest.raises(KernelLaunchError):
        KernelLaunch.from_page(page)


def test_other_versions_are_refused(launch: KernelLaunch) -> None:
    for offset in (0, 8, 12):
        page = bytearray(launch.to_page())
        page[offset] ^= 1
        with pytest.raises(KernelLaunchError):
            KernelLaunch.from_page(bytes(page))


def test_free_memory_begins_behind_the_heap(launch: KernelLaunch) -> None:
    assert launch.free == range(SVSM_FREE, SVSM_BASE + launch.region.size)
    assert MemoryRange(Gpa(0x1801), 0x1000).pages == range(0x1000, 0x3000)
