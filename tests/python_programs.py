# SPDX-License-Identifier: MIT
"""Programs of the SVSM whose code is Python: real system calls, memory, scheduler, and no CPU.

A program is a generator function that gets a `PythonProgram` and makes its calls by
`yield from program.call(name, ...)`. What it has in memory lies in a real address space.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, cast

from svsmd.core.archive import Archive
from svsmd.core.gate import Effect, Handler, Preempt, Wait
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.log import CoreLog
from svsmd.core.memory import PageAllocator
from svsmd.core.percpu import PerCpu
from svsmd.core.syscalls.dispatch import Dispatcher
from svsmd.core.syscalls.ipc import MESSAGE, WAIT_ITEM, IpcCalls
from svsmd.core.syscalls.posix import PosixCalls
from svsmd.core.syscalls.table import SYSTEM_CALLS
from svsmd.core.syscalls.tasks import BATCH_ENTRY, TaskCalls
from svsmd.core.tasks.address_space import Access, AddressSpace, Quota
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.handles import HandleTable
from svsmd.core.tasks.process import Capability, Process, Program
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.scheduler import Scheduler
from svsmd.core.tasks.task import TaskKilled
from svsmd.snp.types import PAGE_SIZE, Gpa
from tests.own_memory import OwnMemory

MIB = 1 << 20
REGION = range(4 * MIB, 8 * MIB)
INFO = Gpa(REGION.start)
NUMBERS = {info.name: info.number for info in SYSTEM_CALLS}
SCRATCH_PAGES = 8

Code = Callable[["PythonProgram"], Generator[Effect, int, None]]


class _Memory(OwnMemory):
    def invlpg(self, gva: int, /) -> None:
        """There is no TLB."""


class NoInterrupts:
    """A host that gives VMPL0 none."""

    def arm_timer(self, cpu: PerCpu, ticks: int) -> Handler[None]:
        yield Preempt()

    def end_of_interrupt(self, cpu: PerCpu) -> Handler[None]:
        yield Preempt()

    def kick(self, cpu: PerCpu, apic_id: int) -> Handler[None]:
        yield Preempt()


def _not_here(*_: object) -> int:
    raise AssertionError("no such call in these tests")


class PythonProgram:
    """What the system calls know as a `Process`."""

    exiting = False

    def __init__(
        self,
        system: PythonSystem,
        code: Code,
        name: str,
        capabilities: Capability = Capability.NONE,
        services: frozenset[str] = frozenset(),
        pages: int = 256,
    ) -> None:
        self.system = system
        self.quota = Quota(pages)
        self.space = AddressSpace(system.cpu, system.pages, self.quota)
        self.handles = HandleTable()
        self.program = Program(
            name, cast("Any", None), (), capabilities=capabilities, services=services
        )
        self.ended = False
        self._next = self.space.map(
            system.cpu, None, SCRATCH_PAGES * PAGE_SIZE, Access.READ | Access.WRITE
        )
        self._scratch = range(self._next, self._next + SCRATCH_PAGES * PAGE_SIZE)
        self.task = system.scheduler.start(system.cpu, name, self._body(code))

    @property
    def cpu(self) -> PerCpu:
        return self.task.cpu

    def _body(self, code: Code) -> Handler[int]:
        try:
            yield from code(self)
        except TaskKilled:
            pass
        self.handles.close_all(self.cpu)
        self.space.free(self.cpu)
        self.ended = True
        return 0

    # Memory ----------------------------------------------------------------------------------

    def put(self, data: bytes, room: int | None = None) -> int:
        """Bytes in the program's memory, with room for so many; memory is used round and round."""
        size = max(len(data), room or 0) + 15 & ~15
        if self._next + size > self._scratch.stop:
            self._next = self._scratch.start
        where, self._next = self._next, self._next + size
        if data:
            self.space.write(self.cpu, where, data)
        return where

    def get(self, where: int, nbytes: int) -> bytes:
        return self.space.read(self.cpu, where, nbytes)

    # Calls -----------------------------------------------------------------------------------

    def call(self, name: str, *arguments: int) -> Handler[int]:
        """One system call; its result."""
        values = (*(a & (1 << 64) - 1 for a in arguments), 0, 0, 0, 0, 0, 0)[:6]
        return self.system.dispatcher.call(
            cast("Process", self), NUMBERS[name], cast("Any", values)
        )

    def message(self, data: bytes = b"", handles: tuple[int, ...] = (), token: int = 0) -> int:
        """A struct svsm_message to send."""
        return self._struct(len(data), self.put(data) if data else 0, handles, token)

    def room(self, nbytes: int = 4096, handles: int = 4) -> int:
        """A struct svsm_message to receive into."""
        return self._struct(nbytes, self.put(b"", nbytes), (-1,) * handles, 0)

    def _struct(self, nbytes: int, data: int, handles: tuple[int, ...], token: int) -> int:
        padded = (*handles, 0, 0, 0, 0)[:4]
        return self.put(MESSAGE.pack(MESSAGE.size, nbytes, data, token, len(handles), *padded, 0))

    def received(self, where: int) -> tuple[bytes, tuple[int, ...], int]:
        """What came: bytes, handles, token."""
        _, nbytes, data, token, count, *handles, _ = MESSAGE.unpack(self.get(where, MESSAGE.size))
        return self.get(data, nbytes), tuple(handles[:count]), token

    def channel(self) -> Handler[tuple[int, int]]:
        where = self.put(b"", 8)
        assert (yield from self.call("svsm_channel_create", where)) == 0
        raw = self.get(where, 8)
        return int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")

    def batch(self, *entries: tuple[str, int, int, int]) -> Handler[tuple[int, list[int]]]:
        """svsm_batch of calls with three arguments each: how many were made, their results."""
        raw = b"".join(
            BATCH_ENTRY.pack(NUMBERS[name], *arguments, 0, 0, 0, 0) for name, *arguments in entries
        )
        where = self.put(raw)
        made = yield from self.call("svsm_batch", where, len(entries), 0)
        return made, [entry[-1] for entry in BATCH_ENTRY.iter_unpack(self.get(where, len(raw)))]

    def wait(
        self, items: list[tuple[int, int]], deadline: int = 0
    ) -> Handler[tuple[int, list[int]]]:
        """svsm_wait_many for pairs of handle and what is wanted: result, what is ready."""
        where = self.put(b"".join(WAIT_ITEM.pack(h, wanted, 0, 0) for h, wanted in items))
        result = yield from self.call("svsm_wait_many", where, len(items), deadline)
        raw = self.get(where, len(items) * WAIT_ITEM.size)
        return result, [ready for _, _, ready, _ in WAIT_ITEM.iter_unpack(raw)]


