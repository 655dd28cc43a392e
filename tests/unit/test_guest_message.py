# SPDX-License-Identifier: MIT
"""Guest messages: layouts, and the envelope from both sides."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.guest_message import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    AttestationReport,
    GuestMessage,
    GuestMessageError,
    MessageHeader,
    MessageType,
    ReportRequest,
    ReportResponse,
    read_header,
    seal,
    unseal,
)
from svsmd.snp.secure_tsc import TSC_INFO_REQUEST_SIZE, TscInfoResponse
from svsmd.snp.types import PAGE_SIZE

DATA = Path(__file__).parent.parent / "data"
KEY = bytes(range(32))
MESSAGE = GuestMessage(MessageType.REPORT_REQ, b"p" * 0x60, vmpck=2, seqno=7)


def test_header_layout():
    assert MessageHeader.SIZE == 0x60
    assert MessageHeader.FIELDS == {
        "authtag": (0x00, 32),
        "msg_seqno": (0x20, 8),
        "algo": (0x30, 1),
        "hdr_version": (0x31, 1),
        "hdr_size": (0x32, 2),
        "msg_type": (0x34, 1),
        "msg_version": (0x35, 1),
        "msg_size": (0x36, 2),
        "msg_vmpck": (0x3C, 1),
    }


def test_report_request_layout():
    assert ReportRequest.SIZE == 0x60
    assert ReportRequest.FIELDS == {
        "report_data": (0x00, 64),
        "vmpl": (0x40, 4),
        "key_sel": (0x44, 4),
        "reserved": (0x48, 24),
    }
    assert ReportResponse.FIELDS == {
        "status": (0, 4),
        "report_size": (4, 4),
        "report": (0x20, 0x4A0),
    }


def test_tsc_info_layout():
    assert TSC_INFO_REQUEST_SIZE == TscInfoResponse.SIZE == 0x80
    assert TscInfoResponse.FIELDS == {
        "status": (0x00, 4),
        "guest_tsc_scale": (0x08, 8),
        "guest_tsc_offset": (0x10, 8),
        "tsc_factor": (0x18, 4),
    }


def test_report_layout():
    assert AttestationReport.SIZE == 0x4A0
    assert AttestationReport.FIELDS == {
        "version": (0x000, 4),
        "guest_svn": (0x004, 4),
        "policy": (0x008, 8),
        "family_id": (0x010, 16),
        "image_id": (0x020, 16),
        "vmpl": (0x030, 4),
        "signature_algo": (0x034, 4),
        "current_tcb": (0x038, 8),
        "platform_info": (0x040, 8),
        "key_info": (0x048, 4),
        "report_data": (0x050, 64),
        "measurement": (0x090, 48),
        "host_data": (0x0C0, 32),
        "id_key_digest": (0x0E0, 48),
        "author_key_digest": (0x110, 48),
        "report_id": (0x140, 32),
        "report_id_ma": (0x160, 32),
        "reported_tcb": (0x180, 8),
        "cpuid_fam_id": (0x188, 1),
        "cpuid_mod_id": (0x189, 1),
        "cpuid_step": (0x18A, 1),
        "chip_id": (0x1A0, 64),
        "committed_tcb": (0x1E0, 8),
        "current_build": (0x1E8, 1),
        "current_minor": (0x1E9, 1),
        "current_major": (0x1EA, 1),
        "committed_build": (0x1EC, 1),
        "committed_minor": (0x1ED, 1),
        "committed_major": (0x1EE, 1),
        "launch_tcb": (0x1F0, 8),
        "signature_r": (0x2A0, 72),
        "signature_s": (0x2E8, 72),
    }


def test_report_of_a_real_processor():
    """Its fields are where this layout has them: else the signature would not be the VCEK's."""
    report = AttestationReport.copy_of((DATA / "attestation_report_milan.bin").read_bytes())
    assert (report.version, report.policy, report.signature_algo) == (2, 0x3_0000, 1)
    assert report.report_id_ma == b"\xff" * 32
    assert (report.current_major, report.committed_major) == (1, 1)
    assert report.current_tcb == report.committed_tcb
    key = load_pem_public_key((DATA / "vcek_milan.pub.pem").read_bytes())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signature = encode_dss_signature(
        int.from_bytes(report.signature_r, "little"), int.from_bytes(report.signature_s, "little")
    )
    signed = report.tobytes()[: AttestationReport.SIGNED_SIZE]
    key.verify(signature, signed, ec.ECDSA(hashes.SHA384()))


def test_seal_by_the_books():
    """IV: the sequence number in 12 bytes; AAD: header from 30h on; tag: 16 bytes at 0."""
    page = seal(KEY, MESSAGE)
    assert len(page) == HEADER_SIZE + 0x60
    cipher = Cipher(AES(KEY), GCM((7).to_bytes(12, "little"), page[:16])).decryptor()
    cipher.authenticate_additional_data(page[0x30:0x60])
    assert cipher.update(page[0x60:]) + cipher.finalize() == MESSAGE.payload
    assert page[0x10:0x20] == bytes(16)
    assert page[0x30:0x40] == bytes([1, 1, 0x60, 0, 5, 1, 0x60, 0, 0, 0, 0, 0, 2, 0, 0, 0])


def test_round_trip():
    assert unseal(KEY, seal(KEY, MESSAGE)) == MESSAGE
    assert unseal(KEY, seal(KEY, MESSAGE).ljust(PAGE_SIZE, b"x")) == MESSAGE
    largest = replace(MESSAGE, payload=bytes(MAX_PAYLOAD))
    assert unseal(KEY, seal(KEY, largest)) == largest


@pytest.mark.parametrize("offset", [0, 15, 0x20, 0x34, 0x35, 0x38, 0x3D, 0x5F, 0x60, 0xBF])
def test_any_change_is_noticed(offset: int):
    page = bytearray(seal(KEY, MESSAGE))
    page[offset] ^= 1
    with pytest.raises(GuestMessageError) as error:
        unseal(KEY, bytes(page))
    assert error.value.status is FirmwareStatus.BAD_MEASUREMENT


def test_another_key():
    with pytest.raises(GuestMessageError) as error:
        unseal(KEY[::-1], seal(KEY, MESSAGE))
    assert error.value.status is FirmwareStatus.BAD_MEASUREMENT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("algo", 0),
        ("algo", 2),
        ("hdr_version", 2),
        ("hdr_size", 0x61),
        ("msg_size", 0),
        ("msg_size", 0x58),
        ("msg_size", 0x70),
        ("msg_size", 0xFFF0),
        ("msg_vmpck", 4),
    ],
)
def test_malformed_header(field: str, value: int):
    page = bytearray(seal(KEY, MESSAGE))
    setattr(MessageHeader(memoryview(page)[:HEADER_SIZE]), field, value)
    with pytest.raises(GuestMessageError) as error:
        read_header(bytes(page))
    assert error.value.status is FirmwareStatus.INVALID_PARAM


@pytest.mark.parametrize("size", [0, HEADER_SIZE - 1])
def test_no_room_for_a_header(size: int):
    with pytest.raises(GuestMessageError):
        read_header(bytes(size))


@pytest.mark.parametrize("size", [0, 15, MAX_PAYLOAD + 16])
def test_payload_that_no_message_has(size: int):
    with pytest.raises(ValueError, match="payload"):
        seal(KEY, replace(MESSAGE, payload=bytes(size)))
