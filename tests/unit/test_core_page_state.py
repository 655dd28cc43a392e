# SPDX-License-Identifier: MIT
"""Page state protocol: the guest learns which pages are validated, and nothing else."""

from __future__ import annotations

import pytest

from svsmd.core import costs
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.protocols.page_state import REQUEST_LAYOUT, PageStateCall, PageStateProtocol
from svsmd.core.result_codes import SvsmResult
from svsmd.snp.types import C_BIT, PAGE_SIZE
from tests.fake_vmpl0 import GUEST_CAA, GUEST_VMPL, MIB, RAM_SIZE, SVSM_BASE, FakeVmpl0

OK = SvsmResult.SVSM_SUCCESS
INCOMPLETE = SvsmResult.SVSM_ERR_INCOMPLETE
ADDRESS = SvsmResult.SVSM_ERR_INVALID_ADDRESS
PARAMETER = SvsmResult.SVSM_ERR_INVALID_PARAMETER

PROTOCOL = PageStateProtocol.number << 32
BITS, RUNS = PROTOCOL | PageStateCall.BITS, PROTOCOL | PageStateCall.RUNS
REQUEST = GUEST_CAA + 8
BUFFER = 6 * MIB
FREE = 8 * MIB
LAST = RAM_SIZE // PAGE_SIZE


@pytest.fixture
def machine() -> FakeVmpl0:
    """A guest that has shared a few pages."""
    machine = FakeVmpl0()
    machine.boot()
    machine.checks.append(machine.check_security)
    machine.write_list(REQUEST, [FREE + i * PAGE_SIZE for i in (0, 1, 9)])
    assert machine.call(SvsmCoreCall.SVSM_CORE_PVALIDATE, REQUEST).rax == OK
    return machine


def shared() -> set[int]:
    return {(FREE >> 12) + i for i in (0, 1, 9)} | set(range(SVSM_BASE >> 12, LAST))


def write(
    machine: FakeVmpl0,
    first: int,
    pages: int,
    done: int = 0,
    buffer: int = BUFFER,
    size: int = PAGE_SIZE,
    filled: int = 0,
) -> None:
    machine.put(REQUEST, REQUEST_LAYOUT.pack(first, pages, done, buffer, size, filled))


def progress(machine: FakeVmpl0) -> tuple[int, int]:
    fields = REQUEST_LAYOUT.unpack(machine.get(REQUEST, REQUEST_LAYOUT.size))
    return fields[2], fields[5]


def runs(machine: FakeVmpl0, filled: int, buffer: int = BUFFER) -> list[tuple[int, int]]:
    raw = machine.get(buffer, filled)
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
    return list(zip(words[::2], words[1::2], strict=True))


def test_it_is_discovered_by_its_number(machine: FakeVmpl0) -> None:
    query = SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL
    assert machine.call(query, PROTOCOL | 1).rcx == 1 << 32 | 1
    assert machine.call(query, PROTOCOL | 2).rcx == 0
    state = machine.call(PROTOCOL | PageStateCall.QUERY)
    assert (state.rax, state.rcx, state.rdx) == (OK, LAST, 3)
    assert machine.call(PROTOCOL | 3).rax == SvsmResult.SVSM_ERR_UNSUPPORTED_CALL


