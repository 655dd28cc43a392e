# SPDX-License-Identifier: MIT
"""The hypervisor's answers to GHCB events: well-formed ones, and what a hostile guest tries."""

from __future__ import annotations

import logging

import pytest

from svsmd.host.ghcb_exits import KVM_ENOSYS
from svsmd.host.ghcb_msr_exits import HV_FEATURES
from svsmd.host.outcome import Continue, Crashed, PoweredOff, Reset, Terminated
from svsmd.host.page_state_change import UPDATES_AT_ONCE
from svsmd.snp.cpuid_policy import cpuid
from svsmd.snp.ghcb import (
    PSC_MAX_ENTRIES,
    SHARED_BUFFER_OFFSET,
    SHARED_BUFFER_SIZE,
    Ghcb,
    GhcbError,
    GhcbExit,
    GhcbResponse,
    IoioInfo,
    PscDescriptor,
    PscEntry,
    PscError,
    PscOperation,
)
from svsmd.snp.types import C_BIT, PAGE_SHIFT, PAGE_SIZE, PAGES_PER_HUGE_PAGE, PageSize
from svsmd.snp.vmsa import EventInj
from tests.fake_silicon import GHCB_GPA, MEMORY_SIZE, Rig, huge

BUFFER_GPA = GHCB_GPA + SHARED_BUFFER_OFFSET
COM1 = 0x3F8
OK = (GhcbResponse.NO_ACTION, 0)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def malformed(reason: GhcbError) -> tuple[int, int]:
    return GhcbResponse.MALFORMED_INPUT, reason


def ioio(
    port: int, *, size: int = 1, is_in: bool = False, string: bool = False, rep: bool = False
) -> int:
    address_size = 8 if string else 0
    return IoioInfo(port, is_in, string, rep, size, address_size, 0).encode()


# Ports ---------------------------------------------------------------------------------------


def test_out_reaches_the_console(rig: Rig) -> None:
    answers = {rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1), rax=byte) for byte in b"hello"}
    assert answers == {OK}
    assert rig.console == b"hello"


def test_out_uses_only_as_many_bits_as_the_operand_has(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1), rax=0xFFFF_FF00 | ord("x"))
    assert rig.console == b"x"


def test_in_answers_in_rax_and_marks_nothing_else_valid(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1 + 7), rax=0x5A)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1 + 7, is_in=True), rcx=7) == OK
    assert rig.ghcb.rax == 0x5A
    assert rig.ghcb.get(Ghcb.rcx) is None


def test_in_of_nothing_reads_all_ones(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(0x1234, size=4, is_in=True))
    assert rig.ghcb.rax == 0xFFFF_FFFF


def test_string_out_takes_its_bytes_from_the_shared_buffer(rig: Rig) -> None:
    text = b"a string"
    rig.ghcb.shared_buffer = text.ljust(SHARED_BUFFER_SIZE, b"\0")
    info = ioio(COM1, string=True, rep=True)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, info, len(text), sw_scratch=BUFFER_GPA) == OK
    assert rig.console == text


def test_string_in_fills_the_shared_buffer(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1 + 7), rax=0xA5)
    info = ioio(COM1 + 7, is_in=True, string=True, rep=True)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, info, 3, sw_scratch=BUFFER_GPA + 1) == OK
    assert rig.ghcb.shared_buffer[:5] == b"\0\xa5\xa5\xa5\0"


@pytest.mark.parametrize(
    ("scratch", "count"),
    [
        (BUFFER_GPA, SHARED_BUFFER_SIZE + 1),
        (BUFFER_GPA, 0xFFFF_FFFF),
        (BUFFER_GPA - 1, 1),
        (0, 1),
        (huge(3), 1),
        ((1 << 64) - 1, 1),
        (C_BIT | BUFFER_GPA, 1),
    ],
)
def test_a_scratch_area_outside_the_buffer_is_refused(rig: Rig, scratch: int, count: int) -> None:
    info = ioio(COM1, string=True, rep=True)
    answer = rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, info, count, sw_scratch=scratch)
    assert answer == malformed(GhcbError.INVALID_SCRATCH_AREA)
    assert rig.console == b""


