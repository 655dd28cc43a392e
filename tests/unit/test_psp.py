# SPDX-License-Identifier: MIT
"""The security processor: launch, measurement and guest messages."""

from __future__ import annotations

import struct

import pytest
from cryptography.exceptions import InvalidSignature
from sevsnpmeasure.gctx import GCTX

from svsmd.snp.cpuid_page import CPUID_FUNCTION, CpuidFunction, CpuidPage
from svsmd.snp.cpuid_policy import CPUID_SIGNATURE
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.guest_context import DEFAULT_POLICY, GuestState
from svsmd.snp.guest_message import (
    AttestationReport,
    GuestMessage,
    KeySelect,
    MessageType,
    ReportRequest,
    ReportResponse,
    seal,
)
from svsmd.snp.launch_digest import PageType
from svsmd.snp.rmp import Perm, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmsa import SevFeatures, Vmsa
from tests.psp_bench import CPUID, DATA, SECRETS, SUCCESS, VMSA, Bench
from tests.verifier import verify_signature

SUPPORTED = (
    MessageType.CPUID_REQ,
    MessageType.KEY_REQ,
    MessageType.REPORT_REQ,
    MessageType.TSC_INFO_REQ,
)
HUGE = Spa(0x20_0000)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def state(bench: Bench) -> GuestState:
    return bench.psp.state


def test_states(bench: Bench):
    psp = bench.psp
    assert state(bench) is GuestState.INIT
    assert psp.launch_finish() is FirmwareStatus.INVALID_GUEST_STATE
    assert bench.add(DATA, PageType.NORMAL) is FirmwareStatus.INVALID_GUEST_STATE
    assert psp.guest_request(bytes(PAGE_SIZE)) == (b"", FirmwareStatus.INVALID_GUEST_STATE)
    assert psp.launch_start() is SUCCESS
    assert state(bench) is GuestState.LAUNCH
    assert psp.launch_start() is FirmwareStatus.INVALID_GUEST_STATE
    assert psp.launch_finish() is SUCCESS
    assert state(bench) is GuestState.RUNNING
    assert psp.launch_finish() is FirmwareStatus.INVALID_GUEST_STATE
    assert psp.launch_update(DATA, PageType.NORMAL) is FirmwareStatus.INVALID_GUEST_STATE


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (DEFAULT_POLICY, SUCCESS),
        (0x3_0000 | 1 << 8 | 55, SUCCESS),
        (0x3_0000 | 1 << 8 | 56, FirmwareStatus.POLICY_FAILURE),
        (0x3_0000 | 2 << 8, FirmwareStatus.POLICY_FAILURE),
        (0x1_0000, FirmwareStatus.POLICY_FAILURE),
        (0x3_0000 | 1 << 21, FirmwareStatus.POLICY_FAILURE),
        (0x3_0000 | 1 << 63, FirmwareStatus.POLICY_FAILURE),
        (1 << 64, FirmwareStatus.INVALID_PARAM),
        (-1, FirmwareStatus.INVALID_PARAM),
    ],
)
def test_policy(bench: Bench, policy: int, status: FirmwareStatus):
    assert bench.psp.launch_start(policy) is status
    assert (bench.psp.state is GuestState.LAUNCH) == (status is SUCCESS)


def test_operands_of_another_length(bench: Bench):
    assert bench.psp.launch_start(gosvw=bytes(15)) is FirmwareStatus.INVALID_PARAM
    for khz in (-1, 1 << 32):
        assert bench.psp.launch_start(desired_tsc_khz=khz) is FirmwareStatus.INVALID_PARAM
    assert bench.psp.launch_start() is SUCCESS
    assert bench.psp.launch_finish(host_data=bytes(31)) is FirmwareStatus.INVALID_PARAM


