# SPDX-License-Identifier: MIT
"""Scheduling, interrupts, wake-ups and the exits that end a guest."""

from __future__ import annotations

from functools import partial

import pytest

from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.local_apic import DeliveryMode
from svsmd.host.outcome import AllHalted, Continue, Crashed, Debug
from svsmd.host.vcpu import Activity
from svsmd.snp.exits import (
    Cr8WriteTrap,
    DebugReason,
    DebugStop,
    Exit,
    Hlt,
    InvalidVmsa,
    Npf,
    Paused,
    Shutdown,
    Vmgexit,
)
from svsmd.snp.faults import NpfError
from svsmd.snp.ghcb import GhcbError, GhcbExit, GhcbResponse
from svsmd.snp.ghcb_msr import GhcbInfo, RunVmpl
from svsmd.snp.types import PAGE_SIZE, PageSize, Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import SevFeatures
from svsmd.snp.x2apic import ApicMsr
from tests.fake_silicon import VMSA_GPA, Rig, huge, world_of

NEVER = 1 << 40
VECTOR = 0x41
SVR_ENABLE = 0x1FF


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.platform.msrs.write(0, ApicMsr.SVR, SVR_ENABLE)
    return rig


def interrupt(rig: Rig, vcpu: int = 0) -> None:
    rig.platform.apics[vcpu].deliver(DeliveryMode.FIXED, VECTOR)


def takes_interrupt(vmcb: Vmcb) -> Exit:
    """A guest with interrupts on, which halts again."""
    assert vmcb.v_irq == VECTOR
    vmcb.v_irq = None
    vmcb.guest_interrupt_mask = True
    return Hlt()


# Time ----------------------------------------------------------------------------------------


def test_a_step_runs_until_its_deadline(rig: Rig) -> None:
    assert rig.hypervisor.step(100) == Continue()
    assert rig.silicon.clock.now == 100


def test_a_step_ends_at_a_timer_and_the_next_one_serves_it(rig: Rig) -> None:
    fired: list[int] = []
    rig.platform.timers.timer(lambda: fired.append(rig.silicon.clock.now)).arm(50)
    rig.hypervisor.step(100)
    assert rig.silicon.clock.now == 50
    rig.hypervisor.step(100)
    assert fired == [50]
    assert rig.silicon.clock.now == 100


def test_a_timer_that_an_exit_arms_shortens_the_run(rig: Rig) -> None:
    def arms(vmcb: Vmcb) -> Exit:
        rig.platform.timers.timer(lambda: None).arm(70)
        vmcb.ghcb_msr = RunVmpl(0).encode()
        return Vmgexit()

    rig.silicon.script.append(arms)
    rig.hypervisor.step(100)
    assert rig.silicon.clock.now == 70


def test_a_pause_gives_the_machine_back(rig: Rig) -> None:
    rig.silicon.script.append(Paused())
    assert rig.hypervisor.step(NEVER) == Continue()
    assert len(rig.silicon.runs) == 1


def test_who_waits_gets_the_machine_between_exits(rig: Rig) -> None:
    def exits(vmcb: Vmcb) -> Exit:
        vmcb.ghcb_msr = GhcbInfo.HV_FEATURES_REQUEST
        return Vmgexit()

    rig.silicon.script.extend([exits] * 5)
    rig.silicon.stop_requested = True
    for runs in (1, 2):
        assert rig.hypervisor.step(NEVER) == Continue()
        assert len(rig.silicon.runs) == runs, "there is progress, and no more than that"
    rig.silicon.stop_requested = False
    rig.hypervisor.step(NEVER)
    assert len(rig.silicon.runs) == 6


def test_halted_machines_name_the_next_timer(rig: Rig) -> None:
    rig.silicon.script.append(Hlt())
    assert rig.hypervisor.step(NEVER) == Continue()
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    rig.platform.timers.timer(lambda: None).arm(500)
    assert rig.hypervisor.step(NEVER) == AllHalted(500)


def test_vcpus_take_turns() -> None:
    rig = Rig(ncpus=3, time_slice=10)
    for vcpu in rig.hypervisor.vcpus[1:]:
        vcpu.start(Vmpl.VMPL2, VMSA_GPA + (2 + vcpu.index) * PAGE_SIZE)
    for _ in range(7):
        rig.hypervisor.step(NEVER)
    order = [
        next(v.index for v in rig.hypervisor.vcpus if world_of(v).vmcb is run)
        for run in rig.silicon.runs
    ]
    assert order == [1, 2, 0, 1, 2, 0, 1]
    assert rig.silicon.clock.now == 70