def test_an_out_without_rax_misses_an_input(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1)) == malformed(GhcbError.MISSING_INPUT)


def test_an_access_of_two_sizes_is_invalid(rig: Rig) -> None:
    info = ioio(COM1) | ioio(COM1, size=2)
    answer = rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, info, rax=1)
    assert answer == malformed(GhcbError.INVALID_INPUT)


def test_several_elements_need_rep(rig: Rig) -> None:
    answer = rig.ghcb_exit(
        GhcbExit.SVM_EXIT_IOIO, ioio(COM1, string=True), 2, sw_scratch=BUFFER_GPA
    )
    assert answer == malformed(GhcbError.INVALID_INPUT)


# MSRs, CPUID and other instructions ----------------------------------------------------------


def test_msr_write_and_read(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 1, rcx=0x808, rax=0x20, rdx=0) == OK
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 0, rcx=0x808) == OK
    assert (rig.ghcb.rax, rig.ghcb.rdx) == (0x20, 0)


@pytest.mark.parametrize("write", [0, 1])
def test_an_unknown_msr_raises_gp(rig: Rig, write: int) -> None:
    info_1, info_2 = rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, write, rcx=0xDEAD_BEEF, rax=0, rdx=0)
    event = EventInj(info_2)
    assert info_1 == GhcbResponse.ISSUE_EXCEPTION
    assert (event.V, event.TYPE, event.VECTOR, event.EV, event.ERRORCODE) == (1, 3, 13, 1, 0)


def test_an_msr_access_that_neither_reads_nor_writes_is_invalid(rig: Rig) -> None:
    answer = rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 2, rcx=0x10, rax=0, rdx=0)
    assert answer == malformed(GhcbError.INVALID_INPUT)


def test_cpuid_names_the_apic_id() -> None:
    rig = Rig(ncpus=2)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_CPUID, rax=1, rcx=0) == OK
    ghcb = rig.ghcb
    assert (ghcb.rax, ghcb.rbx, ghcb.rcx, ghcb.rdx) == cpuid(1, 0, apic_id=0, ncpus=2)


def test_cpuid_of_the_xsave_leaf_needs_xcr0(rig: Rig) -> None:
    answer = rig.ghcb_exit(GhcbExit.SVM_EXIT_CPUID, rax=0xD, rcx=0)
    assert answer == malformed(GhcbError.MISSING_INPUT)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_CPUID, rax=0xD, rcx=0, xcr0=1) == OK


def test_rdtsc_is_the_clock(rig: Rig) -> None:
    rig.silicon.clock.now = 0x1_2345_6789
    rig.ghcb_exit(GhcbExit.SVM_EXIT_RDTSC)
    assert (rig.ghcb.rdx, rig.ghcb.rax) == (1, 0x2345_678A)
    rig.ghcb_exit(GhcbExit.SVM_EXIT_RDTSCP)
    assert (rig.ghcb.rdx, rig.ghcb.rax, rig.ghcb.rcx) == (1, 0x2345_678B, 0)


def test_dr7_is_kept_with_its_fixed_bit(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_WRITE_DR7, rax=0x55) == OK
    rig.ghcb_exit(GhcbExit.SVM_EXIT_READ_DR7)
    assert rig.ghcb.rax == 0x455


def test_an_unknown_hypercall_says_so(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_VMMCALL, rax=77, cpl=0) == OK
    assert rig.ghcb.rax == KVM_ENOSYS


