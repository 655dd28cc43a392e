# SPDX-License-Identifier: MIT
"""The GHCB MSR protocol: requests and answers in the 64 bits of MSR C001_0130.

`parse_request` turns what a guest left in the MSR before VMGEXIT into a value to match on, and each
request has an `encode`, which guest code uses to build it. The answers are functions named after
their request, `..._response`; `parse_response` is the guest's side of them.

Spec: GHCB specification (56421), 2.3.1 and table 1 "GHCB MSR protocol".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache
from typing import ClassVar, Final, NamedTuple

from svsmd.snp.bits import Bits, Register64

GHCB_MSR: Final = 0xC001_0130
"""Number of the MSR."""

GHCB_GPA_REFUSED: Final = (1 << 52) - 1
"""Page number that says no: no preferred GPA (56421, 2.3.1), or a registration was refused."""


class GhcbInfo(IntEnum):
    """GHCBInfo, bits 11:0 of the MSR; 0 means that bits 63:12 name the GHCB page."""

    GHCB_GPA = 0x000
    SEV_INFO = 0x001
    SEV_INFO_REQUEST = 0x002
    CPUID_REQUEST = 0x004
    CPUID_RESPONSE = 0x005
    AP_RESET_HOLD_REQUEST = 0x006
    AP_RESET_HOLD_RESPONSE = 0x007
    PREFERRED_GPA_REQUEST = 0x010
    PREFERRED_GPA_RESPONSE = 0x011
    REGISTER_GPA_REQUEST = 0x012
    REGISTER_GPA_RESPONSE = 0x013
    PSC_REQUEST = 0x014
    PSC_RESPONSE = 0x015
    RUN_VMPL_REQUEST = 0x016
    RUN_VMPL_RESPONSE = 0x017
    HV_FEATURES_REQUEST = 0x080
    HV_FEATURES_RESPONSE = 0x081
    TERMINATE_REQUEST = 0x100


class HvFeature(IntFlag):
    """Hypervisor features (56421, 2.3.1, table 2)."""

    SNP = 1 << 0
    SNP_AP_CREATION = 1 << 1
    SNP_RESTRICTED_INJECTION = 1 << 2
    SNP_RESTRICTED_INJECTION_TIMER = 1 << 3
    APIC_ID_LIST = 1 << 4
    SNP_MULTI_VMPL = 1 << 5
    SNP_PSC = 1 << 6
    EXTENDED_INTERRUPTS = 1 << 9


class MsrPscOperation(IntEnum):
    """Page operation of a page state change request."""

    PRIVATE = 1
    SHARED = 2


class CpuidRegister(IntEnum):
    """Which register of a CPUID leaf is asked for."""

    EAX = 0
    EBX = 1
    ECX = 2
    EDX = 3


class _Info(Register64):
    INFO = Bits(11, 0)


_INFO_MASK: Final = _Info.INFO.mask


class _SevInfo(_Info):
    C_BIT = Bits(31, 24)
    VERSION_MIN = Bits(47, 32)
    VERSION_MAX = Bits(63, 48)


class _Cpuid(_Info):
    REGISTER = Bits(31, 30)
    FUNCTION = Bits(63, 32)


class _CpuidResponse(_Info):
    VALUE = Bits(63, 32)


class _Gfn(_Info):
    GFN = Bits(63, 12)


class _Psc(_Info):
    GFN = Bits(51, 12)
    OPERATION = Bits(55, 52)


class _RunVmpl(_Info):
    VMPL = Bits(39, 32)


class _Error(_Info):
    RESERVED = Bits(31, 12)
    ERROR = Bits(63, 32)


class _Terminate(_Info):
    REASON_SET = Bits(15, 12)
    REASON_CODE = Bits(23, 16)


@dataclass(frozen=True, slots=True)
class GhcbGpa:
    """No protocol request: the event is in the GHCB page at `gpa`."""

    gpa: int

    def encode(self) -> int:
        """Build the MSR value."""
        return _Gfn.of(INFO=GhcbInfo.GHCB_GPA, GFN=self.gpa >> 12)


@dataclass(frozen=True, slots=True)
class SevInfoRequest:
    """Which protocol versions, and where is the C-bit?"""

    def encode(self) -> int:
        """Build the MSR value."""
        return GhcbInfo.SEV_INFO_REQUEST


@dataclass(frozen=True, slots=True)
class CpuidRequest:
    """One register of CPUID `function`, index 0."""

    function: int
    register: CpuidRegister

    def encode(self) -> int:
        """Build the MSR value."""
        return _Cpuid.of(
            INFO=GhcbInfo.CPUID_REQUEST, REGISTER=self.register, FUNCTION=self.function
        )


@dataclass(frozen=True, slots=True)
class ApResetHold:
    """This vCPU waits for INIT and SIPI."""

    def encode(self) -> int:
        """Build the MSR value."""
        return GhcbInfo.AP_RESET_HOLD_REQUEST


@dataclass(frozen=True, slots=True)
class PreferredGpa:
    """Where would the hypervisor like the GHCB?"""

    def encode(self) -> int:
        """Build the MSR value."""
        return GhcbInfo.PREFERRED_GPA_REQUEST


@dataclass(frozen=True, slots=True)
class RegisterGpa:
    """The GHCB will be in page number `gfn`."""

    gfn: int

    def encode(self) -> int:
        """Build the MSR value."""
        return _Gfn.of(INFO=GhcbInfo.REGISTER_GPA_REQUEST, GFN=self.gfn)


@dataclass(frozen=True, slots=True)
class PageStateChange:
    """Make the 4 KiB page with number `gfn` private or shared."""

    gfn: int
    operation: MsrPscOperation

    def encode(self) -> int:
        """Build the MSR value."""
        return _Psc.of(INFO=GhcbInfo.PSC_REQUEST, GFN=self.gfn, OPERATION=self.operation)


@dataclass(frozen=True, slots=True)
class RunVmpl:
    """Run this vCPU at VMPL `vmpl`, a number of 8 bits that the hypervisor has to check."""

    vmpl: int

    def encode(self) -> int:
        """Build the MSR value."""
        return _RunVmpl.of(INFO=GhcbInfo.RUN_VMPL_REQUEST, VMPL=self.vmpl)


@dataclass(frozen=True, slots=True)
class HvFeatures:
    """Which of the `HvFeature`s are there?"""

    def encode(self) -> int:
        """Build the MSR value."""
        return GhcbInfo.HV_FEATURES_REQUEST


@dataclass(frozen=True, slots=True)
class Terminate:
    """The guest wants to end; there is no answer."""

    REASON_SET_GENERAL: ClassVar = 0
    """The set that 56421 defines, table 3; others belong to the guest's software."""

    reason_set: int
    reason_code: int

    def encode(self) -> int:
        """Build the MSR value."""
        return _Terminate.of(
            INFO=GhcbInfo.TERMINATE_REQUEST,
            REASON_SET=self.reason_set,
            REASON_CODE=self.reason_code,
        )


