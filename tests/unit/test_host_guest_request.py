# SPDX-License-Identifier: MIT
"""Guest messages through the hypervisor, with and without certificates."""

from __future__ import annotations

import pytest

from svsmd.host.certificate_table import CERT_TABLE_END
from svsmd.host.guest_request import GuestRequests
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.ghcb import GhcbError, GhcbExit, GhcbResponse
from svsmd.snp.types import PAGE_SIZE
from tests.fake_silicon import MEMORY_SIZE, FakeSilicon, Rig

REQUEST, RESPONSE, CERTS = 0x30_0000, 0x30_1000, 0x30_2000
TABLE = bytes(range(256)) * 20
TABLE_PAGES = 2


class Mirror:
    """A security processor that answers with the request, reversed."""

    def __init__(self, status: int = FirmwareStatus.SUCCESS) -> None:
        self.status = status
        self.requests: list[bytes] = []

    def guest_request(self, request_page: bytes) -> tuple[bytes, int]:
        self.requests.append(request_page)
        return request_page[::-1], self.status


class Guest:
    def __init__(self, certificates: bytes = b"", status: int = FirmwareStatus.SUCCESS) -> None:
        self.silicon = FakeSilicon()
        self.silicon.memory.write(REQUEST, b"request")
        self.psp = Mirror(status)
        self.certificates = certificates
        self.fetched = 0
        self.requests = GuestRequests(self.psp, self.silicon.host_page, self.fetch)

    def fetch(self) -> bytes:
        self.fetched += 1
        return self.certificates

    def extended(self, gpa: int, npages: int) -> tuple[int, int | None]:
        return self.requests.handle_extended(REQUEST, RESPONSE, gpa, npages)


def test_the_host_carries_the_message() -> None:
    guest = Guest()
    assert guest.requests.handle(REQUEST, RESPONSE) == 0
    assert guest.silicon.memory.read(RESPONSE, PAGE_SIZE)[-7:] == b"tseuqer"


def test_a_firmware_error_is_the_low_half() -> None:
    guest = Guest(status=FirmwareStatus.BAD_MEASUREMENT)
    answer = guest.requests.handle(REQUEST, RESPONSE)
    assert answer == FirmwareStatus.BAD_MEASUREMENT


def test_a_real_processor_refuses_a_message_before_launch() -> None:
    rig = Rig()
    answer = rig.ghcb_exit(GhcbExit.SNP_GUEST_REQUEST, REQUEST, RESPONSE)
    assert answer == (GhcbResponse.NO_ACTION, FirmwareStatus.INVALID_GUEST_STATE)


@pytest.mark.parametrize(
    ("request_gpa", "response_gpa"),
    [
        (REQUEST, REQUEST),
        (REQUEST + 8, RESPONSE),
        (REQUEST, RESPONSE + 8),
        (MEMORY_SIZE, RESPONSE),
        (REQUEST, (1 << 64) - PAGE_SIZE),
    ],
)
def test_bad_pages_are_invalid_input(request_gpa: int, response_gpa: int) -> None:
    rig = Rig()
    for code in (GhcbExit.SNP_GUEST_REQUEST, GhcbExit.SNP_EXT_GUEST_REQUEST):
        answer = rig.ghcb_exit(code, request_gpa, response_gpa, rax=CERTS, rbx=1)
        assert answer == (GhcbResponse.MALFORMED_INPUT, GhcbError.INVALID_INPUT)


def test_a_private_page_is_invalid_input() -> None:
    rig = Rig()
    rig.silicon.assign(RESPONSE)
    answer = rig.ghcb_exit(GhcbExit.SNP_GUEST_REQUEST, REQUEST, RESPONSE)
    assert answer == (GhcbResponse.MALFORMED_INPUT, GhcbError.INVALID_INPUT)


def test_certificates_go_into_the_buffer() -> None:
    guest = Guest(TABLE)
    assert guest.extended(CERTS, TABLE_PAGES) == (0, None)
    assert guest.silicon.memory.read(CERTS, len(TABLE)) == TABLE


def test_certificates_are_fetched_when_they_are_asked_for_and_once() -> None:
    guest = Guest(TABLE)
    guest.requests.handle(REQUEST, RESPONSE)
    assert guest.fetched == 0
    for _ in range(2):
        guest.extended(CERTS, TABLE_PAGES)
    assert guest.fetched == 1


def test_too_small_a_buffer_sends_nothing_and_says_how_much() -> None:
    guest = Guest(TABLE)
    assert guest.extended(CERTS, TABLE_PAGES - 1) == (1 << 32, TABLE_PAGES)
    assert guest.psp.requests == []


def test_a_guest_learns_the_size_it_needs() -> None:
    rig = Rig(certificates=TABLE)
    answer = rig.ghcb_exit(GhcbExit.SNP_EXT_GUEST_REQUEST, REQUEST, RESPONSE, rax=0, rbx=0)
    assert answer == (GhcbResponse.NO_ACTION, 1 << 32)
    assert rig.ghcb.rbx == TABLE_PAGES


@pytest.mark.parametrize("npages", [0, 1])
def test_a_host_without_certificates_says_that_there_are_none(npages: int) -> None:
    guest = Guest()
    guest.silicon.memory.write(CERTS, b"\xff" * 64)
    assert guest.extended(CERTS, npages) == (0, None)
    expected = CERT_TABLE_END if npages else b"\xff" * len(CERT_TABLE_END)
    assert guest.silicon.memory.read(CERTS, len(CERT_TABLE_END)) == expected


def test_certificates_are_not_written_when_the_firmware_refuses() -> None:
    guest = Guest(TABLE, status=FirmwareStatus.INVALID_PARAM)
    assert guest.extended(CERTS, TABLE_PAGES) == (FirmwareStatus.INVALID_PARAM, None)
    assert not any(guest.silicon.memory.read(CERTS, PAGE_SIZE))


@pytest.mark.parametrize(("gpa", "npages"), [(CERTS + 1, 2), (CERTS, 1 << 63), (MEMORY_SIZE, 2)])
def test_a_bad_certificate_buffer_is_invalid_input(gpa: int, npages: int) -> None:
    rig = Rig(certificates=TABLE)
    answer = rig.ghcb_exit(GhcbExit.SNP_EXT_GUEST_REQUEST, REQUEST, RESPONSE, rax=gpa, rbx=npages)
    assert answer == (GhcbResponse.MALFORMED_INPUT, GhcbError.INVALID_INPUT)