def test_rdpmc_raises_gp(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_RDPMC, rcx=0)[0] == GhcbResponse.ISSUE_EXCEPTION


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        (GhcbExit.SVM_EXIT_WBINVD, {}),
        (GhcbExit.SVM_EXIT_MONITOR, {"rax": 0, "rcx": 0, "rdx": 0}),
        (GhcbExit.SVM_EXIT_MWAIT, {"rax": 0, "rcx": 0}),
        (GhcbExit.NMI_COMPLETE, {}),
    ],
)
def test_events_without_a_result(rig: Rig, code: GhcbExit, fields: dict[str, int]) -> None:
    assert rig.ghcb_exit(code, **fields) == OK


def test_mwait_and_monitor_need_their_operands(rig: Rig) -> None:
    missing = malformed(GhcbError.MISSING_INPUT)
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_MWAIT, rax=0) == missing
    assert rig.ghcb_exit(GhcbExit.SVM_EXIT_MONITOR, rax=0, rcx=0) == missing


# MMIO ----------------------------------------------------------------------------------------

IOAPIC = 0xFEC0_0000


def mmio(rig: Rig, code: GhcbExit, gpa: int, nbytes: int) -> tuple[int, int]:
    return rig.ghcb_exit(code, gpa, nbytes, sw_scratch=BUFFER_GPA)


def test_mmio_reads_the_version_of_the_ioapic(rig: Rig) -> None:
    rig.ghcb.memory[SHARED_BUFFER_OFFSET] = 1
    assert mmio(rig, GhcbExit.MMIO_WRITE, IOAPIC, 4) == OK
    assert mmio(rig, GhcbExit.MMIO_READ, IOAPIC + 0x10, 4) == OK
    assert rig.ghcb.shared_buffer[:4] == (0x17_0020).to_bytes(4, "little")


def test_mmio_of_nothing_reads_all_ones_at_any_length(rig: Rig) -> None:
    assert mmio(rig, GhcbExit.MMIO_READ, 0xD000_0001, 13) == OK
    assert rig.ghcb.shared_buffer[:14] == b"\xff" * 13 + b"\0"


@pytest.mark.parametrize(
    ("gpa", "nbytes", "reason"),
    [
        (IOAPIC, 0, GhcbError.INVALID_INPUT),
        ((1 << 64) - 4, 4, GhcbError.INVALID_INPUT),
        (IOAPIC, SHARED_BUFFER_SIZE + 1, GhcbError.INVALID_SCRATCH_AREA),
        (IOAPIC, (1 << 64) - 1, GhcbError.INVALID_SCRATCH_AREA),
    ],
)
def test_absurd_mmio_is_refused(rig: Rig, gpa: int, nbytes: int, reason: GhcbError) -> None:
    assert mmio(rig, GhcbExit.MMIO_READ, gpa, nbytes) == malformed(reason)
    assert mmio(rig, GhcbExit.MMIO_WRITE, gpa, nbytes) == malformed(reason)


# Page state changes --------------------------------------------------------------------------


def psc(rig: Rig, *entries: PscEntry) -> tuple[int, int]:
    """Answer of SNP_PSC and, in the list, how far it came."""
    data = PscDescriptor.build(list(entries))
    rig.ghcb.shared_buffer = data.ljust(SHARED_BUFFER_SIZE, b"\0")
    answer = rig.ghcb_exit(GhcbExit.SNP_PSC, sw_scratch=BUFFER_GPA)
    assert answer[0] == GhcbResponse.NO_ACTION
    return answer[1], int.from_bytes(rig.ghcb.shared_buffer[:2], "little")


def entry(gpa: int, operation: PscOperation, size: PageSize = PageSize.SIZE_4K) -> PscEntry:
    return PscEntry(gpa, operation, size)


def test_pages_become_shared_and_private(rig: Rig) -> None:
    rig.silicon.assign(huge(2))
    done = psc(
        rig,
        entry(huge(2), PscOperation.SHARED),
        entry(huge(3), PscOperation.PRIVATE, PageSize.SIZE_2M),
    )
    assert done == (0, 2)
    assert not rig.silicon.rmp.assigned(huge(2) >> PAGE_SHIFT)
    found = rig.silicon.rmp.lookup(huge(3))
    assert found is not None
    assert (found.assigned, found.validated, found.page_size) == (True, False, PageSize.SIZE_2M)


