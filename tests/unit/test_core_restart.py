# SPDX-License-Identifier: MIT
"""A restart of the guest: what it finds, and what a host cannot do with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from svsmd.core.hypervisor import SVSM_REASON_SET, SvsmReason
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.restart import PAYLOAD_FILE, RESTART_FILE
from svsmd.snp import ghcb_msr
from svsmd.snp.rmp import GUEST_ASID, Perm, RmpAttributes, RmpReturn, RmpUpdate
from svsmd.snp.secrets_page import SecretsPage
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmsa import Efer
from tests.fake_vmpl0 import (
    ENTRY,
    GUEST_CAA,
    GUEST_SECRETS,
    GUEST_VMPL,
    KERNEL,
    KERNEL_DATA,
    KEYS,
    LOW_DATA,
    MIB,
    SVSM_BASE,
    SVSM_SECRETS,
    FakeVmpl0,
)

RUN_GUEST = ghcb_msr.RunVmpl(GUEST_VMPL).encode()
VMSA, CAA = 8 * MIB + 3 * PAGE_SIZE, 8 * MIB + 4 * PAGE_SIZE
SHARED = 10 * MIB + 5 * PAGE_SIZE
PAYLOAD = {PAYLOAD_FILE.format(0): LOW_DATA, PAYLOAD_FILE.format(1): KERNEL_DATA}


def offer(count: int = 1, **changes: bytes | None) -> dict[str, bytes]:
    """An honest host's files, with changes by the last part of the name."""
    files = {RESTART_FILE: count.to_bytes(4, "little"), **PAYLOAD}
    for end, data in changes.items():
        name = next(name for name in files if name.endswith(end.lstrip("_")))
        if data is None:
            del files[name]
        else:
            files[name] = data
    return files


@pytest.fixture
def machine() -> FakeVmpl0:
    """A guest that has run: it has shared a page, made a vCPU, and left its data everywhere."""
    machine = FakeVmpl0()
    machine.boot()
    for gpa in (KERNEL, 6 * MIB, 8 * MIB, CAA + PAGE_SIZE):
        machine.put(gpa, b"data of the first guest")
    secrets = SecretsPage(machine.pages[GUEST_SECRETS >> PAGE_SHIFT])
    secrets.msg_seqno_2, secrets.ap_jump_table_pa = 42, 0x1234000
    machine.write_list(GUEST_CAA + 8, [SHARED])
    assert machine.call(SvsmCoreCall.SVSM_CORE_PVALIDATE, GUEST_CAA + 8).rax == 0
    assert machine.rmp.rmpupdate(Spa(SHARED), RmpUpdate()) is RmpReturn.SUCCESS
    machine.put(SHARED, b"ring buffer")
    machine.write_vmsa(VMSA)
    assert machine.call(SvsmCoreCall.SVSM_CORE_CREATE_VCPU, VMSA, CAA, 1).rax == 0
    attributes = Perm.ALL << RmpAttributes.PERM_SHIFT | Vmpl.VMPL3
    for gpa, size in ((6 * MIB, PageSize.SIZE_2M), (8 * MIB, PageSize.SIZE_4K)):
        machine.rmp.rmpadjust(Spa(gpa), Gpa(gpa), GUEST_VMPL, size, attributes)
    return machine


def give_back(machine: FakeVmpl0) -> None:
    """What the host does with what the guest has shared."""
    state = RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(SHARED), GUEST_ASID)
    assert machine.rmp.rmpupdate(Spa(SHARED), state) is RmpReturn.SUCCESS


def reset(machine: FakeVmpl0, files: dict[str, bytes], between: Callable[[], None]) -> str:
    """The host does not run the guest any more, and offers files; what the boot CPU does then."""
    machine.offer(files)
    refusals = 1

    def answer(request: int) -> int | None:
        nonlocal refusals
        if request == RUN_GUEST and refusals:
            refusals -= 1
            between()
            return ghcb_msr.run_vmpl_response(1)
        return None

    machine.answer = answer
    assert machine.run(0) == "guest"
    return machine.run(0)


