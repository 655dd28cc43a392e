# SPDX-License-Identifier: MIT
"""Secrets page: layout and the keys in it."""

from __future__ import annotations

import pytest

from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import PAGE_SIZE, Vmpl

# 56860 and 58019; the same offsets as Linux' struct snp_secrets_page.
OFFSETS = {
    "version": (0x000, 4),
    "imi_en": (0x004, 4),
    "fms": (0x008, 4),
    "gosvw": (0x010, 16),
    "vmpck0": (0x020, 32),
    "vmpck1": (0x040, 32),
    "vmpck2": (0x060, 32),
    "vmpck3": (0x080, 32),
    "msg_seqno_0": (0x0A0, 4),
    "msg_seqno_1": (0x0A4, 4),
    "msg_seqno_2": (0x0A8, 4),
    "msg_seqno_3": (0x0AC, 4),
    "ap_jump_table_pa": (0x0B0, 8),
    "guest_usage": (0x0B8, 0x48),
    "vmsa_tweak_bitmap": (0x100, 64),
    "svsm_base": (0x140, 8),
    "svsm_size": (0x148, 8),
    "svsm_caa": (0x150, 8),
    "svsm_max_version": (0x158, 4),
    "svsm_guest_vmpl": (0x15C, 1),
    "tsc_factor": (0x160, 4),
}


def test_layout():
    assert SecretsPage.SIZE == PAGE_SIZE
    assert SecretsPage.FIELDS == OFFSETS


def test_keys_by_number():
    page = SecretsPage()
    for index in range(4):
        page.set_vmpck(index, bytes([index + 1]) * 32)
    assert (page.vmpck0, page.vmpck3) == (b"\1" * 32, b"\4" * 32)
    assert page.vmpck(2) == b"\3" * 32


@pytest.mark.parametrize("index", [-1, 4])
def test_no_such_key(index: int):
    with pytest.raises(IndexError):
        SecretsPage().vmpck(index)


def test_key_of_another_size():
    with pytest.raises(ValueError, match="32 bytes"):
        SecretsPage().set_vmpck(0, bytes(16))


@pytest.mark.parametrize("vmpl", list(Vmpl))
def test_a_guest_gets_the_keys_of_its_vmpl_and_below(vmpl: Vmpl):
    page = SecretsPage()
    for index in range(4):
        page.set_vmpck(index, b"k" * 32)
    page.clear_vmpcks_below(vmpl)
    assert [any(page.vmpck(index)) for index in range(4)] == [index >= vmpl for index in range(4)]
