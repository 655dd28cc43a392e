# SPDX-License-Identifier: MIT
"""GHCB MSR protocol: each value as Linux' sev-common.h has it, both ways."""

from __future__ import annotations

import pytest

from svsmd.snp import ghcb_msr
from svsmd.snp.ghcb_msr import (
    ApResetHold,
    CpuidRegister,
    CpuidRequest,
    GhcbGpa,
    GhcbInfo,
    HvFeature,
    HvFeatures,
    Malformed,
    MsrPscOperation,
    PageStateChange,
    PreferredGpa,
    RegisterGpa,
    RunVmpl,
    SevInfoRequest,
    Terminate,
    UnexpectedResponse,
    parse_request,
)


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        (0x7000, GhcbGpa(0x7000)),
        (0x002, SevInfoRequest()),
        (
            0x8000_001F << 32 | 1 << 30 | 0x004,
            CpuidRequest(0x8000_001F, CpuidRegister.EBX),
        ),
        (0x006, ApResetHold()),
        (0x010, PreferredGpa()),
        (0x1234 << 12 | 0x012, RegisterGpa(0x1234)),
        (1 << 52 | 0x77 << 12 | 0x014, PageStateChange(0x77, MsrPscOperation.PRIVATE)),
        (2 << 52 | 0x77 << 12 | 0x014, PageStateChange(0x77, MsrPscOperation.SHARED)),
        (0x016, RunVmpl(0)),
        (3 << 32 | 0x016, RunVmpl(3)),
        (0x080, HvFeatures()),
        (7 << 16 | 1 << 12 | 0x100, Terminate(1, 7)),
    ],
)
def test_requests(value: int, request_: ghcb_msr.Request):
    assert parse_request(value) == request_
    assert not isinstance(request_, Malformed)
    assert request_.encode() == value


@pytest.mark.parametrize(
    "value", [0x001, 0x003, 0xFFF, 0x014, 3 << 52 | 0x014, 0x015, (1 << 64) - 1]
)
def test_malformed(value: int):
    assert parse_request(value) == Malformed(value)


def test_sev_info():
    value = ghcb_msr.sev_info_response(1, 2, 39)
    assert value == 2 << 48 | 1 << 32 | 39 << 24 | 1
    assert ghcb_msr.parse_sev_info(value) == (1, 2, 39)


def test_cpuid():
    value = ghcb_msr.cpuid_response(0xDEAD_BEEF)
    assert value == 0xDEAD_BEEF << 32 | 5
    assert ghcb_msr.parse_cpuid(value) == 0xDEAD_BEEF


def test_registration():
    value = ghcb_msr.register_gpa_response(0x1234)
    assert value == 0x1234 << 12 | 0x013
    assert ghcb_msr.parse_gfn(value, GhcbInfo.REGISTER_GPA_RESPONSE) == 0x1234
    refused = ghcb_msr.register_gpa_response(ghcb_msr.GHCB_GPA_REFUSED)
    assert refused == 0xFFFF_FFFF_FFFF_F013


def test_preferred_gpa():
    assert ghcb_msr.preferred_gpa_response() == 0xFFFF_FFFF_FFFF_F011
    assert ghcb_msr.preferred_gpa_response(5) == 0x5011


def test_ap_reset_hold():
    assert ghcb_msr.ap_reset_hold_response(started=True) >> 12 != 0
    assert ghcb_msr.ap_reset_hold_response(started=False) == 0x007


def test_errors():
    assert ghcb_msr.psc_response() == 0x015
    assert ghcb_msr.psc_response(1) == 1 << 32 | 0x015
    assert ghcb_msr.run_vmpl_response() == 0x017
    value = ghcb_msr.run_vmpl_response(9)
    assert ghcb_msr.parse_error(value, GhcbInfo.RUN_VMPL_RESPONSE) == 9


def test_hv_features():
    features = HvFeature.SNP | HvFeature.SNP_AP_CREATION | HvFeature.SNP_MULTI_VMPL
    value = ghcb_msr.hv_features_response(features)
    assert value == 0x23 << 12 | 0x081
    assert ghcb_msr.parse_hv_features(value) == features
    assert ghcb_msr.parse_hv_features(1 << 62 | 0x081) == 1 << 50


def test_an_answer_to_another_request():
    with pytest.raises(UnexpectedResponse):
        ghcb_msr.parse_cpuid(0x081)
    with pytest.raises(UnexpectedResponse):
        ghcb_msr.parse_error(0x1017, GhcbInfo.RUN_VMPL_RESPONSE)
