# SPDX-License-Identifier: MIT
"""Whatever a guest or its host leaves in a message page, the processor has a documented answer."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.derived_key import KeyRequest, KeyResponse
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.guest_message import (
    HEADER_SIZE,
    MAX_PAYLOAD,
    GuestMessage,
    MessageHeader,
    MessageType,
    ReportRequest,
    ReportResponse,
    seal,
    unseal,
)
from svsmd.snp.secure_tsc import TscInfoResponse
from svsmd.snp.types import PAGE_SIZE
from tests.psp_bench import SUCCESS, Bench

REFUSED = {
    FirmwareStatus.INVALID_PARAM,
    FirmwareStatus.BAD_MEASUREMENT,
    FirmwareStatus.AEAD_OFLOW,
}
STATUSES = {SUCCESS, FirmwareStatus.INVALID_PARAM, FirmwareStatus.INVALID_KEY}
"""STATUS of the responses (56860, chapter 7)."""
RESPONSE_SIZES = {
    MessageType.KEY_RSP: KeyResponse.SIZE,
    MessageType.REPORT_RSP: ReportResponse.SIZE,
    MessageType.TSC_INFO_RSP: TscInfoResponse.SIZE,
}

U32 = st.integers(0, 5) | st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, 0x3F) | st.integers(0, (1 << 64) - 1)
# Pages of noise from a short seed: Hypothesis does not like to make and shrink 4096 bytes.
NOISE = st.binary(max_size=8).map(lambda seed: hashlib.shake_128(seed).digest(PAGE_SIZE))
PAYLOADS = st.builds(
    lambda noise, blocks, zero: bytes(blocks * 16) if zero else noise[: blocks * 16],
    NOISE,
    st.integers(1, 16) | st.integers(1, MAX_PAYLOAD // 16),
    st.booleans(),
)
VMPCKS = st.integers(0, 3)


def launched() -> Bench:
    bench = Bench()
    bench.launch()
    return bench


BENCH = launched()


def works(bench: Bench) -> None:
    """The next message of each key is still the next one."""
    for vmpck in range(4):
        assert bench.report(3, vmpck).status == SUCCESS


def send(bench: Bench, page: bytes) -> FirmwareStatus:
    """Whether a page is refused; the response, if any, goes to nobody."""
    response, status = bench.psp.guest_request(page)
    assert bool(response) == (status is SUCCESS)
    return status


@settings(max_examples=200)
@given(noise=NOISE, length=st.integers(0, PAGE_SIZE), header=st.booleans(), vmpck=VMPCKS)
def test_any_bytes(noise: bytes, length: int, header: bool, vmpck: int):
    page = bytearray(noise[:length])
    if header and length >= HEADER_SIZE:
        # Past the first checks, which noise hardly ever passes.
        view = MessageHeader(memoryview(page)[:HEADER_SIZE])
        view.algo = view.hdr_version = 1
        view.hdr_size = HEADER_SIZE
        view.msg_size &= 0xFF0
        view.msg_vmpck = vmpck
    assert send(BENCH, bytes(page)) in {
        FirmwareStatus.INVALID_PARAM,
        FirmwareStatus.BAD_MEASUREMENT,
    }
    works(BENCH)


@settings(max_examples=200)
@given(
    msg_type=st.sampled_from(list(MessageType)).map(int) | st.integers(0, 255),
    msg_version=st.integers(0, 2) | st.integers(0, 255),
    payload=PAYLOADS,
    vmpck=VMPCKS,
)
def test_any_authentic_message(msg_type: int, msg_version: int, payload: bytes, vmpck: int):
    seqno = BENCH.seqno[vmpck] + 1
    key = BENCH.vmpck(vmpck)
    page = seal(key, GuestMessage(msg_type, payload, vmpck, seqno, msg_version))
    response, status = BENCH.psp.guest_request(page)
    if status is not SUCCESS:
        assert (response, status) == (b"", FirmwareStatus.INVALID_PARAM)
    else:
        BENCH.seqno[vmpck] += 2
        message = unseal(key, response)
        assert (message.msg_type, message.seqno) == (msg_type + 1, seqno + 1)
        assert int.from_bytes(message.payload[:4], "little") in STATUSES
        assert len(message.payload) == RESPONSE_SIZES.get(
            MessageType(message.msg_type), len(payload)
        )
    works(BENCH)


@settings(max_examples=200)
@given(vmpck=VMPCKS, select=U32, reserved=U32, fields=U64, vmpl=U32, svn=U32, tcb=U64)
def test_any_key_request(
    vmpck: int, select: int, reserved: int, fields: int, vmpl: int, svn: int, tcb: int
):
    request = KeyRequest()
    request.root_select, request.reserved = select, reserved
    request.guest_field_select, request.vmpl = fields, vmpl
    request.guest_svn, request.tcb_version = svn, tcb
    payload, status = BENCH.request(MessageType.KEY_REQ, request.tobytes(), vmpck)
    assert status is SUCCESS
    response = KeyResponse.copy_of(payload)
    assert response.status in STATUSES
    granted = response.status == SUCCESS
    assert any(response.derived_key) == granted
    assert not granted or vmpck <= vmpl <= 3
    assert payload[4:0x20] == bytes(28)


@settings(max_examples=100)
@given(data=st.binary(min_size=64, max_size=64), vmpl=U32, key_sel=U32, vmpck=VMPCKS)
def test_any_report_request(data: bytes, vmpl: int, key_sel: int, vmpck: int):
    request = ReportRequest.build(data, vmpl, key_sel)
    payload, status = BENCH.request(MessageType.REPORT_REQ, request.tobytes(), vmpck)
    assert status is SUCCESS
    response = ReportResponse.copy_of(payload)
    assert response.status in STATUSES
    if response.status == SUCCESS:
        assert vmpck <= vmpl <= 3
        assert response.report[0x30:0x34] == vmpl.to_bytes(4, "little")
        assert response.report[0x50:0x90] == data
    else:
        assert not any(response.report)


@settings(max_examples=100)
@given(
    vmpck=VMPCKS,
    earlier=st.integers(0, 3),
    seqno=st.integers(0, 12) | st.integers(0, (1 << 64) - 1),
)
def test_only_the_next_sequence_number(vmpck: int, earlier: int, seqno: int):
    bench = launched()
    for _ in range(earlier):
        bench.report(3, vmpck)
    payload = ReportRequest.build(bytes(64), 3).tobytes()
    page = seal(bench.vmpck(vmpck), GuestMessage(MessageType.REPORT_REQ, payload, vmpck, seqno))
    if seqno == 2 * earlier + 1:
        assert send(bench, page) is SUCCESS
        bench.seqno[vmpck] += 2
    # A replay, if it was accepted just now.
    assert send(bench, page) is FirmwareStatus.AEAD_OFLOW
    works(bench)


@settings(max_examples=100)
@given(key=st.binary(min_size=32, max_size=32), vmpck=VMPCKS)
def test_a_wrong_key(key: bytes, vmpck: int):
    payload = ReportRequest.build(bytes(64), 3).tobytes()
    message = GuestMessage(MessageType.REPORT_REQ, payload, vmpck, BENCH.seqno[vmpck] + 1)
    assert send(BENCH, seal(key, message)) is FirmwareStatus.BAD_MEASUREMENT
    other = BENCH.vmpck((vmpck + 1) % 4)
    assert send(BENCH, seal(other, message)) is FirmwareStatus.BAD_MEASUREMENT
    works(BENCH)


@settings(max_examples=100)
@given(bit=st.integers(0, (HEADER_SIZE + 0x60) * 8 - 1), vmpck=VMPCKS)
def test_any_bit_that_the_host_flips(bit: int, vmpck: int):
    payload = ReportRequest.build(bytes(64), 3).tobytes()
    message = GuestMessage(MessageType.REPORT_REQ, payload, vmpck, BENCH.seqno[vmpck] + 1)
    page = bytearray(seal(BENCH.vmpck(vmpck), message))
    page[bit // 8] ^= 1 << bit % 8
    not_authenticated = 16 <= bit // 8 < 32 or 0x28 <= bit // 8 < 0x30
    if not_authenticated:
        # The rest of AUTHTAG, and reserved bytes in front of what the tag covers.
        assert send(BENCH, bytes(page)) is SUCCESS
        BENCH.seqno[vmpck] += 2
    else:
        assert send(BENCH, bytes(page)) in REFUSED
    works(BENCH)