@dataclass(frozen=True, slots=True)
class Malformed:
    """Not a request of the protocol: unknown info, or an operand out of range.

    56421 defines no answer; a hypervisor ends the guest.
    """

    value: int


Request = (
    GhcbGpa
    | SevInfoRequest
    | CpuidRequest
    | ApResetHold
    | PreferredGpa
    | RegisterGpa
    | PageStateChange
    | RunVmpl
    | HvFeatures
    | Terminate
    | Malformed
)


def _parse_cpuid_request(value: int) -> Request:
    cpuid = _Cpuid(value)
    return CpuidRequest(cpuid.FUNCTION, CpuidRegister(cpuid.REGISTER))


def _parse_psc_request(value: int) -> Request:
    psc = _Psc(value)
    if psc.OPERATION not in (MsrPscOperation.PRIVATE, MsrPscOperation.SHARED):
        return Malformed(value)
    return PageStateChange(psc.GFN, MsrPscOperation(psc.OPERATION))


def _parse_terminate_request(value: int) -> Request:
    terminate = _Terminate(value)
    return Terminate(terminate.REASON_SET, terminate.REASON_CODE)


_PARSERS: Final[dict[int, Callable[[int], Request]]] = {
    GhcbInfo.GHCB_GPA: GhcbGpa,
    GhcbInfo.SEV_INFO_REQUEST: lambda _value: SevInfoRequest(),
    GhcbInfo.CPUID_REQUEST: _parse_cpuid_request,
    GhcbInfo.AP_RESET_HOLD_REQUEST: lambda _value: ApResetHold(),
    GhcbInfo.PREFERRED_GPA_REQUEST: lambda _value: PreferredGpa(),
    GhcbInfo.REGISTER_GPA_REQUEST: lambda value: RegisterGpa(_Gfn(value).GFN),
    GhcbInfo.PSC_REQUEST: _parse_psc_request,
    GhcbInfo.RUN_VMPL_REQUEST: lambda value: RunVmpl(_RunVmpl(value).VMPL),
    GhcbInfo.HV_FEATURES_REQUEST: lambda _value: HvFeatures(),
    GhcbInfo.TERMINATE_REQUEST: _parse_terminate_request,
}