def test_digest_of_a_launch_is_what_sev_snp_measure_computes(bench: Bench):
    contents = bytes(range(256)) * 16
    vmsa = Vmsa.long_mode_start(0x100_0000, 0x3_8000, 0x80_0002_0000)
    assert bench.psp.launch_start() is SUCCESS
    assert bench.add(DATA, PageType.NORMAL, contents) is SUCCESS
    assert bench.add(SECRETS, PageType.SECRETS) is SUCCESS
    assert bench.add(CPUID, PageType.CPUID, CpuidPage.build().tobytes()) is SUCCESS
    assert bench.add(VMSA, PageType.VMSA, vmsa.tobytes()) is SUCCESS
    oracle = GCTX()
    oracle.update_normal_pages(DATA, contents)
    oracle.update_secrets_page(SECRETS)
    oracle.update_cpuid_page(CPUID)
    # The oracle has its VMSA at QEMU's place; say where ours is.
    oracle.VMSA_GPA = VMSA
    oracle.update_vmsa_page(vmsa.tobytes())
    assert bench.psp.launch_digest == oracle.ld()


def test_huge_page_is_measured_as_512_pages(bench: Bench):
    contents = b"".join(bytes([i & 0xFF]) * PAGE_SIZE for i in range(512))
    bench.memory.write(HUGE, contents)
    bench.pre_guest(HUGE, PageSize.SIZE_2M)
    assert bench.psp.launch_start() is SUCCESS
    assert bench.psp.launch_update(HUGE, PageType.NORMAL, PageSize.SIZE_2M) is SUCCESS
    oracle = GCTX()
    oracle.update_normal_pages(HUGE, contents)
    assert bench.psp.launch_digest == oracle.ld()
    entry = bench.rmp.lookup(HUGE + HUGE_PAGE_SIZE - 1)
    assert entry is not None
    assert (entry.validated, entry.immutable, entry.page_size) == (True, False, PageSize.SIZE_2M)


@pytest.mark.parametrize("page_type", [PageType.NORMAL, PageType.UNMEASURED, PageType.VMSA])
def test_page_becomes_guest_valid(bench: Bench, page_type: PageType):
    assert bench.psp.launch_start() is SUCCESS
    bench.pre_guest(DATA)
    permissions = (int(Perm.ALL), int(Perm.READ), 0)
    status = bench.psp.launch_update(DATA, page_type, vmpl_permissions=permissions)
    assert status is SUCCESS
    entry = bench.rmp.lookup(DATA)
    assert entry is not None
    assert (entry.assigned, entry.validated, entry.immutable) == (True, True, False)
    assert entry.vmsa == (page_type is PageType.VMSA)
    assert entry.permissions == (Perm.ALL, Perm.ALL, Perm.READ, Perm.NONE)


def test_page_in_the_wrong_state(bench: Bench):
    psp = bench.psp
    assert psp.launch_start() is SUCCESS
    assert psp.launch_update(Spa(1 << 40), PageType.NORMAL) is FirmwareStatus.INVALID_ADDRESS
    assert psp.launch_update(DATA, PageType.NORMAL) is FirmwareStatus.INVALID_PAGE_STATE
    bench.pre_guest(DATA, immutable=False)
    assert psp.launch_update(DATA, PageType.NORMAL) is FirmwareStatus.INVALID_PAGE_STATE
    bench.pre_guest(DATA)
    misplaced = psp.launch_update(Spa(DATA + 8), PageType.NORMAL)
    assert misplaced is FirmwareStatus.INVALID_ADDRESS
    huge = psp.launch_update(DATA, PageType.NORMAL, PageSize.SIZE_2M)
    assert huge is FirmwareStatus.INVALID_PAGE_SIZE
    assert psp.launch_update(DATA, PageType.NORMAL) is SUCCESS
    assert psp.launch_update(DATA, PageType.NORMAL) is FirmwareStatus.INVALID_PAGE_STATE


def test_page_of_another_guest(bench: Bench):
    assert bench.psp.launch_start() is SUCCESS
    bench.rmp.rmpupdate(DATA, RmpUpdate(assigned=True, immutable=True, gpa=Gpa(DATA), asid=2))
    status = bench.psp.launch_update(DATA, PageType.NORMAL)
    assert status is FirmwareStatus.INVALID_PAGE_OWNER


