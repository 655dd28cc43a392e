# SPDX-License-Identifier: MIT
"""SVSM_CORE_DEPOSIT_MEM and SVSM_CORE_WITHDRAW_MEM: what leaves the guest, and what comes back."""

from __future__ import annotations

import pytest

from svsmd.core import costs
from svsmd.core.calls import Reply, Request
from svsmd.core.gate import Handler
from svsmd.core.memory import OutOfMemory, PageAllocator, PageKind
from svsmd.core.percpu import PerCpu
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmCoreResult
from svsmd.snp.rmp import Perm, RmpUpdate
from svsmd.snp.types import C_BIT, PAGE_SIZE, Gpa, PageSize, Spa
from tests.core_calls import (
    ADDRESS,
    AP_CAA,
    BUSY,
    CREATE_VCPU,
    DEPOSIT_MEM,
    FREE,
    HUGE,
    IGNORE_CF,
    INCOMPLETE,
    LIST,
    NEW_CAA,
    OK,
    OTHER,
    PARAMETER,
    PVALIDATE,
    REMAP_CA,
    VALIDATE,
    VMSA,
    WITHDRAW_MEM,
    booted,
    next_index,
)
from tests.fake_vmpl0 import GUEST_CAA, GUEST_VMPL, MIB, RAM_SIZE, SVSM_BASE, FakeVmpl0


@pytest.fixture
def machine() -> FakeVmpl0:
    return booted()


def allocator(machine: FakeVmpl0) -> PageAllocator:
    assert machine.core.machine is not None
    return machine.core.machine.pages


def deposit(machine: FakeVmpl0, *entries: int, gpa: int = LIST) -> int:
    machine.write_list(gpa, list(entries))
    return machine.call(DEPOSIT_MEM, gpa).rax


def withdraw(machine: FakeVmpl0, gpa: int = LIST) -> list[int]:
    assert machine.call(WITHDRAW_MEM, gpa).rax == OK
    count = int.from_bytes(machine.get(gpa, 2), "little")
    raw = machine.get(gpa + 8, 8 * count)
    return [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]


def available(machine: FakeVmpl0, caa: int = GUEST_CAA) -> int:
    return machine.get(caa + 1, 1)[0]


@pytest.mark.parametrize(("size", "npages"), [(0, 1), (HUGE, 512)])
@pytest.mark.parametrize("split", [False, True])
def test_a_deposit_leaves_the_guest(
    machine: FakeVmpl0, size: int, npages: int, split: bool
) -> None:
    if split:
        machine.rmp.psmash(Spa(FREE))
    machine.put(FREE, b"data of the guest")
    before = allocator(machine).statistics()
    assert deposit(machine, FREE | size) == OK
    assert next_index(machine) == 1
    page = machine.rmp.lookup(FREE)
    assert page is not None
    assert page.validated
    assert page.permissions[1:] == (Perm.NONE,) * 3
    assert machine.get(FREE, 17) != b"data of the guest"
    after = allocator(machine).statistics()
    assert after.deposited == npages
    assert after.withdrawable >= npages - 2, "two pages hold the page information of 2 MiB"
    assert after.total == before.total + npages
    log = [what for what, _gpa in machine.ports[0].log]
    assert log.index("revoke") < log.index("flush") < log.index("zero")
    assert available(machine) == 1


def test_what_was_deposited_comes_back_zero_and_whole(machine: FakeVmpl0) -> None:
    gpas = [FREE + i * PAGE_SIZE for i in (0, 1, 5, 300)]
    for gpa in gpas:
        machine.put(gpa, b"data of the guest")
    assert deposit(machine, *gpas) == OK
    assert sorted(withdraw(machine)) == gpas
    assert available(machine) == 0
    for gpa in gpas:
        assert machine.get(gpa, PAGE_SIZE) == bytes(PAGE_SIZE)
        page = machine.rmp.lookup(gpa)
        assert page is not None
        assert page.permissions[GUEST_VMPL] == Perm.ALL
    assert allocator(machine).statistics().deposited == 0
    assert withdraw(machine) == []
    # They are the guest's like any other.
    assert deposit(machine, *gpas) == OK


