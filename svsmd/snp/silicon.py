# SPDX-License-Identifier: MIT
"""The chip: memory, RMP, security processor and the CPU, and what a hypervisor may do with them.

Spec: 24593, 15.5 (VMRUN), 15.35, 15.36.12 (VMSA pages).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from svsmd.snp.access import check_vmsa
from svsmd.snp.clock import Clock
from svsmd.snp.cpu_unicorn import RAX, RBP, RBX, RCX, RDI, RDX, RSP, UnicornCpu
from svsmd.snp.engine_callbacks import Stop
from svsmd.snp.entropy import EntropySource
from svsmd.snp.events import EventClass, SnpEvents
from svsmd.snp.events.exits import NPF, VMGEXIT, tell_npf, tell_vmgexit
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
from svsmd.snp.memory import GuestMemory
from svsmd.snp.memory_encryption import MemoryEncryption
from svsmd.snp.physical_access import PhysicalAccess
from svsmd.snp.processor import Processor
from svsmd.snp.psp import SecurityProcessor
from svsmd.snp.register_file import RegisterFile
from svsmd.snp.rmp import Rmp
from svsmd.snp.rmp_history import RIP_BITS, RUNNING, VCPU_SHIFT, VMPL_SHIFT
from svsmd.snp.self_test import check_engine
from svsmd.snp.types import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Spa, Vmpl
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmpl0_port import Vmpl0Port
from svsmd.snp.vmsa import Efer, SevFeatures, Vmsa
from svsmd.snp.vmsa_state import illegal_state, load, save

log = logging.getLogger(__name__)

_NEVER: Final = (1 << 64) - 1
_RIP: Final = (1 << RIP_BITS) - 1
_IF: Final = 1 << 9

SUPPORTED_SEV_FEATURES: Final = SevFeatures.SNP_ACTIVE | SevFeatures.SECURE_TSC
"""What a VMSA may ask for."""

_EXIT_EVENTS: Final = VMGEXIT | NPF
_VMGEXIT: Final = Vmgexit()
_EXIT_CODES: Final[dict[type, int]] = {
    Vmgexit: 0x403, Hlt: 0x78, Cr8WriteTrap: 0x98, Shutdown: 0x7F, Npf: 0x400, Intr: 0x60,
}  # fmt: skip


class RmpViolation(Exception):
    """The host wrote to a page that is not its own: #PF with the RMP bit (24593, 15.36.10)."""

    def __init__(self, spa: int) -> None:
        super().__init__(f"host write to the private page {spa:#x}")
        self.spa = spa


@dataclass(slots=True)
class GateCall:
    """The SVSM's native code called its core.

    Attributes:
        vcpu: TSC_AUX of the VMSA, where the core keeps the number of the vCPU.
        rip: linear address of the gate instruction. What is written to RAX to RDX is what the code
            sees; the other registers keep their values.
    """

    port: Vmpl0Port
    vcpu: int
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rdi: int
    rbp: int
    rsp: int
    rip: int


@dataclass(slots=True)
class _Context:
    """What the engine must remember of a VMPL of a vCPU beside its VMSA."""

    vmcb: Vmcb
    previous_end: int = 0
    previous_page: int = 0
    reported: int = _NEVER
    """Linear address of the breakpoint that was reported last; it is passed once."""


