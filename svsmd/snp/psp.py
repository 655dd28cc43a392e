# SPDX-License-Identifier: MIT
"""The security processor: launches the guest, measures it, and answers its messages.

One guest, whose context page (GCTX) is this object. The commands return the firmware's status codes
and never raise for what a host or a guest passes in. The pages that a host hands over for the
launch stay where they are; their encryption is that of `svsmd.snp.memory_encryption`, made up when
somebody looks.

Spec: SNP firmware ABI (56860), chapter 8: SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH,
SNP_GUEST_REQUEST; chapter 7: guest messages. Deviations: no migration agent, no ID block; of the
guest messages MSG_CPUID_REQ and MSG_REPORT_REQ; the VCEK is a random key, not derived from a TCB;
policy bits above SINGLE_SOCKET are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from svsmd.snp.bits import Bit, Bits, Register64
from svsmd.snp.cpuid_page import (
    CPUID_COUNT_MAX,
    CPUID_FUNCTION,
    CpuidFunction,
    CpuidPage,
    check_function,
)
from svsmd.snp.cpuid_policy import CPUID_FAMILY, CPUID_MODEL, CPUID_SIGNATURE, CPUID_STEPPING
from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.guest_message import (
    KEY_SELECT_BITS,
    MAX_SEQNO,
    SIGNING_KEY_SHIFT,
    AttestationReport,
    GuestMessage,
    GuestMessageError,
    KeySelect,
    MessageType,
    ReportRequest,
    ReportResponse,
    SignatureAlgo,
    SigningKey,
    read_header,
    seal,
    unseal,
)
from svsmd.snp.launch_digest import LaunchDigest, PageType
from svsmd.snp.memory import GuestMemory
from svsmd.snp.page_view import U32, U64, PageView
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp
from svsmd.snp.secrets_page import SECRETS_PAGE_VERSION, VMPCK_COUNT, VMPCK_SIZE, SecretsPage
from svsmd.snp.types import PAGE_SIZE, PageSize, Spa, Vmpl
from svsmd.snp.vmsa import SevFeatures, Vmsa

API_MAJOR: Final = 1
API_MINOR: Final = 55
BUILD_ID: Final = 1
"""Version of the firmware ABI that this processor speaks; the build is svsmd's own count."""

TSC_SCALE_ONE: Final = 1 << 32
"""GUEST_TSC_SCALE is a fixed-point number with 32 fraction bits (24593, 15.36.18)."""

NO_MIGRATION_AGENT: Final = b"\xff" * 32
"""REPORT_ID_MA of a guest without one."""

_P384_ORDER: Final = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
    16,
)
_SIGNATURE: Final = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
"""RFC 6979: the nonce comes from the key and the message, so that runs repeat themselves."""


class GuestPolicy(Register64):
    """Guest policy (56860, table "Guest policy structure")."""

    ABI_MINOR = Bits(7, 0)
    ABI_MAJOR = Bits(15, 8)
    SMT = Bit(16)
    RESERVED_ONE = Bit(17)
    MIGRATE_MA = Bit(18)
    DEBUG = Bit(19)
    SINGLE_SOCKET = Bit(20)


DEFAULT_POLICY: Final = GuestPolicy.of(SMT=1, RESERVED_ONE=1)


class TcbVersion(Register64):
    """TCB_VERSION of a Milan (56860, table "TCB version structure")."""

    BOOT_LOADER = Bits(7, 0)
    TEE = Bits(15, 8)
    SNP = Bits(55, 48)
    MICROCODE = Bits(63, 56)


TCB_VERSION: Final = TcbVersion.of(BOOT_LOADER=4, TEE=0, SNP=API_MINOR, MICROCODE=1)


class GuestState(Enum):
    """State of the guest's context (56860, table "Guest states")."""

    INIT = "init"
    LAUNCH = "launch"
    RUNNING = "running"


@dataclass(slots=True)
class _GuestContext:
    """What the firmware keeps in the guest's context page, GCTX."""

    state: GuestState = GuestState.INIT
    policy: GuestPolicy = DEFAULT_POLICY
    gosvw: bytes = bytes(16)
    digest: LaunchDigest = field(default_factory=LaunchDigest)
    vmpcks: list[bytes] = field(default_factory=list)
    message_counts: list[int] = field(default_factory=lambda: [0] * VMPCK_COUNT)
    report_id: bytes = bytes(32)
    host_data: bytes = bytes(32)


class _CpuidMessage(PageView):
    """Head of MSG_CPUID_REQ and MSG_CPUID_RSP; the functions follow (56860, chapter 7.1)."""

    __slots__ = ()

    SIZE = 0x10

    count_or_status = U32(0x0)
    """COUNT of a request, STATUS of a response."""
    reserved_or_count = U32(0x4)
    """Reserved in a request, COUNT of the functions checked in a response."""
    reserved = U64(0x8)


_MAX_MSG_VERSION: Final = 1
_SINGLE_PAGE_TYPES: Final = frozenset((PageType.VMSA, PageType.SECRETS, PageType.CPUID))