@pytest.mark.parametrize("page_type", [PageType.VMSA, PageType.SECRETS, PageType.CPUID])
def test_huge_page_of_a_single_page_type(bench: Bench, page_type: PageType):
    assert bench.psp.launch_start() is SUCCESS
    bench.pre_guest(HUGE, PageSize.SIZE_2M)
    status = bench.psp.launch_update(HUGE, page_type, PageSize.SIZE_2M)
    assert status is FirmwareStatus.INVALID_PAGE_SIZE
    inside = bench.psp.launch_update(Spa(HUGE + PAGE_SIZE), PageType.ZERO, PageSize.SIZE_2M)
    assert inside is FirmwareStatus.INVALID_ADDRESS


@pytest.mark.parametrize("page_type", [0, 7, -1])
def test_unknown_page_type(bench: Bench, page_type: int):
    assert bench.psp.launch_start() is SUCCESS
    bench.pre_guest(DATA)
    status = bench.psp.launch_update(DATA, page_type)  # type: ignore[arg-type]  # hostile
    assert status is FirmwareStatus.INVALID_PARAM


@pytest.mark.parametrize("mask", [0x10, -1, 1 << 70])
def test_reserved_permissions(bench: Bench, mask: int):
    assert bench.psp.launch_start() is SUCCESS
    bench.pre_guest(DATA)
    status = bench.psp.launch_update(DATA, PageType.NORMAL, vmpl_permissions=(0, mask, 0))
    assert status is FirmwareStatus.INVALID_PARAM


def test_zero_page(bench: Bench):
    assert bench.psp.launch_start() is SUCCESS
    assert bench.add(DATA, PageType.ZERO, b"left over") is SUCCESS
    assert bench.memory.read(DATA, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_secrets_page(bench: Bench):
    bench.memory.write(SECRETS, b"\xff" * PAGE_SIZE)
    assert bench.psp.launch_start(gosvw=b"workarounds 16 b") is SUCCESS
    assert bench.add(SECRETS, PageType.SECRETS) is SUCCESS
    page = SecretsPage(bench.memory.page(SECRETS))
    assert (page.version, page.imi_en, page.fms) == (3, 0, CPUID_SIGNATURE)
    assert page.gosvw == b"workarounds 16 b"
    assert len({page.vmpck(index) for index in range(4)} | {bytes(32)}) == 5
    assert page.svsm_size == page.svsm_base == page.svsm_caa == page.msg_seqno_0 == 0


def test_secrets_depend_on_the_seed_alone():
    pages = [Bench(seed).launch().tobytes() for seed in (b"a", b"a", b"b")]
    assert pages[0] == pages[1] != pages[2]


def test_cpuid_page_that_claims_too_much_may_be_corrected(bench: Bench):
    page = CpuidPage.build()
    entry = page.function(1)
    page.set_function(1, entry._replace(ecx=0xFFFF_FFFF))
    assert bench.psp.launch_start() is SUCCESS
    before = bench.psp.launch_digest
    assert bench.add(CPUID, PageType.CPUID, page.tobytes()) is FirmwareStatus.INVALID_PARAM
    assert bench.psp.launch_digest == before
    rmp_entry = bench.rmp.lookup(CPUID)
    assert rmp_entry is not None
    assert (rmp_entry.validated, rmp_entry.immutable) == (False, True)
    assert CpuidPage(bench.memory.page(CPUID)).function(1).ecx & 1 << 28 == 0
    assert bench.psp.launch_update(CPUID, PageType.CPUID) is SUCCESS


def test_tsc_of_a_vmsa_is_the_processors():
    digests = []
    for field, khz, scale in ((0, 1_000_000, 1 << 32), (5, 2_500_000, 5 << 31), (7, 0, 0)):
        one = Bench()
        vmsa = Vmsa.reset_state(sev_features=SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC)
        vmsa.guest_tsc_scale = vmsa.guest_tsc_offset = field
        assert one.psp.launch_start(desired_tsc_khz=khz) is SUCCESS
        assert one.add(VMSA, PageType.VMSA, vmsa.tobytes()) is SUCCESS
        launched = Vmsa(one.memory.page(VMSA))
        assert (launched.guest_tsc_scale, launched.guest_tsc_offset) == (scale, 0)
        digests.append(one.psp.launch_digest)
    assert digests[0] == digests[1] == digests[2]


def test_tsc_of_a_vmsa_without_secure_tsc_stays_the_hosts(bench: Bench):
    vmsa = Vmsa.reset_state()
    vmsa.guest_tsc_scale = vmsa.guest_tsc_offset = 5
    assert bench.psp.launch_start(desired_tsc_khz=1_000_000) is SUCCESS
    assert bench.add(VMSA, PageType.VMSA, vmsa.tobytes()) is SUCCESS
    assert bench.memory.read(VMSA, PAGE_SIZE) == vmsa.tobytes()


@pytest.mark.parametrize("vmpck", range(4))
@pytest.mark.parametrize(("khz", "scale"), [(0, 0), (1_000_000, 1 << 32), (2_500_000, 5 << 31)])
def test_tsc_info(bench: Bench, khz: int, scale: int, vmpck: int):
    secrets = bench.launch(desired_tsc_khz=khz)
    payload, status = bench.request(MessageType.TSC_INFO_REQ, bytes(0x80), vmpck)
    assert status is SUCCESS
    assert payload == struct.pack("<IIQQI100x", 0, 0, scale, 0, secrets.tsc_factor)


def test_tsc_info_request_with_reserved_bytes(bench: Bench):
    bench.launch(desired_tsc_khz=1_000_000)
    for at in (0, 0x7F):
        request = bytes(at) + b"\1" + bytes(0x7F - at)
        payload, status = bench.request(MessageType.TSC_INFO_REQ, request)
        assert status is SUCCESS
        assert payload == FirmwareStatus.INVALID_PARAM.to_bytes(0x80, "little")
    # What is behind the structure is nobody's.
    payload, status = bench.request(MessageType.TSC_INFO_REQ, bytes(0x80) + b"\1" * 16)
    assert payload[:4] == bytes(4)


def test_short_tsc_info_request(bench: Bench):
    bench.launch()
    answer = bench.request(MessageType.TSC_INFO_REQ, bytes(0x70))
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)


