# SPDX-License-Identifier: MIT
"""Properties of the binary layouts: round trips, and hostile bytes that never raise."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.bits import AddressBits, Bit, Bits, Register64
from svsmd.snp.cpuid_page import CpuidPage
from svsmd.snp.cpuid_policy import CpuidResult, sanitize
from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.ghcb import (
    Ghcb,
    GhcbInputError,
    IoioInfo,
    PscDescriptor,
    PscEntry,
    PscInputError,
    PscOperation,
)
from svsmd.snp.ghcb_msr import Malformed, parse_request
from svsmd.snp.guest_message import (
    MAX_PAYLOAD,
    AttestationReport,
    GuestMessage,
    GuestMessageError,
    MessageHeader,
    ReportRequest,
    ReportResponse,
    seal,
    unseal,
)
from svsmd.snp.memory import MIB, GuestMemory
from svsmd.snp.page_view import IntField, PageView, Raw
from svsmd.snp.psp import SecurityProcessor
from svsmd.snp.rmp import Rmp
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.secure_tsc import TscInfoResponse
from svsmd.snp.types import PAGE_SIZE, PageSize
from svsmd.snp.vmsa import Segment, SegmentField, Vmsa

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
GPA_PAGE = st.integers(0, (1 << 40) - 1)
KEYS = st.binary(min_size=32, max_size=32)
# Pages of noise from a short seed: Hypothesis does not like to make and shrink 4096 bytes.
PAGES = st.binary(max_size=8).map(lambda seed: hashlib.shake_128(seed).digest(PAGE_SIZE))
VIEWS = [
    Vmsa,
    Ghcb,
    SecretsPage,
    CpuidPage,
    MessageHeader,
    ReportRequest,
    ReportResponse,
    AttestationReport,
    TscInfoResponse,
]


class Pte(Register64):
    P = Bit(0)
    ADDR = AddressBits(51, 12)
    PKEY = Bits(62, 59)
    NX = Bit(63)


@given(U64, st.booleans(), st.integers(0, 15))
def test_register_fields_do_not_disturb_each_other(value: int, nx: bool, pkey: int):
    before = Pte(value)
    after = before.replace(NX=nx, PKEY=pkey)
    got = after.NX, after.PKEY
    assert got == (nx, pkey)
    assert (after.P, after.ADDR, after.unnamed) == (before.P, before.ADDR, before.unnamed)
    assert before.replace(P=before.P, ADDR=before.ADDR) == before


def values(view: PageView) -> dict[str, object]:
    """All fields by name; of a GHCB those that are valid."""
    found: dict[str, object] = {}
    for name in view.FIELDS:
        with contextlib.suppress(GhcbInputError):
            found[name] = getattr(view, name)
    return found


@pytest.mark.parametrize("view_type", VIEWS)
@settings(max_examples=25)
@given(page=PAGES)
def test_structures_round_trip(view_type: type[PageView], page: bytes):
    """Every field of random bytes, written into an empty structure, gives the fields again."""
    source = view_type.copy_of(page[: view_type.SIZE])
    copy = view_type()
    wanted = values(source)
    for name, value in wanted.items():
        setattr(copy, name, value)
    for name, value in wanted.items():
        assert getattr(copy, name) == value
    covered = sum(size for _offset, size in view_type.FIELDS.values())
    assert sum(1 for byte in copy.tobytes() if byte) <= covered


@settings(max_examples=50)
@given(st.sampled_from(sorted(Vmsa.FIELDS)), U64, PAGES)
def test_vmsa_field_write_touches_its_bytes_only(name: str, number: int, page: bytes):
    vmsa = Vmsa.copy_of(page)
    field = vars(Vmsa)[name]
    value: object
    match field:
        case IntField():
            value = number & ((1 << (8 * field.size)) - 1)
        case SegmentField():
            value = Segment(number & 0xFFFF, number >> 16 & 0xFFF, number >> 32, number)
        case Raw():
            value = bytes([number & 0xFF]) * field.size
    setattr(vmsa, name, value)
    assert getattr(vmsa, name) == value
    after = vmsa.tobytes()
    end = field.offset + field.size
    assert after[: field.offset] == page[: field.offset]
    assert after[end:] == page[end:]


@given(U64)
def test_any_ioio_decodes_or_is_refused(info_1: int):
    try:
        info = IoioInfo.decode(info_1)
    except GhcbInputError:
        return
    assert IoioInfo.decode(info.encode()) == info


@st.composite
def psc_entries(draw: st.DrawFn) -> PscEntry:
    page_size = draw(st.sampled_from(PageSize))
    operations = PscOperation if page_size else [PscOperation.PRIVATE, PscOperation.SHARED]
    page = draw(GPA_PAGE)
    return PscEntry(
        gpa=(page << 12) & ~(page_size.nbytes - 1),
        operation=draw(st.sampled_from(list(operations))),
        page_size=page_size,
        cur_page=draw(st.integers(0, page_size.npages)),
    )


@given(st.lists(psc_entries(), min_size=1, max_size=40))
def test_psc_list_round_trips(entries: list[PscEntry]):
    assert list(PscDescriptor(bytearray(PscDescriptor.build(entries))).pending()) == entries


@given(st.binary(max_size=0x7F0))
def test_any_psc_list_ends(data: bytes):
    memory = bytearray(data)
    with contextlib.suppress(PscInputError):
        descriptor = PscDescriptor(memory)
        count = sum(1 for _entry in descriptor.pending())
        assert count <= 253
    assert len(memory) == len(data)


@given(U64, st.binary(max_size=16), U64, st.integers(0, 0x1000))
def test_any_scratch_is_inside_or_refused(scratch: int, stale: bytes, gpa: int, nbytes: int):
    ghcb = Ghcb()
    ghcb.sw_scratch = scratch
    with contextlib.suppress(GhcbInputError):
        area = ghcb.scratch(gpa, nbytes)
        assert len(area) == nbytes
        assert 0x800 <= scratch - gpa <= 0xFF0 - nbytes


@given(U64)
def test_any_msr_value_is_a_request(value: int):
    request = parse_request(value)
    if not isinstance(request, Malformed):
        assert parse_request(request.encode()) == request


@given(U32, U32, U32, U32, U32, U32)
def test_sanitized_cpuid_is_clean(fn: int, index: int, eax: int, ebx: int, ecx: int, edx: int):
    function = fn & 0x8000_001F
    once = sanitize(function, index & 3, CpuidResult(eax, ebx, ecx, edx))
    assert sanitize(function, index & 3, once) == once


@settings(max_examples=50)
@given(PAGES, st.integers(0, 65))
def test_any_cpuid_page_is_checked(noise: bytes, count: int):
    page = CpuidPage.copy_of(noise)
    page.count = count
    page.reserved = page.reserved_2 = 0
    assert page.check() in (FirmwareStatus.SUCCESS, FirmwareStatus.INVALID_PARAM)


@settings(max_examples=50)
@given(
    KEYS,
    st.integers(0, 255),
    st.integers(1, MAX_PAYLOAD // 16),
    st.integers(0, 3),
    U64,
    st.integers(0, 255),
)
def test_message_round_trips(
    key: bytes, msg_type: int, blocks: int, vmpck: int, seqno: int, version: int
):
    message = GuestMessage(msg_type, b"\xa5" * 16 * blocks, vmpck, seqno, version)
    assert unseal(key, seal(key, message)) == message


@given(st.binary(max_size=PAGE_SIZE + 64))
def test_any_bytes_are_no_message(data: bytes):
    with pytest.raises(GuestMessageError):
        unseal(bytes(32), data)


class TestSecurityProcessor:
    """One launched guest; whatever it sends, the processor answers or refuses."""

    memory = GuestMemory(16 * MIB)
    psp = SecurityProcessor(memory, Rmp(memory.ranges), EntropySource(b"fuzz"))
    psp.launch_start()
    psp.launch_finish()

    @given(
        st.binary(max_size=64),
        st.integers(0, 255),
        st.sampled_from([0, 1, 0x60, 0x61]),
        st.integers(0, 0xFFFF),
    )
    def test_any_header(self, payload: bytes, msg_type: int, hdr_size: int, msg_size: int):
        header = MessageHeader()
        header.algo = header.hdr_version = 1
        header.hdr_size = hdr_size
        header.msg_type = msg_type
        header.msg_size = msg_size
        response, status = self.psp.guest_request(header.tobytes() + payload)
        assert response == b""
        assert status in (FirmwareStatus.INVALID_PARAM, FirmwareStatus.BAD_MEASUREMENT)