class Silicon:
    """An SNP machine without a hypervisor.

    Args:
        memory_size: bytes of RAM.
        entropy: the one source of randomness.
        events: who is told of what happens; nobody by default.
    """

    def __init__(
        self, memory_size: int, entropy: EntropySource, events: SnpEvents | None = None
    ) -> None:
        self.memory = GuestMemory(memory_size)
        self.rmp = Rmp(self.memory.ranges, self._rmp_changed, events)
        self.encryption = MemoryEncryption(entropy.stream("memory encryption key").read(32))
        self.physical = PhysicalAccess(self.memory, self.rmp, self.encryption)
        self.cpu = UnicornCpu(self.memory)
        check_engine(self.cpu)
        self.clock = Clock(self.cpu.shared)
        self.processor = Processor(self.cpu, self.memory, self.rmp, self.physical, entropy)
        self.processor.write_memory_hook = self._memory_written
        self.psp = SecurityProcessor(self.memory, self.rmp, entropy.stream("security processor"))
        self.debug = self.processor.debug
        self.registers = RegisterFile(self.processor, lambda: self._port.flush_tlb())
        self.debug.view.other_register = self.registers.value
        self.debug.view.prepare_read = self.make_readable
        self._contexts: dict[int, _Context] = {}
        self._loaded: _Context | None = None
        self._halted = False  # what is loaded has EFER.SVME clear, and is only looked at
        self._vmsa_checked = False  # since the RMP last changed, for the loaded context
        self._stopped: Vmcb | None = None  # what ran last, if its VMRUN ended without a #VMEXIT
        self._port = Vmpl0Port(self.processor)
        self.rmp.history.now = lambda: self.cpu.shared.ticks
        self.rmp.history.actor = self._actor
        self.events = events = self.rmp.events
        events.locate = lambda: (self.cpu.linear_rip, self.processor.vmpl)
        events.on_change = self._events_armed
        self._events_armed()

    def _events_armed(self) -> None:
        # Native callbacks deliver most #VCs by themselves.
        self.cpu.show_vcs(bool(self.events.armed & EventClass.VC.bit))

    # -- what changes behind the engine -----------------------------------------------------

    def _rmp_changed(self, first_page: int, npages: int) -> None:
        self._vmsa_checked = False
        loaded = self._loaded
        if loaded is not None and 0 <= (loaded.vmcb.vmsa_spa >> PAGE_SHIFT) - first_page < npages:
            # Whoever gets at the page now must find the state in it.
            self.save_loaded()
        cpu = self.cpu
        start = self.memory.offset_of(first_page << PAGE_SHIFT) >> PAGE_SHIFT
        assigned = b"\1" if self.rmp.assigned(first_page) else b"\0"
        cpu.assigned[start : start + npages] = assigned * npages
        if cpu.nested.unmap(first_page, npages):
            cpu.flush_tlb()
        cpu.forget_code(start << PAGE_SHIFT, npages << PAGE_SHIFT)
        self._port.known.rmp_changed(first_page, npages)

    def _actor(self) -> int:
        """Who changes the RMP now, or whose exit the host is serving, as `RmpHistory` has it."""
        context = self._loaded
        if context is None:
            return 0
        who = self.cpu.linear_rip & _RIP | (context.vmcb.vcpu & 0xFF) << VCPU_SHIFT
        return who | self.processor.vmpl << VMPL_SHIFT | RUNNING

    def _memory_written(self, spa: int, nbytes: int) -> None:
        self.cpu.forget_code(self.memory.offset_of(spa), nbytes)

    # -- the host's accesses ----------------------------------------------------------------

    def host_read(self, spa: int, n: int) -> bytes:
        """What a hypervisor reads: ciphertext of private pages, plaintext of the others.

        Raises:
            NotRam: there is no RAM.
        """
        parts = []
        while n:
            chunk = min(n, PAGE_SIZE - (spa & PAGE_MASK))
            page = spa & ~PAGE_MASK
            if self.rmp.assigned(page >> PAGE_SHIFT):
                self._save_if_loaded(page)
                data = self.encryption.encrypt_page(page, self.memory.page(page))
                parts.append(data[spa & PAGE_MASK :][:chunk])
            else:
                parts.append(self.memory.read(spa, chunk))
            spa += chunk
            n -= chunk
        return b"".join(parts)

    def host_write(self, spa: int, data: bytes) -> None:
        """Writes shared memory.

        Raises:
            RmpViolation: a page of it is private; nothing is written.
            NotRam: there is no RAM.
        """
        for page in range(spa >> PAGE_SHIFT, (spa + max(len(data), 1) - 1 >> PAGE_SHIFT) + 1):
            if self.rmp.assigned(page):
                raise RmpViolation(page << PAGE_SHIFT)
        self.memory.write(spa, data)
        self._memory_written(spa, len(data))

    def host_page(self, spa: int) -> memoryview | None:
        """A live view of a shared page; None unless a page of RAM that is shared starts there."""
        if spa & PAGE_MASK or not self.memory.contains(spa, PAGE_SIZE):
            return None
        if self.rmp.assigned(spa >> PAGE_SHIFT):
            return None
        return self.memory.page(spa)

    # -- VMRUN ------------------------------------------------------------------------------

    @property
    def stop_requested(self) -> bool:
        """Whether somebody waits for the machine to stand still.

        VMRUN then ends at its second block. Who answers exits has to look: what exits in each first
        block never gets that far.
        """
        return self.cpu.stop_requested

    def vmrun(self, vmcb: Vmcb, until: int) -> Exit:
        """Runs a VMPL of a vCPU until it exits or the clock reaches `until` ticks."""
        if self._stopped is not vmcb:
            self._exit_stopped()
        if self._halted:
            self.save_loaded()
        context = self._loaded
        if context is None or context.vmcb is not vmcb or not self._vmsa_checked:
            refused = self._check_vmsa(vmcb)
            if refused is not None:
                return refused
            context = self._load(vmcb)
            self._vmsa_checked = True
        processor, cpu = self.processor, self.cpu
        debug = processor.debug
        if debug.stepped:
            # The host has answered; it may have switched to another VMPL, which has not run yet.
            debug.stepped = False
            return DebugStop(DebugReason.STEP, cpu.linear_rip)
        self.rmp.set_in_use(Spa(vmcb.vmsa_spa), True)
        try:
            exit_ = self._run(context, until)
        finally:
            self.rmp.set_in_use(Spa(vmcb.vmsa_spa), False)
        if self.events.armed & _EXIT_EVENTS:
            self._tell_exit(exit_, vmcb)
        code = _EXIT_CODES.get(type(exit_))
        self._stopped = vmcb if code is None else None
        vmcb.guest_interrupt_mask = bool(cpu.eflags_system & _IF)
        if code is None and self.cpu.shared.answered:
            code = _EXIT_CODES[Vmgexit]
        self.cpu.shared.answered = 0
        if code is not None:
            vmsa = Vmsa(self.memory.page(vmcb.vmsa_spa))
            vmsa.guest_exitcode = code
            debug.stepped = debug.stepping and isinstance(exit_, Vmgexit | Hlt | Cr8WriteTrap)
        return exit_

    def _tell_exit(self, exit_: Exit, vmcb: Vmcb) -> None:
        match exit_:
            case Vmgexit() if self.events.armed & VMGEXIT:
                tell_vmgexit(self.events, vmcb.ghcb_msr, self.host_page)
            case Npf(gpa, error_code, reason) if self.events.armed & NPF:
                tell_npf(self.events, gpa, error_code, reason)

    def _exit_stopped(self) -> None:
        """Somebody else runs now: what stood still for the machine's owner was interrupted."""
        stopped, self._stopped = self._stopped, None
        if stopped is not None and self.rmp.assigned(stopped.vmsa_spa >> PAGE_SHIFT):
            vmsa = Vmsa(self.memory.page(stopped.vmsa_spa))
            vmsa.guest_exitcode = _EXIT_CODES[Intr]

    def _run(self, context: _Context, until: int) -> Exit:
        processor, cpu = self.processor, self.cpu
        processor.debug.arm()
        cpu.shared.deadline = until
        if context.reported != cpu.linear_rip:  # the debugger has it go on elsewhere
            context.reported = _NEVER
        refused = processor.arm_interrupts()
        if refused is not None:
            return refused
        shared, vmcb = cpu.shared, context.vmcb
        shared.skip_breakpoint = context.reported
        context.reported = _NEVER
        shared.ghcb_msr = vmcb.ghcb_msr
        shared.rdtsc_exits = vmcb.intercept_rdtsc
        stop = cpu.run()
        vmcb.ghcb_msr = shared.ghcb_msr
        if shared.v_irq < 0:
            vmcb.v_irq = None
        if stop is Stop.STEP:
            context.reported = rip = cpu.linear_rip
            return DebugStop(DebugReason.STEP, rip)
        if stop is Stop.VMGEXIT:
            return _VMGEXIT
        if shared.skip_breakpoint == cpu.linear_rip:
            # Stopped again before the instruction there ran.
            context.reported = cpu.linear_rip
        if stop is Stop.DEADLINE:
            return Intr()
        if stop is Stop.REQUESTED:
            return Paused()
        exit_ = processor.take_exit()
        if isinstance(exit_, DebugStop):
            # What stands here was reported, or steps reported it: resuming goes past it.
            context.reported = cpu.linear_rip
        return exit_

    def _check_vmsa(self, vmcb: Vmcb) -> InvalidVmsa | None:
        """Whether VMRUN may load the page (24593, 15.36.12), and whether its state is legal."""
        spa = vmcb.vmsa_spa
        if spa & PAGE_MASK or not self.memory.contains(spa, PAGE_SIZE):
            return InvalidVmsa(busy=False, reason=f"no page for a VMSA at {spa:#x}")
        refused = check_vmsa(self.rmp.lookup(spa))
        if refused is not None:
            return InvalidVmsa(busy=refused.busy, reason=refused.row)
        if self._loaded is not None and self._loaded.vmcb is vmcb:
            return None
        return self._check_state(Vmsa(self.memory.page(spa)))

    @staticmethod
    def _check_state(vmsa: Vmsa) -> InvalidVmsa | None:
        if vmsa.vmpl > Vmpl.VMPL3:
            return InvalidVmsa(busy=False, reason=f"VMPL {vmsa.vmpl}")
        features = vmsa.sev_features
        if not features & SevFeatures.SNP_ACTIVE or features & ~int(SUPPORTED_SEV_FEATURES):
            return InvalidVmsa(busy=False, reason=f"SEV features {features:#x}")
        illegal = illegal_state(vmsa)
        return None if illegal is None else InvalidVmsa(busy=False, reason=illegal)

    # -- contexts ---------------------------------------------------------------------------

    def _load(self, vmcb: Vmcb) -> _Context:
        loaded = self._loaded
        if loaded is not None and loaded.vmcb is vmcb:
            return loaded
        self.save_loaded()
        self.cpu.shared.range_left = 0  # a step goes on in its own world only
        context = self._contexts.get(id(vmcb))
        if context is None or context.vmcb is not vmcb:
            context = self._contexts[id(vmcb)] = _Context(vmcb)
        vmsa = Vmsa(self.memory.page(vmcb.vmsa_spa))
        vmcb.loaded_vmpl = Vmpl(vmsa.vmpl)
        processor, cpu = self.processor, self.cpu
        load(cpu, vmsa)
        processor.vmcb = vmcb
        processor.vmpl = vmsa.vmpl
        processor.load_sev_features(vmsa)
        cpu.shared.previous_end = context.previous_end
        cpu.shared.previous_page = context.previous_page
        cpu.select_nested_tables(vmsa.vmpl)
        cpu.shared.vmsa_page = vmcb.vmsa_spa >> PAGE_SHIFT
        self._loaded = context
        return context

    def save_loaded(self) -> None:
        """Puts the registers that are in the CPU back where they belong, into their VMSA."""
        context = self._loaded
        if context is None:
            return
        self._vmsa_checked = False
        context.previous_end = self.cpu.shared.previous_end
        context.previous_page = self.cpu.shared.previous_page
        if self.rmp.assigned(context.vmcb.vmsa_spa >> PAGE_SHIFT):
            self._save(context)
        self._loaded, self._halted = None, False

    def _save(self, context: _Context) -> None:
        vmsa = Vmsa(self.memory.page(context.vmcb.vmsa_spa))
        save(self.cpu, vmsa)
        if self._halted:
            vmsa.efer &= ~int(Efer.SVME)

    def _save_if_loaded(self, page: int) -> None:
        if self._loaded is not None and self._loaded.vmcb.vmsa_spa == page:
            self.save_loaded()

    def answer_vmgexits(self, function: int, argument: int) -> bool:
        """The host's C function that is asked at each VMGEXIT before VMRUN ends.

        Args:
            function: host address of `int (*)(void *argument, uint64_t ghcb_msr, uint64_t ticks,
                int v_irq)`, which returns whether it has answered.
            argument: host address of its own data.

        Returns:
            Whether it will be called; the callbacks in Python always end VMRUN.
        """
        return self.cpu.answer_vmgexits(function, argument)

    def forget(self, vmcb: Vmcb) -> None:
        """The host gives up a control block: nothing of it stays in the CPU."""
        if self._loaded is not None and self._loaded.vmcb is vmcb:
            self.save_loaded()
        self._contexts.pop(id(vmcb), None)
        if self._stopped is vmcb:
            self._stopped = None

    def load_for_debugger(self, vmcb: Vmcb) -> bool:
        """Makes the registers of a context visible; False if its VMSA cannot be loaded.

        VMPL0 clears EFER.SVME in the VMSA of a guest that shall not run. Its registers can be seen
        nevertheless.
        """
        if self._loaded is not None and self._loaded.vmcb is vmcb:
            return True
        spa = vmcb.vmsa_spa
        if spa & PAGE_MASK or not self.memory.contains(spa, PAGE_SIZE):
            return False
        if check_vmsa(self.rmp.lookup(spa)) is not None:
            return False
        vmsa = Vmsa(bytearray(self.memory.page(spa)))
        halted = not vmsa.efer & Efer.SVME
        vmsa.efer |= int(Efer.SVME)
        if self._check_state(vmsa) is not None:
            return False
        self._load(vmcb)
        self._halted = halted
        return True

    def report_again(self, vmcb: Vmcb | None) -> None:
        """A breakpoint where a context stands now counts when it goes on, reported or not."""
        context = self._contexts.get(id(vmcb))
        if context is not None and context.vmcb is vmcb:
            context.reported = _NEVER

    def make_readable(self, spa: int, nbytes: int) -> None:
        """Before a debugger looks at memory: registers that belong there are put there.

        They stay loaded: nothing changes for the guest.
        """
        loaded = self._loaded
        if loaded is not None and spa & ~PAGE_MASK <= loaded.vmcb.vmsa_spa < spa + nbytes:
            self._save(loaded)

    def debug_write(self, spa: int, data: bytes) -> None:
        """A debugger's write to RAM, whoever it belongs to."""
        loaded = self._loaded
        if loaded is not None and spa & ~PAGE_MASK <= loaded.vmcb.vmsa_spa < spa + len(data):
            self.save_loaded()
        self.memory.write(spa, data)
        self._memory_written(spa, len(data))

    # -- VMPL0's gates ----------------------------------------------------------------------

    def register_gate(self, gva: int, callback: Callable[[GateCall], None]) -> None:
        """Names an instruction at VMPL0 that hands over to the SVSM's core.

        Args:
            gva: linear address of a UD2 in the SVSM's native code.
            callback: called with the registers; what it leaves in them is what the code sees. It
                may raise NestedFault: VMRUN then ends, and the instruction is executed again.
        """

        def enter() -> None:
            regs = self.cpu.regs
            vcpu = self.cpu.word(self.cpu.layout.tsc_aux) & 0xFFFF_FFFF
            call = GateCall(
                self._port, vcpu, regs[RAX], regs[RBX], regs[RCX], regs[RDX],
                regs[RDI], regs[RBP], regs[RSP], gva,
            )  # fmt: skip
            try:
                callback(call)
            finally:
                self._port.settle()
            regs[RAX], regs[RBX], regs[RCX], regs[RDX] = call.rax, call.rbx, call.rcx, call.rdx

        self.processor.gates[gva] = enter

    def register_stop(self, gva: int, reason: DebugReason) -> None:
        """Names a UD2 at VMPL0 at which the CPU stops for a debugger, RIP behind it.

        It does nothing else, so a machine without a debugger just goes on.
        """

        def stop() -> None:
            self.processor.leave(DebugStop(reason, gva))

        self.processor.gates[gva] = stop