@lru_cache(maxsize=256)  # Mostly the GHCB's address and RUN_VMPL, over and over.
def parse_request(value: int) -> Request:
    """Decode what a guest left in the MSR (64 bits); never raises for any of them.

    Reserved bits are not looked at, so that a guest written for a later revision gets its answer.
    """
    return _PARSERS.get(value & _INFO_MASK, Malformed)(value)


def sev_info_response(version_min: int, version_max: int, c_bit: int) -> int:
    """Answer `SevInfoRequest`; also the MSR's value when a vCPU starts. `c_bit` is a position."""
    return _SevInfo.of(
        INFO=GhcbInfo.SEV_INFO, VERSION_MIN=version_min, VERSION_MAX=version_max, C_BIT=c_bit
    )


def cpuid_response(value: int) -> int:
    """Answer `CpuidRequest` with the 32 bits of the register."""
    return _CpuidResponse.of(INFO=GhcbInfo.CPUID_RESPONSE, VALUE=value)


def ap_reset_hold_response(started: bool) -> int:
    """Answer `ApResetHold`: bits 63:12 are not 0 if the vCPU was started by a SIPI."""
    return _Gfn.of(INFO=GhcbInfo.AP_RESET_HOLD_RESPONSE, GFN=started)


def preferred_gpa_response(gfn: int = GHCB_GPA_REFUSED) -> int:
    """Answer `PreferredGpa`; by default there is no preference."""
    return _Gfn.of(INFO=GhcbInfo.PREFERRED_GPA_RESPONSE, GFN=gfn)


def register_gpa_response(gfn: int) -> int:
    """Answer `RegisterGpa` with the same page number, or `GHCB_GPA_REFUSED`."""
    return _Gfn.of(INFO=GhcbInfo.REGISTER_GPA_RESPONSE, GFN=gfn)


@lru_cache(maxsize=16)  # It is nearly always success.
def _error_response(info: GhcbInfo, error: int) -> int:
    return _Error.of(INFO=info, ERROR=error)


def psc_response(error: int = 0) -> int:
    """Answer `PageStateChange`; 0 is success, any other 32 bits an error."""
    return _error_response(GhcbInfo.PSC_RESPONSE, error)


def run_vmpl_response(error: int = 0) -> int:
    """Answer `RunVmpl` when this VMPL runs again; 0 is success, any other 32 bits an error."""
    return _error_response(GhcbInfo.RUN_VMPL_RESPONSE, error)


def hv_features_response(features: HvFeature) -> int:
    """Answer `HvFeatures`."""
    return _Gfn.of(INFO=GhcbInfo.HV_FEATURES_RESPONSE, GFN=features)


class SevInfo(NamedTuple):
    """The answer to `SevInfoRequest`."""

    version_min: int
    version_max: int
    c_bit: int
    """Position of the C-bit."""


class UnexpectedResponse(Exception):
    """The hypervisor answered with another code than the request's, or with reserved bits set."""


def _check(value: int, info: GhcbInfo) -> None:
    if value & _INFO_MASK != info:
        raise UnexpectedResponse(f"GHCB MSR {value:#x} where {info.name} was due")


def parse_sev_info(value: int) -> SevInfo:
    """Decode `sev_info_response`."""
    _check(value, GhcbInfo.SEV_INFO)
    info = _SevInfo(value)
    return SevInfo(info.VERSION_MIN, info.VERSION_MAX, info.C_BIT)


def parse_cpuid(value: int) -> int:
    """Decode `cpuid_response`."""
    _check(value, GhcbInfo.CPUID_RESPONSE)
    return _CpuidResponse(value).VALUE


def parse_gfn(value: int, info: GhcbInfo) -> int:
    """Decode bits 63:12 of `register_gpa_response`, `preferred_gpa_response` and their like."""
    _check(value, info)
    return _Gfn(value).GFN


def parse_error(value: int, info: GhcbInfo) -> int:
    """Decode the error of `psc_response` or `run_vmpl_response`; 0 is success."""
    _check(value, info)
    response = _Error(value)
    if response.RESERVED:
        raise UnexpectedResponse(f"GHCB MSR {value:#x} has reserved bits set")
    return response.ERROR


def parse_hv_features(value: int) -> HvFeature:
    """Decode `hv_features_response`; features that this module does not name are kept."""
    return HvFeature(parse_gfn(value, GhcbInfo.HV_FEATURES_RESPONSE))
