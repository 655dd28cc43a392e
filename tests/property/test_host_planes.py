# SPDX-License-Identifier: MIT
"""Whatever the order: each interrupt is taken once, at the vCPU and the VMPL that it was for."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Final

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.local_apic import DeliveryMode
from svsmd.host.outcome import AllHalted
from svsmd.host.platform import Platform, PlatformConfig
from svsmd.host.vcpu import World
from svsmd.snp.exits import Exit, Hlt, Intr, Vmgexit
from svsmd.snp.ghcb_msr import RunVmpl
from svsmd.snp.types import PAGE_SIZE, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.x2apic import ICR_DESTINATION_SHIFT, SVR_ENABLE, ApicMsr
from tests.fake_silicon import VMSA_GPA, FakeSilicon

CPUS: Final = 2
NEVER: Final = 1 << 40
TIMER_VECTOR: Final = 0x30

Where = tuple[int, int]
"""vCPU and VMPL."""

cpus = st.integers(0, CPUS - 1)
vmpls = st.sampled_from((0, 2))
vectors = st.integers(0x40, 0xFF)


@dataclass
class Player:
    """What runs at one VMPL of one vCPU. Interrupts that are on are taken first."""

    where: Where
    enabled: bool = False
    draining: bool = False
    todo: deque[str] = field(default_factory=deque)


class PlayedSilicon(FakeSilicon):
    """VMRUN asks the player of the VMCB. `taken` are the interrupts that were taken."""

    def __init__(self) -> None:
        super().__init__()
        self.players: dict[int, Player] = {}
        self.taken: list[tuple[Where, int]] = []

    def vmrun(self, vmcb: Vmcb, until: int) -> Exit:
        player = self.players[vmcb.vmsa_spa]
        self.clock.now += 1
        if player.draining:
            player.enabled = True
        if player.enabled and vmcb.v_irq is not None:
            self.taken.append((player.where, vmcb.v_irq))
            vmcb.v_irq = None
            vmcb.guest_interrupt_mask = True
            return Intr()
        exit_ = self._act(player, vmcb)
        vmcb.guest_interrupt_mask = player.enabled
        return exit_

    def _act(self, player: Player, vmcb: Vmcb) -> Exit:
        other = 2 - player.where[1]
        action = player.todo.popleft() if player.todo else "leave" if player.draining else "run"
        match action:
            case "enable":
                player.enabled = True
            case "disable":
                player.enabled = False
            case "halt":
                return Hlt()
            case "call":
                vmcb.ghcb_msr = RunVmpl(other).encode()
                return Vmgexit()
            case "leave" if other:
                # VMPL0 has nothing to do: its guest goes on. A guest halts.
                vmcb.ghcb_msr = RunVmpl(other).encode()
                return Vmgexit()
            case "leave":
                return Hlt()
        return Intr()


class Interrupts(RuleBasedStateMachine):
    """Devices, IPIs and timers against two vCPUs with an SVSM and a guest each."""

    def __init__(self) -> None:
        super().__init__()
        silicon = self.silicon = PlayedSilicon()
        self.platform = Platform(
            PlatformConfig(ncpus=CPUS), lambda: silicon.clock.now, lambda _: None, lambda _: None
        )
        config = HypervisorConfig(Vmpl.VMPL2, time_slice=7)
        self.hypervisor = Hypervisor(silicon, self.platform, config)
        self.players: dict[Where, Player] = {}
        self.worlds: dict[Where, World] = {}
        self.expected: defaultdict[Where, set[int]] = defaultdict(set)
        """IRR, as the manual has it: a vector that is raised twice is one interrupt."""
        self.checked = 0
        for vcpu in self.hypervisor.vcpus:
            for vmpl in (Vmpl.VMPL2, Vmpl.VMPL0):
                vcpu.start(vmpl, VMSA_GPA + (4 * vcpu.index + vmpl) * PAGE_SIZE)
            for world in vcpu.worlds:
                where = vcpu.index, int(world.vmpl)
                player = Player(where)
                self.players[where] = player
                self.worlds[where] = world
                silicon.players[world.vmcb.vmsa_spa] = player
                assert world.plane.msrs.write(ApicMsr.SVR, SVR_ENABLE | 0xFF)
                assert world.plane.msrs.write(ApicMsr.TIMER_DIVIDE, 0xB)
                assert world.plane.msrs.write(ApicMsr.LVT_TIMER, TIMER_VECTOR)

    @rule(cpu=cpus, vmpl=vmpls, vector=vectors)
    def device_interrupts(self, cpu: int, vmpl: int, vector: int) -> None:
        self.worlds[cpu, vmpl].plane.apic.deliver(DeliveryMode.FIXED, vector)
        self.expected[cpu, vmpl].add(vector)

    @rule(cpu=cpus, vmpl=vmpls, destination=cpus, vector=vectors)
    def sends_ipi(self, cpu: int, vmpl: int, destination: int, vector: int) -> None:
        request = destination << ICR_DESTINATION_SHIFT | vector
        assert self.worlds[cpu, vmpl].plane.msrs.write(ApicMsr.ICR, request)
        self.expected[destination, vmpl].add(vector)

    @rule(cpu=cpus, vmpl=vmpls, ticks=st.integers(1, 20))
    def arms_timer(self, cpu: int, vmpl: int, ticks: int) -> None:
        assert self.worlds[cpu, vmpl].plane.msrs.write(ApicMsr.TIMER_INITIAL_COUNT, ticks)
        self.expected[cpu, vmpl].add(TIMER_VECTOR)

    @rule(cpu=cpus, vmpl=vmpls, priority=st.integers(0, 15))
    def sets_priority(self, cpu: int, vmpl: int, priority: int) -> None:
        assert self.worlds[cpu, vmpl].plane.msrs.write(ApicMsr.TPR, priority << 4)

    @rule(
        cpu=cpus, vmpl=vmpls,
        todo=st.lists(st.sampled_from(("enable", "disable", "call", "run")), max_size=6),
    )  # fmt: skip
    def does(self, cpu: int, vmpl: int, todo: list[str]) -> None:
        self.players[cpu, vmpl].todo.extend(todo)

    @rule(cpu=cpus)
    def waits_at_vmpl0(self, cpu: int) -> None:
        """With interrupts on or off: a call of the guest wakes it in either case."""
        self.players[cpu, 0].todo.append("halt")

    @rule(cpu=cpus)
    def waits_in_the_guest(self, cpu: int) -> None:
        self.players[cpu, 2].todo.extend(("enable", "halt"))

    @rule(steps=st.integers(1, 10))
    def runs(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    @invariant()
    def a_vcpu_runs_a_vmpl_that_it_has(self) -> None:
        for vcpu in self.hypervisor.vcpus:
            assert vcpu.world is self.worlds[vcpu.index, int(vcpu.vmpl)]

    def _step(self) -> bool:
        """One step of the host; whether there was anything to do."""
        outcome = self.hypervisor.step(NEVER)
        for where, vector in self.silicon.taken[self.checked :]:
            assert vector in self.expected[where], f"{vector:#x} was not for {where}"
            plane = self.worlds[where].plane
            if vector != TIMER_VECTOR or plane.apic._timer.deadline is None:
                self.expected[where].remove(vector)
            assert plane.msrs.write(ApicMsr.EOI, 0)
        self.checked = len(self.silicon.taken)
        if isinstance(outcome, AllHalted):
            if outcome.next_deadline is None:
                return False
            self.silicon.clock.now = max(self.silicon.clock.now, outcome.next_deadline)
        return True

    def teardown(self) -> None:
        """Everybody takes what there is."""
        for where, player in self.players.items():
            player.draining = True
            player.enabled = True
            player.todo.clear()
            assert self.worlds[where].plane.msrs.write(ApicMsr.TPR, 0)
        for vcpu in self.hypervisor.vcpus:
            # One that halted with interrupts off is called once more.
            vcpu.run_vmpl(2)
            vcpu.run_vmpl(0)
        for _ in range(5000):
            if not self._step():
                break
        else:
            raise AssertionError("there is no end to it")
        left = {where: vectors for where, vectors in self.expected.items() if vectors}
        assert not left, f"lost: {left}"


TestInterrupts = Interrupts.TestCase
TestInterrupts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
