# SPDX-License-Identifier: MIT
"""Each VMPL of a vCPU has a local APIC of its own: who is interrupted, and who runs then."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.local_apic import DeliveryMode
from svsmd.host.outcome import AllHalted, Continue, Debug
from svsmd.host.plane import Plane
from svsmd.host.platform import Platform, PlatformConfig
from svsmd.host.vcpu import Activity, World
from svsmd.snp.exits import DebugReason, DebugStop, Exit, Hlt, Intr, Vmgexit
from svsmd.snp.ghcb import GhcbExit
from svsmd.snp.ghcb_msr import RunVmpl, run_vmpl_response
from svsmd.snp.types import PAGE_SIZE, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.x2apic import ICR_DESTINATION_SHIFT, SVR_ENABLE, ApicMsr
from tests.fake_silicon import VMSA_GPA, Rig, world_of

NEVER = 1 << 40
TIMER, KICK, DEVICE = 0x40, 0x51, 0x62
NMI_IPI, INIT_IPI, STARTUP_IPI = 0x400, 0x500, 0x600
START = 1000
"""Tick at which vCPU 0 has its turn, for as long again."""
ALL_OTHERS = 3 << 18
MTRR_DEF_TYPE = 0x2FF


def world(rig: Rig, vmpl: int, vcpu: int = 0) -> World:
    (found,) = (w for w in rig.hypervisor.vcpus[vcpu].worlds if w.vmpl == vmpl)
    return found


def plane(rig: Rig, vmpl: int, vcpu: int = 0) -> Plane:
    return world(rig, vmpl, vcpu).plane


def interrupt(rig: Rig, vmpl: int, vector: int, vcpu: int = 0) -> None:
    plane(rig, vmpl, vcpu).apic.deliver(DeliveryMode.FIXED, vector)


@pytest.fixture
def rig() -> Rig:
    """Two vCPUs at VMPL2, each with an SVSM that has called RUN_VMPL; all APICs are on."""
    rig = Rig(ncpus=2)
    other = rig.hypervisor.vcpus[1]
    other.start(Vmpl.VMPL0, VMSA_GPA + 2 * PAGE_SIZE)
    other.start_on_init(Vmpl.VMPL2, VMSA_GPA + 3 * PAGE_SIZE)
    assert other.run_vmpl(Vmpl.VMPL2)
    for vcpu in (0, 1):
        for vmpl in (0, 2):
            assert plane(rig, vmpl, vcpu).msrs.write(ApicMsr.SVR, SVR_ENABLE | 0xFF)
    # The first turn is the other one's.
    rig.hypervisor.step(NEVER)
    assert rig.silicon.clock.now == START
    rig.silicon.runs.clear()
    return rig


def arm_timer(rig: Rig, ticks: int, vcpu: int = 0) -> None:
    msrs = plane(rig, 0, vcpu).msrs
    assert msrs.write(ApicMsr.TIMER_DIVIDE, 0xB)
    assert msrs.write(ApicMsr.LVT_TIMER, TIMER)
    assert msrs.write(ApicMsr.TIMER_INITIAL_COUNT, ticks)


def takes(vector: int, then: Callable[[Vmcb], Exit], vmcb: Vmcb) -> Exit:
    """Interrupts are on: `vector` is taken, `then` is what comes of it."""
    assert vmcb.v_irq == vector
    vmcb.v_irq = None
    return then(vmcb)


def halts(vmcb: Vmcb, *, enabled: bool = True) -> Exit:
    vmcb.guest_interrupt_mask = enabled
    return Hlt()


def runs(vmpl: int, vmcb: Vmcb) -> Exit:
    vmcb.ghcb_msr = RunVmpl(vmpl).encode()
    return Vmgexit()


def only_vcpu_0(rig: Rig) -> None:
    """The other one halts, and nothing wakes it."""
    rig.hypervisor.vcpus[1].wait(Activity.HALTED)


# A guest that is interrupted for its SVSM -----------------------------------------------------


def test_a_timer_of_vmpl0_makes_the_host_run_it(rig: Rig) -> None:
    only_vcpu_0(rig)
    svsm, guest = world(rig, 0).vmcb, world(rig, 2).vmcb
    svsm.ghcb_msr = run_vmpl_response()
    arm_timer(rig, 50)
    rig.hypervisor.step(NEVER)
    assert rig.silicon.clock.now == START + 50
    assert rig.silicon.runs == [guest]

    rig.silicon.script.append(partial(takes, TIMER, partial(runs, 2)))
    rig.hypervisor.step(rig.silicon.clock.now + 100)
    assert rig.silicon.runs == [guest, svsm, guest], "and the guest goes on when it is asked for"
    assert (plane(rig, 0).apic.state.irr, plane(rig, 0).apic.state.isr) == (0, 1 << TIMER)
    assert (plane(rig, 2).apic.state.irr, plane(rig, 2).apic.state.isr) == (0, 0)


def test_the_run_vmpl_that_is_under_way_is_answered_with_success(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.run_vmpl(0)
    rig.silicon.script.append(partial(runs, 2))
    rig.hypervisor.step(rig.silicon.clock.now + 10)
    assert rig.vcpu.vmpl == 2
    interrupt(rig, 0, KICK)
    rig.hypervisor.step(rig.silicon.clock.now + 10)
    assert rig.vcpu.vmpl == 0
    assert world(rig, 0).vmcb.ghcb_msr == run_vmpl_response(0)


def test_an_interrupt_that_vmpl0_has_left_behind_brings_it_back_at_once(rig: Rig) -> None:
    """It called RUN_VMPL with its interrupts off."""
    only_vcpu_0(rig)
    interrupt(rig, 0, KICK)
    rig.silicon.script.extend([partial(runs, 2), partial(runs, 2), Intr()])
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, 0).vmcb] * 3


def test_what_tpr_holds_back_does_not_stop_the_guest(rig: Rig) -> None:
    only_vcpu_0(rig)
    plane(rig, 0).msrs.write(ApicMsr.TPR, KICK & 0xF0)
    interrupt(rig, 0, KICK)
    rig.hypervisor.step(START + 10)
    assert rig.vcpu.vmpl == 2
    plane(rig, 0).msrs.write(ApicMsr.TPR, 0)
    rig.hypervisor.step(START + 20)
    assert rig.vcpu.vmpl == 0


def test_an_apic_that_is_not_enabled_interrupts_nobody(rig: Rig) -> None:
    plane(rig, 0).msrs.write(ApicMsr.SVR, 0xFF)
    arm_timer(rig, 50)
    interrupt(rig, 0, KICK)
    for _ in range(5):
        rig.hypervisor.step(rig.silicon.clock.now + 100)
    assert rig.vcpu.vmpl == 2


def test_the_most_privileged_vmpl_goes_first(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.start(Vmpl.VMPL1, VMSA_GPA + 5 * PAGE_SIZE)
    rig.vcpu.run_vmpl(2)
    plane(rig, 1).msrs.write(ApicMsr.SVR, SVR_ENABLE | 0xFF)
    for vmpl in (1, 0):
        interrupt(rig, vmpl, KICK)
    rig.silicon.script.extend(
        [partial(takes, KICK, partial(runs, 2)), partial(takes, KICK, partial(runs, 2)), Intr()]
    )
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, vmpl).vmcb for vmpl in (0, 1, 2)]


# Halted VMPLs ----------------------------------------------------------------------------------


def test_a_halted_guest_is_still_halted_after_its_svsm_was_interrupted(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.silicon.script.append(halts)
    rig.hypervisor.step(NEVER)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    interrupt(rig, 0, KICK)
    rig.silicon.script.append(partial(takes, KICK, partial(runs, 2)))
    assert rig.hypervisor.step(NEVER) == Continue()
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    assert rig.vcpu.vmpl == 2

    interrupt(rig, 2, DEVICE)
    rig.silicon.script.append(partial(takes, DEVICE, halts))
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs[-1] is world(rig, 2).vmcb
    assert plane(rig, 2).apic.state.isr == 1 << DEVICE


def test_vmpl0_that_halts_with_interrupts_on_is_woken_by_its_timer(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.run_vmpl(0)
    rig.silicon.script.append(halts)
    rig.hypervisor.step(NEVER)
    arm_timer(rig, 500)
    deadline = rig.silicon.clock.now + 500
    assert rig.hypervisor.step(NEVER) == AllHalted(deadline)
    rig.silicon.clock.now = deadline
    rig.silicon.script.append(partial(takes, TIMER, halts))
    assert rig.hypervisor.step(NEVER) == Continue()
    assert rig.hypervisor.step(NEVER) == AllHalted(None)


def test_vmpl0_that_halts_with_interrupts_off_is_not(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.run_vmpl(0)
    rig.silicon.script.append(partial(halts, enabled=False))
    rig.hypervisor.step(NEVER)
    interrupt(rig, 0, KICK)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    # Nor while its guest runs, which the host was told of by AP creation.
    rig.vcpu.start(Vmpl.VMPL2, VMSA_GPA + PAGE_SIZE)
    rig.hypervisor.step(rig.silicon.clock.now + 10)
    assert rig.vcpu.vmpl == 2
    # Its guest's call does.
    rig.silicon.script.extend([partial(runs, 0), Intr()])
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs[-1] is world(rig, 0).vmcb
    assert world(rig, 0).vmcb.v_irq == KICK


def test_a_vcpu_whose_guest_is_gone_still_runs_its_svsm(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.destroy(Vmpl.VMPL2)
    assert rig.hypervisor.step(NEVER) == AllHalted(None)
    interrupt(rig, 0, KICK)
    assert rig.hypervisor.step(NEVER) == Continue()
    assert rig.silicon.runs == [world(rig, 0).vmcb]


def test_a_guest_that_was_created_late_and_asked_for_is_not_started_twice(rig: Rig) -> None:
    only_vcpu_0(rig)
    rig.vcpu.run_vmpl(0)
    rig.vcpu.start(Vmpl.VMPL2, VMSA_GPA + PAGE_SIZE)
    assert rig.vcpu.vmpl == 0, "what runs at VMPL0 finishes first"
    assert rig.vcpu.run_vmpl(2)
    assert rig.vcpu.run_vmpl(0)
    rig.vcpu.wait(Activity.HALTED)
    assert rig.vcpu.vmpl == 0


# Several vCPUs ---------------------------------------------------------------------------------


def send(rig: Rig, request: int) -> None:
    """VMPL0 of vCPU 0 writes its ICR."""
    rig.vcpu.run_vmpl(0)
    destination = request >> ICR_DESTINATION_SHIFT
    rig.ghcb_exit(
        GhcbExit.SVM_EXIT_MSR, 1, rcx=ApicMsr.ICR, rax=request & 0xFFFF_FFFF, rdx=destination
    )
    rig.silicon.script.append(partial(halts, enabled=False))
    rig.hypervisor.step(NEVER)
    rig.silicon.runs.clear()


def test_an_ipi_of_vmpl0_interrupts_the_guest_of_another_vcpu(rig: Rig) -> None:
    send(rig, 1 << ICR_DESTINATION_SHIFT | KICK)
    rig.silicon.script.extend([partial(takes, KICK, partial(runs, 2)), Intr()])
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, 0, 1).vmcb, world(rig, 2, 1).vmcb]
    assert plane(rig, 0, 1).apic.state.isr == 1 << KICK
    assert plane(rig, 2, 1).apic.state.irr == plane(rig, 2, 1).apic.state.isr == 0


def test_an_ipi_of_vmpl0_wakes_another_vcpus_vmpl0(rig: Rig) -> None:
    other = rig.hypervisor.vcpus[1]
    other.run_vmpl(0)
    other.wait(Activity.HALTED)
    send(rig, 1 << ICR_DESTINATION_SHIFT | KICK)
    rig.silicon.script.append(partial(takes, KICK, halts))
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, 0, 1).vmcb]
    assert rig.hypervisor.step(NEVER) == AllHalted(None)


def test_broadcasts_of_vmpl0_stay_at_vmpl0(rig: Rig) -> None:
    send(rig, ALL_OTHERS | KICK)
    assert plane(rig, 0, 1).apic.state.irr == 1 << KICK
    assert plane(rig, 2, 0).apic.state.irr == plane(rig, 2, 1).apic.state.irr == 0


def test_ipis_of_the_guest_stay_with_the_guest(rig: Rig) -> None:
    plane(rig, 2, 0).msrs.write(ApicMsr.ICR, 1 << ICR_DESTINATION_SHIFT | DEVICE)
    plane(rig, 2, 0).msrs.write(ApicMsr.SELF_IPI, DEVICE)
    for vcpu in (0, 1):
        assert plane(rig, 2, vcpu).apic.state.irr == 1 << DEVICE
        assert plane(rig, 0, vcpu).apic.state.irr == 0


@pytest.mark.parametrize("request_", [INIT_IPI, STARTUP_IPI | 0x9A])
def test_vmpl0_neither_resets_nor_starts_a_vcpu(rig: Rig, request_: int) -> None:
    other = rig.hypervisor.vcpus[1]
    before = other.worlds
    send(rig, ALL_OTHERS | request_)
    assert other.worlds == before
    assert other.vmpl == 2
    assert plane(rig, 0, 1).apic.state.svr & SVR_ENABLE


def test_an_nmi_of_vmpl0_is_vmpl0s(rig: Rig) -> None:
    send(rig, 1 << ICR_DESTINATION_SHIFT | NMI_IPI)
    rig.silicon.script.append(Intr())
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, 0, 1).vmcb]
    assert world(rig, 0, 1).vmcb.v_nmi
    assert not world(rig, 2, 1).vmcb.v_nmi


def test_a_sipi_reaches_a_guest_whose_svsm_is_at_work(rig: Rig) -> None:
    rig.ghcb_exit(GhcbExit.AP_RESET_HOLD)
    guest = world(rig, 2)
    assert rig.vcpu.run_vmpl(0)
    plane(rig, 2).apic.deliver(DeliveryMode.STARTUP, 0x9A)
    assert guest.activity is Activity.RUNNABLE
    assert rig.vcpu.vmpl == 0
    assert rig.ghcb.sw_exit_info_2 == 1


def test_the_other_vcpu_gets_its_turn_before_an_interrupt_of_vmpl0_is_served(rig: Rig) -> None:
    """Interrupts do not make a slice longer."""
    arm_timer(rig, 1000)
    for _ in range(3):
        rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [
        world(rig, 2, 0).vmcb, world(rig, 2, 1).vmcb, world(rig, 0, 0).vmcb,
    ]  # fmt: skip


# What else there is to a plane -----------------------------------------------------------------


def test_each_vmpl_has_its_own_msrs(rig: Rig) -> None:
    before = plane(rig, 2).msrs.read(MTRR_DEF_TYPE)
    rig.vcpu.run_vmpl(0)
    rig.ghcb_exit(GhcbExit.SVM_EXIT_MSR, 1, rcx=MTRR_DEF_TYPE, rax=0, rdx=0)
    assert plane(rig, 0).msrs.read(MTRR_DEF_TYPE) == 0
    assert plane(rig, 2).msrs.read(MTRR_DEF_TYPE) == before


def test_a_vmrun_that_a_debugger_stopped_ends_first(rig: Rig) -> None:
    only_vcpu_0(rig)
    stop = DebugStop(DebugReason.BREAKPOINT, 0x1234)
    rig.silicon.script.append(stop)
    assert rig.hypervisor.step(NEVER) == Debug(stop, vcpu=0, vmpl=2)
    interrupt(rig, 0, KICK)
    rig.silicon.script.extend([Intr(), Intr()])
    rig.hypervisor.step(NEVER)
    rig.hypervisor.step(NEVER)
    assert rig.silicon.runs == [world(rig, vmpl).vmcb for vmpl in (2, 2, 0)]


def test_the_svsm_keeps_its_apic_when_its_guest_starts_again(rig: Rig) -> None:
    interrupt(rig, 0, KICK)
    plane(rig, 0, 1).apic.deliver(DeliveryMode.NMI, 0)
    arm_timer(rig, 5000, vcpu=1)
    silicon = rig.silicon
    platform = Platform(
        PlatformConfig(ncpus=2), lambda: silicon.clock.now, rig.console.extend, rig.debug.extend
    )
    new = Hypervisor(silicon, platform, HypervisorConfig(Vmpl.VMPL2))
    old = rig.hypervisor
    new.take_over(old)
    assert platform.timers.next_deadline == START + 5000
    boot, other = (world_of(vcpu) for vcpu in new.vcpus)
    assert boot.plane.apic.pending_vector() == KICK
    assert other.plane.nmi_pending
    # And its interrupts reach the new machine, whose APICs are those of one bus.
    silicon.clock.now += 5000
    platform.timers.run_due(silicon.clock.now)
    assert other.plane.apic.pending_vector() == TIMER
    boot.plane.msrs.write(ApicMsr.ICR, 1 << ICR_DESTINATION_SHIFT | KICK + 1)
    assert other.plane.apic.state.irr == 1 << TIMER | 1 << KICK + 1
