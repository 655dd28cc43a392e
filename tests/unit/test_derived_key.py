# SPDX-License-Identifier: MIT
"""MSG_KEY_REQ: who gets which key, and what makes a key another one."""

from __future__ import annotations

import pytest

from svsmd.snp.derived_key import GuestField, KeyRequest, KeyResponse
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.firmware_version import TCB_VERSION
from svsmd.snp.guest_context import DEFAULT_POLICY
from svsmd.snp.guest_message import MessageType
from tests.psp_bench import SUCCESS, Bench

VMRK = 1
ALL_FIELDS = 0x3F


def launched(
    seed: bytes = b"test",
    *,
    policy: int = DEFAULT_POLICY,
    contents: bytes = b"",
    host_data: bytes = b"h" * 32,
) -> Bench:
    bench = Bench(seed)
    bench.launch(policy=policy, contents=contents, host_data=host_data)
    return bench


@pytest.fixture
def bench() -> Bench:
    return launched()


def ask(bench: Bench, vmpck: int = 0, **fields: int) -> KeyResponse:
    request = KeyRequest()
    for name, value in fields.items():
        setattr(request, name, value)
    payload, status = bench.request(MessageType.KEY_REQ, request.tobytes(), vmpck)
    assert status is SUCCESS
    assert len(payload) == 0x40
    return KeyResponse.copy_of(payload)


def key(bench: Bench, vmpck: int = 0, **fields: int) -> bytes:
    response = ask(bench, vmpck, **fields)
    assert response.status == SUCCESS
    assert any(response.derived_key)
    return response.derived_key


def test_layouts():
    assert KeyRequest.FIELDS == {
        "root_select": (0x00, 4),
        "reserved": (0x04, 4),
        "guest_field_select": (0x08, 8),
        "vmpl": (0x10, 4),
        "guest_svn": (0x14, 4),
        "tcb_version": (0x18, 8),
    }
    assert KeyRequest.SIZE == 0x20
    assert KeyResponse.FIELDS == {"status": (0x00, 4), "derived_key": (0x20, 32)}
    assert KeyResponse.SIZE == 0x40
    assert [field.value for field in GuestField] == [1, 2, 4, 8, 0x10, 0x20]


@pytest.mark.parametrize("root", [0, VMRK])
@pytest.mark.parametrize("fields", [0, ALL_FIELDS])
def test_the_same_request_gives_the_same_key(bench: Bench, root: int, fields: int):
    first = key(bench, root_select=root, guest_field_select=fields, vmpl=3)
    assert key(bench, root_select=root, guest_field_select=fields, vmpl=3) == first
    assert key(launched(), root_select=root, guest_field_select=fields, vmpl=3) == first
    # Who asks does not matter, only for whom.
    assert key(bench, 2, root_select=root, guest_field_select=fields, vmpl=3) == first


def test_every_difference_in_what_is_mixed_gives_another_key(bench: Bench):
    older = int(TCB_VERSION.replace(BOOT_LOADER=TCB_VERSION.BOOT_LOADER - 1))
    requests: list[dict[str, int]] = [{}]
    requests += [{"vmpl": vmpl} for vmpl in (1, 2, 3)]
    requests += [{"guest_field_select": field} for field in GuestField if field != 0x20]
    requests += [{"guest_field_select": ALL_FIELDS, "tcb_version": tcb} for tcb in (0, older)]
    requests += [{"guest_field_select": 0x20, "tcb_version": tcb} for tcb in (0, older)]
    requests += [{"guest_field_select": 0x20, "tcb_version": TCB_VERSION}]
    requests += [request | {"root_select": VMRK} for request in requests]
    keys = {key(bench, **request) for request in requests}
    assert len(keys) == len(requests)


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (launched(contents=b"another guest"), GuestField.MEASUREMENT),
        (launched(policy=DEFAULT_POLICY.replace(DEBUG=1)), GuestField.GUEST_POLICY),
    ],
    ids=["measurement", "policy"],
)
def test_what_was_not_selected_does_not_count(bench: Bench, other: Bench, field: int):
    assert key(other) == key(bench)
    assert key(other, guest_field_select=ALL_FIELDS & ~field) == key(
        bench, guest_field_select=ALL_FIELDS & ~field
    )
    assert key(other, guest_field_select=field) != key(bench, guest_field_select=field)


def test_a_tcb_that_was_not_selected_does_not_count(bench: Bench):
    assert key(bench, tcb_version=TCB_VERSION) == key(bench, tcb_version=0)


def test_host_data_always_counts(bench: Bench):
    other = launched(host_data=b"i" * 32)
    for root in (0, VMRK):
        assert key(other, root_select=root) != key(bench, root_select=root)


def test_another_chip_has_other_keys(bench: Bench):
    other = launched(b"other")
    for root in (0, VMRK):
        assert key(other, root_select=root) != key(bench, root_select=root)


def test_vcek_by_either_selection(bench: Bench):
    vcek = 1 << 1
    assert key(bench, root_select=vcek) == key(bench)


@pytest.mark.parametrize("vmpck", range(4))
@pytest.mark.parametrize("vmpl", [0, 1, 2, 3, 4, 0xFFFF_FFFF])
def test_a_key_for_a_vmpl(bench: Bench, vmpl: int, vmpck: int):
    response = ask(bench, vmpck, vmpl=vmpl)
    if vmpck <= vmpl <= 3:
        assert response.status == SUCCESS
    else:
        assert response.status == FirmwareStatus.INVALID_PARAM
        assert response.derived_key == bytes(32)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"root_select": 2 << 1}, FirmwareStatus.INVALID_KEY),
        ({"root_select": 3 << 1}, FirmwareStatus.INVALID_KEY),
        ({"root_select": VMRK | 3 << 1}, SUCCESS),
        ({"root_select": 1 << 3}, FirmwareStatus.INVALID_PARAM),
        ({"root_select": 1 << 31}, FirmwareStatus.INVALID_PARAM),
        ({"reserved": 1}, FirmwareStatus.INVALID_PARAM),
        ({"guest_field_select": 1 << 6}, FirmwareStatus.INVALID_PARAM),
        ({"guest_field_select": 1 << 63}, FirmwareStatus.INVALID_PARAM),
        ({"guest_svn": 1}, FirmwareStatus.INVALID_PARAM),
        ({"tcb_version": TCB_VERSION}, SUCCESS),
        ({"tcb_version": TCB_VERSION + 1}, FirmwareStatus.INVALID_PARAM),
        # Less as a number, but its boot loader is newer.
        ({"tcb_version": 0xFF}, FirmwareStatus.INVALID_PARAM),
        ({"tcb_version": 1 << 16}, FirmwareStatus.INVALID_PARAM),
        ({"tcb_version": 1 << 63}, FirmwareStatus.INVALID_PARAM),
    ],
)
def test_status(bench: Bench, fields: dict[str, int], status: FirmwareStatus):
    response = ask(bench, **fields)
    assert response.status == status
    assert any(response.derived_key) == (status is SUCCESS)


def test_short_key_request(bench: Bench):
    answer = bench.request(MessageType.KEY_REQ, bytes(0x10))
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)


def test_version_2_with_mitigation_vectors_is_not_known(bench: Bench):
    answer = bench.request(MessageType.KEY_REQ, bytes(0x30), msg_version=2)
    assert answer == (b"", FirmwareStatus.INVALID_PARAM)