def test_the_svsm_uses_deposits_and_keeps_what_it_uses(machine: FakeVmpl0) -> None:
    pages, cpu = allocator(machine), machine.core.cpus[0]
    assert deposit(machine, *(FREE + i * PAGE_SIZE for i in range(3))) == OK
    statistics = pages.statistics()
    count = statistics.free - statistics.promised
    mine = [pages.allocate(cpu, 0, PageKind.PROCESS) for _ in range(count)]
    with pytest.raises(OutOfMemory):
        pages.allocate(cpu, 0, PageKind.PROCESS)
    lent = [gpa for gpa in mine if gpa < SVSM_BASE]
    assert len(lent) == 2, "the third holds their page information"
    assert withdraw(machine) == []
    assert available(machine) == 0
    pages.free(cpu, lent[0])
    assert withdraw(machine) == [lent[0]]
    pages.free(cpu, lent[1])
    assert sorted([lent[0], *withdraw(machine)]) == [FREE + i * PAGE_SIZE for i in range(3)]


def test_other_calls_refuse_deposited_pages(machine: FakeVmpl0) -> None:
    assert deposit(machine, FREE, FREE + PAGE_SIZE) == OK
    for bits in (0, VALIDATE, IGNORE_CF, VALIDATE | IGNORE_CF):
        machine.write_list(LIST, [FREE | bits])
        assert machine.call(PVALIDATE, LIST).rax == ADDRESS
        machine.write_list(LIST, [FREE | HUGE | bits])
        assert machine.call(PVALIDATE, LIST).rax == ADDRESS
    assert machine.call(PVALIDATE, FREE).rax == ADDRESS
    assert machine.call(REMAP_CA, FREE).rax == ADDRESS
    assert machine.call(CREATE_VCPU, FREE, AP_CAA, 1).rax == ADDRESS
    machine.write_vmsa(VMSA)
    assert machine.call(CREATE_VCPU, VMSA, FREE, 1).rax == ADDRESS
    assert machine.call(DEPOSIT_MEM, FREE).rax == ADDRESS
    assert machine.call(WITHDRAW_MEM, FREE).rax == ADDRESS
    assert deposit(machine, FREE) == ADDRESS
    assert deposit(machine, FREE | HUGE) == ADDRESS


@pytest.mark.parametrize(
    ("bad", "result"),
    [
        (FREE | 2, PARAMETER),
        (FREE | 3, PARAMETER),
        (FREE | 4, PARAMETER),
        (FREE | 0x800, PARAMETER),
        (FREE + PAGE_SIZE | HUGE, PARAMETER),
        (SVSM_BASE, ADDRESS),
        (SVSM_BASE | HUGE, ADDRESS),
        (GUEST_CAA, ADDRESS),
        (RAM_SIZE, ADDRESS),
        (FREE | C_BIT, ADDRESS),
        (1 << 60, ADDRESS),
        (2**64 - PAGE_SIZE, ADDRESS),
        (OTHER + PAGE_SIZE, ADDRESS),
    ],
)
def test_refused_entry_and_progress(machine: FakeVmpl0, bad: int, result: int) -> None:
    """The last one is in the list twice."""
    assert deposit(machine, OTHER + PAGE_SIZE, bad, FREE) == result
    assert next_index(machine) == 1
    assert allocator(machine).statistics().deposited == 1


def test_refuses_vmsas_and_calling_areas(machine: FakeVmpl0) -> None:
    machine.write_vmsa(VMSA)
    assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
    assert machine.call(REMAP_CA, NEW_CAA).rax == OK
    for gpa in (VMSA, AP_CAA, NEW_CAA, OTHER | HUGE):
        machine.write_list(NEW_CAA + 8, [gpa])
        assert machine.call(DEPOSIT_MEM, NEW_CAA + 8, caa=NEW_CAA).rax == ADDRESS
    assert allocator(machine).statistics().deposited == 0


