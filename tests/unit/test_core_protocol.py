# SPDX-License-Identifier: MIT
"""Core protocol: every call, its checks in their order, its result codes and its effects."""

from __future__ import annotations

import pytest

from svsmd.core import costs
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmCoreResult, SvsmResult
from svsmd.snp.faults import NestedFault
from svsmd.snp.rmp import Perm, RmpEntry, RmpUpdate
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_MASK, PAGE_SIZE, Gpa, PageSize, Spa
from svsmd.snp.vmsa import Efer, SevFeatures, Vmsa
from tests.core_calls import (
    ADDRESS,
    AP_CAA,
    BUSY,
    CALL,
    CREATE_VCPU,
    DELETE_VCPU,
    FREE,
    HUGE,
    IGNORE_CF,
    INCOMPLETE,
    LIST,
    NEW_CAA,
    NO_CHANGE,
    OK,
    OTHER,
    PARAMETER,
    PVALIDATE,
    REMAP_CA,
    VALIDATE,
    VMSA,
    booted,
    next_index,
)
from tests.fake_vmpl0 import (
    GUEST_CAA,
    GUEST_VMPL,
    RAM_SIZE,
    SVSM_BASE,
    SVSM_SECRETS,
    FakeVmpl0,
)

NON_CANONICAL = 1 << 60


@pytest.fixture
def machine() -> FakeVmpl0:
    return booted()


def entry(machine: FakeVmpl0, gpa: int) -> RmpEntry:
    found = machine.rmp.lookup(gpa)
    assert found is not None
    return found


def pvalidate(machine: FakeVmpl0, *entries: int, gpa: int = LIST) -> int:
    """One call with a list of these entries; returns the result code."""
    machine.write_list(gpa, list(entries))
    return machine.call(PVALIDATE, gpa).rax


