# SPDX-License-Identifier: MIT
"""Launch digest against sev-snp-measure, and its PAGE_INFO by offsets."""

from __future__ import annotations

import hashlib

import pytest
from sevsnpmeasure.gctx import GCTX

from svsmd.snp.launch_digest import PAGE_INFO, PAGE_INFO_SIZE, LaunchDigest, PageType
from svsmd.snp.types import PAGE_SIZE


def page(seed: int) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(PAGE_SIZE)


def test_page_info_layout():
    assert PAGE_INFO.size == PAGE_INFO_SIZE == 0x70
    info = PAGE_INFO.pack(b"d" * 48, b"c" * 48, 0x70, 2, 1, 0x11, 0x22, 0x33, 0x8877665544332211)
    assert info[0x00:0x30] == b"d" * 48
    assert info[0x30:0x60] == b"c" * 48
    assert info[0x60:0x68] == bytes([0x70, 0, 2, 1, 0, 0x11, 0x22, 0x33])
    assert info[0x68:0x70] == (0x8877665544332211).to_bytes(8, "little")


def test_empty_digest():
    assert LaunchDigest().value == bytes(48) == GCTX().ld()


def test_every_page_type_as_sev_snp_measure_has_it():
    digest, oracle = LaunchDigest(), GCTX()
    for offset in range(0, 3 * PAGE_SIZE, PAGE_SIZE):
        digest.update(PageType.NORMAL, 0x10_0000 + offset, page(offset // PAGE_SIZE))
    oracle.update_normal_pages(0x10_0000, page(0) + page(1) + page(2))
    assert digest.value == oracle.ld()
    digest.update(PageType.ZERO, 0x5000)
    oracle.update_zero_pages(0x5000, PAGE_SIZE)
    assert digest.value == oracle.ld()
    digest.update(PageType.UNMEASURED, 0x6000, page(9))
    oracle.update_unmeasured_pages(0x6000, PAGE_SIZE)
    assert digest.value == oracle.ld()
    digest.update(PageType.SECRETS, 0x7000, page(8))
    oracle.update_secrets_page(0x7000)
    assert digest.value == oracle.ld()
    digest.update(PageType.CPUID, 0x8000, page(7))
    oracle.update_cpuid_page(0x8000)
    assert digest.value == oracle.ld()
    digest.update(PageType.VMSA, GCTX.VMSA_GPA, memoryview(page(6)))
    oracle.update_vmsa_page(page(6))
    assert digest.value == oracle.ld()


def test_permissions_and_the_imi_bit_are_measured():
    digests = set()
    for imi_page, permissions in ((0, (0, 0, 0)), (1, (0, 0, 0)), (0, (1, 0, 0)), (0, (0, 0, 1))):
        digest = LaunchDigest()
        digest.update(PageType.ZERO, 0, imi_page=bool(imi_page), vmpl_permissions=permissions)
        digests.add(digest.value)
    assert len(digests) == 4


def test_measures_whole_pages():
    with pytest.raises(ValueError, match="4096"):
        LaunchDigest().update(PageType.NORMAL, 0, b"short")
