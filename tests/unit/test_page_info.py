# SPDX-License-Identifier: MIT
"""Page information in C and in Python: one layout."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from svsmd.core.memory import page_info, slab
from svsmd.core.memory.page_info import AllocatorHeader, PageFlag, PageInfo, PageKind

HEADER = Path(page_info.__file__).parents[1] / "native" / "page_info.h"


def test_c_side_has_the_same_layout(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    text = HEADER.read_text()
    kinds = re.findall(r"^\tSVSM_PAGE_(\w+),", text, re.MULTILINE)
    fields = [name for name, *_ in AllocatorHeader._fields_]
    prints = [f'printf("{kind} %d\\n", SVSM_PAGE_{kind});' for kind in kinds]
    prints += [
        f'printf("{field} %zu\\n", offsetof(struct svsm_page_allocator, {field}));'
        for field in fields
    ]
    prints += [
        f'printf("entry_{field} %zu\\n", offsetof(struct svsm_page_info, {field}));'
        for field in PageInfo._fields
    ]
    prints += [
        'printf("header %zu\\n", sizeof(struct svsm_page_allocator));',
        'printf("slab %zu\\n", sizeof(struct svsm_slab));',
        'printf("orders %d\\n", SVSM_PAGE_ORDERS);',
        'printf("tail %d\\n", SVSM_PAGE_TAIL);',
        'printf("poisoned %d\\n", SVSM_PAGE_POISONED);',
    ]
    source = tmp_path / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "page_info.h"\nint main(void) {\n' + "\n".join(prints) + "}\n"
    )
    program = tmp_path / "layout"
    subprocess.run([compiler, "-I", HEADER.parent, source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    values = {name: int(value) for name, value in (line.split() for line in printed.splitlines())}
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