class TestRemapCa:
    def test_moves_the_calling_area(self, machine: FakeVmpl0) -> None:
        machine.put(NEW_CAA, b"\xff" * 16)
        assert machine.call(REMAP_CA, NEW_CAA).rax == OK
        assert machine.get(NEW_CAA, 16) == bytes(8) + b"\xff" * 8
        # Calls are taken from the new one, and from there only.
        assert machine.call(PVALIDATE, 1, caa=NEW_CAA).rax == PARAMETER
        assert machine.call(REMAP_CA, GUEST_CAA, caa=GUEST_CAA).rax == REMAP_CA
        assert machine.get(GUEST_CAA, 1) == b"\1"

    def test_same_one_again(self, machine: FakeVmpl0) -> None:
        assert machine.call(REMAP_CA, GUEST_CAA).rax == OK

    def test_back_to_the_first_one(self, machine: FakeVmpl0) -> None:
        assert machine.call(REMAP_CA, NEW_CAA).rax == OK
        assert machine.call(REMAP_CA, GUEST_CAA, caa=NEW_CAA).rax == OK

    @pytest.mark.parametrize(
        ("gpa", "result"),
        [
            (NEW_CAA + 8, PARAMETER),
            (SVSM_BASE, ADDRESS),
            (SVSM_SECRETS, ADDRESS),
            (RAM_SIZE, ADDRESS),
            (NEW_CAA | C_BIT, ADDRESS),
            (NON_CANONICAL, ADDRESS),
            (2**64 - PAGE_SIZE, ADDRESS),
        ],
    )
    def test_refuses(self, machine: FakeVmpl0, gpa: int, result: int) -> None:
        assert machine.call(REMAP_CA, gpa).rax == result

    def test_refuses_vmsa_and_other_calling_area(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.call(REMAP_CA, VMSA).rax == ADDRESS
        assert machine.call(REMAP_CA, AP_CAA).rax == ADDRESS
        assert machine.call(REMAP_CA, machine.vmsas[0, GUEST_VMPL]).rax == ADDRESS

    def test_refuses_page_that_is_not_validated(self, machine: FakeVmpl0) -> None:
        assert pvalidate(machine, NEW_CAA) == OK
        assert machine.call(REMAP_CA, NEW_CAA).rax == ADDRESS


class TestPvalidate:
    def test_rescind_revokes_before_the_page_is_invalid(self, machine: FakeVmpl0) -> None:
        assert pvalidate(machine, FREE | HUGE) == OK
        page = entry(machine, FREE)
        assert not page.validated
        assert page.permissions[1:] == (Perm.NONE,) * 3
        log = [what for what, gpa in machine.ports[0].log if gpa in (FREE, 0)]
        assert log == ["revoke", "revoke", "rescind", "flush"]
        assert next_index(machine) == 1

    def test_rescind_takes_from_lower_vmpls_too(self, machine: FakeVmpl0) -> None:
        rwx_vmpl3 = 0xF03
        machine.rmp.rmpadjust(Spa(FREE), Gpa(FREE), GUEST_VMPL, PageSize.SIZE_2M, rwx_vmpl3)
        assert entry(machine, FREE).permissions[3] == Perm.ALL
        assert pvalidate(machine, FREE | HUGE) == OK

    @pytest.mark.parametrize("size", [0, HUGE])
    def test_validate_zeroes_before_it_grants(self, machine: FakeVmpl0, size: int) -> None:
        assert pvalidate(machine, FREE | size) == OK
        machine.put(FREE, b"left by the host")
        machine.ports[0].log.clear()
        assert pvalidate(machine, FREE | VALIDATE | size) == OK
        assert machine.get(FREE, 16) == bytes(16)
        assert [what for what, gpa in machine.ports[0].log if gpa == FREE] == [
            "validate",
            "zero",
            "grant",
        ]
        page = entry(machine, FREE)
        assert page.validated
        assert page.permissions[GUEST_VMPL] == Perm.ALL

    def test_small_page_of_a_large_entry_makes_the_host_split_it(self, machine: FakeVmpl0) -> None:
        assert pvalidate(machine, FREE + 0x7000) == OK
        assert len(machine.faults) == 1
        assert entry(machine, FREE).page_size is PageSize.SIZE_4K
        assert entry(machine, FREE + 0x6000).validated
        assert not entry(machine, FREE + 0x7000).validated

    def test_large_page_over_small_entries_is_a_size_mismatch(self, machine: FakeVmpl0) -> None:
        machine.rmp.psmash(Spa(FREE))
        assert pvalidate(machine, OTHER, FREE | HUGE) == SvsmCoreResult.FAIL_SIZEMISMATCH
        assert next_index(machine) == 1
        assert pvalidate(machine, *(FREE + i * PAGE_SIZE for i in range(500))) == OK
        # Linux skips the entry that failed, and goes on.
        assert pvalidate(machine, FREE | VALIDATE | HUGE) == SvsmCoreResult.FAIL_SIZEMISMATCH

    @pytest.mark.parametrize("size", [0, HUGE])
    def test_no_change(self, machine: FakeVmpl0, size: int) -> None:
        machine.put(FREE, b"data of the guest")
        if not size:
            machine.rmp.psmash(Spa(FREE))
        assert pvalidate(machine, FREE | VALIDATE | size) == NO_CHANGE
        assert pvalidate(machine, FREE | VALIDATE | IGNORE_CF | size) == OK
        assert machine.get(FREE, 17) == b"data of the guest"
        assert pvalidate(machine, FREE | size) == OK
        assert pvalidate(machine, FREE | size) == NO_CHANGE
        assert next_index(machine) == 0
        assert pvalidate(machine, FREE | IGNORE_CF | size) == OK

    @pytest.mark.parametrize("ignore_cf", [0, IGNORE_CF])
    def test_page_that_the_host_swapped_is_not_validated_again(
        self, machine: FakeVmpl0, ignore_cf: int
    ) -> None:
        machine.rmp.rmpupdate(Spa(FREE), RmpUpdate(True, PageSize.SIZE_2M, False, Gpa(FREE), 1))
        machine.put(FREE, b"somebody's secret")
        result = pvalidate(machine, FREE | VALIDATE | ignore_cf | HUGE)
        assert result == (OK if ignore_cf else NO_CHANGE)
        assert not entry(machine, FREE).validated
        # Rescinding shows it, and only then the page may be validated.
        assert pvalidate(machine, FREE | HUGE) != OK
        assert "validate" not in [what for what, gpa in machine.ports[0].log if gpa == FREE]

    def test_the_svsm_knows_the_answer_without_pvalidate(self, machine: FakeVmpl0) -> None:
        machine.rmp.psmash(Spa(FREE))
        assert pvalidate(machine, FREE) == OK
        machine.ports[0].log.clear()
        assert pvalidate(machine, FREE) == NO_CHANGE
        assert pvalidate(machine, FREE + PAGE_SIZE | VALIDATE) == NO_CHANGE
        # Some of its pages are validated, and some are not.
        assert pvalidate(machine, FREE | HUGE) == SvsmCoreResult.FAIL_SIZEMISMATCH
        assert pvalidate(machine, FREE | HUGE | VALIDATE) == SvsmCoreResult.FAIL_SIZEMISMATCH
        assert {what for what, _gpa in machine.ports[0].log} == {"flush"}

    def test_list_is_locked_as_long_as_the_call_lasts(self, machine: FakeVmpl0) -> None:
        """Or else `next` would be written to what another vCPU has made of the page meanwhile."""
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        page = OTHER + 0x8000
        machine.solve_faults = False
        machine.write_list(page + 0xC8, [FREE + PAGE_SIZE])
        boot = machine.vmsas[0, GUEST_VMPL]
        machine.begin_call(PVALIDATE, page + 0xC8, gpa=boot, caa=GUEST_CAA)
        assert machine.run(0) == "fault"
        machine.write_vmsa(page)
        busy = machine.call(CREATE_VCPU, page, AP_CAA, 1, vcpu=1, caa=AP_CAA, vmsa=VMSA)
        assert busy.rax == BUSY

    def test_list_goes_on_at_next(self, machine: FakeVmpl0) -> None:
        machine.write_list(LIST, [SVSM_BASE, FREE | HUGE], next_index=1)
        assert machine.call(PVALIDATE, LIST).rax == OK
        assert next_index(machine) == 2

    @pytest.mark.parametrize(
        ("bad", "result"),
        [
            (FREE | 2, PARAMETER),
            (FREE | 3, PARAMETER),
            (FREE | 0x10, PARAMETER),
            (FREE | 0x800, PARAMETER),
            (FREE + PAGE_SIZE | HUGE, PARAMETER),
            (SVSM_BASE, ADDRESS),
            (SVSM_BASE | HUGE, ADDRESS),
            (SVSM_BASE | VALIDATE, ADDRESS),
            (SVSM_SECRETS, ADDRESS),
            (GUEST_CAA, ADDRESS),
            (RAM_SIZE, ADDRESS),
            (RAM_SIZE - PAGE_SIZE | VALIDATE, ADDRESS),
            (FREE | C_BIT, ADDRESS),
            (NON_CANONICAL, ADDRESS),
            (2**64 - PAGE_SIZE, ADDRESS),
            (2**64 - HUGE_PAGE_SIZE | HUGE, ADDRESS),
        ],
    )
    def test_refused_entry_and_progress(self, machine: FakeVmpl0, bad: int, result: int) -> None:
        assert pvalidate(machine, FREE | HUGE, bad, OTHER | HUGE) == result
        assert next_index(machine) == 1
        assert not entry(machine, FREE).validated
        assert entry(machine, OTHER).validated

    def test_refuses_vmsas_and_calling_areas(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        for action in (0, VALIDATE, IGNORE_CF | VALIDATE):
            assert pvalidate(machine, VMSA | action) == ADDRESS
            assert pvalidate(machine, AP_CAA | action) == ADDRESS
            assert pvalidate(machine, OTHER | HUGE | action) == ADDRESS
        assert entry(machine, VMSA).vmsa

    @pytest.mark.parametrize(
        ("gpa", "result"),
        [
            (LIST + 4, PARAMETER),
            (SVSM_BASE, ADDRESS),
            (RAM_SIZE + 8, ADDRESS),
            (LIST | C_BIT, ADDRESS),
            (NON_CANONICAL, ADDRESS),
        ],
    )
    def test_refused_list_address(self, machine: FakeVmpl0, gpa: int, result: int) -> None:
        assert machine.call(PVALIDATE, gpa).rax == result

    @pytest.mark.parametrize(
        ("count", "start", "offset"), [(0, 0, 8), (1, 1, 8), (1, 2, 8), (511, 0, 8), (1, 0, 0xFF8)]
    )
    def test_refused_header(self, machine: FakeVmpl0, count: int, start: int, offset: int) -> None:
        header = count.to_bytes(2, "little") + start.to_bytes(2, "little") + bytes(4)
        machine.put(GUEST_CAA + offset, header)
        assert machine.call(PVALIDATE, GUEST_CAA + offset).rax == PARAMETER

    def test_full_page_of_entries(self, machine: FakeVmpl0) -> None:
        entries = [FREE + i * PAGE_SIZE for i in range(510)]
        assert pvalidate(machine, *entries) == OK
        assert next_index(machine) == 510

    def test_list_that_rescinds_its_own_page(self, machine: FakeVmpl0) -> None:
        where = FREE + 0x3000
        assert pvalidate(machine, where, gpa=where) == ADDRESS
        assert not entry(machine, where).validated

    def test_list_in_a_page_that_is_not_validated(self, machine: FakeVmpl0) -> None:
        assert pvalidate(machine, FREE | HUGE) == OK
        assert machine.call(PVALIDATE, FREE).rax == ADDRESS

    def test_list_in_a_vmsa(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.call(PVALIDATE, VMSA).rax == ADDRESS

    def test_long_list_is_incomplete_and_goes_on(
        self, machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(costs, "CALL_BUDGET", 3 * costs.PVALIDATE)
        entries = [FREE + i * PAGE_SIZE for i in range(10)]
        assert pvalidate(machine, *entries) == INCOMPLETE
        calls = 1
        while machine.call(PVALIDATE, LIST).rax == INCOMPLETE:
            calls += 1
        assert 1 < calls < 10
        assert next_index(machine) == 10
        assert not any(entry(machine, gpa).validated for gpa in entries)

    def test_page_that_the_host_took_away_never_answers(self, machine: FakeVmpl0) -> None:
        machine.rmp.rmpupdate(Spa(FREE), RmpUpdate(page_size=PageSize.SIZE_2M))
        machine.write_list(LIST, [FREE | HUGE])
        machine.begin_call(PVALIDATE, LIST, gpa=machine.vmsas[0, GUEST_VMPL], caa=GUEST_CAA)
        assert machine.run(0) == "fault"
        assert machine.run(0) == "fault"
        assert not machine.core.panicked


class TestCreateVcpu:
    def test_makes_a_vmsa_that_the_guest_can_only_read(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        page = entry(machine, VMSA)
        assert page.vmsa
        assert page.permissions[1:] == (Perm.NONE, Perm.READ, Perm.NONE)
        log = [what for what, gpa in machine.ports[0].log if gpa in (VMSA, 0)]
        # A large entry is split on the way: the first RMPADJUST is tried again.
        assert log[: log.index("flush") + 2] == ["revoke"] * 3 + ["flush", "grant"]

    def test_new_vcpu_makes_calls(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        answer = machine.call(
            SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL, 1, vcpu=1, caa=AP_CAA, vmsa=VMSA
        )
        assert (answer.rax, answer.rcx) == (OK, 1 << 32 | 1)

    @pytest.mark.parametrize(
        ("vmsa", "caa", "apic_id", "result"),
        [
            (VMSA + 8, AP_CAA, 1, ADDRESS),
            (VMSA, AP_CAA + 8, 1, ADDRESS),
            (VMSA, VMSA, 1, ADDRESS),
            (SVSM_BASE, AP_CAA, 1, ADDRESS),
            (GUEST_CAA, AP_CAA, 1, ADDRESS),
            (VMSA, SVSM_BASE, 1, ADDRESS),
            (VMSA, GUEST_CAA, 1, ADDRESS),
            (VMSA | C_BIT, AP_CAA, 1, ADDRESS),
            (NON_CANONICAL, AP_CAA, 1, ADDRESS),
            (VMSA, AP_CAA, 2, PARAMETER),
            (VMSA, AP_CAA, 0xFFFF_FFFF, PARAMETER),
        ],
    )
    def test_refuses(
        self, machine: FakeVmpl0, vmsa: int, caa: int, apic_id: int, result: int
    ) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, vmsa, caa, apic_id).rax == result
        assert not entry(machine, VMSA).vmsa

    @pytest.mark.parametrize(
        "changes", [{"vmpl": 0}, {"vmpl": 1}, {"vmpl": 3}, {"efer": 0}, {"sev_features": 0x9}]
    )
    def test_refuses_vmsa_with_other_rights_and_gives_it_back(
        self, machine: FakeVmpl0, changes: dict[str, int]
    ) -> None:
        machine.write_vmsa(VMSA, **changes)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == PARAMETER
        page = entry(machine, VMSA)
        assert not page.vmsa
        assert page.permissions[GUEST_VMPL] == Perm.ALL
        assert pvalidate(machine, VMSA) == OK

    @pytest.mark.parametrize(("features", "result"), [(0x201, OK), (0x001, PARAMETER)])
    def test_secure_tsc_is_for_all_vcpus_or_none(self, features: int, result: int) -> None:
        machine = FakeVmpl0(sev_features=SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC)
        machine.boot()
        machine.write_vmsa(VMSA, sev_features=features, guest_tsc_scale=1 << 32)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == result
        assert machine.vmsa(VMSA).guest_tsc_scale == 1 << 32

    def test_refuses_registered_pages(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == ADDRESS
        machine.write_vmsa(VMSA + 0x3000)
        assert machine.call(CREATE_VCPU, VMSA + 0x3000, AP_CAA, 0).rax == ADDRESS
        assert machine.call(CREATE_VCPU, AP_CAA, NEW_CAA, 1).rax == ADDRESS

    def test_refuses_page_that_is_not_validated(self, machine: FakeVmpl0) -> None:
        assert pvalidate(machine, VMSA) == OK
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == ADDRESS

    def test_second_vmsa_of_a_vcpu_disables_the_first(self, machine: FakeVmpl0) -> None:
        """Linux brings a vCPU up again with a new VMSA and the same calling area."""
        second = VMSA + 0x3000
        machine.write_vmsa(VMSA)
        machine.write_vmsa(second)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.call(CREATE_VCPU, second, AP_CAA, 1).rax == OK
        assert not machine.vmsa(VMSA).efer & Efer.SVME
        assert machine.vmsa(second).efer & Efer.SVME
        assert machine.call(DELETE_VCPU, VMSA).rax == OK
        # The calling area still belongs to the second one.
        assert pvalidate(machine, AP_CAA) == ADDRESS
        assert machine.call(DELETE_VCPU, second).rax == OK
        assert pvalidate(machine, AP_CAA) == OK

    def test_a_vcpu_that_is_about_to_run_is_not_replaced(
        self, machine: FakeVmpl0, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else it would go on to enable the VMSA that the other call has just disabled."""
        machine.write_vmsa(VMSA)
        machine.write_vmsa(OTHER)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.run(1) == "guest"
        port = machine.ports[1]
        write = port.write

        def withheld(gva: int, data: bytes) -> None:
            if gva & PAGE_MASK == Vmsa.efer.offset and data[1] & Efer.SVME >> 8:
                raise NestedFault(VMSA, 0, "the host has taken the page away for a moment")
            write(gva, data)

        monkeypatch.setattr(port, "write", withheld)
        machine.solve_faults = False
        assert machine.run(1) == "fault"
        assert machine.call(CREATE_VCPU, OTHER, NEW_CAA, 1).rax == BUSY
        monkeypatch.undo()
        assert machine.run(1) == "guest"
        assert machine.vmsa(VMSA).efer & Efer.SVME
        assert machine.call(CREATE_VCPU, OTHER, NEW_CAA, 1).rax == OK
        assert not machine.vmsa(VMSA).efer & Efer.SVME
        assert machine.vmsa(OTHER).efer & Efer.SVME


class TestDeleteVcpu:
    def test_gives_the_page_back(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        assert machine.call(DELETE_VCPU, VMSA).rax == OK
        page = entry(machine, VMSA)
        assert not page.vmsa
        assert page.permissions[GUEST_VMPL] == Perm.ALL
        assert not machine.vmsa(VMSA).efer & Efer.SVME
        assert pvalidate(machine, VMSA, AP_CAA) == OK
        assert machine.run(1) == "halt"

    @pytest.mark.parametrize("gpa", [VMSA, VMSA + 8, SVSM_BASE, NON_CANONICAL, GUEST_CAA])
    def test_refuses_what_is_no_vmsa(self, machine: FakeVmpl0, gpa: int) -> None:
        assert machine.call(DELETE_VCPU, gpa).rax == PARAMETER

    def test_refuses_the_boot_vcpu(self, machine: FakeVmpl0) -> None:
        assert machine.call(DELETE_VCPU, machine.vmsas[0, GUEST_VMPL]).rax == PARAMETER

    def test_running_vmsa(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        machine.rmp.set_in_use(Spa(VMSA), True)
        assert machine.call(DELETE_VCPU, VMSA).rax == SvsmCoreResult.FAIL_INUSE
        assert machine.vmsa(VMSA).efer & Efer.SVME
        assert entry(machine, VMSA).vmsa
        machine.rmp.set_in_use(Spa(VMSA), False)
        assert machine.call(DELETE_VCPU, VMSA).rax == OK

    def test_vcpu_deletes_itself(self, machine: FakeVmpl0) -> None:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        state = machine.begin_call(DELETE_VCPU, VMSA, gpa=VMSA, caa=AP_CAA)
        assert machine.run(1) == "halt"
        assert state.rax == DELETE_VCPU
        assert entry(machine, VMSA).permissions[GUEST_VMPL] == Perm.ALL


class TestQueries:
    @pytest.mark.parametrize(
        ("query", "answer"),
        [
            (1, 1 << 32 | 1),
            (0, 0),
            (2, 0),
            (0xFFFF_FFFF, 0),
            (1 << 32 | 1, 0),
            (2**64 - 1, 0),
        ],
    )
    def test_query_protocol(self, machine: FakeVmpl0, query: int, answer: int) -> None:
        state = machine.call(SvsmCoreCall.SVSM_CORE_QUERY_PROTOCOL, query)
        assert (state.rax, state.rcx) == (OK, answer)

    def test_configure_vtom(self, machine: FakeVmpl0) -> None:
        call = SvsmCoreCall.SVSM_CORE_CONFIGURE_VTOM
        state = machine.call(call, 1)
        assert (state.rax, state.rcx) == (OK, 0)
        for rcx in (0, 2, 0x1000, 0x1E):
            assert machine.call(call, rcx).rax == SvsmResult.SVSM_ERR_INVALID_REQUEST
        for rcx in (3, 0x1001, 1 << 63 | 1, 0x20, 0x802):
            assert machine.call(call, rcx).rax == PARAMETER

    @pytest.mark.parametrize("call", [8, 0xFFFF_FFFF])
    def test_calls_that_are_not_served(self, machine: FakeVmpl0, call: int) -> None:
        state = machine.call(call, 0x1234, 0x5678, 0x9ABC)
        assert state.rax == CALL
        assert (state.rcx, state.rdx, state.r8) == (0x1234, 0x5678, 0x9ABC)

    @pytest.mark.parametrize("protocol", [1, 2, 3, 4, 0xFFFF_FFFF])
    def test_protocols_that_are_not_there(self, machine: FakeVmpl0, protocol: int) -> None:
        state = machine.call(protocol << 32)
        assert state.rax == SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL


class TestSuspended:
    """A handler stands in a nested page fault that the host does not solve; others go on."""

    @pytest.fixture
    def suspended(self, machine: FakeVmpl0) -> FakeVmpl0:
        machine.write_vmsa(VMSA)
        assert machine.call(CREATE_VCPU, VMSA, AP_CAA, 1).rax == OK
        machine.solve_faults = False
        machine.write_list(AP_CAA + 8, [FREE])
        machine.begin_call(PVALIDATE, AP_CAA + 8, gpa=VMSA, caa=AP_CAA)
        assert machine.run(1) == "fault"
        return machine

    def test_its_pages_are_busy(self, suspended: FakeVmpl0) -> None:
        assert pvalidate(suspended, FREE | HUGE) == BUSY
        assert suspended.call(REMAP_CA, FREE).rax == BUSY
        assert suspended.call(DELETE_VCPU, VMSA).rax == BUSY
        suspended.write_vmsa(FREE)
        assert suspended.call(CREATE_VCPU, FREE, NEW_CAA, 1).rax == BUSY

    def test_its_guest_cannot_be_run_meanwhile(self, suspended: FakeVmpl0) -> None:
        assert not suspended.vmsa(VMSA).efer & Efer.SVME

    def test_it_goes_on_when_the_host_lets_it(self, suspended: FakeVmpl0) -> None:
        suspended.solve_faults = True
        assert suspended.run(1) == "guest"
        assert suspended.vmsa(VMSA).rax == OK
        assert pvalidate(suspended, FREE) == NO_CHANGE
