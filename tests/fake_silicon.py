# SPDX-License-Identifier: MIT
"""Silicon without a CPU: memory, RMP and security processor are real, VMRUN follows a script."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.platform import Platform, PlatformConfig
from svsmd.host.vcpu import Vcpu, World
from svsmd.snp.entropy import EntropySource
from svsmd.snp.exits import Exit, Hlt, Intr, Vmgexit
from svsmd.snp.ghcb import Ghcb
from svsmd.snp.memory import GuestMemory
from svsmd.snp.psp import SecurityProcessor
from svsmd.snp.rmp import GUEST_ASID, Perm, Rmp, RmpReturn, RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import SevFeatures

MEMORY_SIZE: Final = 32 << 20
GHCB_GPA: Final = 0x10_1000
VMSA_GPA: Final = 0x20_3000

Step = Exit | Callable[[Vmcb], Exit]
"""What one VMRUN comes to; a function plays the guest and may use memory and the GHCB MSR."""


@dataclass
class FakeClock:
    now: int = 0


Answer = Callable[[int, int, int], int]


class FakeSilicon:
    """Counts one tick for each VMRUN; a VMRUN beyond the script runs until its deadline.

    Args:
        native: the hypervisor's C function is asked at each VMGEXIT, as the real silicon does.
    """

    def __init__(self, *, native: bool = False) -> None:
        self._native = native
        self._answer: Answer | None = None
        self.memory = GuestMemory(MEMORY_SIZE)
        self.rmp = Rmp(self.memory.ranges)
        self.psp = SecurityProcessor(self.memory, self.rmp, EntropySource(b"test"))
        self.clock = FakeClock()
        self.script: deque[Step] = deque()
        self.runs: list[Vmcb] = []
        self.forgotten: list[Vmcb] = []
        self.stop_requested = False

    def vmrun(self, vmcb: Vmcb, until: int) -> Exit:
        self.runs.append(vmcb)
        if not self.script:
            self.clock.now = until
            return Intr()
        while self.script and self.clock.now < until:
            self.clock.now += 1
            step = self.script.popleft()
            exit_ = step(vmcb) if callable(step) else step
            if isinstance(step, Hlt):
                # An interrupt that was not taken before says that they are off.
                vmcb.guest_interrupt_mask = vmcb.v_irq is None
            if not isinstance(exit_, Vmgexit) or not self._answered(vmcb, until):
                return exit_
        self.clock.now = until
        return Intr()

    def _answered(self, vmcb: Vmcb, until: int) -> bool:
        if self._answer is None or self.clock.now >= until:
            return False
        v_irq = -1 if vmcb.v_irq is None else vmcb.v_irq
        return bool(self._answer(vmcb.ghcb_msr, self.clock.now, v_irq))

    def forget(self, vmcb: Vmcb) -> None:
        self.forgotten.append(vmcb)

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        if self._native:
            kinds = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)
            prototype = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)
            self._answer = partial(prototype(function), argument)
        return self._native

    def host_page(self, spa: int) -> memoryview | None:
        if spa % PAGE_SIZE or not self.memory.contains(spa, PAGE_SIZE):
            return None
        return None if self.rmp.assigned(spa >> PAGE_SHIFT) else self.memory.page(spa)

    def host_write(self, spa: int, data: bytes) -> None:
        for page in range(spa >> PAGE_SHIFT, (spa + len(data) - 1 >> PAGE_SHIFT) + 1):
            assert not self.rmp.assigned(page)
        self.memory.write(spa, data)

    def assign(self, gpa: int, *, huge: bool = False) -> None:
        """Make a page private; validated, so that a test sees when it no longer is."""
        size = PageSize.SIZE_2M if huge else PageSize.SIZE_4K
        state = RmpUpdate(assigned=True, page_size=size, gpa=Gpa(gpa), asid=GUEST_ASID)
        assert self.rmp.rmpupdate(Spa(gpa), state) is RmpReturn.SUCCESS
        self.rmp.firmware_update(Spa(gpa), validated=True)

    def make_vmsa(self, gpa: int) -> None:
        """Make a private page a VMSA page, as RMPADJUST at VMPL0 does."""
        self.assign(gpa)
        self.rmp.firmware_update(Spa(gpa), vmsa=True, permissions=(Perm.ALL, 0, 0, 0))

    def validated(self, gpa: int) -> bool:
        entry = self.rmp.lookup(gpa)
        return entry is not None and entry.validated


class Rig:
    """A hypervisor on fake silicon, with VMPL0 and VMPL2 of its vCPU 0 started."""

    def __init__(
        self, *, ncpus: int = 1, certificates: bytes = b"", time_slice: int = 1000,
        native: bool = False, rtc_epoch: int = 0,
        sev_features: SevFeatures = SevFeatures.SNP_ACTIVE,
    ) -> None:  # fmt: skip
        self.silicon = FakeSilicon(native=native)
        self.console = bytearray()
        self.debug = bytearray()
        self.platform = Platform(
            PlatformConfig(ncpus=ncpus, rtc_epoch=rtc_epoch),
            lambda: self.silicon.clock.now,
            self.console.extend,
            self.debug.extend,
        )
        config = HypervisorConfig(
            Vmpl.VMPL2,
            sev_features=sev_features,
            time_slice=time_slice,
            certificates=lambda: certificates,
        )
        self.hypervisor = Hypervisor(self.silicon, self.platform, config)
        self.vcpu = self.hypervisor.vcpus[0]
        self.vcpu.start(Vmpl.VMPL0, VMSA_GPA)
        self.vcpu.start_on_init(Vmpl.VMPL2, VMSA_GPA + PAGE_SIZE)
        assert self.vcpu.run_vmpl(Vmpl.VMPL2)
        self.ghcb = Ghcb(self.silicon.memory.page(GHCB_GPA))

    @property
    def world(self) -> World:
        return world_of(self.vcpu)

    def register_ghcb(self, gpa: int = GHCB_GPA) -> None:
        self.world.register_ghcb(gpa >> PAGE_SHIFT)

    def msr_exit(self, value: int) -> int:
        """Do VMGEXIT with `value` in the GHCB MSR of the world that runs; returns the answer."""
        vmcb = self.world.vmcb

        def guest(entered: Vmcb) -> Exit:
            assert entered is vmcb
            entered.ghcb_msr = value
            return Vmgexit()

        self.silicon.script.append(guest)
        self.hypervisor.step(self.silicon.clock.now + 1)
        return vmcb.ghcb_msr

    def ghcb_exit(
        self, code: int, info_1: int = 0, info_2: int = 0, **fields: int
    ) -> tuple[int, int]:
        """Do VMGEXIT with an event in the registered GHCB; returns SW_EXITINFO1 and 2."""
        if self.world.ghcb_gpa is None:
            self.register_ghcb()
        self.ghcb.clear_valid()
        self.ghcb.set_request(code, info_1, info_2)
        for name, value in fields.items():
            setattr(self.ghcb, name, value)
        self.msr_exit(GHCB_GPA)
        return self.ghcb.sw_exit_info_1, self.ghcb.sw_exit_info_2


def world_of(vcpu: Vcpu) -> World:
    """The world of a vCPU that has one."""
    world = vcpu.world
    assert world is not None
    return world


def huge(number: int) -> int:
    """Address of 2 MiB page `number`."""
    return number * HUGE_PAGE_SIZE
