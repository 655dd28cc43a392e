# SPDX-License-Identifier: MIT
"""Guest messages: what a guest and the security processor say to each other behind the host's back.

A message is a header and a payload that AES-256-GCM protects with one of the guest's four VMPCKs.
The host carries it and learns its type and length. This module has both sides of the envelope, and
the payloads of a report request.

Spec: SNP firmware ABI (56860), SNP_GUEST_REQUEST, table "Message header format", and chapter 7.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.page_view import U8, U16, U32, U64, PageView, Raw
from svsmd.snp.secrets_page import VMPCK_COUNT
from svsmd.snp.types import PAGE_SIZE

HEADER_SIZE: Final = 0x60
HEADER_VERSION: Final = 1
AEAD_ALGO_AES_256_GCM: Final = 1
AUTHTAG_SIZE: Final = 16
"""Bytes of the 32 of AUTHTAG that AES-256-GCM fills."""
MAX_PAYLOAD: Final = PAGE_SIZE - HEADER_SIZE
MAX_SEQNO: Final = (1 << 64) - 1

_AAD: Final = slice(0x30, HEADER_SIZE)
_PAYLOAD_ALIGNMENT: Final = 16


class MessageType(IntEnum):
    """MSG_TYPE (56860, table "Message type encodings")."""

    CPUID_REQ = 1
    CPUID_RSP = 2
    KEY_REQ = 3
    KEY_RSP = 4
    REPORT_REQ = 5
    REPORT_RSP = 6
    EXPORT_REQ = 7
    EXPORT_RSP = 8
    IMPORT_REQ = 9
    IMPORT_RSP = 10
    ABSORB_REQ = 11
    ABSORB_RSP = 12
    VMRK_REQ = 13
    VMRK_RSP = 14
    ABSORB_NOMA_REQ = 15
    ABSORB_NOMA_RSP = 16
    TSC_INFO_REQ = 17
    TSC_INFO_RSP = 18


class MessageHeader(PageView):
    """Header of a message, 60h bytes in front of its payload."""

    __slots__ = ()

    SIZE = HEADER_SIZE

    authtag = Raw(0x00, 32)
    msg_seqno = U64(0x20)
    algo = U8(0x30)
    hdr_version = U8(0x31)
    hdr_size = U16(0x32)
    msg_type = U8(0x34)
    msg_version = U8(0x35)
    msg_size = U16(0x36)
    msg_vmpck = U8(0x3C)


class GuestMessageError(Exception):
    """A message is malformed or not authentic; `status` is the firmware's word for it."""

    def __init__(self, status: FirmwareStatus, message: str) -> None:
        super().__init__(message)
        self.status: Final = status


@dataclass(frozen=True, slots=True)
class GuestMessage:
    """A message in the clear."""

    msg_type: int
    """A `MessageType`, or any other number of 8 bits."""
    payload: bytes
    vmpck: int
    """Which of the four keys protects it."""
    seqno: int
    msg_version: int = 1


def read_header(page: bytes | memoryview) -> MessageHeader:
    """Return the header of a message page, checked as the firmware checks it before decryption.

    Raises `GuestMessageError` with INVALID_PARAM: no room for the header, another algorithm or
    header version, a payload that is empty, is not a multiple of 16 bytes or leaves the page, or
    no such VMPCK.
    """
    invalid = FirmwareStatus.INVALID_PARAM
    if len(page) < HEADER_SIZE:
        raise GuestMessageError(invalid, f"{len(page)} bytes have no room for a header")
    header = MessageHeader.copy_of(page[:HEADER_SIZE])
    if (
        header.algo != AEAD_ALGO_AES_256_GCM
        or header.hdr_version != HEADER_VERSION
        or header.hdr_size != HEADER_SIZE
    ):
        raise GuestMessageError(invalid, "unknown algorithm, header version or header size")
    size = header.msg_size
    if size == 0 or size % _PAYLOAD_ALIGNMENT or size > min(len(page), PAGE_SIZE) - HEADER_SIZE:
        raise GuestMessageError(invalid, f"payload of {size} bytes")
    if header.msg_vmpck >= VMPCK_COUNT:
        raise GuestMessageError(invalid, f"no VMPCK{header.msg_vmpck}")
    return header


def _iv(seqno: int) -> bytes:
    return seqno.to_bytes(12, "little")


def seal(key: bytes, message: GuestMessage) -> bytes:
    """Encrypt `message` with a VMPCK of 32 bytes; returns header and payload.

    A key must never seal two messages with one sequence number. ValueError if the payload is
    empty, not a multiple of 16 bytes, or does not fit a page.
    """
    size = len(message.payload)
    if not 0 < size <= MAX_PAYLOAD or size % _PAYLOAD_ALIGNMENT:
        raise ValueError(f"payload of {size} bytes")
    header = MessageHeader()
    header.msg_seqno = message.seqno
    header.algo = AEAD_ALGO_AES_256_GCM
    header.hdr_version = HEADER_VERSION
    header.hdr_size = HEADER_SIZE
    header.msg_type = message.msg_type
    header.msg_version = message.msg_version
    header.msg_size = size
    header.msg_vmpck = message.vmpck
    aad = header.tobytes()[_AAD]
    sealed = AESGCM(key).encrypt(_iv(message.seqno), message.payload, aad)
    header.authtag = sealed[size:].ljust(MessageHeader.authtag.size, b"\0")
    return header.tobytes() + sealed[:size]


