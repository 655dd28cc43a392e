# SPDX-License-Identifier: MIT
"""CPUID: what the machine has, and what the security processor lets a hypervisor claim."""

from __future__ import annotations

import struct

import pytest

from svsmd.snp.cpuid_page import CPUID_COUNT_MAX, CPUID_FUNCTION, CpuidFunction, CpuidPage
from svsmd.snp.cpuid_policy import (
    CPUID_SIGNATURE,
    CpuidLeaf,
    CpuidResult,
    Fn1Ecx,
    Fn1Edx,
    cpuid,
    sanitize,
    table,
)
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.types import C_BIT_POSITION, PAGE_SIZE


def test_layout():
    assert CpuidPage.SIZE == PAGE_SIZE
    assert CpuidPage.FIELDS == {"count": (0, 4), "reserved": (4, 4), "reserved_2": (8, 8)}
    assert CPUID_FUNCTION.size == 0x30
    page = CpuidPage()
    page.set_function(1, CpuidFunction(1, 2, 3, 4, 5, 6, 7, 8, 9))
    # 56860: EAX_IN 0, ECX_IN 4, XCR0_IN 8, XSS_IN 10h, EAX 18h to EDX 24h, reserved 28h.
    raw = struct.pack("<IIQQIIIIQ", 1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert page.memory[0x40:0x70] == raw
    assert page.function(1).result == (5, 6, 7, 8)


def test_built_page_passes_the_check():
    page = CpuidPage.build(4)
    before = page.tobytes()
    assert page.check() is FirmwareStatus.SUCCESS
    assert page.tobytes() == before
    assert page.count == len(table(4)) <= CPUID_COUNT_MAX


def test_lookup_is_what_a_guest_does():
    page = CpuidPage.build()
    assert page.lookup(CpuidLeaf.SECURE_ENCRYPTION, 77) == cpuid(CpuidLeaf.SECURE_ENCRYPTION)
    assert page.lookup(CpuidLeaf.TOPOLOGY, 1) == cpuid(CpuidLeaf.TOPOLOGY, 1)
    assert page.lookup(CpuidLeaf.TOPOLOGY, 2) == (0, 0, 0, 0)
    assert page.lookup(0xD) == (0, 0, 0, 0)


def test_what_linux_needs():
    features = cpuid(1)
    assert features.eax == CPUID_SIGNATURE == 0x00A0_0F11
    for bit in (Fn1Ecx.RDRAND, Fn1Ecx.X2APIC, Fn1Ecx.TSC_DEADLINE, Fn1Ecx.HYPERVISOR):
        assert features.ecx & bit
    # What the engine lacks: XSAVE, OSXSAVE, AVX, FMA, F16C, PCID.
    assert not features.ecx & (1 << 26 | 1 << 27 | 1 << 28 | 1 << 12 | 1 << 29 | 1 << 17)
    structured = cpuid(7)
    # BMI1, AVX2, BMI2, INVPCID, AVX512F, ADX.
    assert not structured.ebx & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 10 | 1 << 16 | 1 << 19)
    assert cpuid(6).eax == 1 << 2
    vendor = cpuid(0)
    name = struct.pack("<III", vendor.ebx, vendor.edx, vendor.ecx)
    assert (vendor.eax, name) == (0xB, b"AuthenticAMD")
    hypervisor = cpuid(0x4000_0000)
    assert (hypervisor.eax, struct.pack("<III", *hypervisor[1:])) == (
        0x4000_0001,
        b"KVMKVMKVM\0\0\0",
    )
    # NOP_IO_DELAY, CLOCKSOURCE2, CLOCKSOURCE_STABLE_BIT; not CLOCKSOURCE, the older MSRs.
    assert cpuid(0x4000_0001) == (1 << 1 | 1 << 3 | 1 << 24, 0, 0, 0)


def test_secure_encryption():
    leaf = cpuid(0x8000_001F)
    assert leaf.eax == 1 << 1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8
    assert leaf.ebx & 0x3F == C_BIT_POSITION == 39
    assert leaf.ebx >> 12 & 0xF == 4
    assert leaf.ebx >> 31 == 1
    assert cpuid(0x8000_0008).eax == 48 << 8 | 40
    assert cpuid(0x8000_0007).edx == 1 << 8


def test_attacks_on_speculation_do_not_work():
    assert cpuid(0x8000_0000).eax == 0x8000_0021
    assert cpuid(0x8000_0008).ebx == 1 << 26 | 1 << 29
    assert cpuid(0x8000_0021) == (1 << 29, 0, 1 << 1 | 1 << 2, 0)


