# SPDX-License-Identifier: MIT
"""The guest's TSC as arithmetic: C, Python and the definition agree for all values."""

from __future__ import annotations

import functools
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from svsmd.snp.exits import Hlt
from svsmd.snp.secure_tsc import TSC_SCALE_ONE, guest_tsc, guest_tsc_mhz, tsc_scale
from svsmd.snp.vmsa import SevFeatures
from tests.bare_machine import CODE, BareMachine

U64 = (1 << 64) - 1
LONG_RUN = (1 << 63) - 1
TICKS = st.integers(0, LONG_RUN) | st.integers(0, 100)
SCALES = st.integers(0, (1 << 40) - 1) | st.sampled_from((0, 1, TSC_SCALE_ONE))
OFFSETS = st.integers(0, U64) | st.sampled_from((0, U64))


@functools.cache
def machine(_callbacks: str) -> BareMachine:
    return BareMachine()


@pytest.mark.parametrize("instruction", ["rdtsc", "rdtscp", "mov ecx, 0x10; rdmsr"])
@given(ticks=TICKS, scale=SCALES, offset=OFFSETS)
@example(ticks=LONG_RUN, scale=(1 << 40) - 1, offset=U64)
def test_what_the_guest_reads(
    both_callbacks: str, instruction: str, ticks: int, scale: int, offset: int
) -> None:
    m = machine(both_callbacks)
    m.load(f"{instruction}; hlt")
    vmsa = m.vmsa
    vmsa.rip = CODE
    vmsa.sev_features = SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC
    vmsa.guest_tsc_scale, vmsa.guest_tsc_offset = scale, offset
    m.silicon.cpu.shared.ticks = ticks
    assert m.run() == Hlt()
    counted = ticks + instruction.count(";")
    expected = (Fraction(counted * scale, TSC_SCALE_ONE).__floor__() + offset) & U64
    assert m.vmsa.rdx << 32 | m.vmsa.rax == expected == guest_tsc(counted, scale, offset)


@given(ticks=TICKS, later=st.integers(0, 1 << 40), scale=SCALES)
def test_it_does_not_run_backwards(ticks: int, later: int, scale: int) -> None:
    # Before it wraps, which takes centuries.
    passed = guest_tsc(ticks + later, scale, 0) - guest_tsc(ticks, scale, 0) & U64
    assert abs(passed - Fraction(later * scale, TSC_SCALE_ONE)) < 1


@given(mhz=st.integers(0, 255_999))
def test_a_frequency_in_mhz_comes_back(mhz: int) -> None:
    assert guest_tsc_mhz(tsc_scale(mhz * 1000)) == mhz


@given(khz=st.integers(0, 255_999_999))
def test_scale_is_as_exact_as_it_can_be(khz: int) -> None:
    above = Fraction(tsc_scale(khz), TSC_SCALE_ONE) - Fraction(khz, 1_000_000)
    assert 0 <= above < Fraction(1, TSC_SCALE_ONE)
