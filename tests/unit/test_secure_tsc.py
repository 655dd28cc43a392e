# SPDX-License-Identifier: MIT
"""Secure TSC: what RDTSC, RDTSCP and the MSRs of the TSC give to a guest that has it."""

from __future__ import annotations

import pytest

from svsmd.snp.exits import Hlt, Intr
from svsmd.snp.secure_tsc import guest_tsc, guest_tsc_mhz, tsc_scale
from svsmd.snp.types import Spa
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import SevFeatures, Vmsa
from tests.bare_machine import CODE, SPARE, BareMachine

pytestmark = pytest.mark.usefixtures("both_callbacks")

GP, VC = 13, 29
ONE = 1 << 32
FEATURES = SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC
READ_TSC = "mov ecx, 0x10; rdmsr"
READ_FREQUENCY = "mov ecx, 0xC0010134; rdmsr"


def secure(scale: int = ONE, offset: int = 0, *, user: bool = False) -> BareMachine:
    m = BareMachine(user=user)
    vmsa = m.vmsa
    vmsa.sev_features = FEATURES
    vmsa.guest_tsc_scale, vmsa.guest_tsc_offset = scale, offset
    return m


def tsc(m: BareMachine) -> int:
    return m.vmsa.rdx << 32 | m.vmsa.rax


@pytest.mark.parametrize(
    ("khz", "scale"),
    [
        (0, 0),
        (1, 4295),
        (1_000_000, ONE),
        (1_500_000, 3 << 31),
        (2_999_999, 0x2_FFFF_EF3A),
        (255_999_999, 0xFF_FFFF_EF3A),
        (256_000_000, 0),
        (0xFFFF_FFFF, 0xC6_F7A0_A527),
    ],
)
def test_scale_of_a_frequency(khz: int, scale: int) -> None:
    assert tsc_scale(khz) == scale
    assert guest_tsc_mhz(scale) == khz // 1000 % 256_000


@pytest.mark.parametrize("source", ["rdtsc", "rdtscp", READ_TSC])
@pytest.mark.parametrize(
    ("scale", "offset"),
    [
        (ONE, 0),
        (5 << 31, 0),
        (1 << 31, 1 << 40),
        (0, 0x1234_5678_9ABC),
        ((1 << 40) - 1, (1 << 64) - 1),
        (1 << 40 | ONE, 0),
        ((1 << 64) - 1, 7),
    ],
)
def test_tsc_is_scaled_and_moved(source: str, scale: int, offset: int) -> None:
    m = secure(scale, offset)
    m.vmsa.tsc_aux = 0x77
    m.silicon.clock.advance(1 << 62)
    before = 2 + source.count(";")
    assert m.run(f"nop; nop; {source}; hlt") == Hlt()
    assert tsc(m) == guest_tsc((1 << 62) + before, scale & ((1 << 40) - 1), offset)
    assert m.vmsa.rcx == {"rdtsc": 0, "rdtscp": 0x77, READ_TSC: 0x10}[source]
    assert m.silicon.clock.now == (1 << 62) + before + 2


@pytest.mark.parametrize("user", [False, True])
def test_tsc_wraps(user: bool) -> None:
    m = secure(2 * ONE, (1 << 64) - 4, user=user)
    m.load("nop; rdtsc; mov rbx, rax; mov r9, rdx; rdtsc; 1: jmp 1b")
    assert m.run(ticks=20) == Intr()
    assert (m.vmsa.r9, m.vmsa.rbx) == (0xFFFF_FFFF, 0xFFFF_FFFE)
    assert tsc(m) == 4


def test_frequency() -> None:
    for scale, mhz in ((ONE, 1000), (3 << 31, 1500), (0, 0), ((1 << 40) - 1, 255_999)):
        m = secure(scale)
        assert m.run(f"{READ_FREQUENCY}; hlt") == Hlt()
        assert tsc(m) == mhz


def test_sev_status_says_so() -> None:
    m = secure()
    assert m.run("mov ecx, 0xC0010131; rdmsr; hlt") == Hlt()
    assert m.gpr("rax") == 0b111 | 1 << 11


@pytest.mark.parametrize(
    ("source", "trap"),
    [
        ("mov ecx, 0xC0010134; wrmsr", (GP, 0)),
        # What is read after such a write is undefined: the host takes the instruction, as KVM does.
        ("mov ecx, 0x10; wrmsr", (VC, 0x7C)),
        ("mov ecx, 0x3B; rdmsr", (VC, 0x7C)),
    ],
)
def test_msrs_that_do_not_go_on(source: str, trap: tuple[int, int]) -> None:
    taken = secure().trapped(source)
    assert (taken.vector, taken.error_code) == trap


@pytest.mark.parametrize("source", [READ_TSC, READ_FREQUENCY])
def test_msrs_belong_to_the_host_without_secure_tsc(source: str) -> None:
    trap = BareMachine().trapped(source)
    assert (trap.vector, trap.error_code) == (VC, 0x7C)


def test_msrs_are_not_for_user_code() -> None:
    for source in (READ_TSC, READ_FREQUENCY):
        assert secure(user=True).trapped(source).vector == GP


def test_fields_do_not_count_without_secure_tsc() -> None:
    m = secure(5 * ONE, 1000)
    m.vmsa.sev_features = SevFeatures.SNP_ACTIVE
    assert m.run("nop; nop; rdtsc; hlt") == Hlt()
    assert tsc(m) == 2


@pytest.mark.parametrize("source", ["rdtsc", "rdtscp"])
def test_an_intercept_of_the_host_stays_one(source: str) -> None:
    m = secure()
    m.vmcb.intercept_rdtsc = True
    trap = m.trapped(source)
    assert (trap.vector, trap.error_code) == (VC, 0x87 if source == "rdtscp" else 0x6E)


def test_each_vmsa_has_its_own() -> None:
    m = secure(ONE, 1 << 50)
    m.own(SPARE)
    other = Vmsa(m.silicon.memory.page(SPARE))
    other.memory[:] = m.vmsa.memory
    other.sev_features = SevFeatures.SNP_ACTIVE
    m.rmp.firmware_update(Spa(SPARE), vmsa=True)
    vmcb = Vmcb(SPARE)
    m.load("1: rdtsc; hlt; jmp 1b")
    for turn in range(2):
        now = m.silicon.clock.now
        assert m.run() == Hlt()
        assert tsc(m) == (1 << 50) + now + turn
        now = m.silicon.clock.now
        assert m.silicon.vmrun(vmcb, 1 << 40) == Hlt()
        m.silicon.save_loaded()
        assert other.rdx << 32 | other.rax == now + turn
    assert m.vmsa.rip == other.rip == CODE + 3
    assert (m.vmsa.guest_tsc_scale, m.vmsa.guest_tsc_offset) == (ONE, 1 << 50)