def test_report(bench: Bench):
    bench.launch()
    response = bench.report(vmpl=2, vmpck=1)
    assert (response.status, response.report_size) == (0, 0x4A0)
    report = AttestationReport.copy_of(response.report)
    assert (report.version, report.vmpl, report.policy) == (3, 2, 0x3_0000)
    assert report.report_data == b"d" * 64
    assert report.measurement == bench.psp.launch_digest
    assert report.host_data == b"h" * 32
    assert (report.cpuid_fam_id, report.cpuid_mod_id, report.cpuid_step) == (0x19, 1, 1)
    assert report.report_id_ma == b"\xff" * 32
    assert any(report.report_id)
    assert any(report.chip_id)
    verify_signature(report.tobytes(), bench.psp.vcek_public_key)
    report.vmpl = 0
    with pytest.raises(InvalidSignature):
        verify_signature(report.tobytes(), bench.psp.vcek_public_key)


def test_reports_repeat_themselves():
    reports = []
    for seed in (b"a", b"a", b"b"):
        bench = Bench(seed)
        bench.launch()
        reports.append(bench.report(0).report)
    assert reports[0] == reports[1]
    assert reports[0][0x2A0:] != reports[2][0x2A0:]


@pytest.mark.parametrize("vmpck", range(4))
@pytest.mark.parametrize("vmpl", [0, 1, 2, 3, 4, 0xFFFF_FFFF])
def test_report_for_a_vmpl(bench: Bench, vmpl: int, vmpck: int):
    bench.launch()
    response = bench.report(vmpl, vmpck)
    if vmpck <= vmpl <= Vmpl.VMPL3:
        assert response.status == SUCCESS
    else:
        assert response.status == FirmwareStatus.INVALID_PARAM
        assert response.report == bytes(0x4A0)