def unseal(key: bytes, page: bytes | memoryview) -> GuestMessage:
    """Check and decrypt the message at the start of `page`.

    Raises `GuestMessageError`: as `read_header`, or with BAD_MEASUREMENT if it is not authentic.
    """
    header = read_header(page)
    end = HEADER_SIZE + header.msg_size
    sealed = bytes(page[HEADER_SIZE:end]) + header.authtag[:AUTHTAG_SIZE]
    try:
        payload = AESGCM(key).decrypt(_iv(header.msg_seqno), sealed, bytes(page[_AAD]))
    except InvalidTag:
        raise GuestMessageError(
            FirmwareStatus.BAD_MEASUREMENT, f"not made with VMPCK{header.msg_vmpck}"
        ) from None
    return GuestMessage(
        msg_type=header.msg_type,
        payload=payload,
        vmpck=header.msg_vmpck,
        seqno=header.msg_seqno,
        msg_version=header.msg_version,
    )


class KeySelect(IntEnum):
    """KEY_SEL of a report request: which key is to sign (56860, table "MSG_REPORT_REQ")."""

    VLEK_OR_VCEK = 0
    VCEK = 1
    VLEK = 2


KEY_SELECT_BITS: Final = 2
"""The bits of KEY_SEL above them are reserved."""


class ReportRequest(PageView):
    """Payload of MSG_REPORT_REQ (56860, table "MSG_REPORT_REQ message structure")."""

    __slots__ = ()

    SIZE = 0x60

    report_data = Raw(0x00, 64)
    vmpl = U32(0x40)
    key_sel = U32(0x44)
    reserved = Raw(0x48, 24)

    @classmethod
    def build(cls, report_data: bytes, vmpl: int, key_sel: int = KeySelect.VLEK_OR_VCEK) -> Self:
        """Build a request; `report_data` has 64 bytes."""
        request = cls()
        request.report_data = report_data
        request.vmpl = vmpl
        request.key_sel = key_sel
        return request


class SignatureAlgo(IntEnum):
    """SIGNATURE_ALGO (56860, table "Encoding for the signature algorithm")."""

    ECDSA_P384_SHA384 = 1


class SigningKey(IntEnum):
    """SIGNING_KEY, bits 4:2 of the report's field at 48h."""

    VCEK = 0
    VLEK = 1
    NONE = 7


SIGNING_KEY_SHIFT: Final = 2


class AttestationReport(PageView):
    """ATTESTATION_REPORT, version 3 (56860, table "ATTESTATION_REPORT structure")."""

    __slots__ = ()

    SIZE = 0x4A0
    VERSION: Final = 3
    SIGNED_SIZE: Final = 0x2A0
    """The signature covers the bytes before it."""
    COMPONENT_SIZE: Final = 72
    """Bytes of R and of S in the signature: little-endian, padded with zeros."""

    version = U32(0x000)
    guest_svn = U32(0x004)
    policy = U64(0x008)
    family_id = Raw(0x010, 16)
    image_id = Raw(0x020, 16)
    vmpl = U32(0x030)
    signature_algo = U32(0x034)
    current_tcb = U64(0x038)
    platform_info = U64(0x040)
    key_info = U32(0x048)
    report_data = Raw(0x050, 64)
    measurement = Raw(0x090, 48)
    host_data = Raw(0x0C0, 32)
    id_key_digest = Raw(0x0E0, 48)
    author_key_digest = Raw(0x110, 48)
    report_id = Raw(0x140, 32)
    report_id_ma = Raw(0x160, 32)
    reported_tcb = U64(0x180)
    cpuid_fam_id = U8(0x188)
    cpuid_mod_id = U8(0x189)
    cpuid_step = U8(0x18A)
    chip_id = Raw(0x1A0, 64)
    committed_tcb = U64(0x1E0)
    current_build = U8(0x1E8)
    current_minor = U8(0x1E9)
    current_major = U8(0x1EA)
    committed_build = U8(0x1EC)
    committed_minor = U8(0x1ED)
    committed_major = U8(0x1EE)
    launch_tcb = U64(0x1F0)
    signature_r = Raw(0x2A0, COMPONENT_SIZE)
    signature_s = Raw(0x2E8, COMPONENT_SIZE)


class ReportResponse(PageView):
    """Payload of MSG_REPORT_RSP: status, size and the report behind them."""

    __slots__ = ()

    REPORT_OFFSET: Final = 0x20
    SIZE = REPORT_OFFSET + AttestationReport.SIZE

    status = U32(0x00)
    report_size = U32(0x04)
    report = Raw(REPORT_OFFSET, AttestationReport.SIZE)
