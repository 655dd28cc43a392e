# SPDX-License-Identifier: MIT
"""Secure TSC: a guest's own time stamp counter, which its host cannot change.

RDTSC, RDTSCP and MSR 10h give the count of the processor's reference clock, scaled and moved by two
fields of the VMSA. The security processor fills them for the VMSAs of a launch, and tells the guest
what to put into those that it makes later.

Spec: 24593, 15.36.18; 56860, SNP_LAUNCH_START (DESIRED_TSC_FREQ), table "Secrets page format"
(TSC_FACTOR), MSG_TSC_INFO_REQ and MSG_TSC_INFO_RSP, version 1. Deviation: the reference clock is
the machine's own of 1 GHz, without spread spectrum; hardware has one of about 100 MHz.
"""

from __future__ import annotations

from typing import Final

from svsmd.snp.clock import TICKS_PER_SECOND
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.page_view import U32, U64, PageView

_FRACTION_BITS: Final = 32
TSC_SCALE_ONE: Final = 1 << _FRACTION_BITS
"""GUEST_TSC_SCALE of a counter that is as fast as the reference clock."""
_SCALE_MASK: Final = (1 << 40) - 1
"""GUEST_TSC_SCALE has 8 bits in front of its point and 32 behind it."""
_U64: Final = (1 << 64) - 1
_REFERENCE_KHZ: Final = TICKS_PER_SECOND // 1_000
_REFERENCE_MHZ: Final = TICKS_PER_SECOND // 1_000_000

TSC_FACTOR: Final = 0
"""By how much the mean frequency is below GUEST_TSC_FREQ, in thousandths of a percent."""


def tsc_scale(desired_khz: int) -> int:
    """GUEST_TSC_SCALE for a mean frequency; what has no room in its 40 bits is cut off."""
    return -(-(desired_khz << _FRACTION_BITS) // _REFERENCE_KHZ) & _SCALE_MASK


def usable_scale(field: int) -> int:
    """What counts of the 64 bits of GUEST_TSC_SCALE in a VMSA."""
    return field & _SCALE_MASK


def guest_tsc(ticks: int, scale: int, offset: int) -> int:
    """The counter that the guest reads, 64 bits; native/accel.c has the same."""
    return ((ticks * scale >> _FRACTION_BITS) + offset) & _U64


def guest_tsc_mhz(scale: int) -> int:
    """MSR C001_0134, GUEST_TSC_FREQ: the counter's frequency in MHz."""
    return _REFERENCE_MHZ * scale >> _FRACTION_BITS


TSC_INFO_REQUEST_SIZE: Final = 0x80
"""Bytes of MSG_TSC_INFO_REQ, all reserved."""


class TscInfoResponse(PageView):
    """Payload of MSG_TSC_INFO_RSP."""

    __slots__ = ()

    SIZE = 0x80

    status = U32(0x00)
    guest_tsc_scale = U64(0x08)
    guest_tsc_offset = U64(0x10)
    tsc_factor = U32(0x18)


def tsc_info_response(request: bytes, desired_khz: int) -> TscInfoResponse:
    """Answer MSG_TSC_INFO_REQ of a guest that was launched with this DESIRED_TSC_FREQ.

    The firmware does not look at VMSAs for it: a guest without Secure TSC gets an answer too, with
    a scale of 0 if its host has asked for no frequency. The offset is 0, as there is no migration.
    STATUS is INVALID_PARAM, and the rest zero, if a reserved byte is set.
    """
    response = TscInfoResponse()
    if any(request[:TSC_INFO_REQUEST_SIZE]):
        response.status = FirmwareStatus.INVALID_PARAM
    else:
        response.guest_tsc_scale = tsc_scale(desired_khz)
        response.tsc_factor = TSC_FACTOR
    return response