def test_the_guest_finds_what_it_found_at_launch(machine: FakeVmpl0) -> None:
    machine.checks.append(machine.check_security)
    vmsa = machine.vmsas[0, GUEST_VMPL]
    machine.vmsa(vmsa).rip = 0x1234
    assert reset(machine, offer(), lambda: give_back(machine)) == "guest"

    assert machine.get(KERNEL, len(KERNEL_DATA)) == KERNEL_DATA
    for gpa in (6 * MIB, 8 * MIB, SHARED, VMSA, CAA, CAA + PAGE_SIZE):
        assert machine.get(gpa, PAGE_SIZE) == bytes(PAGE_SIZE), hex(gpa)
    for gpa in range(0, SVSM_BASE, PAGE_SIZE):
        entry = machine.rmp.lookup(gpa)
        assert entry is not None
        assert entry.validated
        assert not entry.vmsa
        assert entry.permissions == (Perm.ALL, Perm.NONE, Perm.ALL, Perm.NONE), hex(gpa)
    secrets = SecretsPage.copy_of(machine.get(GUEST_SECRETS, PAGE_SIZE))
    assert secrets.vmpck(2) == KEYS[64:96]
    assert secrets.vmpck(0) == bytes(32)
    # A key must not be used twice with one number; the rest of the guest's notes is gone.
    assert (secrets.msg_seqno_2, secrets.ap_jump_table_pa) == (42, 0)
    assert machine.vmsas[0, GUEST_VMPL] == vmsa
    state = machine.vmsa(vmsa)
    assert (state.rip, state.rsi, state.cr3) == (ENTRY.rip, ENTRY.rsi, ENTRY.cr3)
    assert state.efer & Efer.SVME
    assert machine.core.log.lines[-1] == f"guest starts at {ENTRY.rip:#x}"


def test_the_guest_is_served_as_before(machine: FakeVmpl0) -> None:
    assert reset(machine, offer(), lambda: give_back(machine)) == "guest"
    # The other vCPU's loop has no guest, until there is one again.
    assert machine.run(1) == "halt"
    machine.write_vmsa(VMSA)
    assert machine.call(SvsmCoreCall.SVSM_CORE_CREATE_VCPU, VMSA, CAA, 1).rax == 0
    machine.write_list(GUEST_CAA + 8, [SHARED])
    assert machine.call(SvsmCoreCall.SVSM_CORE_PVALIDATE, GUEST_CAA + 8).rax == 0


def test_deposits_are_the_guests_again(machine: FakeVmpl0) -> None:
    machine.checks.append(machine.check_security)
    machine.write_list(GUEST_CAA + 8, [4 * MIB | 1, 6 * MIB | 1])
    assert machine.call(SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM, GUEST_CAA + 8).rax == 0
    assert reset(machine, offer(), lambda: give_back(machine)) == "guest"
    for gpa in range(4 * MIB, 8 * MIB, PAGE_SIZE):
        entry = machine.rmp.lookup(gpa)
        assert entry is not None
        assert entry.permissions == (Perm.ALL, Perm.NONE, Perm.ALL, Perm.NONE), hex(gpa)
        assert machine.get(gpa, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert machine.core.machine is not None
    assert machine.core.machine.pages.statistics().deposited == 0
    assert machine.get(GUEST_CAA + 1, 1) == bytes(1)


def test_no_restart_while_the_svsm_uses_deposits(machine: FakeVmpl0) -> None:
    machine.write_list(GUEST_CAA + 8, [4 * MIB | 1])
    assert machine.call(SvsmCoreCall.SVSM_CORE_DEPOSIT_MEM, GUEST_CAA + 8).rax == 0
    assert machine.core.machine is not None
    pages, cpu = machine.core.machine.pages, machine.core.cpus[0]
    mine = [pages.allocate(cpu)]
    while mine[-1] >= SVSM_BASE:
        mine.append(pages.allocate(cpu))
    used = mine.pop()
    for gpa in mine:
        pages.free(cpu, gpa)
    assert reset(machine, offer(), lambda: give_back(machine)) == "halt"
    assert not machine.core.panicked
    assert machine.core.log.lines[-1] == "no restart: 2 pages of the guest's deposits are in use"
    assert pages.kind_of(cpu, used) != 0


def test_restarts_can_be_repeated(machine: FakeVmpl0) -> None:
    assert reset(machine, offer(1), lambda: give_back(machine)) == "guest"
    machine.put(6 * MIB, b"data of the second guest")
    assert reset(machine, offer(2), lambda: None) == "guest"
    assert machine.get(6 * MIB, 32) == bytes(32)


def test_an_offer_counts_once(machine: FakeVmpl0) -> None:
    assert reset(machine, offer(1), lambda: give_back(machine)) == "guest"
    machine.put(6 * MIB, b"data of the second guest")
    assert reset(machine, offer(1), lambda: None) == "halt"
    assert machine.get(6 * MIB, 4) == b"data"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"etc/e820": b"x"},
        offer(_restart=None),
        offer(_restart=b"\1"),
        {f"many/{n}": b"" for n in range(1025)},
    ],
)
def test_without_an_offer_the_svsm_waits(machine: FakeVmpl0, files: dict[str, bytes]) -> None:
    assert reset(machine, files, lambda: give_back(machine)) == "halt"
    assert not machine.core.panicked
    assert any(line.startswith("no restart") for line in machine.core.log.lines)


