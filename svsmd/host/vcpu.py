# SPDX-License-Identifier: MIT
"""Virtual CPUs as the hypervisor keeps them: one VMCB for each VMPL that has a VMSA.

Each VMPL has its own local APIC, too, and the interrupts that arrive there are its own. One for a
VMPL that is more privileged than the one that runs makes the host switch over, as KVM does with its
VM planes: the less privileged VMPL stands still where it was, and goes on when it is asked for by
RUN_VMPL. The other way round an interrupt waits.

Spec: 24593, 15.36.7 and 15.36.8 (one VMSA for each VMPL of a vCPU); 56421, 4.1.9 (SNP_AP_CREATION)
and 4.1.14 (SNP_RUN_VMPL), 4.3 (AP booting).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

from svsmd.host.plane import Plane
from svsmd.snp.exits import Exit
from svsmd.snp.ghcb import GHCB_VERSION_MAX, GHCB_VERSION_MIN, Ghcb
from svsmd.snp.ghcb_msr import sev_info_response
from svsmd.snp.types import C_BIT_POSITION, PAGE_SHIFT, Vmpl
from svsmd.snp.vmcb import Vmcb

log = logging.getLogger(__name__)

INITIAL_GHCB_MSR: Final = sev_info_response(GHCB_VERSION_MIN, GHCB_VERSION_MAX, C_BIT_POSITION)
"""What a guest finds in its GHCB MSR when it starts (56421, 2.3.1)."""

DR7_AFTER_RESET: Final = 0x400


class Activity(Enum):
    """What one VMPL of a vCPU is up to."""

    RUNNABLE = auto()
    HALTED = auto()
    """Executed HLT: an interrupt wakes it."""
    HALTED_MASKED = auto()
    """Executed HLT with interrupts off: an NMI wakes it."""
    RESET_HOLD_BY_GHCB = auto()
    """Waits for a SIPI; asked for through the GHCB (56421, 4.3.1)."""
    RESET_HOLD_BY_MSR = auto()
    """Waits for a SIPI; asked for by the GHCB MSR protocol."""


class World:
    """One VMPL of a vCPU that has a VMSA."""

    __slots__ = ("activity", "dr7", "ghcb", "ghcb_gpa", "plane", "unserved", "vmcb", "vmpl")

    def __init__(self, vmpl: Vmpl, vmcb: Vmcb, plane: Plane) -> None:
        # Fixed configuration.
        self.vmpl: Final = vmpl
        self.vmcb: Final = vmcb
        # Runtime glue.
        self.plane = plane
        # Volatile state.
        self.activity = Activity.RUNNABLE
        self.ghcb_gpa: int | None = None
        """The GHCB that this world registered."""
        self.ghcb: Ghcb | None = None
        """View of that page, made when it was first used; good while the page is shared."""
        self.dr7 = DR7_AFTER_RESET
        self.unserved: Exit | None = None
        """An exit that a debugger has stopped at, before it was served."""

    def register_ghcb(self, gfn: int) -> None:
        """The GHCB of this world is in page number `gfn` from now on."""
        self.ghcb_gpa = gfn << PAGE_SHIFT
        self.ghcb = None

    def is_interrupted(self) -> bool:
        """Whether there is an interrupt or an NMI to run it for."""
        match self.activity:
            case Activity.RUNNABLE | Activity.HALTED:
                return self.plane.is_interrupted()
            case Activity.HALTED_MASKED:
                return self.plane.nmi_pending
            case _:
                return False

    def can_run(self) -> bool:
        """Whether there is something to run now."""
        return self.activity is Activity.RUNNABLE or self.is_interrupted()


class Vcpu:
    """A vCPU and its worlds.

    `guest_vmpl` is the VMPL that devices interrupt, and INIT and SIPI concern: that of the guest.
    """

    def __init__(
        self,
        index: int,
        apic_id: int,
        guest_vmpl: Vmpl,
        make_plane: Callable[[Vmpl], Plane],
        release: Callable[[Vmcb], None],
    ) -> None:
        """`make_plane` is asked once for each VMPL that gets a VMSA.

        `release` is told of each VMCB that will not run any more.
        """
        # Fixed configuration.
        self.index: Final = index
        self.apic_id: Final = apic_id
        self.guest_vmpl: Final = guest_vmpl
        # Runtime glue.
        self._make_plane: Final = make_plane
        self._release: Final = release
        # Volatile state.
        self.vmpl: Vmpl = Vmpl.VMPL0
        """The VMPL that runs when the vCPU runs."""
        self._worlds: dict[Vmpl, World] = {}
        self._planes: dict[Vmpl, Plane] = {}
        self._vmsa_on_init: dict[Vmpl, int] = {}
        self._start_next: Vmpl | None = None
        self.entered: Vmpl | None = None
        """The VMPL that ran last; None before any did."""

    @property
    def world(self) -> World | None:
        """The world that runs when the vCPU runs; None before there is a VMSA for it."""
        return self._worlds.get(self.vmpl)

    @property
    def guest(self) -> World | None:
        """The guest's world; None before there is a VMSA for it."""
        return self._worlds.get(self.guest_vmpl)

    @property
    def worlds(self) -> tuple[World, ...]:
        """All worlds, by VMPL."""
        return tuple(self._worlds[vmpl] for vmpl in sorted(self._worlds))

    def can_run(self) -> bool:
        """Whether there is something to run now."""
        world = self._worlds.get(self.vmpl)
        if world is not None and world.can_run():
            return True
        return self._interrupting() is not None

    def choose(self) -> World | None:
        """The world to run now: the one that runs, unless a more privileged one is interrupted."""
        world = self._interrupting()
        if world is None:
            return self._worlds.get(self.vmpl)
        self.vmpl = world.vmpl
        return world

    def _interrupting(self) -> World | None:
        """The most privileged of the worlds above the one that runs that have an interrupt."""
        chosen = None
        current = self.vmpl
        for vmpl, world in self._worlds.items():
            if vmpl < current and world.is_interrupted():
                chosen, current = world, vmpl
        return chosen

    def start(self, vmpl: Vmpl, vmsa_spa: int) -> None:
        """Run the VMSA at `vmsa_spa` as `vmpl` from now on (AP creation, CREATE).

        A more privileged VMPL that is at work finishes first: it is let go when it halts.
        """
        self._register(vmpl, vmsa_spa)
        world = self.world
        if world is None or world.activity is not Activity.RUNNABLE or vmpl <= self.vmpl:
            self.vmpl = vmpl
        else:
            self._start_next = vmpl

    def start_on_init(self, vmpl: Vmpl, vmsa_spa: int) -> None:
        """Use the VMSA from the next INIT on, or when `run_vmpl` asks for it (CREATE_ON_INIT)."""
        self._vmsa_on_init[vmpl] = vmsa_spa

    def destroy(self, vmpl: Vmpl) -> None:
        """Forget the VMSA of `vmpl`: it does not run any more (AP creation, DESTROY)."""
        self._discard(vmpl)
        self._vmsa_on_init.pop(vmpl, None)
        if self._start_next == vmpl:
            self._start_next = None

    def run_vmpl(self, vmpl: int) -> bool:
        """Switch to another VMPL of this vCPU; returns False if it has no VMSA for it."""
        if vmpl not in Vmpl.__members__.values():
            return False
        target = Vmpl(vmpl)
        if target not in self._worlds:
            vmsa_spa = self._vmsa_on_init.get(target)
            if vmsa_spa is None:
                return False
            self._register(target, vmsa_spa)
        world = self._worlds[target]
        # A more privileged one is called, and goes on behind its HLT. A less privileged one that
        # was halted when it was interrupted still is; a reset hold ends with a SIPI only.
        if target < self.vmpl and world.activity in (Activity.HALTED, Activity.HALTED_MASKED):
            world.activity = Activity.RUNNABLE
        self.vmpl = target
        if self._start_next == target:
            self._start_next = None
        return True

    def wait(self, activity: Activity) -> None:
        """The world that runs stops: HLT, or a reset hold."""
        world = self.world
        if world is not None:
            world.activity = activity
        if self._start_next is not None:
            self.vmpl = self._start_next
            self._start_next = None

    def take_over(self, old: Vcpu) -> None:
        """Go on where `old` was, without its guest: its VMPL0 finds that out by RUN_VMPL.

        Only for a guest that runs below VMPL0.
        """
        for world in old.worlds:
            if world.vmpl != Vmpl.VMPL0:
                self._release(world.vmcb)
                continue
            plane = self._plane(world.vmpl)
            plane.take_over(world.plane)
            world.plane = plane
            self._worlds[world.vmpl] = world
            if self.index == 0 and world.activity in (Activity.HALTED, Activity.HALTED_MASKED):
                world.activity = Activity.RUNNABLE
        self.vmpl = Vmpl.VMPL0

    def init(self) -> None:
        """INIT arrived: start over with the VMSAs that were registered for it."""
        for vmpl, vmsa_spa in sorted(self._vmsa_on_init.items()):
            self._register(vmpl, vmsa_spa)
            self.vmpl = vmpl

    def _discard(self, vmpl: Vmpl) -> None:
        world = self._worlds.pop(vmpl, None)
        if world is not None:
            self._release(world.vmcb)

    def _plane(self, vmpl: Vmpl) -> Plane:
        plane = self._planes.get(vmpl)
        if plane is None:
            plane = self._planes[vmpl] = self._make_plane(vmpl)
        return plane

    def _register(self, vmpl: Vmpl, vmsa_spa: int) -> None:
        self._discard(vmpl)
        vmcb = Vmcb(vmsa_spa, ghcb_msr=INITIAL_GHCB_MSR, vcpu=self.index)
        self._worlds[vmpl] = World(vmpl, vmcb, self._plane(vmpl))
        log.debug("vCPU %d: VMSA at %#x runs as VMPL%d", self.index, vmsa_spa, vmpl)