@pytest.mark.parametrize(
    ("key_sel", "status"),
    [
        (KeySelect.VLEK_OR_VCEK, SUCCESS),
        (KeySelect.VCEK, SUCCESS),
        (KeySelect.VLEK, FirmwareStatus.INVALID_KEY),
        (3, FirmwareStatus.INVALID_KEY),
        (4, FirmwareStatus.INVALID_PARAM),
    ],
)
def test_report_key(bench: Bench, key_sel: int, status: FirmwareStatus):
    bench.launch()
    assert bench.report(0, key_sel=key_sel).status == status


def test_report_request_with_reserved_bytes(bench: Bench):
    bench.launch()
    payload, status = bench.request(MessageType.REPORT_REQ, b"\1" * 0x60)
    assert status is SUCCESS
    assert ReportResponse.copy_of(payload).status == FirmwareStatus.INVALID_PARAM


def test_sequence_numbers_of_each_key(bench: Bench):
    bench.launch()
    for _ in range(3):
        bench.report(3, vmpck=0)
    bench.report(3, vmpck=1)
    bench.seqno[0] -= 2
    request = ReportRequest.build(bytes(64), 0).tobytes()
    replay = bench.request(MessageType.REPORT_REQ, request)
    assert replay == (b"", FirmwareStatus.AEAD_OFLOW)
    bench.seqno[0] += 4
    skipped = bench.request(MessageType.REPORT_REQ, request)
    assert skipped == (b"", FirmwareStatus.AEAD_OFLOW)
    bench.seqno[0] -= 2
    assert bench.report(0).status == SUCCESS


@pytest.mark.parametrize(
    "msg_type",
    [0, *(m for m in MessageType if m not in SUPPORTED), 255],
)
def test_unknown_message(bench: Bench, msg_type: int):
    bench.launch()
    answer = bench.request(msg_type, bytes(0x80))
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)
    # It did not count: the sequence number is still to be used.
    assert bench.report(0).status == SUCCESS


@pytest.mark.parametrize("msg_version", [0, 2, 255])
def test_unknown_message_version(bench: Bench, msg_version: int):
    bench.launch()
    request = ReportRequest.build(bytes(64), 0).tobytes()
    answer = bench.request(MessageType.REPORT_REQ, request, msg_version=msg_version)
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)


def test_short_report_request(bench: Bench):
    bench.launch()
    answer = bench.request(MessageType.REPORT_REQ, bytes(0x50))
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)


def test_forged_message(bench: Bench):
    bench.launch()
    page = seal(bytes(32), GuestMessage(MessageType.REPORT_REQ, bytes(0x60), 0, 1))
    assert bench.psp.guest_request(page) == (b"", FirmwareStatus.BAD_MEASUREMENT)


def cpuid_request(*entries: CpuidFunction, count: int | None = None) -> bytes:
    head = (len(entries) if count is None else count).to_bytes(4, "little") + bytes(12)
    return head + b"".join(CPUID_FUNCTION.pack(*entry) for entry in entries)


def test_cpuid_message(bench: Bench):
    bench.launch()
    good = CpuidPage.build().function(1)
    payload, status = bench.request(MessageType.CPUID_REQ, cpuid_request(good))
    assert status is SUCCESS
    assert payload == bytes(4) + b"\1\0\0\0" + bytes(8) + CPUID_FUNCTION.pack(*good)
    bad = good._replace(ecx=0xFFFF_FFFF)
    payload, status = bench.request(MessageType.CPUID_REQ, cpuid_request(bad))
    assert status is SUCCESS
    assert payload[0] == FirmwareStatus.INVALID_PARAM
    assert CPUID_FUNCTION.unpack_from(payload, 16)[6] & 1 << 28 == 0


@pytest.mark.parametrize("count", [2, 65, 0xFFFF_FFFF])
def test_cpuid_message_with_a_count_that_is_not_its_own(bench: Bench, count: int):
    bench.launch()
    request = cpuid_request(CpuidPage.build().function(1), count=count)
    payload, status = bench.request(MessageType.CPUID_REQ, request)
    assert status is SUCCESS
    assert payload == bytes([FirmwareStatus.INVALID_PARAM]) + bytes(len(request) - 1)