@pytest.mark.parametrize(
    "files",
    [
        offer(_1=KERNEL_DATA[:-1] + b"x"),
        offer(_1=KERNEL_DATA + bytes(PAGE_SIZE)),
        offer(_1=KERNEL_DATA[:-PAGE_SIZE]),
        offer(_1=None),
        offer(_0=b"x" + LOW_DATA[1:]),
    ],
)
def test_another_payload_ends_the_machine(machine: FakeVmpl0, files: dict[str, bytes]) -> None:
    assert reset(machine, files, lambda: give_back(machine)) == "end"
    assert machine.terminated == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.PAYLOAD)
    assert machine.get(SVSM_SECRETS + 0x20, 128) == bytes(128)


def test_a_page_that_the_host_has_swapped_is_a_panic(machine: FakeVmpl0) -> None:
    def swap() -> None:
        give_back(machine)
        machine.rmp.psmash(Spa(6 * MIB))
        machine.rmp.rmpupdate(Spa(6 * MIB), RmpUpdate())
        state = RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(6 * MIB), GUEST_ASID)
        machine.rmp.rmpupdate(Spa(6 * MIB), state)

    assert reset(machine, offer(), swap) == "end"
    assert machine.terminated == ghcb_msr.Terminate(SVSM_REASON_SET, SvsmReason.PANIC)


def test_a_shared_page_that_the_host_has_validated_already_is_a_panic(machine: FakeVmpl0) -> None:
    def validate() -> None:
        give_back(machine)
        machine.rmp.firmware_update(Spa(SHARED), validated=True)

    assert reset(machine, offer(), validate) == "end"


def test_a_shared_page_that_the_host_keeps_is_its_own_problem(machine: FakeVmpl0) -> None:
    assert reset(machine, offer(), lambda: None) == "fault"
    give_back(machine)
    assert machine.run(0) == "guest"


def test_a_vmsa_that_runs_is_waited_for(machine: FakeVmpl0) -> None:
    rounds = 0

    def start() -> None:
        give_back(machine)
        machine.rmp.set_in_use(Spa(VMSA), True)

    def look() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 500:
            assert machine.get(6 * MIB, 4) == b"data", "the guest may still use its memory"
            machine.rmp.set_in_use(Spa(VMSA), False)

    machine.checks.append(look)
    assert reset(machine, offer(), start) == "guest"
    assert rounds > 500


def test_a_call_under_way_is_finished_first(machine: FakeVmpl0) -> None:
    machine.solve_faults = False
    page = 6 * MIB + PAGE_SIZE
    machine.write_list(CAA + 8, [page])
    machine.begin_call(SvsmCoreCall.SVSM_CORE_PVALIDATE, CAA + 8, gpa=VMSA, caa=CAA)
    assert machine.run(1) == "fault", "it wants a PSMASH"
    rounds = 0

    def finish() -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 300:
            assert machine.get(6 * MIB, 4) == b"data", "the guest's page is not touched yet"
            machine.checks.remove(finish)
            machine.rmp.psmash(Spa(6 * MIB))
            assert machine.run(1) == "halt", "the answer is nobody's any more"

    machine.checks.append(finish)
    assert reset(machine, offer(), lambda: give_back(machine)) == "guest"
    assert rounds == 300
    entry = machine.rmp.lookup(page)
    assert entry is not None
    assert entry.validated
