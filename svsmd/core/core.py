# SPDX-License-Identifier: MIT
"""The SVSM: policy at VMPL0 behind the gate of the native stub.

`Core.gate_entry` and `Core.exception_entry` are what the machine registers with the silicon for the
stub's two gate instructions. Nothing else goes in, and `log` is all that comes out.

Spec: 58019 (SVSM); the gate is described in `svsmd/core/native/layout.h`, what the boot leaves in
`kernel_launch.h` beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Never

from svsmd.core.access import load_own, store_own
from svsmd.core.archive import Archive
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.boot import (
    TOO_SMALL,
    Machine,
    boot,
    cpuid_functions,
    memory_report,
    read_kernel_launch,
    read_launch_info,
    start_ap,
)
from svsmd.core.calls import CallProtocol
from svsmd.core.gate import Gate, GateReason, Handler, SvsmPanic
from svsmd.core.hypervisor import SvsmReason, set_up_ghcb, terminate_request
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.ipc.served_protocol import OfferedProtocols, ServedProtocols
from svsmd.core.locks import LockDomain, LockReport
from svsmd.core.log import CoreLog
from svsmd.core.memory import OutOfMemory
from svsmd.core.paging.kernel_maps import ImageLayout
from svsmd.core.panic import Cause, guarded, report
from svsmd.core.percpu import PerCpu
from svsmd.core.port import GateCall
from svsmd.core.protocols.core import CoreProtocol
from svsmd.core.protocols.page_state import PageStateProtocol
from svsmd.core.recent_calls import CallRecord
from svsmd.core.request_loop import RequestLoop
from svsmd.core.restart import PayloadChanged, Restarter
from svsmd.core.startup import start_programs
from svsmd.core.syscalls.setup import make_processes
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.interrupts import ApicInterrupts
from svsmd.core.tasks.process import Process
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.program_view import ProgramView
from svsmd.core.tasks.scheduler import Scheduler
from svsmd.core.trap_frame import vector_name
from svsmd.snp.events import SnpEvents
from svsmd.snp.types import PAGE_SIZE

MAX_LATER_EXCEPTIONS: Final = 4
"""Exceptions during a panic that the log mentions, so that the report stays in it."""


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """What the core has to know of the native image, and who listens to its log.

    `cpu_start` is the GVA of the kernel's symbol svsm_cpu_start, `image` where its parts end.
    Everything about the machine comes from the measured launch-info page and from stage 2 instead.
    With `poison` freed memory of the SVSM is filled, and looked at when it is used again. `events`
    is told of calls, for debuggers; it tells the core nothing.
    """

    cpu_start: int
    image: ImageLayout
    on_log: Callable[[str], None] | None = None
    poison: bool = False
    events: SnpEvents = field(default_factory=SnpEvents)


class Core:
    """The SVSM of one machine, from its launch to its end."""

    def __init__(self, config: CoreConfig) -> None:
        self._config = config
        self.log: Final = CoreLog(config.on_log)
        self._gate = Gate(self._start, lambda: terminate_request(self._reason), self._panic)
        self._symbols: Symbols | None = None
        self._cpus: dict[int, PerCpu] = {}
        self._protocols: dict[int, CallProtocol] = {}
        self._machine: Machine | None = None
        self._interrupts = ApicInterrupts(self.log)
        self._loop: RequestLoop | None = None
        self._scheduler: Scheduler | None = None
        self._processes: ProcessTable | None = None
        self._locks: LockDomain | None = None
        self._secrets: int | None = None
        self._reason = SvsmReason.PANIC
        self._later_exceptions = 0
        self.panic_report: tuple[str, ...] = ()
        """What the log says of the panic; empty as long as there is none."""

    @property
    def machine(self) -> Machine | None:
        """What boot has set up; None until it is done."""
        return self._machine

    @property
    def protocols(self) -> Mapping[int, CallProtocol]:
        """What is served, by number."""
        return self._protocols

    @property
    def cpus(self) -> Mapping[int, PerCpu]:
        """The vCPUs by APIC id, as far as they are known."""
        return self._cpus

    @property
    def locks(self) -> LockDomain | None:
        """The sleeping locks of all tasks; None as long as there are no tasks."""
        return self._locks

    @property
    def recent_calls(self) -> Sequence[CallRecord]:
        """The guest's last calls, the latest at the end."""
        return () if self._loop is None else self._loop.recent

    @property
    def processes(self) -> Sequence[Process]:
        """The programs that have not ended, the oldest first."""
        return () if self._processes is None else self._processes.processes

    @property
    def programs(self) -> tuple[ProgramView, ...]:
        """The programs at CPL 3 as they are now, the oldest first; looking has no effect."""
        return tuple(process.view(self._gate.in_user) for process in self.processes)

    @property
    def panicked(self) -> bool:
        """Whether the SVSM has given up; the log says why."""
        return self._gate.panicked

    def gate_entry(self, call: GateCall) -> None:
        """A vCPU executed the gate instruction svsm_core_gate.

        Raises NestedFault where an instruction of the core took one: VMRUN ends with it, and the
        gate instruction is executed again when the host comes back.
        """
        cpu = self._cpus.get(call.vcpu)
        if cpu is not None:
            cpu.port = call.port
        self._gate.entry(call)

    def exception_entry(self, call: GateCall) -> None:
        """The native part took an exception (svsm_exception_gate): RBX is its vector, RAX is CR2,
        RDI where the registers are saved.

        None is expected, so it is a panic; the registers then ask the stub for what those of
        `gate_entry` do.
        """
        if not self._gate.panicked:
            self._reason = SvsmReason.EXCEPTION
        elif self._later_exceptions < MAX_LATER_EXCEPTIONS:
            self._later_exceptions += 1
            self.log.write(f"then exception {call.rbx} ({vector_name(call.rbx)}), ignored")
        self._gate.panic(call, None)

    def _start(self, call: GateCall) -> Handler[Never]:
        if call.rbx == GateReason.BOOT and not self._cpus:
            cpu = self._cpus[call.vcpu] = PerCpu(call.vcpu, call.port)
            return self._run_boot_cpu(cpu, call.rax)
        known = self._cpus.get(call.vcpu)
        if call.rbx == GateReason.AP and known is not None:
            return self._run_ap(known)
        raise SvsmPanic(f"vCPU {call.vcpu} starts for reason {call.rbx}, which is not its turn")

    def _run_boot_cpu(self, cpu: PerCpu, kernel_launch: int) -> Handler[Never]:
        kernel = read_kernel_launch(cpu, kernel_launch)
        launch = read_launch_info(cpu, kernel.launch_info)
        self._secrets = launch.svsm_secrets
        self.log.write(f"SVSM at {launch.svsm_base:#x}, {launch.cpu_count} vCPUs")
        # For backtraces: read now, as there may be no memory to trust when one is wanted.
        self._symbols = Symbols(load_own(cpu, *kernel.kernel_file))
        machine = self._machine = yield from boot(
            cpu, launch, kernel, self._config.image, self.log, poison=self._config.poison
        )
        others = [apic_id for apic_id in range(launch.cpu_count) if apic_id != cpu.apic_id]
        for apic_id in others:
            # The port is the boot CPU's until this vCPU's own first gate call, which replaces it.
            self._cpus[apic_id] = PerCpu(apic_id, cpu.port)
        scheduler = self._scheduler = Scheduler(range(launch.cpu_count), self._interrupts)
        self._locks = LockDomain(scheduler, self.log)
        self._gate.task_of = scheduler.body_of
        ipc = IpcKernel(scheduler, machine.pages)
        served = ServedProtocols(scheduler, ipc.undertaker, machine.guest_vmpl)
        offered = OfferedProtocols(served, self._protocols)
        core = CoreProtocol(machine.memory, self._cpus, offered, machine.guest_vmpl, machine.maps)
        self._protocols[core.number] = core
        page_state = PageStateProtocol(machine.memory)
        self._protocols[page_state.number] = page_state
        restarter = Restarter(machine, self._cpus, self.log)

        def refused(refusing: PerCpu) -> Handler[bool]:
            if refusing is not cpu:
                return False
            try:
                return (yield from restarter.offered(cpu))
            except PayloadChanged:
                self._reason = SvsmReason.PAYLOAD
                raise

        archive = Archive(cpu, *kernel.archive)
        cpuid = ProgramCpuid(cpuid_functions(cpu, launch))
        processes = self._processes = make_processes(
            scheduler, machine.pages, archive, self.log, cpuid, ipc, served, machine.memory,
            self._config.events,
        )  # fmt: skip
        self._loop = RequestLoop(
            machine.memory,
            self._protocols,
            served,
            machine.guest_vmpl,
            self.log,
            refused,
            scheduler,
            self._config.events,
        )
        for apic_id in others:
            yield from start_ap(cpu, machine, self._cpus[apic_id], self._config.cpu_start)
        self.log.write(memory_report(machine.pages))
        start_programs(cpu, archive, processes, launch.cpu_count, self.log)
        yield from self._run_tasks(cpu, scheduler, self._loop)
        raise AssertionError("the life of a CPU has no end")

    def _run_ap(self, cpu: PerCpu) -> Handler[Never]:
        if self._machine is None or self._scheduler is None or self._loop is None:
            raise SvsmPanic(f"vCPU {cpu.apic_id} starts before the boot CPU is done")
        try:
            yield from set_up_ghcb(cpu, self._machine.maps)
        except OutOfMemory as error:
            raise SvsmPanic(TOO_SMALL) from error
        yield from self._run_tasks(cpu, self._scheduler, self._loop)
        raise AssertionError("the life of a CPU has no end")

    def _run_tasks(self, cpu: PerCpu, scheduler: Scheduler, loop: RequestLoop) -> Handler[Never]:
        yield from self._interrupts.enable(cpu)
        guest = scheduler.start(
            cpu, f"guest {cpu.apic_id}", loop.run(cpu), affinity=frozenset({cpu.apic_id})
        )
        guest.killable, guest.gives_way = False, True
        yield from scheduler.run(cpu)
        raise AssertionError("the life of a CPU has no end")

    def _panic(self, call: GateCall, error: Exception | None) -> None:
        """Secrets first: nothing that goes wrong later leaves them there."""
        wiped = guarded(lambda: self._wipe_secrets(call))
        lines = guarded(lambda: self._report(call, Cause.of(call, error)))
        self.panic_report = (*lines, *wiped)
        for line in self.panic_report:
            self.log.write(line)

    def _report(self, call: GateCall, cause: Cause) -> list[str]:
        kernel = self._symbols.lookup if self._symbols is not None else None
        cpu = PerCpu(call.vcpu, call.port)
        module = self._processes.module_on(cpu) if self._processes is not None else None
        return report(call, cause, self._gate, self._cpus, self._held_locks(), kernel, module)

    def _held_locks(self) -> list[LockReport]:
        reports = () if self._locks is None else self._locks.reports()
        return [each for each in reports if each.holder is not None]

    def _wipe_secrets(self, call: GateCall) -> list[str]:
        """The SVSM's secrets page, VMPCKs included. The guest's copy is the guest's."""
        if self._secrets is None:
            return ["the secrets page is not known, nothing is wiped"]
        try:
            store_own(PerCpu(call.vcpu, call.port), self._secrets, bytes(PAGE_SIZE))
        except SvsmPanic as error:
            return [f"the secrets page cannot be wiped: {error}"]
        return ["the secrets page is wiped, and with it the keys to the security processor"]
