# SPDX-License-Identifier: MIT
"""The security processor: launches the guest, measures it, and answers its messages.

One guest, whose context page (GCTX) is in `svsmd.snp.guest_context`. The commands return the status
codes of the firmware and never raise for what a host or a guest passes in. The pages that a host
hands over for the launch stay where they are; their encryption is that of
`svsmd.snp.memory_encryption`, made up when somebody looks.

Spec: SNP firmware ABI (56860), chapter 8: SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH,
SNP_GUEST_REQUEST; what the messages say is in `svsmd.snp.message_service`. Deviations: no migration
agent, no ID block; policy bits above SINGLE_SOCKET are refused.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from svsmd.snp.chip_keys import ChipKeys
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.cpuid_policy import CPUID_SIGNATURE
from svsmd.snp.entropy import EntropySource
from svsmd.snp.events import EventClass
from svsmd.snp.events.exits import tell_message
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.firmware_version import API_MAJOR, API_MINOR, TCB_VERSION, TcbVersion
from svsmd.snp.guest_context import (
    DEFAULT_POLICY,
    GOSVW_SIZE,
    HOST_DATA_SIZE,
    REPORT_ID_SIZE,
    VMRK_SIZE,
    GuestContext,
    GuestPolicy,
    GuestState,
)
from svsmd.snp.guest_message import (
    MAX_SEQNO,
    GuestMessage,
    GuestMessageError,
    read_header,
    seal,
    unseal,
)
from svsmd.snp.launch_digest import PageType
from svsmd.snp.memory import GuestMemory
from svsmd.snp.message_service import MessageService
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp
from svsmd.snp.secrets_page import SECRETS_PAGE_VERSION, VMPCK_COUNT, VMPCK_SIZE, SecretsPage
from svsmd.snp.secure_tsc import TSC_FACTOR, tsc_scale
from svsmd.snp.types import PAGE_SIZE, PageSize, Spa
from svsmd.snp.vmsa import SevFeatures, Vmsa

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
        self._chip: Final = ChipKeys(entropy)
        self._messages: Final = MessageService(self._chip)
        self._context = GuestContext()

    @property
    def state(self) -> GuestState:
        """How far the guest is."""
        return self._context.state

    @property
    def launch_digest(self) -> bytes:
        """GCTX.LD, 48 bytes: what a report shows as MEASUREMENT."""
        return self._context.digest.value

    @property
    def chip_id(self) -> bytes:
        """64 bytes by which the manufacturer knows this chip."""
        return self._chip.chip_id

    @property
    def reported_tcb(self) -> TcbVersion:
        """The TCB whose VCEK signs reports."""
        return TCB_VERSION

    @property
    def vcek_public_key(self) -> ec.EllipticCurvePublicKey:
        """The key that verifies this machine's reports."""
        return self._chip.vcek(self.reported_tcb).public_key()

    # Launch ----------------------------------------------------------------------------------

    def launch_start(
        self,
        policy: int = DEFAULT_POLICY,
        *,
        gosvw: bytes = bytes(GOSVW_SIZE),
        desired_tsc_khz: int = 0,
    ) -> FirmwareStatus:
        """SNP_LAUNCH_START: the guest gets its keys, and pages can be added.

        `gosvw` are the workarounds that a guest OS sees, `desired_tsc_khz` is the mean frequency of
        the TSC of VMSAs with Secure TSC: 0 lets it stand still.

        INVALID_GUEST_STATE: it was started before. INVALID_PARAM: `policy` has no 64 bits, `gosvw`
        no 16 bytes or the frequency no 32 bits. POLICY_FAILURE: bit 17 is clear, a newer firmware
        ABI or a policy bit that this processor does not know is asked for.
        """
        if policy < 0 or policy >> 64 or len(gosvw) != GOSVW_SIZE:
            return FirmwareStatus.INVALID_PARAM
        if desired_tsc_khz < 0 or desired_tsc_khz >> 32:
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
        self._context = GuestContext(
            state=GuestState.LAUNCH,
            policy=wanted,
            gosvw=gosvw,
            desired_tsc_khz=desired_tsc_khz,
            vmpcks=[entropy.read(VMPCK_SIZE) for _ in range(VMPCK_COUNT)],
            report_id=entropy.read(REPORT_ID_SIZE),
            vmrk=entropy.read(VMRK_SIZE),
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
        whole = self._memory.view(spa, page_size.nbytes)
        for offset in range(0, page_size.nbytes, PAGE_SIZE):
            page = whole[offset : offset + PAGE_SIZE]
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

    def launch_finish(self, *, host_data: bytes = bytes(HOST_DATA_SIZE)) -> FirmwareStatus:
        """SNP_LAUNCH_FINISH: the measurement is complete, the guest may run.

        INVALID_GUEST_STATE: not between start and finish. INVALID_PARAM: `host_data`, which
        reports show, has not 32 bytes.
        """
        if len(host_data) != HOST_DATA_SIZE:
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
            secrets.tsc_factor = TSC_FACTOR
            for index, key in enumerate(self._context.vmpcks):
                secrets.set_vmpck(index, key)
        elif page_type == PageType.CPUID:
            return CpuidPage(page).check()
        elif page_type == PageType.VMSA:
            vmsa = Vmsa(page)
            if vmsa.sev_features & SevFeatures.SECURE_TSC:
                vmsa.guest_tsc_scale = tsc_scale(self._context.desired_tsc_khz)
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
        answer, status = self._answer(request)
        events = self._rmp.events
        if events.armed & EventClass.MESSAGE.bit:
            tell_message(events, request, status)
        return answer, status

    def _answer(self, request: bytes) -> tuple[bytes, FirmwareStatus]:
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
        answer = self._messages.answer(context, message)
        if answer is None:
            return b"", FirmwareStatus.INVALID_PARAM
        msg_type, payload = answer
        context.message_counts[message.vmpck] = count + 2
        response = GuestMessage(msg_type, payload, message.vmpck, message.seqno + 1)
        return seal(key, response), FirmwareStatus.SUCCESS
