# SPDX-License-Identifier: MIT
"""kvmclock: what the host writes, where it does, and what it does not touch."""

from __future__ import annotations

import struct

import pytest

from svsmd.host.kvmclock import VcpuTimeInfo, WallClock
from svsmd.host.local_apic import DeliveryMode
from svsmd.snp.ghcb import GhcbExit
from svsmd.snp.types import PAGE_SIZE
from tests.fake_silicon import MEMORY_SIZE, VMSA_GPA, Rig

WALL_CLOCK, SYSTEM_TIME = 0x4B56_4D00, 0x4B56_4D01
OLD_WALL_CLOCK, OLD_SYSTEM_TIME = 0x11, 0x12
ENABLE = 1
EPOCH = 1_767_225_600
PAGE = 0x18_0000
OK = (0, 0)

# msr.rst. Both structures are packed, and little-endian.
TIME_INFO = struct.Struct("<IIQQIbBH")
DATE = struct.Struct("<III")


@pytest.fixture
def rig() -> Rig:
    return Rig(ncpus=2, rtc_epoch=EPOCH)


def write(rig: Rig, msr: int, value: int, vcpu: int = 0) -> bool:
    return rig.platform.msrs.write(vcpu, msr, value)


def read(rig: Rig, msr: int, vcpu: int = 0) -> int | None:
    return rig.platform.msrs.read(vcpu, msr)


def memory(rig: Rig, gpa: int, size: int) -> bytes:
    return rig.silicon.memory.read(gpa, size)


def fill(rig: Rig, gpa: int = PAGE, npages: int = 1) -> None:
    rig.silicon.memory.write(gpa, b"\xa5" * npages * PAGE_SIZE)


def untouched(rig: Rig, gpa: int = PAGE, npages: int = 1) -> bool:
    return memory(rig, gpa, npages * PAGE_SIZE) == b"\xa5" * npages * PAGE_SIZE


def test_layouts() -> None:
    assert VcpuTimeInfo.SIZE == TIME_INFO.size == 32
    assert VcpuTimeInfo.FIELDS == {
        "version": (0, 4),
        "tsc_timestamp": (8, 8),
        "system_time": (16, 8),
        "tsc_to_system_mul": (24, 4),
        "tsc_shift": (28, 1),
        "flags": (29, 1),
    }
    assert WallClock.SIZE == DATE.size == 12
    assert WallClock.FIELDS == {"version": (0, 4), "sec": (4, 4), "nsec": (8, 4)}


def test_the_clock_of_a_vcpu(rig: Rig) -> None:
    rig.silicon.clock.now = 77_000
    place = PAGE + 0x7C4
    assert write(rig, SYSTEM_TIME, place | ENABLE)
    # (ticks << 1) * 2**31 >> 32 is ticks: one is a nanosecond.
    assert TIME_INFO.unpack(memory(rig, place, 32)) == (2, 0, 77_000, 77_000, 1 << 31, 1, 1, 0)
    assert not any(memory(rig, PAGE, 0x7C4))
    assert not any(memory(rig, place + 32, PAGE_SIZE - 0x7C4 - 32))


def test_the_wall_clock_is_the_date_at_power_on(rig: Rig) -> None:
    rig.silicon.clock.now = 5_000_000_000
    assert write(rig, WALL_CLOCK, PAGE + 4)
    assert DATE.unpack(memory(rig, PAGE + 4, 12)) == (2, EPOCH, 0)
    assert not any(memory(rig, PAGE + 16, PAGE_SIZE - 16))


def test_the_wall_clock_is_not_the_rtc_that_the_guest_sets(rig: Rig) -> None:
    for index, value in ((0xB, 0x82), (9, 0x99), (0xB, 0x02)):
        rig.platform.ports.write(0x70, 1, index)
        rig.platform.ports.write(0x71, 1, value)
    write(rig, WALL_CLOCK, PAGE)
    assert DATE.unpack(memory(rig, PAGE, 12)) == (2, EPOCH, 0)


def test_seconds_have_32_bits() -> None:
    rig = Rig(rtc_epoch=(1 << 32) + 5)
    write(rig, WALL_CLOCK, PAGE)
    assert DATE.unpack(memory(rig, PAGE, 12)) == (2, 5, 0)


@pytest.mark.parametrize(
    ("before", "after"),
    [(0, 2), (1, 4), (2, 4), (7, 10), (0xFFFF_FFFD, 0), (0xFFFF_FFFE, 0), (0xFFFF_FFFF, 2)],
)
def test_version(rig: Rig, before: int, after: int) -> None:
    for msr, value in ((SYSTEM_TIME, PAGE | ENABLE), (WALL_CLOCK, PAGE)):
        rig.silicon.memory.write(PAGE, before.to_bytes(4, "little") + b"\xff" * 28)
        write(rig, msr, value)
        assert int.from_bytes(memory(rig, PAGE, 4), "little") == after


