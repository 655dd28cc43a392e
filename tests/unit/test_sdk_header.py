# SPDX-License-Identifier: MIT
"""The headers of the module SDK are those of the table of system calls."""

import re

import pytest

from svsmd.core.syscalls.table import SYSTEM_CALLS
from tools.make_sdk_header import INCLUDE, headers


@pytest.mark.parametrize("name", headers())
def test_headers_are_what_the_table_says(name: str) -> None:
    assert (INCLUDE / name).read_text() == headers()[name], "run tools/make_sdk_header.py"


def test_the_table_names_each_call_once_and_each_argument() -> None:
    found = re.findall(r'X\((\w+), (0x\w+), "([pi]*)"\)', headers()["table.h"])
    assert len(found) == len(SYSTEM_CALLS) == len({number for _, number, _ in found})
    for (name, number, kinds), info in zip(found, SYSTEM_CALLS, strict=True):
        assert (name, int(number, 16), len(kinds)) == (info.name, info.number, len(info.arguments))