def test_bits_of_all_pages(machine: FakeVmpl0) -> None:
    write(machine, 0, LAST)
    assert machine.call(BITS, REQUEST).rax == OK
    assert progress(machine) == (LAST, LAST // 8)
    bits = int.from_bytes(machine.get(BUFFER, LAST // 8), "little")
    assert {page for page in range(LAST) if not bits >> page & 1} == shared()


@pytest.mark.parametrize(("first", "pages"), [(FREE >> 12, 10), ((FREE >> 12) + 1, 3), (3, 77)])
def test_bits_of_some_pages(machine: FakeVmpl0, first: int, pages: int) -> None:
    write(machine, first, pages)
    assert machine.call(BITS, REQUEST).rax == OK
    assert progress(machine)[0] == pages
    bits = int.from_bytes(machine.get(BUFFER, PAGE_SIZE), "little")
    assert [bits >> i & 1 for i in range(pages)] == [
        first + i not in shared() for i in range(pages)
    ]
    assert not bits >> pages


def test_runs_of_all_pages(machine: FakeVmpl0) -> None:
    write(machine, 0, 1 << 52)
    assert machine.call(RUNS, REQUEST).rax == OK
    assert progress(machine) == (1 << 52, 48)
    assert runs(machine, 48) == [
        (0, FREE >> 12),
        (FREE + 2 * PAGE_SIZE, 7),
        (FREE + 10 * PAGE_SIZE, (SVSM_BASE - FREE - 10 * PAGE_SIZE) >> 12),
    ]


def test_a_full_buffer_goes_on_with_an_empty_one(machine: FakeVmpl0) -> None:
    got = []
    write(machine, 0, LAST, size=16)
    for _ in range(3):
        assert machine.call(RUNS, REQUEST).rax == OK
        done, filled = progress(machine)
        assert filled == 16
        got += runs(machine, 16)
        write(machine, 0, LAST, done, size=16)
    assert machine.call(RUNS, REQUEST).rax == OK
    assert progress(machine) == (LAST, 0)
    assert [length for _gpa, length in got] == [0x800, 7, 1014]


def test_incomplete_call_goes_on(machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "CALL_BUDGET", 0)
    write(machine, 0, LAST, buffer=BUFFER + PAGE_SIZE - 32, size=LAST // 8)
    calls = 1
    while machine.call(BITS, REQUEST).rax == INCOMPLETE:
        calls += 1
    assert calls == 2
    assert progress(machine) == (LAST, LAST // 8)
    raw = machine.get(BUFFER + PAGE_SIZE - 32, LAST // 8)
    bits = int.from_bytes(raw, "little")
    assert {page for page in range(LAST) if not bits >> page & 1} == shared()


def test_deposited_pages_are_not_the_guests(machine: FakeVmpl0) -> None:
    machine.write_list(REQUEST, [10 * MIB])
    assert machine.call(SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM, REQUEST).rax == OK
    write(machine, 10 * MIB >> 12, 2)
    assert machine.call(RUNS, REQUEST).rax == OK
    assert runs(machine, 16) == [(10 * MIB + PAGE_SIZE, 1)]


@pytest.mark.parametrize("call", [BITS, RUNS])
@pytest.mark.parametrize(
    "fields",
    [
        (0, 0, 0, BUFFER, 64, 0),
        (0, 8, 8, BUFFER, 64, 0),
        (0, 8, 9, BUFFER, 64, 0),
        (1, 1 << 52, 0, BUFFER, 64, 0),
        (2**64 - 1, 1, 0, BUFFER, 64, 0),
        (0, 8, 0, BUFFER + 8, 64, 0),
        (0, 8, 0, BUFFER, 0, 0),
        (0, 8, 0, BUFFER, 8, 0),
        (0, 8, 0, BUFFER, 64, 64),
        (0, 8, 0, BUFFER, 64, 8),
        (0, 8, 0, BUFFER, 2**64 - 16, 0),
    ],
)
def test_requests_that_make_no_sense(
    machine: FakeVmpl0, call: int, fields: tuple[int, ...]
) -> None:
    machine.put(REQUEST, REQUEST_LAYOUT.pack(*fields))
    assert machine.call(call, REQUEST).rax == PARAMETER


@pytest.mark.parametrize("call", [BITS, RUNS])
@pytest.mark.parametrize(
    "buffer", [SVSM_BASE, RAM_SIZE, BUFFER | C_BIT, 1 << 60, 2**64 - 16, FREE, "vmsa", "deposit"]
)
def test_buffers_that_are_not_the_guests(machine: FakeVmpl0, call: int, buffer: int | str) -> None:
    if buffer == "vmsa":
        buffer = machine.vmsas[0, GUEST_VMPL]
    if buffer == "deposit":
        buffer = 10 * MIB
        machine.write_list(REQUEST, [buffer])
        assert machine.call(SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM, REQUEST).rax == OK
    assert isinstance(buffer, int)
    write(machine, 0, LAST, buffer=buffer)
    assert machine.call(call, REQUEST).rax == ADDRESS
    assert progress(machine) == (0, 0)


@pytest.mark.parametrize(
    ("gpa", "result"),
    [
        (REQUEST + 4, PARAMETER),
        (GUEST_CAA + PAGE_SIZE - 40, PARAMETER),
        (SVSM_BASE, ADDRESS),
        (FREE, ADDRESS),
        (1 << 60, ADDRESS),
    ],
)
def test_refused_request_address(machine: FakeVmpl0, gpa: int, result: int) -> None:
    assert machine.call(BITS, gpa).rax == result


def test_it_is_the_same_after_the_guest_has_changed_its_calling_area(machine: FakeVmpl0) -> None:
    """As a kernel does that another one has started."""
    caa = BUFFER + PAGE_SIZE
    assert machine.call(SvsmCoreCall.SVSM_CORE_REMAP_CA, caa).rax == OK
    write(machine, 0, LAST)
    assert machine.call(RUNS, REQUEST, caa=caa).rax == OK
    assert progress(machine) == (LAST, 48)