class PythonSystem:
    """One CPU, 4 MiB, and all system calls of classes 0 to 2, but an archive without files."""

    def __init__(self) -> None:
        self.memory = _Memory(0, REGION.stop)
        self.cpu = PerCpu(0, self.memory)
        self.pages = PageAllocator(self.cpu, REGION, [], INFO, poison=True)
        self.scheduler = Scheduler([0], NoInterrupts())
        self.ipc = IpcKernel(self.scheduler, self.pages)
        archive = Archive(self.cpu, 0, 0)
        processes = ProcessTable(self.scheduler, self.pages, archive, CoreLog(), ProgramCpuid())
        tasks = TaskCalls(processes)
        posix = PosixCalls(archive, processes).functions
        known = posix | tasks.functions | IpcCalls(self.ipc).functions
        self.dispatcher = tasks.dispatcher = Dispatcher(
            {info.name: known.get(info.name, _not_here) for info in SYSTEM_CALLS}
        )
        self._handler = self.scheduler.run(self.cpu)
        self._started = False
        self.free_at_first = self.pages.statistics().free

    def start(self, code: Code, name: str = "program", pages: int = 256) -> PythonProgram:
        return PythonProgram(self, code, name, pages=pages)

    def server(self, code: Code, name: str = "server") -> PythonProgram:
        """One that may register services."""
        return PythonProgram(self, code, name, capabilities=Capability.REGISTER)

    def client(self, code: Code, name: str = "client") -> PythonProgram:
        """One that may connect to the service "test"."""
        return PythonProgram(self, code, name, services=frozenset({"test"}))

    def run(self) -> None:
        """Until nobody can go on."""
        while True:
            effect = self._handler.send(0) if self._started else next(self._handler)
            self._started = True
            if isinstance(effect, Wait):
                return

    def pass_time(self, ticks: int) -> None:
        """Later."""
        self.memory.ticks += ticks
        self.run()

    def check_nothing_is_left(self) -> None:
        """All programs have ended: so has everything that they had."""
        assert not self.scheduler.tasks
        assert self.pages.statistics().free == self.free_at_first