def test_a_part_of_a_huge_page_splits_it_and_leaves_the_rest(rig: Rig) -> None:
    rig.silicon.assign(huge(2), huge=True)
    assert psc(rig, entry(huge(2) + PAGE_SIZE, PscOperation.SHARED)) == (0, 1)
    assert not rig.silicon.rmp.assigned((huge(2) >> PAGE_SHIFT) + 1)
    assert rig.silicon.validated(huge(2))
    assert rig.silicon.validated(huge(2) + 2 * PAGE_SIZE)


def test_a_huge_entry_over_split_pages_changes_each(rig: Rig) -> None:
    rig.silicon.assign(huge(2) + PAGE_SIZE)
    assert psc(rig, entry(huge(2), PscOperation.PRIVATE, PageSize.SIZE_2M)) == (0, 1)
    assert rig.silicon.rmp.assigned((huge(2) >> PAGE_SHIFT) + 511)
    assert rig.silicon.validated(huge(2) + PAGE_SIZE), "it was private: nothing to change"
    assert psc(rig, entry(huge(2), PscOperation.SHARED, PageSize.SIZE_2M)) == (0, 1)
    assert rig.silicon.rmp.hypervisor_owned(huge(2), PageSize.SIZE_2M)


def test_a_long_list_is_done_in_several_requests(rig: Rig) -> None:
    pages = range(2, 8)
    for number in pages:
        rig.silicon.assign(huge(number))  # 4 KiB entries: each page is changed by itself
    entries = [entry(huge(n), PscOperation.SHARED, PageSize.SIZE_2M) for n in pages]
    data = PscDescriptor.build(entries)
    rig.ghcb.shared_buffer = data.ljust(SHARED_BUFFER_SIZE, b"\0")
    progress: list[int] = []
    while not progress or progress[-1] < len(pages):
        assert rig.ghcb_exit(GhcbExit.SNP_PSC, sw_scratch=BUFFER_GPA) == (0, 0)
        progress.append(int.from_bytes(rig.ghcb.shared_buffer[:2], "little"))
        done = pages[: progress[-1]]
        assert [n for n in pages if not rig.silicon.rmp.assigned(huge(n) >> PAGE_SHIFT)] == [*done]
    assert progress == [2, 4, 6]
    assert UPDATES_AT_ONCE == 2 * PAGES_PER_HUGE_PAGE


def test_private_pages_stay_validated_if_they_are_asked_for_again(rig: Rig) -> None:
    rig.silicon.assign(huge(2), huge=True)
    assert psc(
        rig,
        entry(huge(2), PscOperation.PRIVATE, PageSize.SIZE_2M),
        entry(huge(2) + PAGE_SIZE, PscOperation.PRIVATE),
    ) == (0, 2)
    assert rig.silicon.validated(huge(2) + PAGE_SIZE)


def test_psmash_and_unsmash_are_done(rig: Rig) -> None:
    rig.silicon.assign(huge(2), huge=True)
    smash = entry(huge(2), PscOperation.PSMASH, PageSize.SIZE_2M)
    unsmash = entry(huge(2), PscOperation.UNSMASH, PageSize.SIZE_2M)
    assert psc(rig, smash, smash, unsmash) == (0, 3)
    found = rig.silicon.rmp.lookup(huge(2))
    assert found is not None
    assert found.page_size is PageSize.SIZE_4K


def test_an_error_names_its_entry_and_leaves_those_behind_it(rig: Rig) -> None:
    error, current = psc(
        rig,
        entry(huge(2), PscOperation.PRIVATE),
        entry(MEMORY_SIZE, PscOperation.PRIVATE),
        entry(huge(3), PscOperation.PRIVATE),
    )
    assert (error, current) == (PscError.INVALID_ENTRY, 1)
    assert rig.silicon.rmp.assigned(huge(2) >> PAGE_SHIFT)
    assert not rig.silicon.rmp.assigned(huge(3) >> PAGE_SHIFT)


