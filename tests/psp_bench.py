# SPDX-License-Identifier: MIT
"""A security processor with its memory and RMP, the host's hand on them, and a guest's voice."""

from __future__ import annotations

from typing import Final

from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.guest_context import DEFAULT_POLICY
from svsmd.snp.guest_message import (
    GuestMessage,
    MessageType,
    ReportRequest,
    ReportResponse,
    seal,
    unseal,
)
from svsmd.snp.launch_digest import PageType
from svsmd.snp.memory import MIB, GuestMemory
from svsmd.snp.psp import SecurityProcessor
from svsmd.snp.rmp import Rmp, RmpReturn, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import PAGE_SIZE, Gpa, PageSize, Spa

SUCCESS: Final = FirmwareStatus.SUCCESS
DATA: Final = Spa(0x1_0000)
SECRETS: Final = Spa(0x1_1000)
CPUID: Final = Spa(0x1_2000)
VMSA: Final = Spa(0x1_3000)


class Bench:
    """Speaks for the host and, once it is launched, for the guest."""

    def __init__(self, seed: bytes = b"test") -> None:
        self.memory = GuestMemory(16 * MIB)
        self.rmp = Rmp(self.memory.ranges)
        self.psp = SecurityProcessor(self.memory, self.rmp, EntropySource(seed))
        self.seqno = [0] * 4

    def pre_guest(
        self, spa: Spa, page_size: PageSize = PageSize.SIZE_4K, *, immutable: bool = True
    ) -> None:
        update = RmpUpdate(
            assigned=True, page_size=page_size, immutable=immutable, gpa=Gpa(spa), asid=1
        )
        assert self.rmp.rmpupdate(spa, update) is RmpReturn.SUCCESS

    def add(self, spa: Spa, page_type: PageType, contents: bytes = b"") -> FirmwareStatus:
        self.memory.write(spa, contents)
        self.pre_guest(spa)
        return self.psp.launch_update(spa, page_type)

    def launch(
        self,
        *,
        policy: int = DEFAULT_POLICY,
        contents: bytes = b"",
        host_data: bytes = b"h" * 32,
        desired_tsc_khz: int = 0,
    ) -> SecretsPage:
        """Launch a guest of one page of data, if any, and the secrets page."""
        assert self.psp.launch_start(policy, desired_tsc_khz=desired_tsc_khz) is SUCCESS
        if contents:
            assert self.add(DATA, PageType.NORMAL, contents) is SUCCESS
        assert self.add(SECRETS, PageType.SECRETS) is SUCCESS
        assert self.psp.launch_finish(host_data=host_data) is SUCCESS
        return SecretsPage(self.memory.page(SECRETS))

    def vmpck(self, index: int) -> bytes:
        """A key of the guest's."""
        return SecretsPage(self.memory.page(SECRETS)).vmpck(index)

    def request(
        self, msg_type: int, payload: bytes, vmpck: int = 0, msg_version: int = 1
    ) -> tuple[bytes, FirmwareStatus]:
        key = self.vmpck(vmpck)
        seqno = self.seqno[vmpck] + 1
        page = seal(key, GuestMessage(msg_type, payload, vmpck, seqno, msg_version))
        response, status = self.psp.guest_request(page.ljust(PAGE_SIZE, b"\0"))
        if status is not SUCCESS:
            assert response == b""
            return response, status
        message = unseal(key, response)
        assert (message.msg_type, message.vmpck) == (msg_type + 1, vmpck)
        assert message.seqno == seqno + 1
        self.seqno[vmpck] += 2
        return message.payload, status

    def report(self, vmpl: int, vmpck: int = 0, key_sel: int = 0) -> ReportResponse:
        request = ReportRequest.build(b"d" * 64, vmpl, key_sel).tobytes()
        payload, status = self.request(MessageType.REPORT_REQ, request, vmpck)
        assert status is SUCCESS
        return ReportResponse.copy_of(payload)