def test_a_slice_survives_the_end_of_a_step() -> None:
    rig = Rig(ncpus=2, time_slice=1000)
    rig.hypervisor.vcpus[1].start(Vmpl.VMPL2, VMSA_GPA + 3 * PAGE_SIZE)
    rig.hypervisor.step(10)
    first = rig.silicon.runs[-1]
    rig.hypervisor.step(20)
    assert rig.silicon.runs[-1] is first


# Interrupts ----------------------------------------------------------------------------------


def test_an_interrupt_wakes_and_is_in_service_once_delivered(rig: Rig) -> None:
    rig.silicon.script.extend((Hlt(), takes_interrupt))
    rig.hypervisor.step(NEVER)
    interrupt(rig)
    rig.hypervisor.step(NEVER)
    state = rig.platform.apics[0].state
    assert (state.irr, state.isr) == (0, 1 << VECTOR)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)


def test_an_interrupt_that_was_not_taken_stays_pending(rig: Rig) -> None:
    interrupt(rig)
    rig.hypervisor.step(10)
    assert rig.platform.apics[0].state.irr == 1 << VECTOR
    assert rig.world.vmcb.v_irq == VECTOR


def test_cr8_holds_back_an_interrupt_until_it_is_lowered(rig: Rig) -> None:
    def writes_cr8(value: int, vmcb: Vmcb) -> Exit:
        vmcb.v_tpr = value
        return Cr8WriteTrap()

    def sees(vector: int | None, v_tpr: int, vmcb: Vmcb) -> Exit:
        assert (vmcb.v_irq, vmcb.v_tpr) == (vector, v_tpr)
        vmcb.ghcb_msr = GhcbInfo.SEV_INFO_REQUEST
        return Vmgexit()

    interrupt(rig)
    rig.silicon.script.extend(
        (
            partial(writes_cr8, VECTOR >> 4), partial(sees, None, VECTOR >> 4),
            partial(writes_cr8, 0), partial(sees, VECTOR, 0),
        )
    )  # fmt: skip
    rig.hypervisor.step(100)
    assert not rig.silicon.script
    # And what the guest writes through its APIC it reads as CR8.
    rig.platform.msrs.write(0, ApicMsr.TPR, 0x35)
    rig.silicon.script.append(partial(sees, VECTOR, 3))
    rig.hypervisor.step(200)


def test_the_svsm_has_a_cr8_of_its_own(rig: Rig) -> None:
    def writes_cr8(vmcb: Vmcb) -> Exit:
        vmcb.v_tpr = 5
        return Cr8WriteTrap()

    assert rig.vcpu.run_vmpl(Vmpl.VMPL0)
    rig.silicon.script.append(writes_cr8)
    rig.hypervisor.step(100)
    assert (rig.world.vmcb.v_tpr, rig.platform.apics[0].task_priority) == (5, 0)
    assert rig.world.plane.apic.task_priority == 5


def test_halting_with_interrupts_off_is_for_good(rig: Rig) -> None:
    interrupt(rig)
    rig.silicon.script.append(Hlt())
    rig.hypervisor.step(NEVER)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    rig.platform.apics[0].deliver(DeliveryMode.NMI, 0)
    assert rig.hypervisor.step(NEVER) == Continue()
    assert rig.world.vmcb.v_nmi


def test_the_guests_interrupts_are_not_vmpl0s(rig: Rig) -> None:
    rig.msr_exit(RunVmpl(0).encode())
    interrupt(rig)
    rig.platform.apics[0].deliver(DeliveryMode.NMI, 0)
    rig.hypervisor.step(rig.silicon.clock.now + 10)
    assert (rig.world.vmcb.v_irq, rig.world.vmcb.v_nmi) == (None, False)
    rig.silicon.script.append(Hlt())
    rig.hypervisor.step(NEVER)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    rig.vcpu.run_vmpl(2)
    rig.hypervisor.step(rig.silicon.clock.now + 10)
    assert (rig.world.vmcb.v_irq, rig.world.vmcb.v_nmi) == (VECTOR, True)


