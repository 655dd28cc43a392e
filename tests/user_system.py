# SPDX-License-Identifier: MIT
"""Processes without a CPU: all of the core's own, but what they do at CPL 3 the test does for them.

A CPU is driven up to where a program would run (`running`) or where it waits for the host. From
CPL 3 a program makes a system call (`call`), is interrupted, or takes an exception (`leave`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from svsmd.core.archive import Archive
from svsmd.core.gate import EnterUser, Handler, Preempt, Wait
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.ipc.served_protocol import ServedProtocols
from svsmd.core.log import CoreLog
from svsmd.core.paging.cpu_area import STACK
from svsmd.core.paging.page_table import PageTable
from svsmd.core.percpu import PerCpu
from svsmd.core.port import PERCPU_MAP
from svsmd.core.syscalls.dispatch import signed
from svsmd.core.syscalls.setup import make_processes
from svsmd.core.syscalls.table import SYSTEM_CALLS
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.process import FRAME, Capability, Limits, Process
from svsmd.core.tasks.scheduler import TIME_SLICE, Scheduler
from svsmd.core.tasks.task import TaskState
from svsmd.core.trap_frame import FRAME_SIZE, VECTOR_INTERRUPT, VECTOR_SYSCALL, TrapFrame
from svsmd.snp.types import Gpa, Vmpl
from tests.process_memory import ProcessMemory, process_memory
from tests.property.test_executable import BASE, GOOD
from tests.python_programs import NoInterrupts
from tools.make_archive import make_archive

NUMBERS: Final = {info.name: info.number for info in SYSTEM_CALLS}
CPUS: Final = 2
PROGRAM: Final = "/bin/good"
DATA: Final = range(BASE + 0x3000, BASE + 0x8000)
"""Memory that each program may write to."""
_ARCHIVE: Final = 1 << 20
_TURNS: Final = 1000
"""More than it takes until all programs that are to end have ended."""


class _CpuPort(ProcessMemory):
    """The memory of all, and an area that only this CPU has."""

    def __init__(self, data: bytearray) -> None:
        super().__init__()
        self.data = data
        self.cr2 = 0
        self._area = bytearray(STACK.stop - PERCPU_MAP)

    def read(self, gva: int, n: int, /) -> bytes:
        if gva < PERCPU_MAP:
            return super().read(gva, n)
        return bytes(self._area[gva - PERCPU_MAP : gva - PERCPU_MAP + n])

    def write(self, gva: int, data: bytes, /) -> None:
        if gva < PERCPU_MAP:
            super().write(gva, data)
        else:
            self._area[gva - PERCPU_MAP : gva - PERCPU_MAP + len(data)] = data

    def read_cr2(self) -> int:
        return self.cr2


class _Area:
    """Knows which user half its CPU has."""

    def __init__(self) -> None:
        self.table: PageTable | None = None

    def switch_user(self, _cpu: PerCpu, table: PageTable | None) -> None:
        self.table = table


class UserSystem:
    """Two CPUs, so many free pages, all system calls. No page is the guest's."""

    def __init__(self, free: int = 400) -> None:
        memory, first, self.pages = process_memory(free)
        archive = make_archive({PROGRAM: GOOD, "/svsm.toml": b"# nothing"})
        memory.data[_ARCHIVE : _ARCHIVE + len(archive)] = archive
        self.free_at_first = self.pages.statistics().free
        self.ports = [_CpuPort(memory.data) for _ in range(CPUS)]
        self.cpus = [PerCpu(number, port) for number, port in enumerate(self.ports)]
        self.areas = [_Area() for _ in self.cpus]
        for cpu, area in zip(self.cpus, self.areas, strict=True):
            cpu.area = cast("Any", area)
        self.scheduler = Scheduler(range(CPUS), NoInterrupts())
        self.ipc = IpcKernel(self.scheduler, self.pages)
        self.served = ServedProtocols(self.scheduler, self.ipc.undertaker, Vmpl.VMPL2)
        guest = GuestMemory([], Gpa(0), cast("Any", None), self.pages)
        self.processes = make_processes(
            self.scheduler, self.pages, Archive(first, _ARCHIVE, len(archive)), CoreLog(),
            ProgramCpuid(), self.ipc, self.served, guest,
        )  # fmt: skip
        assert self.processes.system_call is not None
        self._serve = self.processes.system_call
        self.processes.system_call = self._observed
        self.on_result: Callable[[Process, TrapFrame, int], None] = lambda *_: None
        """Told of each call that came back: its registers before, and its result."""
        self._handlers = [self.scheduler.run(cpu) for cpu in self.cpus]
        self._entered: list[EnterUser | None] = [None] * CPUS
        for apic_id in range(CPUS):
            self._drive(apic_id, None)

    def _observed(self, process: Process, frame: TrapFrame) -> Handler[None]:
        before = TrapFrame.unpack(frame.pack())
        yield from self._serve(process, frame)
        self.on_result(process, before, signed(frame.rax))

    # Programs --------------------------------------------------------------------------------

    def start(
        self,
        name: str = "program",
        capabilities: Capability = Capability.NONE,
        services: Sequence[str] = (),
        protocols: Sequence[int] = (),
        limits: Limits | None = None,
    ) -> Process:
        """One without a parent."""
        cpu = self.cpus[0]
        return self.processes.spawn(
            cpu,
            lambda: self.processes.program(
                cpu, PROGRAM, arguments=[name.encode()], limits=limits or Limits(),
                capabilities=capabilities, services=frozenset(services),
                protocols=frozenset(protocols),
            ),
            None, name,
        )  # fmt: skip

    @property
    def alive(self) -> list[Process]:
        """All that have not ended, oldest first."""
        return list(self.processes._processes.values())

    def running(self, apic_id: int) -> Process | None:
        """Who is at CPL 3 on that CPU; None while it waits for the host."""
        if self._entered[apic_id] is None:
            return None
        task = self.scheduler.current(apic_id)
        assert task is not None
        return self.processes._processes[task]

    # CPUs ------------------------------------------------------------------------------------

    def _drive(self, apic_id: int, value: int | None) -> None:
        """Up to where a program would run, or the CPU waits."""
        port, now = self.ports[apic_id], max(port.ticks for port in self.ports)
        port.ticks = now
        handler = self._handlers[apic_id]
        effect = next(handler) if value is None else handler.send(value)
        while isinstance(effect, Preempt):
            effect = handler.send(0)
        assert isinstance(effect, EnterUser | Wait)
        self._entered[apic_id] = effect if isinstance(effect, EnterUser) else None
        process = self.running(apic_id)
        wanted = None if process is None else process.space.table
        assert self.areas[apic_id].table is wanted, "somebody else's memory"
        loaded = [area.table for area in self.areas if area.table is not None]
        assert len(set(map(id, loaded))) == len(loaded), "one program on two CPUs"

    def resume(self, apic_id: int) -> None:
        """The host runs VMPL0 on a CPU that waits."""
        assert self.running(apic_id) is None
        self._drive(apic_id, 0)

    def leave(self, apic_id: int, vector: int, error_code: int = 0, **registers: int) -> None:
        """Something comes up at CPL 3."""
        assert self.running(apic_id) is not None
        port = self.ports[apic_id]
        frame = TrapFrame.unpack(port.read(FRAME, FRAME_SIZE))
        frame.vector, frame.error_code = vector, error_code
        for name, value in registers.items():
            setattr(frame, name, value & (1 << 64) - 1)
        port.write(FRAME, frame.pack())
        self._drive(apic_id, FRAME)

    def call(self, apic_id: int, number: int, *arguments: int) -> None:
        """The program that runs there makes a system call; `on_result` gets the result."""
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        registers = dict(zip(names, (*arguments, 0, 0, 0, 0, 0, 0)[:6], strict=True))
        self.leave(apic_id, VECTOR_SYSCALL, rax=number, **registers)

    def turn(self, apic_id: int) -> None:
        """Whoever runs there has had its turn; the next one has its own."""
        self.pass_time(TIME_SLICE)
        if self.running(apic_id) is None:
            self.resume(apic_id)
        else:
            self.leave(apic_id, VECTOR_INTERRUPT)

    def pass_time(self, ticks: int) -> None:
        """Later."""
        for port in self.ports:
            port.ticks += ticks

    # End -------------------------------------------------------------------------------------

    def end(self) -> None:
        """End all programs, and see to it that nothing is left of them."""
        for _ in range(_TURNS):
            for process in self.alive:
                self.processes.kill(self.cpus[0], process)
            if not self.alive:
                break
            for apic_id in range(CPUS):
                self.turn(apic_id)
        assert not self.alive, "somebody does not end"
        assert not any(task.killable for task in self.scheduler.tasks.values())
        assert all(task.state is not TaskState.ENDED for task in self.scheduler.tasks.values())
        assert not self.served
        assert not self.ipc.services._services
        assert not self.ipc.services._watchers
        assert not self.processes._parents
        assert not self.processes._child_ended
        assert self.pages.statistics().free == self.free_at_first