class SecurityProcessor:
    """The PSP of the machine, its one guest included.

    Attributes:
        state: how far the guest is.
    """

    def __init__(self, memory: GuestMemory, rmp: Rmp, entropy: EntropySource) -> None:
        self._memory: Final = memory
        self._rmp: Final = rmp
        self._guest_entropy: Final = entropy.stream("guest context")
        # A bias of 2^-64 in the choice of the key: eight bytes more than the order has.
        secret = int.from_bytes(entropy.stream("vcek").read(56), "little")
        self._vcek: Final = ec.derive_private_key(secret % (_P384_ORDER - 1) + 1, ec.SECP384R1())
        self._chip_id: Final = entropy.stream("chip id").read(64)
        self._context = _GuestContext()

    @property
    def state(self) -> GuestState:
        """How far the guest is."""
        return self._context.state

    @property
    def launch_digest(self) -> bytes:
        """GCTX.LD, 48 bytes: what a report shows as MEASUREMENT."""
        return self._context.digest.value

    @property
    def vcek_public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that verifies this machine's reports."""
        return self._vcek.public_key()

    # Launch ----------------------------------------------------------------------------------

    def launch_start(
        self, policy: int = DEFAULT_POLICY, *, gosvw: bytes = bytes(16)
    ) -> FirmwareStatus:
        """SNP_LAUNCH_START: the guest gets its keys, and pages can be added.

        INVALID_GUEST_STATE: it was started before. INVALID_PARAM: `policy` has no 64 bits or
        `gosvw`, the workarounds that a guest OS sees, no 16 bytes. POLICY_FAILURE: bit 17 is clear,
        a newer firmware ABI or a policy bit that this processor does not know is asked for.
        """
        if policy < 0 or policy >> 64 or len(gosvw) != len(self._context.gosvw):
            return FirmwareStatus.INVALID_PARAM
        if self._context.state is not GuestState.INIT:
            return FirmwareStatus.INVALID_GUEST_STATE
        wanted = GuestPolicy(policy)
        if (
            not wanted.RESERVED_ONE
            or wanted.unnamed
            or (wanted.ABI_MAJOR, wanted.ABI_MINOR) > (API_MAJOR, API_MINOR)
        ):
            return FirmwareStatus.POLICY_FAILURE
        entropy = self._guest_entropy
        self._context = _GuestContext(
            state=GuestState.LAUNCH,
            policy=wanted,
            gosvw=gosvw,
            vmpcks=[entropy.read(VMPCK_SIZE) for _ in range(VMPCK_COUNT)],
            report_id=entropy.read(32),
        )
        return FirmwareStatus.SUCCESS

    def launch_update(
        self,
        spa: Spa,
        page_type: PageType,
        page_size: PageSize = PageSize.SIZE_4K,
        *,
        vmpl_permissions: tuple[int, int, int] = (0, 0, 0),
    ) -> FirmwareStatus:
        """SNP_LAUNCH_UPDATE: measures a page of the guest and makes it valid.

        The host has written the page at `spa`, and made it Pre-Guest by RMPUPDATE (assigned and
        immutable). It is measured at the GPA in its RMP entry and ends assigned and validated,
        with `vmpl_permissions` for VMPL1 to VMPL3 and, for a VMSA, the VMSA bit. ZERO and SECRETS
        pages are filled here. A page of 2 MiB is measured as 512 pages.

        A CPUID page that claims what the processor does not have gives INVALID_PARAM. It stays
        Pre-Guest and unmeasured, with the claims corrected, and the host may try again with it.

        INVALID_ADDRESS: not RAM, or not aligned. INVALID_PAGE_STATE: not Pre-Guest.
        INVALID_PAGE_SIZE: not the size in the RMP, or 2 MiB for a VMSA, secrets or CPUID page.
        INVALID_PARAM: no such page type, reserved permissions. INVALID_GUEST_STATE: not between
        start and finish. INVALID_PAGE_OWNER: another ASID's page.
        """
        entry = self._rmp.lookup(spa)
        if entry is None:
            return FirmwareStatus.INVALID_ADDRESS
        if not (entry.assigned and entry.immutable and entry.asid) or entry.validated:
            return FirmwareStatus.INVALID_PAGE_STATE
        if entry.page_size != page_size:
            return FirmwareStatus.INVALID_PAGE_SIZE
        if spa % page_size.nbytes:
            return FirmwareStatus.INVALID_ADDRESS
        if page_type in _SINGLE_PAGE_TYPES and page_size:
            return FirmwareStatus.INVALID_PAGE_SIZE
        if page_type not in PageType.__members__.values() or any(
            mask & ~int(Perm.ALL) for mask in vmpl_permissions
        ):
            return FirmwareStatus.INVALID_PARAM
        context = self._context
        if context.state is not GuestState.LAUNCH:
            return FirmwareStatus.INVALID_GUEST_STATE
        if entry.asid != GUEST_ASID:
            return FirmwareStatus.INVALID_PAGE_OWNER
        for offset in range(0, page_size.nbytes, PAGE_SIZE):
            page = self._memory.page(spa + offset)
            contents = self._measured_contents(page, page_type)
            status = self._fill(page, page_type)
            if status is not FirmwareStatus.SUCCESS:
                return status
            context.digest.update(
                page_type, entry.gpa + offset, contents, vmpl_permissions=vmpl_permissions
            )
        self._rmp.firmware_update(
            spa,
            validated=True,
            immutable=False,
            vmsa=page_type == PageType.VMSA,
            permissions=(Perm.ALL, *vmpl_permissions),
        )
        return FirmwareStatus.SUCCESS

    def launch_finish(self, *, host_data: bytes = bytes(32)) -> FirmwareStatus:
        """SNP_LAUNCH_FINISH: the measurement is complete, the guest may run.

        INVALID_GUEST_STATE: not between start and finish. INVALID_PARAM: `host_data`, which
        reports show, has not 32 bytes.
        """
        if len(host_data) != len(self._context.host_data):
            return FirmwareStatus.INVALID_PARAM
        if self._context.state is not GuestState.LAUNCH:
            return FirmwareStatus.INVALID_GUEST_STATE
        self._context.host_data = host_data
        self._context.state = GuestState.RUNNING
        return FirmwareStatus.SUCCESS

    @staticmethod
    def _measured_contents(page: memoryview, page_type: PageType) -> bytes | memoryview:
        """What of a page goes into the digest; a VMSA counts without its TSC fields."""
        if page_type != PageType.VMSA:
            return page
        vmsa = Vmsa.copy_of(page)
        vmsa.guest_tsc_scale = 0
        vmsa.guest_tsc_offset = 0
        return vmsa.tobytes()

    def _fill(self, page: memoryview, page_type: PageType) -> FirmwareStatus:
        """Do what the page's type asks for to its contents."""
        if page_type == PageType.ZERO:
            page[:] = bytes(PAGE_SIZE)
        elif page_type == PageType.SECRETS:
            secrets = SecretsPage(page)
            secrets.clear()
            secrets.version = SECRETS_PAGE_VERSION
            secrets.fms = CPUID_SIGNATURE
            secrets.gosvw = self._context.gosvw
            for index, key in enumerate(self._context.vmpcks):
                secrets.set_vmpck(index, key)
        elif page_type == PageType.CPUID:
            return CpuidPage(page).check()
        elif page_type == PageType.VMSA:
            vmsa = Vmsa(page)
            if vmsa.sev_features & SevFeatures.SECURE_TSC:
                vmsa.guest_tsc_scale = TSC_SCALE_ONE
                vmsa.guest_tsc_offset = 0
        return FirmwareStatus.SUCCESS

    # Guest messages --------------------------------------------------------------------------

    def guest_request(self, request: bytes) -> tuple[bytes, FirmwareStatus]:
        """SNP_GUEST_REQUEST: answer the message at the start of `request`, at most a page.

        Returns the response, header and payload, and SUCCESS; or no bytes and INVALID_GUEST_STATE
        (not launched), INVALID_PARAM (malformed, or a message that this processor does not know),
        BAD_MEASUREMENT (not made with the guest's VMPCK), AEAD_OFLOW (not the next sequence
        number). What is wrong with the request in the message is told in the response's STATUS.
        """
        context = self._context
        if context.state is not GuestState.RUNNING:
            return b"", FirmwareStatus.INVALID_GUEST_STATE
        try:
            key = context.vmpcks[read_header(request).msg_vmpck]
            message = unseal(key, request)
        except GuestMessageError as error:
            return b"", error.status
        count = context.message_counts[message.vmpck]
        if message.seqno != count + 1 or message.seqno == MAX_SEQNO:
            return b"", FirmwareStatus.AEAD_OFLOW
        answer = self._answer(message)
        if answer is None:
            return b"", FirmwareStatus.INVALID_PARAM
        msg_type, payload = answer
        context.message_counts[message.vmpck] = count + 2
        response = GuestMessage(msg_type, payload, message.vmpck, message.seqno + 1)
        return seal(key, response), FirmwareStatus.SUCCESS

    def _answer(self, message: GuestMessage) -> tuple[MessageType, bytes] | None:
        """Type and payload of the response, or None for a message that is not one of ours."""
        if not 0 < message.msg_version <= _MAX_MSG_VERSION:
            return None
        match message.msg_type:
            case MessageType.REPORT_REQ if len(message.payload) >= ReportRequest.SIZE:
                return MessageType.REPORT_RSP, self._report_response(message)
            case MessageType.CPUID_REQ if len(message.payload) >= _CpuidMessage.SIZE:
                return MessageType.CPUID_RSP, self._cpuid_response(message.payload)
            case _:
                return None

    def _report_response(self, message: GuestMessage) -> bytes:
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
            response.report = self._report(request).tobytes()
        return response.tobytes()

    def _report(self, request: ReportRequest) -> AttestationReport:
        context = self._context
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
        report.chip_id = self._chip_id
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