def test_com1_interrupts_through_the_ioapic(rig: Rig) -> None:
    mmio, ports = rig.platform.mmio, rig.platform.ports
    mmio.write(0xFEC0_0000, 4, 0x10 + 2 * 4)
    mmio.write(0xFEC0_0010, 4, VECTOR)
    ports.write(0x3FC, 1, 0x0B)
    ports.write(0x3F9, 1, 0x01)
    assert rig.platform.apics[0].pending_vector() is None
    rig.platform.uart.receive(b"x")
    assert rig.platform.apics[0].pending_vector() == VECTOR


# Exits that end a guest ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_", "words"),
    [
        (Shutdown("#DF at 0x1000"), ("triple fault", "#DF at 0x1000")),
        (InvalidVmsa(busy=False, reason="EFER.SVME"), ("VMSA", "invalid", "EFER.SVME")),
        (InvalidVmsa(busy=True, reason="in use"), ("VMSA", "busy")),
        (
            Npf(0x5000, NpfError.P | NpfError.W | NpfError.VMPL, "row 7"),
            ("gpa 0x5000", "P W VMPL", "row 7"),
        ),
        (Npf(huge(3), NpfError.RMP | NpfError.SIZEM, "row 8"), ("SIZEM",)),
    ],
)
def test_crashes_say_who_and_why(rig: Rig, exit_: Exit, words: tuple[str, ...]) -> None:
    rig.silicon.script.append(exit_)
    outcome = rig.hypervisor.step(NEVER)
    assert isinstance(outcome, Crashed)
    for word in ("vCPU 0 at VMPL2", *words):
        assert word in outcome.text
    assert "\n" not in outcome.text
    assert rig.hypervisor.step(NEVER) == outcome, "the end is the end"
    assert len(rig.silicon.runs) == 1


def test_a_size_mismatch_splits_the_page_and_goes_on(rig: Rig) -> None:
    rig.silicon.assign(huge(3), huge=True)
    rig.silicon.script.append(Npf(huge(3) + 0x5000, NpfError.RMP | NpfError.SIZEM, "RI-25"))
    assert rig.hypervisor.step(100) == Continue()
    entry = rig.silicon.rmp.lookup(huge(3))
    assert entry is not None
    assert (entry.page_size, entry.validated) == (PageSize.SIZE_4K, True)


def test_a_debugger_stop_is_passed_on(rig: Rig) -> None:
    stop = DebugStop(DebugReason.BREAKPOINT, 0x1234)
    rig.silicon.script.append(stop)
    assert rig.hypervisor.step(NEVER) == Debug(stop, vcpu=0, vmpl=2)
    assert rig.hypervisor.step(100) == Continue()


# AP creation ---------------------------------------------------------------------------------

AP_VMSA = huge(4) + PAGE_SIZE
CREATE_ON_INIT, CREATE, DESTROY = 0, 1, 2


@pytest.fixture
def smp() -> Rig:
    rig = Rig(ncpus=2)
    rig.silicon.make_vmsa(AP_VMSA)
    return rig


def ap(
    rig: Rig, request: int, *, apic_id: int = 1, vmpl: int = 2, vmsa: int = AP_VMSA, rax: int = 1
) -> tuple[int, int]:
    info_1 = apic_id << 32 | vmpl << 16 | request
    return rig.ghcb_exit(GhcbExit.SNP_AP_CREATION, info_1, vmsa, rax=rax)


def test_create_starts_the_vcpu_and_destroy_stops_it(smp: Rig) -> None:
    target = smp.hypervisor.vcpus[1]
    assert not target.can_run()
    assert ap(smp, CREATE) == (0, 0)
    assert target.can_run()
    world = world_of(target)
    assert (world.vmpl, world.vmcb.vmsa_spa) == (2, AP_VMSA)
    assert ap(smp, DESTROY) == (0, 0)
    assert not target.can_run()
    assert smp.silicon.forgotten == [world.vmcb]


def test_create_again_replaces_the_state(smp: Rig) -> None:
    ap(smp, CREATE)
    first = world_of(smp.hypervisor.vcpus[1]).vmcb
    ap(smp, CREATE)
    assert world_of(smp.hypervisor.vcpus[1]).vmcb is not first
    assert smp.silicon.forgotten == [first]


