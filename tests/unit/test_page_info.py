# SPDX-License-Identifier: MIT
"""Page information in C and in Python: one layout."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from svsmd.core.memory import page_info, slab
from svsmd.core.memory.page_info import AllocatorHeader, PageFlag, PageInfo, PageKind
from tests.c_values import c_values

HEADER = Path(page_info.__file__).parents[1] / "native" / "page_info.h"


def test_c_side_has_the_same_layout(tmp_path: Path) -> None:
    kinds = re.findall(r"^\tSVSM_PAGE_(\w+),", HEADER.read_text(), re.MULTILINE)
    fields = [name for name, *_ in AllocatorHeader._fields_]
    expressions = {kind: f"SVSM_PAGE_{kind}" for kind in kinds}
    expressions |= {name: f"offsetof(struct svsm_page_allocator, {name})" for name in fields}
    expressions |= {
        f"entry_{name}": f"offsetof(struct svsm_page_info, {name})" for name in PageInfo._fields
    }
    expressions |= {
        "header": "sizeof(struct svsm_page_allocator)",
        "slab": "sizeof(struct svsm_slab)",
        "orders": "SVSM_PAGE_ORDERS",
        "tail": "SVSM_PAGE_TAIL",
        "poisoned": "SVSM_PAGE_POISONED",
    }
    values = c_values(HEADER, expressions, tmp_path)
    assert {name: values[name] for name in kinds} == {kind.name: kind for kind in PageKind}
    for field in fields:
        assert values[field] == getattr(AllocatorHeader, field).offset, field
    assert values["header"] == ctypes.sizeof(AllocatorHeader)
    assert values["slab"] == slab.HEADER_SIZE
    assert values["orders"] == page_info.MAX_ORDER + 1
    assert (values["tail"], values["poisoned"]) == (PageFlag.TAIL, PageFlag.POISONED)
    entry = PageInfo(0x11, 0x22, 0x3344, 0x55667788, 0x99AABBCC, 0xDDEEFF00)
    raw = entry.pack()
    for field, width in zip(PageInfo._fields, (1, 1, 2, 4, 4, 4), strict=True):
        start = values[f"entry_{field}"]
        assert int.from_bytes(raw[start : start + width], "little") == getattr(entry, field)


def test_kinds_fit_into_the_header() -> None:
    assert len(PageKind) <= page_info.KIND_COUNT
    assert PageInfo.unpack(bytes(16)).kind == PageKind.ABSENT