def test_a_page_in_use_is_a_general_error(rig: Rig) -> None:
    rig.silicon.assign(huge(2))
    rig.silicon.rmp.set_in_use(rig.silicon.memory.spa_of(huge(2)), True)
    assert psc(rig, entry(huge(2), PscOperation.SHARED)) == (PscError.GENERIC, 0)


@pytest.mark.parametrize("size", PageSize)
def test_the_ghcb_cannot_become_private_under_its_own_request(rig: Rig, size: PageSize) -> None:
    gpa = GHCB_GPA & ~(size.nbytes - 1)
    assert psc(rig, entry(gpa, PscOperation.PRIVATE, size)) == (PscError.GENERIC, 0)
    assert not rig.silicon.rmp.assigned(GHCB_GPA >> PAGE_SHIFT)


def test_more_entries_than_fit_are_an_invalid_header(rig: Rig) -> None:
    header = b"\0\0" + PSC_MAX_ENTRIES.to_bytes(2, "little")
    rig.ghcb.shared_buffer = header.ljust(SHARED_BUFFER_SIZE, b"\0")
    answer = rig.ghcb_exit(GhcbExit.SNP_PSC, sw_scratch=BUFFER_GPA)
    assert answer == (0, PscError.INVALID_HEADER)


# VMPLs, features, the end --------------------------------------------------------------------


def test_run_vmpl_switches_and_answers(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.SNP_RUN_VMPL, 0) == OK
    assert rig.world.vmpl == 0


@pytest.mark.parametrize("vmpl", [1, 3, 4, (1 << 64) - 1])
def test_run_vmpl_without_a_vmsa_is_refused(rig: Rig, vmpl: int) -> None:
    assert rig.ghcb_exit(GhcbExit.SNP_RUN_VMPL, vmpl) == malformed(GhcbError.INVALID_INPUT)
    assert rig.world.vmpl == 2


def test_features(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.HV_FEATURES) == (0, HV_FEATURES)


def test_the_jump_table_is_remembered(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.AP_JUMP_TABLE, 0, 0x9000) == OK
    assert rig.ghcb_exit(GhcbExit.AP_JUMP_TABLE, 1) == (0, 0x9000)
    invalid = malformed(GhcbError.INVALID_INPUT)
    assert rig.ghcb_exit(GhcbExit.AP_JUMP_TABLE, 0, 0x9001) == invalid
    assert rig.ghcb_exit(GhcbExit.AP_JUMP_TABLE, 2) == invalid


@pytest.mark.parametrize(
    "code",
    [
        0,
        GhcbExit.SVM_EXIT_INVD,
        GhcbExit.HV_DOORBELL_PAGE,
        GhcbExit.HV_IPI,
        GhcbExit.HV_TIMER,
        GhcbExit.APIC_ID_LIST,
        GhcbExit.SECURE_AVIC,
        GhcbExit.CONFIGURE_INTERRUPT_INJECTION,
        GhcbExit.DISABLE_ALTERNATE_INJECTION,
        GhcbExit.SPECIFIC_EOI,
        0x8000_1234,
        (1 << 64) - 1,
    ],
)
def test_events_that_are_not_offered(rig: Rig, code: int) -> None:
    assert rig.ghcb_exit(code) == malformed(GhcbError.INVALID_EVENT)


def test_terminate_without_a_version(rig: Rig) -> None:
    """Linux' decompressor gives up so, when it meets an SEV feature that it does not know."""
    rig.register_ghcb()
    rig.ghcb.set_request(GhcbExit.TERMINATE, 0x20, 1 << 11)
    rig.ghcb.protocol_version = 0
    rig.msr_exit(GHCB_GPA)
    assert rig.hypervisor.step(1 << 40) == Terminated(0, 2, vcpu=0, vmpl=2)


