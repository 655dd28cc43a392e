# SPDX-License-Identifier: MIT
"""Interrupts of VMPL0 on the real engine: silicon and host together, and code with an IDT."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

import pytest

from svsmd.host.hypervisor import Hypervisor, HypervisorConfig
from svsmd.host.local_apic import DeliveryMode
from svsmd.host.outcome import AllHalted, Continue, Debug
from svsmd.host.plane import Plane
from svsmd.host.platform import Platform, PlatformConfig
from svsmd.host.vcpu import Activity
from svsmd.snp.cpu_unicorn import RBP
from svsmd.snp.exits import Hlt
from svsmd.snp.ghcb import Ghcb, GhcbExit
from svsmd.snp.ghcb_msr import RegisterGpa, RunVmpl, run_vmpl_response
from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE, Vmpl
from svsmd.snp.vmsa import Vmsa
from svsmd.snp.x2apic import ICR_DESTINATION_SHIFT, SVR_ENABLE, ApicMsr
from tests.bare_machine import (
    CODE,
    DATA,
    HANDLERS,
    IF,
    KERNEL_CS,
    KERNEL_SS,
    RSP0,
    SPARE,
    STACK,
    USER_CS,
    USER_SS,
    VMSA,
    BareMachine,
    gate,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("both_callbacks")

TIMER, KICK, DEVICE = 0x40, 0x51, 0x62
HANDLER: Final = CODE + 0x800
GUEST_HANDLER: Final = CODE + 0xC00
GUEST_CODE: Final = CODE + PAGE_SIZE
GUEST_VMSA: Final = DATA + 2 * PAGE_SIZE
AP_VMSA: Final = DATA + 3 * PAGE_SIZE
AP_CODE: Final = GUEST_CODE + 0x800
AP_STACK: Final = STACK - PAGE_SIZE
GUEST_STACK: Final = STACK - PAGE_SIZE - 0x800
NEVER: Final = 1 << 40
VMGEXIT = ".byte 0xf3, 0x0f, 0x01, 0xd9"


class Rig:
    """A bare machine under the hypervisor, with code of VMPL0 at CODE on vCPU 0.

    Each request to the host is a GHCB page of its own, which the test has filled already.
    """

    def __init__(self, *, ncpus: int = 1, user: bool = False) -> None:
        m = self.machine = BareMachine(0, user=user)
        m.make_vmsa(0)
        self.platform = Platform(
            PlatformConfig(ncpus=ncpus), lambda: m.silicon.clock.now, lambda _: None, lambda _: None
        )
        config = HypervisorConfig(Vmpl.VMPL2, time_slice=20_000)
        self.hypervisor = Hypervisor(m.silicon, self.platform, config)
        self.vcpu = self.hypervisor.vcpus[0]
        self.vcpu.start(Vmpl.VMPL0, VMSA)
        self._ghcbs = iter(range(SPARE, SPARE + 64 * PAGE_SIZE, PAGE_SIZE))

    def msr(self, value: int) -> str:
        """Code for a request of the GHCB MSR protocol; the answer is in EDX:EAX."""
        return (
            f"mov ecx, 0xc0010130; mov eax, {value & 0xFFFF_FFFF}; mov edx, {value >> 32};"
            f"wrmsr; {VMGEXIT}; rdmsr;"
        )

    def write_apic(self, msr: ApicMsr, value: int) -> str:
        """Code that writes a register of the local APIC."""
        gpa = next(self._ghcbs)
        ghcb = Ghcb()
        ghcb.set_request(GhcbExit.SVM_EXIT_MSR, 1)
        ghcb.rcx, ghcb.rax, ghcb.rdx = msr, value & 0xFFFF_FFFF, value >> 32
        self.machine.silicon.host_write(gpa, ghcb.tobytes())
        return self.msr(RegisterGpa(gpa >> PAGE_SHIFT).encode()) + self.msr(gpa)

    def enable(self) -> str:
        return (
            self.write_apic(ApicMsr.SVR, SVR_ENABLE | 0xFF)
            + self.write_apic(ApicMsr.TIMER_DIVIDE, 0xB)
            + self.write_apic(ApicMsr.LVT_TIMER, TIMER)
        )

    def arm(self, ticks: int) -> str:
        return self.write_apic(ApicMsr.TIMER_INITIAL_COUNT, ticks)

    def handler(self, vector: int, source: str, at: int = HANDLER) -> None:
        self.machine.set_gate(vector, gate(at))
        self.machine.load(source, at)

    def guest(self, source: str) -> None:
        """Code at VMPL2 of vCPU 0."""
        m = self.machine
        m.own(GUEST_VMSA)
        m.make_vmsa(2, at=GUEST_VMSA, code=GUEST_CODE, stack=GUEST_STACK)
        m.load(source, GUEST_CODE)
        self.vcpu.start_on_init(Vmpl.VMPL2, GUEST_VMSA)

    def plane(self, vmpl: int, vcpu: int = 0) -> Plane:
        (found,) = (w.plane for w in self.hypervisor.vcpus[vcpu].worlds if w.vmpl == vmpl)
        return found

    def run(self) -> None:
        """Until all have halted, and no timer is armed."""
        clock = self.machine.silicon.clock
        for _ in range(1000):
            match self.hypervisor.step(NEVER):
                case Continue():
                    continue
                case AllHalted(None):
                    return
                case AllHalted(int() as deadline):
                    clock.advance(max(0, deadline - clock.now))
                case other:
                    raise AssertionError(other)
        raise AssertionError("no end")

    def vmsa(self, gpa: int = VMSA) -> Vmsa:
        self.machine.silicon.save_loaded()
        return Vmsa(self.machine.silicon.memory.page(gpa))


def test_sti_hlt_takes_the_timer_at_cpl_0() -> None:
    rig = Rig()
    eoi = rig.write_apic(ApicMsr.EOI, 0)
    rig.handler(TIMER, f"inc r12; mov r13, [rsp + 8]; mov r14, [rsp + 16]; {eoi} iretq")
    rig.machine.load(f"{rig.enable()} {rig.arm(100_000)} sti; hlt; inc rbx; cli; hlt")
    rig.run()
    vmsa = rig.vmsa()
    assert (vmsa.r12, vmsa.rbx) == (1, 1), "one interrupt, and HLT is over"
    assert (vmsa.r13, bool(vmsa.r14 & IF)) == (KERNEL_CS, True)
    assert (vmsa.rsp, vmsa.cpl) == (STACK, 0)
    assert rig.machine.silicon.clock.now > 100_000
    state = rig.plane(0).apic.state
    assert (state.irr, state.isr) == (0, 0)


def test_the_timer_interrupts_cpl_3() -> None:
    rig = Rig(user=True)
    eoi = rig.write_apic(ApicMsr.EOI, 0)
    rig.handler(
        TIMER,
        f"inc r12; mov r13, [rsp + 8]; mov r14, [rsp + 24]; mov r15, rsp; {eoi}"
        "cmp r12, 2; je 1f;"
        f"{rig.arm(5000)} iretq; 1: hlt",
    )
    user = CODE + 0x600
    rig.machine.load("1: inc rbx; jmp 1b", user)
    rig.machine.load(
        f"{rig.enable()} {rig.arm(5000)}"
        f"push {USER_SS}; push {DATA + PAGE_SIZE}; push {IF | 2}; push {USER_CS}; push {user};"
        "iretq"
    )
    rig.run()
    vmsa = rig.vmsa()
    assert vmsa.r12 == 2
    assert (vmsa.r13, vmsa.r14, vmsa.r15) == (USER_CS, DATA + PAGE_SIZE, RSP0 - 40)
    assert vmsa.rbx > 1000


GUEST_COUNTS = "xor r13d, r13d; 1: inc r13; jmp 1b"


def preempted(step: Callable[[Rig], object]) -> Rig:
    """Three times VMPL0 arms its timer and runs its guest; `step` is called until it halts."""
    rig = Rig()
    rig.guest(GUEST_COUNTS)
    eois = [rig.write_apic(ApicMsr.EOI, 0) for _ in range(3)]
    ends = "; ".join(f"cmp r12, {n}; jne 2f; {eoi} 2: nop" for n, eoi in enumerate(eois, 1))
    rig.handler(TIMER, f"inc r12; {ends}; iretq")
    turns = [
        f"{rig.arm(5_000)} {rig.msr(RunVmpl(2).encode())} mov r{8 + n}, rax; shl rdx, 32;"
        f"or r{8 + n}, rdx; sti; nop; cli;"
        for n in range(3)
    ]
    rig.machine.load("xor r12d, r12d;" + rig.enable() + "".join(turns) + "hlt")
    while rig.vcpu.world is None or rig.vcpu.world.activity is not Activity.HALTED_MASKED:
        step(rig)
    return rig


def steps(rig: Rig) -> None:
    """As the debugger does, so that each block is one instruction."""
    rig.machine.silicon.debug.set_stepping(True)
    rig.hypervisor.step_vcpu(0)


def stops(rig: Rig) -> None:
    """Somebody wants the machine after each block."""
    rig.machine.silicon.cpu.request_stop()
    rig.hypervisor.step(NEVER)
    rig.machine.silicon.cpu.clear_stop()


def test_the_timer_of_vmpl0_interrupts_its_guest() -> None:
    seen: list[int] = []

    def step(rig: Rig) -> None:
        rig.hypervisor.step(NEVER)
        if rig.vcpu.vmpl == 2:
            seen.append(rig.vmsa(GUEST_VMSA).r13)

    rig = preempted(step)
    vmsa = rig.vmsa()
    assert vmsa.r12 == 3
    assert [vmsa.r8, vmsa.r9, vmsa.r10] == [run_vmpl_response()] * 3
    guest = rig.vmsa(GUEST_VMSA)
    assert guest.guest_exitcode == 0x60, "it was interrupted: it has made no call"
    assert len(seen) >= 3
    assert seen == sorted(seen)
    assert guest.r13 > 5_000, "it went on where it was"


@pytest.mark.parametrize("step", [steps, stops])
def test_who_watches_does_not_move_the_interrupts(step: Callable[[Rig], object]) -> None:
    free = preempted(lambda rig: rig.hypervisor.step(NEVER))
    watched = preempted(step)
    assert watched.machine.silicon.clock.now == free.machine.silicon.clock.now
    for gpa in (VMSA, GUEST_VMSA):
        assert watched.vmsa(gpa).tobytes() == free.vmsa(gpa).tobytes()


def test_both_vmpls_take_their_own() -> None:
    rig = Rig()
    rig.guest("sti; 1: inc r13; jmp 1b")
    rig.handler(KICK, f"inc r12; {rig.write_apic(ApicMsr.EOI, 0)} iretq")
    rig.handler(DEVICE, "inc r12; cli; hlt", GUEST_HANDLER)
    run_guest = rig.msr(RunVmpl(2).encode())
    rig.machine.load(f"{rig.enable()} {run_guest} sti; nop; cli; {run_guest}")
    rig.platform.msrs.write(0, ApicMsr.SVR, SVR_ENABLE | 0xFF)
    clock = rig.machine.silicon.clock
    while rig.vcpu.vmpl == 0:
        rig.hypervisor.step(clock.now + 100)
    rig.plane(0).apic.deliver(DeliveryMode.FIXED, KICK)
    rig.plane(2).apic.deliver(DeliveryMode.FIXED, DEVICE)
    rig.run()
    assert (rig.vmsa().r12, rig.vmsa(GUEST_VMSA).r12) == (1, 1)
    assert rig.plane(0).apic.state.irr == rig.plane(2).apic.state.irr == 0
    assert rig.plane(2).apic.state.isr == 1 << DEVICE


@pytest.mark.parametrize("halted", [True, False], ids=["halted", "guest runs"])
def test_an_ipi_reaches_vmpl0_of_another_vcpu(halted: bool) -> None:
    rig = Rig(ncpus=2)
    m = rig.machine
    eoi = rig.write_apic(ApicMsr.EOI, 0)
    rig.handler(KICK, f"inc r12; {eoi} iretq")
    m.own(AP_VMSA)
    m.make_vmsa(0, at=AP_VMSA, code=AP_CODE, stack=AP_STACK)
    other = rig.hypervisor.vcpus[1]
    other.start(Vmpl.VMPL0, AP_VMSA)
    waits = "sti; hlt;" if halted else f"{rig.msr(RunVmpl(2).encode())} sti; nop;"
    m.load(f"{rig.enable()} {waits} cli; inc rbx; hlt", AP_CODE)
    if not halted:
        m.own(GUEST_VMSA)
        m.make_vmsa(2, at=GUEST_VMSA, code=GUEST_CODE, stack=GUEST_STACK)
        m.load(GUEST_COUNTS, GUEST_CODE)
        other.start_on_init(Vmpl.VMPL2, GUEST_VMSA)
    ipi = rig.write_apic(ApicMsr.ICR, 1 << ICR_DESTINATION_SHIFT | KICK)
    m.load(f"{ipi} cli; hlt")
    rig.run()
    vmsa = rig.vmsa(AP_VMSA)
    assert (vmsa.r12, vmsa.rbx) == (1, 1)
    assert rig.plane(0, 1).apic.state.isr == 0
    assert rig.vmsa().r12 == 0
    if not halted:
        assert rig.vmsa(GUEST_VMSA).r13 > 1000


EXCEPTIONS_WITH_ERROR_CODE = (8, 10, 13, 14, 29)


@pytest.mark.parametrize("vector", [0, 2, *EXCEPTIONS_WITH_ERROR_CODE, 31, 32, 128, 255])
def test_what_a_hostile_host_can_inject(vector: int) -> None:
    m = BareMachine(0)
    m.vmcb.v_irq = vector
    assert m.run("mov rbx, 1; mov r12, cr2; mov rcx, 100; 1: loop 1b; hlt; sti; 2: jmp 2b") == Hlt()
    assert m.vmcb.v_irq == vector, "not while interrupts are off"
    assert m.run() == Hlt()
    vmsa = m.vmsa
    assert vmsa.rip - 1 == HANDLERS + 16 * vector, "the handler is VMPL0's choice"
    rip, cs, rflags, rsp, ss = struct.unpack("<5Q", m.read(vmsa.rsp, 40))
    assert (cs, rsp, ss) == (KERNEL_CS, STACK, KERNEL_SS), "there is never an error code"
    assert rflags & IF
    assert CODE < rip < CODE + 100
    assert (vmsa.rbx, vmsa.rcx, vmsa.cr2) == (1, 0, vmsa.r12)


@pytest.mark.parametrize("vector", [32, 255])
def test_a_vector_without_a_gate_is_gp(vector: int) -> None:
    m = BareMachine(0)
    idtr = m.vmsa.idtr
    m.vmsa.idtr = idtr._replace(limit=32 * 16 - 1)
    m.vmcb.v_irq = vector
    trap = m.trapped("sti; 1: jmp 1b")
    assert (trap.vector, trap.error_code) == (13, vector * 8 + 3)


def test_vmpl0_with_interrupts_off_is_left_alone() -> None:
    rig = Rig()
    rig.handler(KICK, "hlt")
    rig.machine.load(f"{rig.enable()} mov ecx, 2000; 1: dec ecx; jnz 1b; inc rbx; hlt")
    rig.hypervisor.step(rig.machine.silicon.clock.now + 1000)
    rig.plane(0).apic.deliver(DeliveryMode.FIXED, KICK)
    rig.run()
    assert rig.vmsa().rbx == 1
    assert rig.plane(0).apic.state.irr == 1 << KICK


# -- steps that take no interrupts --------------------------------------------------------


def in_handler(rig: Rig, rip: int) -> bool:
    return HANDLER <= rip < GUEST_CODE or HANDLERS <= rip < HANDLERS + 256 * 16


def step_held(rig: Rig, *, hold: bool = True) -> int:
    """One step of a debugger; returns where it has led."""
    debug = rig.machine.silicon.debug
    debug.set_stepping(True)
    for _ in range(10):
        match rig.hypervisor.step_vcpu(0, hold_interrupts=hold):
            case Debug():
                break
            case AllHalted(int() as deadline):
                rig.machine.silicon.clock.advance(max(0, deadline - rig.machine.silicon.clock.now))
    debug.set_stepping(False)
    return rig.machine.silicon.registers.linear_rip


def busy(*, user: bool = False) -> Rig:
    """Code that a timer interrupts in 50 ticks, and every 10,000; R12 counts."""
    rig = Rig(user=user)
    eoi = rig.write_apic(ApicMsr.EOI, 0)
    rig.handler(
        TIMER, f"inc r12; push rax; push rcx; push rdx; {eoi} pop rdx; pop rcx; pop rax; iretq"
    )
    periodic = rig.write_apic(ApicMsr.LVT_TIMER, TIMER | 1 << 17)
    rig.machine.load(
        f"{rig.enable()} {periodic} {rig.arm(10_000)} mov ebp, 1; sti; 1: inc rbx; jmp 1b"
    )
    while not rig.vmsa().rbp:
        rig.hypervisor.step(rig.machine.silicon.clock.now + 1)
    deadline = rig.platform.timers.next_deadline
    assert deadline is not None
    rig.hypervisor.step(deadline - 50)
    return rig


def test_a_held_step_ends_in_no_handler() -> None:
    rig = busy()
    rbx = rig.vmsa().rbx
    where = {step_held(rig) for _ in range(1000)}
    assert not any(in_handler(rig, rip) for rip in where)
    vmsa = rig.vmsa()
    assert vmsa.r12 == 0
    assert vmsa.rbx == rbx + 500
    assert rig.plane(0).apic.state.irr == 1 << TIMER, "pending, once"
    rig.hypervisor.step(rig.machine.silicon.clock.now + 100)
    assert rig.vmsa().r12 == 1, "taken as soon as the machine goes on"


def test_a_step_that_takes_interrupts_does() -> None:
    rig = busy()
    where = {step_held(rig, hold=False) for _ in range(1000)}
    assert any(in_handler(rig, rip) for rip in where)
    assert rig.vmsa().r12 == 1


def test_held_steps_are_the_same_in_every_run() -> None:
    first, second = busy(), busy()
    for rig in first, second:
        for _ in range(500):
            step_held(rig)
        rig.hypervisor.step(rig.machine.silicon.clock.now + 5_000)
    assert first.vmsa().tobytes() == second.vmsa().tobytes()
    assert first.machine.silicon.clock.now == second.machine.silicon.clock.now


def test_a_held_nmi_comes_later() -> None:
    rig = Rig()
    rig.handler(2, "inc r12; iretq")
    rig.machine.load("1: inc rbx; jmp 1b")
    step_held(rig)
    rig.plane(0).apic.deliver(DeliveryMode.NMI, 0)
    for _ in range(20):
        assert not in_handler(rig, step_held(rig))
    assert rig.plane(0).nmi_pending
    rig.hypervisor.step(rig.machine.silicon.clock.now + 20)
    assert rig.vmsa().r12 == 1
    assert not rig.plane(0).nmi_pending


def test_an_nmi_that_a_stopped_vmrun_was_to_deliver_is_held() -> None:
    rig = Rig()
    rig.handler(2, "inc r12; iretq")
    rig.machine.load("1: inc rbx; jmp 1b")
    rig.vcpu.world.vmcb.v_nmi = True  # type: ignore[union-attr]
    assert not in_handler(rig, step_held(rig))
    rig.hypervisor.step(rig.machine.silicon.clock.now + 20)
    assert rig.vmsa().r12 == 1


def test_exceptions_of_the_instruction_are_not_held() -> None:
    rig = Rig()
    rig.machine.load("ud2")
    assert step_held(rig) == HANDLERS + 16 * 6


def test_a_held_step_over_sti_and_hlt_goes_on() -> None:
    """As long as its timer lasts the CPU wakes up, but the handler runs when the machine does."""
    rig = Rig()
    eoi = rig.write_apic(ApicMsr.EOI, 0)
    rig.handler(TIMER, f"inc r12; {eoi} iretq")
    rig.machine.load(f"{rig.enable()} {rig.arm(5000)} mov ebp, 1; sti; hlt; inc rbx; cli; hlt")
    start = 0
    while not rig.machine.silicon.cpu.regs[RBP]:
        start = step_held(rig)
    at = [step_held(rig) - start for _ in range(3)]  # sti; hlt; inc rbx
    assert at == [1, 2, 5]
    assert (rig.vmsa().r12, rig.vmsa().rbx) == (0, 1)
    rig.run()
    assert (rig.vmsa().r12, rig.vmsa().rbx) == (1, 1)


def test_a_held_step_over_a_halt_that_nothing_wakes_ends() -> None:
    rig = Rig()
    rig.machine.load("cli; hlt; jmp .")
    step_held(rig)
    for _ in range(3):
        assert step_held(rig) == CODE + 2


@pytest.mark.parametrize("hold", [True, False])
def test_a_held_step_is_not_left_for_another_vmpl(hold: bool) -> None:
    rig = Rig()
    rig.guest(GUEST_COUNTS)
    rig.handler(KICK, f"inc r12; {rig.write_apic(ApicMsr.EOI, 0)} iretq")
    run_guest = rig.msr(RunVmpl(2).encode())
    rig.machine.load(f"{rig.enable()} {run_guest} sti; nop; cli; inc rbx; {run_guest} hlt")
    clock = rig.machine.silicon.clock
    while rig.vcpu.vmpl == 0:
        rig.hypervisor.step(clock.now + 100)
    rig.plane(0).apic.deliver(DeliveryMode.FIXED, KICK)
    vmpls = set()
    for _ in range(50):
        step_held(rig, hold=hold)
        vmpls.add(rig.vcpu.vmpl)
    assert (Vmpl.VMPL0 in vmpls) is not hold
    for _ in range(10):
        rig.hypervisor.step(clock.now + 100)
    assert (rig.vmsa().r12, rig.vmsa().rbx) == (1, 1), "as soon as the machine goes on"
