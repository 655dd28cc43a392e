# SPDX-License-Identifier: MIT
"""Termination reasons in words."""

import pytest

from svsmd.host.termination import REASONS, describe


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ((0, 2), "reason set 0, code 0x2: SEV-SNP, or a feature of it, is not supported"),
        ((1, 3), "reason set 1, code 0x3: it does not run at VMPL0 and cannot do without"),
        ((1, 12), "reason set 1, code 0xc: Secure AVIC failed"),
        ((0, 3), "reason set 0, code 0x3"),
        ((1, 0xFF), "reason set 1, code 0xff"),
        ((15, 0), "reason set 15, code 0x0"),
    ],
)
def test_description(reason: tuple[int, int], text: str) -> None:
    assert describe(*reason) == text


def test_each_is_one_line() -> None:
    for words in REASONS.values():
        assert all(word and "\n" not in word and word[-1] != "." for word in words)
