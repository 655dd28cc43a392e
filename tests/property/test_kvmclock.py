# SPDX-License-Identifier: MIT
"""kvmclock: a guest reads the machine's time from it, and it changes nothing but its place."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from svsmd.host.kvmclock import KVM_SYSTEM_TIME_NEW_MSR, KVM_WALL_CLOCK_NEW_MSR
from svsmd.snp.rmp import RmpReturn, RmpUpdate
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Spa
from tests.fake_silicon import MEMORY_SIZE, Rig

U64 = (1 << 64) - 1
EPOCH = 1_767_225_600
FIRST = 0x18_0000
NPAGES = 3
END = FIRST + NPAGES * PAGE_SIZE
TIME_INFO_SIZE, WALL_CLOCK_SIZE = 32, 12

places = st.one_of(
    st.integers(FIRST - PAGE_SIZE, END + PAGE_SIZE),
    st.builds(lambda page, back: page * PAGE_SIZE + FIRST - back * 4, st.integers(0, 3),
              st.integers(0, 10)),
    st.sampled_from([0, 4, MEMORY_SIZE - 32, MEMORY_SIZE - 4, MEMORY_SIZE, 0xFEC0_0000]),
    st.integers(0, U64),
)  # fmt: skip
steps = st.one_of(
    st.tuples(st.sampled_from([KVM_SYSTEM_TIME_NEW_MSR, KVM_WALL_CLOCK_NEW_MSR]), places,
              st.integers(0, 1)),
    st.tuples(st.just("page"), st.integers(0, NPAGES - 1), st.integers(0, 10**9)),
)  # fmt: skip


def guest_time(info: bytes, tsc: int) -> int:
    """Nanoseconds, as a guest reads them: with 64 bits, and a product of 96 (msr.rst)."""
    _, _, timestamp, system_time, mul, shift, _, _ = struct.unpack("<IIQQIbBH", info)
    delta = tsc - timestamp & U64
    delta = delta << shift & U64 if shift >= 0 else delta >> -shift
    nanoseconds: int = system_time + (delta * mul >> 32) & U64
    return nanoseconds


@given(st.integers(0, 1 << 60), st.integers(0, 1 << 60))
def test_a_guest_reads_ticks(start: int, later: int) -> None:
    rig = Rig(ncpus=2)
    for vcpu, now in enumerate((start, start + later // 2)):
        rig.silicon.clock.now = now
        rig.platform.msrs.write(vcpu, KVM_SYSTEM_TIME_NEW_MSR, FIRST + 64 * vcpu | 1)
    tsc = start + later
    for vcpu in range(2):
        assert guest_time(rig.silicon.memory.read(FIRST + 64 * vcpu, 32), tsc) == tsc


def toggle(rig: Rig, gpa: int) -> None:
    """Make a shared page private, or the other way round."""
    if rig.silicon.rmp.assigned(gpa >> PAGE_SHIFT):
        assert rig.silicon.rmp.rmpupdate(Spa(gpa), RmpUpdate()) is RmpReturn.SUCCESS
    else:
        rig.silicon.assign(gpa)


def shared(rig: Rig, gpa: int, size: int) -> bool:
    page = gpa >> PAGE_SHIFT
    return (
        gpa + size <= MEMORY_SIZE
        and (gpa + size - 1) >> PAGE_SHIFT == page
        and not rig.silicon.rmp.assigned(page)
    )


@given(st.lists(steps, max_size=12))
def test_only_a_shared_place_changes(script: list[tuple[int | str, int, int]]) -> None:
    rig = Rig(rtc_epoch=EPOCH)
    memory = rig.silicon.memory
    memory.write(FIRST, b"\x5a" * NPAGES * PAGE_SIZE)
    for what, argument, more in script:
        before = memory.read(FIRST, NPAGES * PAGE_SIZE)
        if not isinstance(what, int):
            toggle(rig, FIRST + argument * PAGE_SIZE)
            rig.hypervisor.step(rig.silicon.clock.now + more)
            assert memory.read(FIRST, NPAGES * PAGE_SIZE) == before
            continue
        system_time = what == KVM_SYSTEM_TIME_NEW_MSR
        value = argument & ~1 | more if system_time else argument
        gpa, size = (value & ~1, TIME_INFO_SIZE) if system_time else (value, WALL_CLOCK_SIZE)
        assert rig.platform.msrs.write(0, what, value)
        assert rig.platform.msrs.read(0, what) == value
        after = memory.read(FIRST, NPAGES * PAGE_SIZE)
        off = not more if system_time else not value
        if off or gpa % 4 or not shared(rig, gpa, size):
            assert after == before
        elif FIRST <= gpa < END:
            start = gpa - FIRST
            assert after[:start] + after[start + size :] == before[:start] + before[start + size :]
            old, new = (int.from_bytes(data[start:][:4], "little") for data in (before, after))
            assert new % 2 == 0
            assert new != old
        else:
            assert after == before