@pytest.mark.parametrize("ncpus", [1, 2, 3, 8, 255])
def test_leaves_that_depend_on_the_vcpu(ncpus: int):
    last = ncpus - 1
    assert cpuid(1, apic_id=last, ncpus=ncpus).ebx >> 24 == last
    assert cpuid(1, apic_id=last, ncpus=ncpus).ebx >> 16 & 0xFF == ncpus
    assert bool(cpuid(1, 0, 0, ncpus).edx & Fn1Edx.HTT) == (ncpus > 1)
    for index in (0, 1):
        assert cpuid(0xB, index, last, ncpus).edx == last
    core = cpuid(0xB, 1, last, ncpus)
    assert core.ebx == ncpus
    assert last >> core.eax == 0
    assert cpuid(0x8000_001E, 0, last, ncpus).eax == last
    assert cpuid(0x8000_0008, 0, last, ncpus).ecx & 0xFF == last


@pytest.mark.parametrize("function", [2, 0xD, 0x1000, 0x8000_0022, 0xFFFF_FFFF, 0x4000_0002])
def test_functions_that_are_not_there(function: int):
    assert cpuid(function) == (0, 0, 0, 0)


def test_index_counts_only_where_it_is_looked_at():
    assert cpuid(1, 5) == cpuid(1)
    assert cpuid(7, 1) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("function", "change", "expected"),
    [
        (1, {"ecx": cpuid(1).ecx | 1 << 28}, {"ecx": cpuid(1).ecx}),  # AVX
        (1, {"eax": CPUID_SIGNATURE + 1}, {"eax": CPUID_SIGNATURE}),
        (1, {"ebx": 0x40FF}, {"ebx": 0x0800}),  # CLFLUSH, brand
        (7, {"ebx": 0xFFFF_FFFF}, {"ebx": cpuid(7).ebx}),
        (0, {"eax": 0x10}, {"eax": 0xB}),
        (0, {"ebx": 0x756E_6547}, {"ebx": cpuid(0).ebx}),  # GenuineIntel
        (0x8000_001F, {"ebx": 51}, {"ebx": cpuid(0x8000_001F).ebx}),
        (0x8000_001F, {"eax": 0x3A | 1 << 28}, {"eax": 0x3A}),  # SVSM present
        (0x8000_001F, {"eax": 0x13A | 1 << 9}, {"eax": 0x13A}),  # TSC_AUX virtualization
        (0x8000_0008, {"eax": 48 << 8 | 52}, {"eax": 48 << 8 | 40}),
        (0x8000_0021, {"eax": 1 << 29 | 1 << 8}, {"eax": 1 << 29}),  # automatic IBRS
        (0xD, {"ebx": 0x240}, {"ebx": 0}),  # no such leaf
    ],
)
def test_claims_too_much(function: int, change: dict[str, int], expected: dict[str, int]):
    offered = cpuid(function)._replace(**change)
    page = CpuidPage()
    page.set_functions([CpuidFunction(function, 0, 0, 0, *offered)])
    assert page.check() is FirmwareStatus.INVALID_PARAM
    assert page.function(0).result == offered._replace(**expected)
    assert page.check() is FirmwareStatus.SUCCESS


@pytest.mark.parametrize(
    ("function", "offered"),
    [
        (1, CpuidResult(0x0080_0F12, 0x0300_0800, 1 << 31 | 1 << 27, 0)),  # older, OSXSAVE
        (7, CpuidResult()),
        (0x8000_0002, CpuidResult(1, 2, 3, 4)),  # brand
        (0x4000_0000, CpuidResult(5, 6, 7, 8)),  # the hypervisor's own
        (0xC000_0000, CpuidResult(1)),
        (0xD, CpuidResult()),
    ],
)
def test_may_claim_less_or_what_is_not_checked(function: int, offered: CpuidResult):
    assert sanitize(function, 0, offered) == offered


@pytest.mark.parametrize(("offset", "size"), [(0, 4), (4, 4), (8, 8)])
def test_header_out_of_bounds(offset: int, size: int):
    page = CpuidPage.build()
    page.memory[offset : offset + size] = (CPUID_COUNT_MAX + 1).to_bytes(size, "little")
    before = page.tobytes()
    assert page.check() is FirmwareStatus.INVALID_PARAM
    assert page.tobytes() == before


def test_reserved_field_of_an_entry():
    page = CpuidPage.build()
    page.set_function(0, page.function(0)._replace(reserved=1))
    assert page.check() is FirmwareStatus.INVALID_PARAM


def test_too_many_entries():
    with pytest.raises(ValueError, match="64"):
        CpuidPage.build(extra=[CpuidFunction(*range(8))] * CPUID_COUNT_MAX)
    with pytest.raises(IndexError):
        CpuidPage().function(CPUID_COUNT_MAX)
