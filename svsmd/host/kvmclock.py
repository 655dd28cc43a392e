# SPDX-License-Identifier: MIT
"""kvmclock: the hypervisor says in shared memory how a guest gets time from its TSC.

A vCPU names a place for its own clock, any vCPU names one for the date, and the host writes there,
once. It never has to again: TSC and system time are one count (`svsmd.snp.clock`), the same for all
vCPUs, which does not drift and cannot be set. A reset of the machine does not set it back either,
so the date at which it was 0 stays what it is.

A place has to be 4-byte aligned, within one page, and in a shared page of RAM. Else nothing is
written, and the guest is not told: like KVM's, the MSRs take any value. The page is looked up when
the MSR is written and left alone afterwards, so what becomes of it does not matter.

Spec: Linux, Documentation/virt/kvm/x86/msr.rst (MSR_KVM_WALL_CLOCK_NEW and
MSR_KVM_SYSTEM_TIME_NEW). Deviations: KVM also serves an address that is not aligned, and a date
across two pages, and it writes again: there a place that becomes shared later comes to life.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from functools import partial
from typing import Final

from svsmd.host.guest_request import HostPage
from svsmd.host.msr_policy import MsrPolicy
from svsmd.snp.page_view import U8, U32, U64, PageView
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

KVM_WALL_CLOCK_NEW_MSR: Final = 0x4B56_4D00
KVM_SYSTEM_TIME_NEW_MSR: Final = 0x4B56_4D01

SYSTEM_TIME_ENABLE: Final = 1 << 0
"""KVM_SYSTEM_TIME_NEW_MSR: the rest is an address; without this bit the vCPU's clock is off."""
ALIGNMENT: Final = 4

NANOSECOND_TSC_SHIFT: Final = 1
NANOSECOND_TSC_MUL: Final = 1 << 31
"""System time is (ticks << shift) * mul >> 32. At 1 GHz that has to be ticks; mul has 32 bits."""

_U32: Final = 0xFFFF_FFFF


class PvclockFlag(IntFlag):
    """Flags of `VcpuTimeInfo`."""

    TSC_STABLE = 1 << 0
    """The clocks of all vCPUs are one clock."""


class VcpuTimeInfo(PageView):
    """struct pvclock_vcpu_time_info: the clock of a vCPU."""

    __slots__ = ()

    SIZE = 32

    version = U32(0x00)
    """Odd while the rest is being changed."""
    tsc_timestamp = U64(0x08)
    """TSC at which `system_time` was taken."""
    system_time = U64(0x10)
    """Nanoseconds since power-on."""
    tsc_to_system_mul = U32(0x18)
    tsc_shift = U8(0x1C)
    """Signed."""
    flags = U8(0x1D)


class WallClock(PageView):
    """struct pvclock_wall_clock: the date at which system time was 0."""

    __slots__ = ()

    SIZE = 12

    version = U32(0x0)
    """Odd while the rest is being changed."""
    sec = U32(0x4)
    """Seconds since 1970, modulo 2^32."""
    nsec = U32(0x8)


@dataclass(slots=True)
class KvmClockState:
    """What the guest has written to the MSRs; reads return it."""

    system_time: list[int]
    """By vCPU."""
    wall_clock: int = 0
    """One for all vCPUs, whoever writes it."""


class KvmClock:
    """The clocks of all vCPUs of `msrs`, in whose tables it puts its MSRs.

    Args:
        epoch: date at tick 0, seconds since 1970.
        now: ticks, which are TSC and nanoseconds.
    """

    def __init__(
        self, msrs: MsrPolicy, epoch: int, now: Callable[[], int], host_page: HostPage
    ) -> None:
        # Fixed configuration.
        self._epoch: Final = epoch
        # Runtime glue.
        self._now: Final = now
        self._host_page: Final = host_page
        # Volatile state.
        self.state = KvmClockState([0] * len(msrs.vcpus))

        for index, vcpu in enumerate(msrs.vcpus):
            vcpu.reads |= {
                KVM_WALL_CLOCK_NEW_MSR: self._read_wall_clock,
                KVM_SYSTEM_TIME_NEW_MSR: partial(self._read_system_time, index),
            }
            vcpu.writes |= {
                KVM_WALL_CLOCK_NEW_MSR: self._write_wall_clock,
                KVM_SYSTEM_TIME_NEW_MSR: partial(self._write_system_time, index),
            }

    def reset(self, vcpu: int) -> None:
        """An INIT arrived at a vCPU: its clock is off."""
        self.state.system_time[vcpu] = 0

    def _read_wall_clock(self) -> int:
        return self.state.wall_clock

    def _read_system_time(self, vcpu: int) -> int:
        return self.state.system_time[vcpu]

    def _write_wall_clock(self, value: int) -> None:
        self.state.wall_clock = value
        # As in KVM, 0 is no address.
        memory = self._place(value, WallClock.SIZE) if value else None
        if memory is None:
            return
        clock = WallClock(memory)
        clock.sec = self._epoch & _U32
        clock.nsec = 0
        clock.version = _next_version(clock.version)

    def _write_system_time(self, vcpu: int, value: int) -> None:
        self.state.system_time[vcpu] = value
        if not value & SYSTEM_TIME_ENABLE:
            return
        memory = self._place(value & ~SYSTEM_TIME_ENABLE, VcpuTimeInfo.SIZE)
        if memory is None:
            return
        info = VcpuTimeInfo(memory)
        version = _next_version(info.version)
        info.clear()
        info.tsc_timestamp = info.system_time = self._now()
        info.tsc_to_system_mul = NANOSECOND_TSC_MUL
        info.tsc_shift = NANOSECOND_TSC_SHIFT
        info.flags = PvclockFlag.TSC_STABLE
        info.version = version

    def _place(self, gpa: int, size: int) -> memoryview | None:
        """The live bytes at `gpa`, if the host may write there."""
        offset = gpa & PAGE_MASK
        if gpa % ALIGNMENT or offset + size > PAGE_SIZE:
            return None
        page = self._host_page(gpa - offset)
        return None if page is None else page[offset : offset + size]


def _next_version(version: int) -> int:
    """What a finished update leaves: even, and not what a reader that it came upon has seen.

    No vCPU runs while the host writes, so nobody could see the odd number in between.
    """
    return (version + 1 | 1) + 1 & _U32