def test_create_on_init_waits_for_the_init(smp: Rig) -> None:
    target = smp.hypervisor.vcpus[1]
    assert ap(smp, CREATE_ON_INIT) == (0, 0)
    assert not target.can_run()
    smp.platform.apics[1].deliver(DeliveryMode.INIT, 0)
    assert target.can_run()


def test_the_guest_waits_until_the_svsm_of_its_vcpu_halts(smp: Rig) -> None:
    target = smp.hypervisor.vcpus[1]
    target.start(Vmpl.VMPL0, VMSA_GPA)
    target.start(Vmpl.VMPL2, AP_VMSA)
    assert target.vmpl == 0
    target.wait(Activity.HALTED)
    assert target.vmpl == 2
    assert target.can_run()


def test_an_svsm_that_halted_goes_on_when_its_guest_calls(smp: Rig) -> None:
    target = smp.hypervisor.vcpus[1]
    target.start(Vmpl.VMPL0, VMSA_GPA)
    target.wait(Activity.HALTED)
    assert ap(smp, CREATE) == (0, 0)
    assert target.vmpl == 2
    assert target.run_vmpl(0)
    assert target.can_run()


@pytest.mark.parametrize(
    "change",
    [
        {"request": 3},
        {"request": CREATE | 1 << 20},
        {"apic_id": 2},
        {"vmpl": 4},
        {"vmpl": 1},
        {"rax": 0},
        {"rax": 0b11},
        {"rax": 0x201},
        {"vmsa": AP_VMSA + 8},
        {"vmsa": AP_VMSA + PAGE_SIZE},
        {"vmsa": huge(4)},
        {"vmsa": huge(100)},
        {"vmsa": (1 << 64) - PAGE_SIZE},
    ],
)
def test_what_a_host_does_not_believe(smp: Rig, change: dict[str, int]) -> None:
    smp.silicon.make_vmsa(huge(4))
    answer = ap(smp, **{"request": CREATE, **change})
    assert answer == (GhcbResponse.MALFORMED_INPUT, GhcbError.INVALID_INPUT)
    assert not smp.hypervisor.vcpus[1].can_run()


def test_creation_of_a_vmsa_with_other_features_than_at_the_launch() -> None:
    rig = Rig(ncpus=2, sev_features=SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC)
    rig.silicon.make_vmsa(AP_VMSA)
    refused = (GhcbResponse.MALFORMED_INPUT, GhcbError.INVALID_INPUT)
    assert ap(rig, CREATE, rax=0x001) == refused
    assert ap(rig, CREATE, rax=0x200) == refused
    assert ap(rig, CREATE, rax=0x201) == (0, 0)


def test_creation_needs_the_features(smp: Rig) -> None:
    answer = smp.ghcb_exit(GhcbExit.SNP_AP_CREATION, 1 << 32 | 2 << 16 | CREATE, AP_VMSA)
    assert answer == (GhcbResponse.MALFORMED_INPUT, GhcbError.MISSING_INPUT)


def test_a_sipi_ends_a_reset_hold(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.AP_RESET_HOLD)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    rig.platform.apics[0].deliver(DeliveryMode.STARTUP, 0x9A)
    assert (rig.ghcb.sw_exit_info_1, rig.ghcb.sw_exit_info_2) == (0, 1)
    assert rig.vcpu.can_run()


def test_a_sipi_does_not_write_to_a_page_that_became_private(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.AP_RESET_HOLD)
    gpa = rig.world.ghcb_gpa
    assert gpa is not None
    rig.silicon.assign(gpa)
    before = bytes(rig.ghcb.memory)
    rig.platform.apics[0].deliver(DeliveryMode.STARTUP, 0x9A)
    assert bytes(rig.ghcb.memory) == before
    assert rig.vcpu.can_run()


def test_without_an_svsm_vmpl0_takes_the_interrupts() -> None:
    rig = Rig()
    hypervisor = Hypervisor(rig.silicon, rig.platform, HypervisorConfig(Vmpl.VMPL0))
    hypervisor.vcpus[0].start(Vmpl.VMPL0, Spa(VMSA_GPA))
    assert world_of(hypervisor.vcpus[0]).plane.apic is rig.platform.apics[0]