def test_refuses_the_page_of_its_own_list(machine: FakeVmpl0) -> None:
    assert deposit(machine, FREE, gpa=FREE) == ADDRESS
    assert deposit(machine, FREE | HUGE, gpa=FREE + 0x5000) == ADDRESS
    assert allocator(machine).statistics().deposited == 0


@pytest.mark.parametrize("size", [0, HUGE])
def test_refuses_what_is_not_validated(machine: FakeVmpl0, size: int) -> None:
    machine.write_list(LIST, [FREE])
    assert machine.call(PVALIDATE, LIST).rax == OK
    assert deposit(machine, FREE | size) == ADDRESS
    machine.write_list(LIST, [FREE | VALIDATE])
    assert machine.call(PVALIDATE, LIST).rax == OK
    assert deposit(machine, FREE | size) == OK


def test_page_that_the_host_swapped_stays_the_guests(machine: FakeVmpl0) -> None:
    machine.rmp.psmash(Spa(FREE))
    swapped = FREE + 7 * PAGE_SIZE
    machine.rmp.rmpupdate(Spa(swapped), RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(swapped), 1))
    assert deposit(machine, swapped) == SvsmCoreResult.FAIL_INPUT
    assert deposit(machine, FREE | HUGE) == SvsmCoreResult.FAIL_INPUT
    assert allocator(machine).statistics().deposited == 0
    for gpa in (FREE, FREE + 6 * PAGE_SIZE, FREE + 8 * PAGE_SIZE):
        page = machine.rmp.lookup(gpa)
        assert page is not None
        assert page.permissions[GUEST_VMPL] == Perm.ALL


@pytest.mark.parametrize("call", [DEPOSIT_MEM, WITHDRAW_MEM])
@pytest.mark.parametrize(
    ("gpa", "result"),
    [
        (LIST + 4, PARAMETER),
        (SVSM_BASE, ADDRESS),
        (RAM_SIZE + 8, ADDRESS),
        (LIST | C_BIT, ADDRESS),
        (1 << 60, ADDRESS),
    ],
)
def test_refused_list_address(machine: FakeVmpl0, call: int, gpa: int, result: int) -> None:
    assert machine.call(call, gpa).rax == result


@pytest.mark.parametrize(
    ("count", "start", "offset"), [(0, 0, 8), (1, 1, 8), (1, 2, 8), (511, 0, 8), (1, 0, 0xFF8)]
)
def test_refused_header(machine: FakeVmpl0, count: int, start: int, offset: int) -> None:
    header = count.to_bytes(2, "little") + start.to_bytes(2, "little") + bytes(4)
    machine.put(GUEST_CAA + offset, header)
    assert machine.call(DEPOSIT_MEM, GUEST_CAA + offset).rax == PARAMETER


def test_withdraw_needs_room_for_one_page(machine: FakeVmpl0) -> None:
    assert machine.call(WITHDRAW_MEM, GUEST_CAA + 0xFF8).rax == PARAMETER
    assert deposit(machine, *(FREE + i * PAGE_SIZE for i in range(4))) == OK
    assert len(withdraw(machine, GUEST_CAA + 0xFE8)) == 2
    assert available(machine) == 1
    assert len(withdraw(machine, GUEST_CAA + 0xFF0)) == 1
    assert len(withdraw(machine)) == 1
    assert available(machine) == 0