def test_places_are_per_vcpu_and_the_wall_clock_is_for_all(rig: Rig) -> None:
    write(rig, SYSTEM_TIME, PAGE | ENABLE, vcpu=0)
    write(rig, SYSTEM_TIME, PAGE + 64 | ENABLE, vcpu=1)
    write(rig, WALL_CLOCK, PAGE + 128, vcpu=1)
    assert memory(rig, PAGE, 32) == memory(rig, PAGE + 64, 32) != bytes(32)
    assert (read(rig, SYSTEM_TIME, 0), read(rig, SYSTEM_TIME, 1)) == (PAGE | 1, PAGE + 64 | 1)
    assert read(rig, WALL_CLOCK, 0) == read(rig, WALL_CLOCK, 1) == PAGE + 128


def test_off(rig: Rig) -> None:
    fill(rig)
    fill(rig, 0)
    assert (read(rig, SYSTEM_TIME), read(rig, WALL_CLOCK)) == (0, 0)
    assert write(rig, SYSTEM_TIME, PAGE)
    assert write(rig, WALL_CLOCK, 0)
    assert untouched(rig)
    assert untouched(rig, 0)


@pytest.mark.parametrize(
    "place",
    [
        PAGE + 2,
        PAGE + PAGE_SIZE - 8,
        PAGE + PAGE_SIZE - 2,
        MEMORY_SIZE,
        0xFEE0_0000,
        1 << 39 | PAGE,
        1 << 52,
        (1 << 64) - PAGE_SIZE,
        (1 << 64) - 4,
    ],
)
def test_places_where_nothing_is_written(rig: Rig, place: int) -> None:
    fill(rig, PAGE, npages=2)
    for msr, value in ((SYSTEM_TIME, place | ENABLE), (WALL_CLOCK, place)):
        assert write(rig, msr, value)
        assert read(rig, msr) == value
    assert untouched(rig, PAGE, npages=2)


def test_the_last_bytes_of_a_page(rig: Rig) -> None:
    fill(rig, PAGE + PAGE_SIZE)
    write(rig, SYSTEM_TIME, PAGE + PAGE_SIZE - 32 | ENABLE)
    assert TIME_INFO.unpack(memory(rig, PAGE + PAGE_SIZE - 32, 32))[0] == 2
    write(rig, WALL_CLOCK, PAGE + PAGE_SIZE - 12)
    assert DATE.unpack(memory(rig, PAGE + PAGE_SIZE - 12, 12))[1] == EPOCH
    assert untouched(rig, PAGE + PAGE_SIZE)


@pytest.mark.parametrize("gpa", [PAGE, VMSA_GPA])
def test_private_pages_stay_as_they_are(rig: Rig, gpa: int) -> None:
    fill(rig, gpa)
    rig.silicon.make_vmsa(gpa) if gpa == VMSA_GPA else rig.silicon.assign(gpa)
    assert write(rig, SYSTEM_TIME, gpa | ENABLE)
    assert write(rig, WALL_CLOCK, gpa)
    assert untouched(rig, gpa)


def test_a_place_that_becomes_private_is_left_alone(rig: Rig) -> None:
    write(rig, SYSTEM_TIME, PAGE | ENABLE)
    rig.silicon.assign(PAGE)
    fill(rig)
    rig.hypervisor.step(1_000_000)
    assert untouched(rig)
    assert write(rig, SYSTEM_TIME, 0)
    assert untouched(rig)


def test_init_turns_the_clock_of_its_vcpu_off(rig: Rig) -> None:
    for vcpu in range(2):
        write(rig, SYSTEM_TIME, PAGE + 64 * vcpu | ENABLE, vcpu)
    write(rig, WALL_CLOCK, PAGE + 128)
    rig.platform.apics[1].deliver(DeliveryMode.INIT, 0)
    assert (read(rig, SYSTEM_TIME, 0), read(rig, SYSTEM_TIME, 1)) == (PAGE | ENABLE, 0)
    assert read(rig, WALL_CLOCK, 1) == PAGE + 128


def test_a_guest_writes_the_msr(rig: Rig) -> None:
    answer = rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 1, rcx=SYSTEM_TIME, rax=PAGE | ENABLE, rdx=0)
    assert answer == OK
    now = rig.silicon.clock.now
    assert TIME_INFO.unpack(memory(rig, PAGE, 32))[2:4] == (now, now)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 0, rcx=SYSTEM_TIME) == OK
    assert (rig.ghcb.rax, rig.ghcb.rdx) == (PAGE | ENABLE, 0)


def test_the_older_msrs_are_not_there(rig: Rig) -> None:
    for msr in (OLD_WALL_CLOCK, OLD_SYSTEM_TIME):
        assert read(rig, msr) is None
        assert not write(rig, msr, PAGE | ENABLE)
