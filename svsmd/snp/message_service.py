# SPDX-License-Identifier: MIT
"""What the security processor answers to the messages of a guest, once they are decrypted.

Spec: SNP firmware ABI (56860), chapter 7: MSG_CPUID_REQ, MSG_KEY_REQ, MSG_REPORT_REQ and
MSG_TSC_INFO_REQ, version 1 of each. Deviation: this firmware does not have the messages of a
migration (MSG_EXPORT_REQ, MSG_IMPORT_REQ, MSG_ABSORB_REQ, MSG_VMRK_REQ, MSG_ABSORB_NOMA_REQ).
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from svsmd.snp.chip_keys import ChipKeys
from svsmd.snp.cpuid_page import (
    CPUID_COUNT_MAX,
    CPUID_FUNCTION,
    CpuidFunction,
    check_function,
)
from svsmd.snp.cpuid_policy import CPUID_FAMILY, CPUID_MODEL, CPUID_STEPPING
from svsmd.snp.derived_key import KeyRequest, key_response
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.firmware_version import API_MAJOR, API_MINOR, BUILD_ID, TCB_VERSION
from svsmd.snp.guest_context import GuestContext
from svsmd.snp.guest_message import (
    KEY_SELECT_BITS,
    SIGNING_KEY_SHIFT,
    AttestationReport,
    GuestMessage,
    KeySelect,
    MessageType,
    ReportRequest,
    ReportResponse,
    SignatureAlgo,
    SigningKey,
)
from svsmd.snp.page_view import U32, U64, PageView
from svsmd.snp.secure_tsc import TSC_INFO_REQUEST_SIZE, tsc_info_response
from svsmd.snp.types import Vmpl

NO_MIGRATION_AGENT: Final = b"\xff" * 32
"""REPORT_ID_MA of a guest without one."""

_SIGNATURE: Final = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
"""RFC 6979: the nonce comes from the key and the message, so that runs repeat themselves."""
_MAX_MSG_VERSION: Final = 1


class _CpuidMessage(PageView):
    """Head of MSG_CPUID_REQ and MSG_CPUID_RSP; the functions follow (56860, chapter 7.1)."""

    __slots__ = ()

    SIZE = 0x10

    count_or_status = U32(0x0)
    """COUNT of a request, STATUS of a response."""
    reserved_or_count = U32(0x4)
    """Reserved in a request, COUNT of the functions checked in a response."""
    reserved = U64(0x8)


class MessageService:
    """Answers for one chip."""

    def __init__(self, chip: ChipKeys) -> None:
        self._chip: Final = chip
        self._vcek: Final = chip.vcek(TCB_VERSION)

    def answer(
        self, context: GuestContext, message: GuestMessage
    ) -> tuple[MessageType, bytes] | None:
        """Type and payload of the response; what is wrong with a request is told in its STATUS.

        None: no such message, no such version of it, or too short.
        """
        if not 0 < message.msg_version <= _MAX_MSG_VERSION:
            return None
        match message.msg_type:
            case MessageType.CPUID_REQ if len(message.payload) >= _CpuidMessage.SIZE:
                return MessageType.CPUID_RSP, self._cpuid_response(message.payload)
            case MessageType.KEY_REQ if len(message.payload) >= KeyRequest.SIZE:
                key_request = KeyRequest.copy_of(message.payload[: KeyRequest.SIZE])
                key = key_response(key_request, message.vmpck, context, self._chip)
                return MessageType.KEY_RSP, key.tobytes()
            case MessageType.REPORT_REQ if len(message.payload) >= ReportRequest.SIZE:
                return MessageType.REPORT_RSP, self._report_response(context, message)
            case MessageType.TSC_INFO_REQ if len(message.payload) >= TSC_INFO_REQUEST_SIZE:
                info = tsc_info_response(message.payload, context.desired_tsc_khz)
                return MessageType.TSC_INFO_RSP, info.tobytes()
            case _:
                return None

    def _report_response(self, context: GuestContext, message: GuestMessage) -> bytes:
        request = ReportRequest.copy_of(message.payload[: ReportRequest.SIZE])
        response = ReportResponse()
        response.report_size = AttestationReport.SIZE
        if any(request.reserved) or request.key_sel >> KEY_SELECT_BITS:
            response.status = FirmwareStatus.INVALID_PARAM
        elif request.key_sel not in (KeySelect.VLEK_OR_VCEK, KeySelect.VCEK):
            # No VLEK was loaded, and 3 is no key.
            response.status = FirmwareStatus.INVALID_KEY
        elif not message.vmpck <= request.vmpl <= max(Vmpl):
            # Nobody gets a report for a VMPL that is more privileged than the key.
            response.status = FirmwareStatus.INVALID_PARAM
        else:
            response.report = self._report(context, request).tobytes()
        return response.tobytes()

    def _report(self, context: GuestContext, request: ReportRequest) -> AttestationReport:
        report = AttestationReport()
        report.version = AttestationReport.VERSION
        report.policy = context.policy
        report.vmpl = request.vmpl
        report.signature_algo = SignatureAlgo.ECDSA_P384_SHA384
        report.current_tcb = TCB_VERSION
        report.key_info = SigningKey.VCEK << SIGNING_KEY_SHIFT
        report.report_data = request.report_data
        report.measurement = context.digest.value
        report.host_data = context.host_data
        report.report_id = context.report_id
        report.report_id_ma = NO_MIGRATION_AGENT
        report.reported_tcb = TCB_VERSION
        report.cpuid_fam_id = CPUID_FAMILY
        report.cpuid_mod_id = CPUID_MODEL
        report.cpuid_step = CPUID_STEPPING
        report.chip_id = self._chip.chip_id
        report.committed_tcb = TCB_VERSION
        report.current_build = report.committed_build = BUILD_ID
        report.current_minor = report.committed_minor = API_MINOR
        report.current_major = report.committed_major = API_MAJOR
        report.launch_tcb = TCB_VERSION
        signed = report.tobytes()[: AttestationReport.SIGNED_SIZE]
        r, s = decode_dss_signature(self._vcek.sign(signed, _SIGNATURE))
        report.signature_r = r.to_bytes(AttestationReport.COMPONENT_SIZE, "little")
        report.signature_s = s.to_bytes(AttestationReport.COMPONENT_SIZE, "little")
        return report

    @staticmethod
    def _cpuid_response(payload: bytes) -> bytes:
        """MSG_CPUID_RSP, as long as the request: its functions with the values that may pass."""
        request = _CpuidMessage.copy_of(payload[: _CpuidMessage.SIZE])
        count = request.count_or_status
        body = payload[_CpuidMessage.SIZE :]
        response = _CpuidMessage()
        checked = bytearray(len(body))
        if (
            request.reserved_or_count
            or request.reserved
            or count > CPUID_COUNT_MAX
            or count * CPUID_FUNCTION.size > len(body)
        ):
            response.count_or_status = FirmwareStatus.INVALID_PARAM
            return response.tobytes() + checked
        for offset in range(0, count * CPUID_FUNCTION.size, CPUID_FUNCTION.size):
            entry = CpuidFunction._make(CPUID_FUNCTION.unpack_from(body, offset))
            corrected = check_function(entry)
            if corrected != entry or entry.reserved:
                response.count_or_status = FirmwareStatus.INVALID_PARAM
            CPUID_FUNCTION.pack_into(checked, offset, *corrected)
        response.reserved_or_count = count
        return response.tobytes() + checked