def test_long_list_is_incomplete_and_goes_on(
    machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "CALL_BUDGET", 2 * costs.FLUSH_TLB)
    assert deposit(machine, *(FREE + i * PAGE_SIZE for i in range(10))) == INCOMPLETE
    calls = 1
    while machine.call(DEPOSIT_MEM, LIST).rax == INCOMPLETE:
        calls += 1
    assert 1 < calls < 10
    assert next_index(machine) == 10
    assert allocator(machine).statistics().deposited == 10
    back: list[int] = []
    while available(machine):
        part = withdraw(machine)
        assert 0 < len(part) < 10
        back += part
    assert sorted(back) == [FREE + i * PAGE_SIZE for i in range(10)]


def test_two_vcpus_deposit_one_page(machine: FakeVmpl0) -> None:
    machine.write_vmsa(VMSA)
    assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
    machine.solve_faults = False
    machine.write_list(LIST, [FREE + PAGE_SIZE])
    first = machine.begin_call(DEPOSIT_MEM, LIST, gpa=machine.vmsas[0, GUEST_VMPL], caa=GUEST_CAA)
    assert machine.run(0) == "fault"
    machine.write_list(AP_CAA + 8, [FREE + PAGE_SIZE])
    second = machine.call(DEPOSIT_MEM, AP_CAA + 8, vcpu=1, caa=AP_CAA, vmsa=VMSA)
    assert second.rax == BUSY
    machine.solve_faults = True
    machine.rmp.psmash(Spa(FREE))
    assert machine.run(0) == "guest"
    assert first.rax == OK
    again = machine.call(DEPOSIT_MEM, AP_CAA + 8, vcpu=1, caa=AP_CAA, vmsa=VMSA)
    assert again.rax == ADDRESS
    assert available(machine, AP_CAA) == 1
    assert len(withdraw(machine)) == 1
    # The other vCPU hears of it when it comes next.
    assert available(machine, AP_CAA) == 1
    machine.call(SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL, 1, vcpu=1, caa=AP_CAA, vmsa=VMSA)
    assert available(machine, AP_CAA) == 0


def test_withdraw_while_another_vcpu_deposits(machine: FakeVmpl0) -> None:
    """Nothing is lost, and nothing comes back that the other call is not done with."""
    machine.write_vmsa(VMSA)
    assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
    machine.write_list(LIST, [FREE | HUGE])
    first = machine.begin_call(DEPOSIT_MEM, LIST, gpa=machine.vmsas[0, GUEST_VMPL], caa=GUEST_CAA)
    while not allocator(machine).statistics().deposited:
        assert machine.step(0) is None
    second = machine.call(WITHDRAW_MEM, AP_CAA + 8, vcpu=1, caa=AP_CAA, vmsa=VMSA)
    assert (second.rax, machine.get(AP_CAA + 8, 2)) == (OK, bytes(2))
    assert machine.run(0) == "guest"
    assert first.rax == OK
    assert allocator(machine).statistics().deposited == 512
    back: list[int] = []
    while available(machine):
        back += withdraw(machine)
    assert len(back) == 512


def test_new_calling_area_says_the_same(machine: FakeVmpl0) -> None:
    assert deposit(machine, FREE) == OK
    assert machine.call(REMAP_CA, NEW_CAA).rax == OK
    assert available(machine, NEW_CAA) == 1


def test_two_mib_come_back_as_they_went(machine: FakeVmpl0) -> None:
    assert deposit(machine, FREE | HUGE) == OK
    back: list[int] = []
    while available(machine):
        back += withdraw(machine)
    assert sorted(back) == list(range(FREE, FREE + 2 * MIB, PAGE_SIZE))
    machine.write_list(LIST, [FREE, FREE | VALIDATE])
    assert machine.call(PVALIDATE, LIST).rax == OK


def test_calls_that_find_no_memory_say_how_much(
    machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(cpu: PerCpu, request: Request) -> Handler[Reply]:
        yield from ()
        while True:
            allocator(machine).allocate(cpu, 8)

    monkeypatch.setattr(machine.core.protocols[0], "handle", handle)
    assert machine.call(DEPOSIT_MEM).rax == 0x4000_0100