def test_terminate(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.TERMINATE, 0x231)
    assert rig.hypervisor.step(1 << 40) == Terminated(1, 0x23, vcpu=0, vmpl=2)


def test_a_guest_that_gives_up_is_a_crash(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.UNSUPPORTED, 0x76, 3)
    outcome = rig.hypervisor.step(1 << 40)
    assert isinstance(outcome, Crashed)
    assert "0x76" in outcome.text


def test_power_off_and_reset() -> None:
    rig = Rig()
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(0x604, size=2), rax=0x2000)
    assert rig.hypervisor.step(1 << 40) == PoweredOff()
    rig = Rig()
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(0x64), rax=0xFE)
    assert rig.hypervisor.step(1 << 40) == Reset()


def test_debug_port(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(0x402), rax=ord("d"))
    assert rig.debug == b"d"
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(0x402, is_in=True))
    assert rig.ghcb.rax == 0xE9


# The page itself -----------------------------------------------------------------------------


def test_a_page_that_is_not_registered_is_refused(rig: Rig) -> None:
    rig.register_ghcb(GHCB_GPA + PAGE_SIZE)
    assert rig.ghcb_exit(GhcbExit.HV_FEATURES) == malformed(GhcbError.NOT_REGISTERED)


def test_registration_is_a_vmpls_own(rig: Rig) -> None:
    rig.register_ghcb()
    rig.vcpu.run_vmpl(0)
    rig.ghcb.set_request(GhcbExit.HV_FEATURES)
    rig.msr_exit(GHCB_GPA)
    assert (rig.ghcb.sw_exit_info_1, rig.ghcb.sw_exit_info_2) == malformed(GhcbError.NOT_REGISTERED)


@pytest.mark.parametrize("gpa", [MEMORY_SIZE, 0xFEE0_0000, C_BIT, (1 << 64) - PAGE_SIZE])
def test_a_page_that_is_no_ram_ends_the_guest(rig: Rig, gpa: int) -> None:
    rig.msr_exit(gpa)
    assert isinstance(rig.hypervisor.step(1 << 40), Crashed)


def test_a_page_that_became_private_ends_the_guest(rig: Rig) -> None:
    assert rig.ghcb_exit(GhcbExit.HV_FEATURES)[0] == GhcbResponse.NO_ACTION
    rig.silicon.assign(GHCB_GPA)
    before = bytes(rig.ghcb.memory)
    rig.msr_exit(GHCB_GPA)
    assert isinstance(rig.hypervisor.step(1 << 40), Crashed)
    assert bytes(rig.ghcb.memory) == before, "the host wrote to a private page"


def test_another_usage_of_the_page_is_refused(rig: Rig) -> None:
    rig.register_ghcb()
    rig.ghcb.set_request(GhcbExit.HV_FEATURES)
    rig.ghcb.ghcb_usage = 1
    rig.msr_exit(GHCB_GPA)
    assert rig.ghcb.sw_exit_info_2 == GhcbError.INVALID_USAGE


@pytest.mark.parametrize("field", [Ghcb.sw_exit_code, Ghcb.sw_exit_info_1, Ghcb.sw_exit_info_2])
def test_the_event_itself_has_to_be_marked_valid(rig: Rig, field: object) -> None:
    rig.register_ghcb()
    rig.ghcb.set_request(GhcbExit.HV_FEATURES)
    offset = field.offset  # type: ignore[attr-defined]
    rig.ghcb.memory[0x3F0 + (offset >> 6)] &= ~(1 << (offset >> 3 & 7))
    rig.msr_exit(GHCB_GPA)
    assert rig.ghcb.sw_exit_info_2 == GhcbError.MISSING_INPUT


def test_malformed_requests_are_explained_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "svsmd.host"):
        rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1))
    assert "rax" in caplog.text


def test_the_machine_goes_on_after_a_malformed_request(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.SVM_EXIT_IOIO, ioio(COM1))
    assert rig.hypervisor.step(rig.silicon.clock.now + 10) == Continue()
