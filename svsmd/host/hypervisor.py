# SPDX-License-Identifier: MIT
"""The untrusted hypervisor: schedules vCPUs and VMPLs, and answers their exits.

It knows of its guest what hardware tells a host: why a VMRUN ended, the GHCB MSR, and shared
memory. It decides when which VMPL of which vCPU runs, nothing else.

Spec: 24593, 15.35 (SEV-ES: automatic exits) and 15.36 (SEV-SNP); 56421 (GHCB).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, assert_never

from svsmd.host.ap_creation import ApCreation
from svsmd.host.ghcb_exits import GhcbExits, GhcbServices
from svsmd.host.ghcb_msr_exits import GhcbMsrExits
from svsmd.host.guest_request import GuestRequests
from svsmd.host.kvmclock import KvmClock
from svsmd.host.outcome import (
    AllHalted,
    Continue,
    Crashed,
    Debug,
    End,
    HostOutcome,
)
from svsmd.host.page_state_change import PageStateChange
from svsmd.host.plane import Plane
from svsmd.host.platform import Platform
from svsmd.host.port_cells import PortCells
from svsmd.host.scheduler import DEFAULT_TIME_SLICE, Scheduler
from svsmd.host.silicon_port import HostSilicon
from svsmd.host.vcpu import Activity, Vcpu, World
from svsmd.snp import ghcb_msr
from svsmd.snp.events import EventClass
from svsmd.snp.exits import (
    Cr8WriteTrap,
    DebugReason,
    DebugStop,
    Exit,
    Hlt,
    Intr,
    InvalidVmsa,
    Npf,
    Paused,
    Shutdown,
    Vmgexit,
)
from svsmd.snp.faults import NpfError
from svsmd.snp.types import PAGE_MASK, Vmpl
from svsmd.snp.vmsa import SevFeatures

log = logging.getLogger(__name__)

_CONTINUE: Final = Continue()
_NEVER: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class HypervisorConfig:
    """What an operator decides.

    Attributes:
        guest_vmpl: level of the guest, which owns the interrupts; 0 without an SVSM.
        sev_features: SEV_FEATURES of all VMSAs, those of the launch and others.
        time_slice: ticks that a vCPU runs before it is another one's turn.
        certificates: fetches the certificate table for extended guest requests; none by default.
    """

    guest_vmpl: Vmpl = Vmpl.VMPL2
    sev_features: SevFeatures = SevFeatures.SNP_ACTIVE
    time_slice: int = DEFAULT_TIME_SLICE
    certificates: Callable[[], bytes] = bytes


class Hypervisor:
    """Runs the vCPUs of `platform` on `silicon`.

    Nothing runs before a vCPU was given a VMSA: after the launch, `vcpus[0].start(vmpl, vmsa_spa)`.
    """

    def __init__(self, silicon: HostSilicon, platform: Platform, config: HypervisorConfig) -> None:
        # Runtime glue.
        self._silicon: Final = silicon
        self._events: Final = silicon.rmp.events
        self._timers: Final = platform.timers
        self._platform: Final = platform
        self.vcpus: Final = tuple(
            Vcpu(
                index, apic.apic_id, config.guest_vmpl,
                partial(_plane, platform, index, config.guest_vmpl), silicon.forget,
            )
            for index, apic in enumerate(platform.apics)
        )  # fmt: skip
        self._kvmclock: Final = KvmClock(
            platform.msrs, platform.rtc_epoch, lambda: silicon.clock.now, silicon.host_page
        )
        self._scheduler: Final = Scheduler(self.vcpus, config.time_slice)
        self._page_state: Final = PageStateChange(silicon.rmp)
        self._msr_exits: Final = GhcbMsrExits(silicon.rmp, self._page_state, len(self.vcpus))
        self._ghcb_exits: Final = GhcbExits(
            GhcbServices(
                silicon=silicon,
                ports=platform.ports,
                mmio=platform.mmio,
                page_state=self._page_state,
                guest_requests=GuestRequests(silicon.psp, silicon.host_page, config.certificates),
                ap_creation=ApCreation(silicon.rmp, self.vcpus, config.sev_features),
                ncpus=len(self.vcpus),
            )
        )
        self.port_cells: Final = _port_cells(silicon, platform)
        # Volatile state.
        self.exiting: Vmpl | None = None
        """Whose VMGEXIT was served last, or is being served."""
        self._end: End | None = None
        self._interrupted: tuple[Vcpu, int] | None = None
        """The VMRUN that a debugger stopped: its vCPU and deadline."""
        self._held: World | None = None
        """The world that a debugger steps, and which takes no interrupts meanwhile."""
        self._holding_back: Vcpu | None = None
        """A more privileged world of this vCPU may have an interrupt that waits for that."""

        platform.on_init = self._init
        platform.on_sipi = self._startup

    def take_over(self, old: Hypervisor) -> None:
        """Run the SVSM that `old` ran, whose guest has reset the machine, before any step."""
        for vcpu, before in zip(self.vcpus, old.vcpus, strict=True):
            vcpu.take_over(before)

    def step(self, until: int) -> HostOutcome:
        """Make one scheduling decision and run what it picked.

        Timers that are due go first. The chosen vCPU then runs, its exits being answered, until it
        halts, its slice or the next timer's deadline is over, the clock reaches `until` ticks,
        somebody waits for the machine, or there is an outcome. Once the machine has ended, its end
        is all that comes. Events that a debugger has still to hear of come before anything else.
        """
        if self._events.pending:
            return self._caught()
        if self._end is not None:
            return self._end
        if self._interrupted is not None:
            # A debugger stopped in the middle of a VMRUN: go on with that, as if it had not.
            vcpu, deadline = self._interrupted
            self._interrupted = None
            return self._run(vcpu, deadline, resumed=True)
        now = self._silicon.clock.now
        self._timers.run_due(now)
        chosen = self._scheduler.pick(now)
        if chosen is None:
            return AllHalted(self._timers.next_deadline)
        vcpu, slice_end = chosen
        return self._run(vcpu, min(until, slice_end))

    @property
    def current_vcpu(self) -> int:
        """Index of the vCPU whose turn it is."""
        return self._scheduler.turn

    def step_vcpu(self, index: int, *, hold_interrupts: bool = False) -> HostOutcome | None:
        """What step() does, for one vCPU alone; None if it has nothing to run, but others have.

        The vCPU that step() would run now runs just as there. Another one runs out of turn: whose
        turn it is, and for how long, does not change. With `hold_interrupts`, the world that it
        runs takes no interrupt and no NMI, and is not left for a more privileged one that has
        some, as long as it has anything to execute. They stay pending.
        """
        self._held = self.vcpus[index].world if hold_interrupts else None
        try:
            return self._step_vcpu(index)
        finally:
            self._held = None

    def _step_vcpu(self, index: int) -> HostOutcome | None:
        vcpu, interrupted = self.vcpus[index], self._interrupted
        if self._events.pending or self._end is not None:
            return self.step(_NEVER)
        if interrupted is not None and interrupted[0] is vcpu:
            self._interrupted = None
            return self._run(vcpu, interrupted[1], resumed=True)
        now = self._silicon.clock.now
        self._timers.run_due(now)
        turn = self._scheduler.peek(now)
        if turn is None or (turn is vcpu and interrupted is None):
            return self.step(_NEVER)
        if not vcpu.can_run():
            return None
        try:
            return self._run(vcpu, _NEVER)
        finally:
            self._interrupted = interrupted

    def _run(self, vcpu: Vcpu, until: int, *, resumed: bool = False) -> HostOutcome:
        silicon, events = self._silicon, self._events
        clock = silicon.clock
        ran = False
        events.vcpu = vcpu.index
        while resumed or (clock.now < until and vcpu.can_run()):
            # A guest may exit so often that the silicon itself never comes to stop.
            if ran and silicon.stop_requested:
                break
            ran = True
            # An exit may have armed a timer.
            deadline = self._timers.next_deadline
            if deadline is not None and deadline < until:
                if deadline <= clock.now and not resumed:
                    break
                until = deadline
            world = self._next_world(vcpu, resumed=resumed)
            resumed = False
            if world is None:
                break
            if world.vmpl is not vcpu.entered:
                self._switched(vcpu, world)
            if events.pending:
                # What the exit before this one has brought, or the switch.
                self._interrupted = (vcpu, until)
                return self._caught()
            exit_ = world.unserved or self._vmrun(world, until)
            world.unserved = None
            if events.pending:
                caught = isinstance(exit_, DebugStop) and exit_.reason is DebugReason.EVENT
                world.unserved = None if caught else exit_
                self._interrupted = (vcpu, until)
                return self._caught()
            match exit_:
                case Vmgexit():
                    self._end = self._vmgexit(vcpu, world) or self._platform.end
                    if self._end is not None:
                        return self._end
                case Hlt():
                    enabled = world.vmcb.guest_interrupt_mask
                    vcpu.wait(Activity.HALTED if enabled else Activity.HALTED_MASKED)
                case Cr8WriteTrap():
                    world.plane.apic.task_priority = world.vmcb.v_tpr
                case Intr() | Paused():
                    break
                case Npf(gpa, error_code, reason):
                    # The guest changes the state of a part of a 2 MiB page: split, and try again.
                    if error_code & NpfError.SIZEM and self._page_state.smash(gpa):
                        continue
                    return self._crash(
                        vcpu,
                        world,
                        f"nested page fault at gpa {gpa:#x}, {_npf_text(error_code)} ({reason})",
                    )
                case Shutdown(reason):
                    return self._crash(vcpu, world, f"triple fault ({reason})")
                case InvalidVmsa(busy, reason):
                    return self._crash(
                        vcpu,
                        world,
                        f"VMRUN refused the VMSA at {world.vmcb.vmsa_spa:#x}: "
                        f"{'busy' if busy else 'invalid'} ({reason})",
                    )
                case DebugStop() as stop:
                    self._interrupted = (vcpu, until)
                    return Debug(stop, vcpu.index, world.vmpl)
                case unreachable:
                    assert_never(unreachable)
        return _CONTINUE

    def _next_world(self, vcpu: Vcpu, *, resumed: bool) -> World | None:
        """The world to run now; `resumed`: the one that was stopped in the middle of its VMRUN."""
        held = self._held
        if held is not None and vcpu.world is held and held.can_run():
            self._holding_back = vcpu
            return held
        if self._holding_back is vcpu:
            self._holding_back = None
        elif resumed:
            return vcpu.world
        return vcpu.choose()

    def _switched(self, vcpu: Vcpu, world: World) -> None:
        before, vcpu.entered = vcpu.entered, world.vmpl
        if self._events.armed & EventClass.VMPL.bit and before is not None:
            values = {"from": before, "to": world.vmpl}
            self._events.note(EventClass.VMPL, values, vmpl=before)

    def _caught(self) -> Debug:
        """The machine stops for the next of the events that were caught."""
        event = self._events.take()
        return Debug(DebugStop(DebugReason.EVENT, event.rip, event), event.vcpu, event.vmpl)

    def _vmrun(self, world: World, until: int) -> Exit:
        """Enter `world`, with the interrupt that its APIC wants delivered."""
        vmcb, plane = world.vmcb, world.plane
        apic = plane.apic
        world.activity = Activity.RUNNABLE
        held = world is self._held
        vector = None if held else apic.pending_vector()
        vmcb.v_irq = vector
        vmcb.v_tpr = apic.task_priority
        if held:
            # Asked for by a VMRUN that a debugger stopped before it came to that.
            plane.nmi_pending |= vmcb.v_nmi
            vmcb.v_nmi = False
        elif plane.nmi_pending:
            plane.nmi_pending = False
            vmcb.v_nmi = True
        exit_ = self._enter(world, until)
        if vector is not None and vmcb.v_irq is None:
            apic.acknowledge(vector)
        return exit_

    def _enter(self, world: World, until: int) -> Exit:
        cells = self.port_cells
        if cells is None:
            return self._silicon.vmrun(world.vmcb, until)
        if self._events.armed & EventClass.VMGEXIT.bit:
            cells.withhold()
        else:
            cells.lend(world)
        exit_ = self._silicon.vmrun(world.vmcb, until)
        cells.take_back()
        return exit_

    def _vmgexit(self, vcpu: Vcpu, world: World) -> End | None:
        self.exiting = world.vmpl
        if world.vmcb.ghcb_msr & PAGE_MASK:
            return self._msr_exits.handle(vcpu, world)
        return self._ghcb_exits.handle(vcpu, world)

    def _init(self, index: int) -> None:
        """An INIT for a vCPU arrived at its local APIC."""
        self.vcpus[index].init()
        self._kvmclock.reset(index)

    def _startup(self, index: int) -> None:
        """A SIPI for a vCPU arrived: it ends a reset hold, and means nothing otherwise.

        The vector does not matter: where the AP goes, its guest says (56421, 4.3).
        """
        world = self.vcpus[index].guest
        if world is None:
            return
        if world.activity is Activity.RESET_HOLD_BY_MSR:
            world.vmcb.ghcb_msr = ghcb_msr.ap_reset_hold_response(started=True)
        elif world.activity is Activity.RESET_HOLD_BY_GHCB:
            self._ghcb_exits.end_reset_hold(world)
        else:
            return
        world.activity = Activity.RUNNABLE

    def _crash(self, vcpu: Vcpu, world: World, why: str) -> Crashed:
        crash = Crashed(f"vCPU {vcpu.index} at VMPL{world.vmpl}: {why}")
        self._end = crash
        return crash


def _plane(platform: Platform, index: int, guest_vmpl: Vmpl, vmpl: Vmpl) -> Plane:
    return platform.planes[index] if vmpl == guest_vmpl else platform.make_plane(index, vmpl)


def _port_cells(silicon: HostSilicon, platform: Platform) -> PortCells | None:
    try:
        cells = PortCells(silicon.rmp, platform.uart, platform.pit.channels[2])
    except OSError:
        return None
    return cells if silicon.answer_vmgexits(cells.function, cells.argument) else None


def _npf_text(error_code: int) -> str:
    names = [flag.name or "" for flag in NpfError if error_code & flag]
    return f"EXITINFO1 {error_code:#x} [{' '.join(names)}]"
