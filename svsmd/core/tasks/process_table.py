# SPDX-License-Identifier: MIT
"""All processes: who started whom, and what is left of those that have ended.

Spec: none; parents and children as in POSIX, but without signals, groups and zombies that nobody
waits for: who ends gives everything back but its exit status, and its children end with it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Final

from svsmd.core.archive import Archive
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.backtrace.unwinder import Module
from svsmd.core.gate import Block, Handler
from svsmd.core.log import CoreLog
from svsmd.core.memory import PageAllocator, SlabCache
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.executable import read_executable
from svsmd.core.tasks.files import LogOutput
from svsmd.core.tasks.process import STATE_SIZE, Process, Program, SystemCall
from svsmd.core.tasks.scheduler import Scheduler
from svsmd.core.tasks.task import Task, TaskState, WaitQueue

PROCESSES_MAX: Final = 64


class ProcessTable:
    """Starts programs and remembers them.

    `system_call` is set once, by whoever builds the dispatcher.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        pages: PageAllocator,
        archive: Archive,
        log: CoreLog,
        cpuid: ProgramCpuid,
    ) -> None:
        self.scheduler: Final = scheduler
        scheduler.on_leave = self._leave
        self.system_call: SystemCall | None = None
        self._pages = pages
        self._archive = archive
        self._log = log
        self._cpuid = cpuid
        self._states = SlabCache(pages, STATE_SIZE, "task state")
        self._processes: dict[Task, Process] = {}
        self._parents: dict[Process, Process] = {}
        self._child_ended: dict[Process, WaitQueue] = {}
        # One copy of each file that was ever started, however many processes it has: no more than
        # the archive has. Not read again when a backtrace wants it, as the archive may be what the
        # host has taken away then; and who starts programs that are killed has each file parsed
        # once, not once for each of them.
        self._symbols: dict[str, Symbols] = {}
        self.on_end: list[Callable[[PerCpu, Process], None]] = []
        """Called with each process that has ended."""

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def processes(self) -> tuple[Process, ...]:
        """Those that have not ended, the oldest first."""
        return tuple(self._processes.values())

    def _leave(self, _cpu: PerCpu, task: Task) -> None:
        """A task gives its CPU up."""
        process = self._processes.get(task)
        if process is not None:
            process.leave()

    def module_on(self, cpu: PerCpu) -> Module | None:
        """The program whose registers a CPU has saved last; None if it is not that one's turn.

        Who waited in a system call and goes on in it has not saved any on this CPU: the frames are
        another one's, and must not get its names.
        """
        task = self.scheduler.current(cpu.apic_id)
        process = self._processes.get(task) if task is not None else None
        return process.module(cpu) if process is not None and process.is_loaded else None

    # Starting --------------------------------------------------------------------------------

    def read_program(self, cpu: PerCpu, path: str) -> bytes:
        """A file of the archive. Fails with ENOENT."""
        data = self._archive.read(cpu, path)
        if data is None:
            raise CallFailed(Errno.ENOENT)
        return data

    def spawn(
        self, cpu: PerCpu, make_program: Callable[[], Program], parent: Process | None, name: str
    ) -> Process:
        """Start a program. Fails with EAGAIN (quotas), and as `Process` does."""
        if len(self._processes) >= PROCESSES_MAX:
            raise CallFailed(Errno.EAGAIN)
        if parent is not None and len(parent.children) >= parent.program.limits.children:
            raise CallFailed(Errno.EAGAIN)
        assert self.system_call is not None
        program = make_program()
        process = Process(
            cpu, program, self._pages, self._states, self.system_call, self._log.write, self._cpuid
        )
        output = LogOutput(name, self._log.write)
        for _ in range(3):
            process.handles.add(output)
        task = process.start(cpu, self.scheduler, name)
        self._processes[task] = process
        self._child_ended[process] = WaitQueue(f"end of a child of {name}")
        process.on_end = self._ended
        if parent is not None:
            self._parents[process] = parent
            parent.children[task.number] = process
        return process

    def program(self, cpu: PerCpu, path: str, **values: object) -> Program:
        """What `path` holds, as a program. Fails with ENOENT, ENOEXEC."""
        data = self.read_program(cpu, path)
        executable = read_executable(data)
        # As the archive names it: a program may find more names for one file than it has memory.
        file = posixpath.normpath(path)
        symbols = self._symbols.setdefault(file, Symbols(data, executable.bias))
        return Program(path, executable, symbols=symbols, **values)  # type: ignore[arg-type]

    # Ends ------------------------------------------------------------------------------------

    def _ended(self, cpu: PerCpu, process: Process) -> None:
        task = process.task
        del self._processes[task]
        for child in process.children.values():
            self._parents.pop(child, None)
            self.kill(cpu, child)
        del self._child_ended[process]
        for callback in self.on_end:
            callback(cpu, process)
        parent = self._parents.get(process)
        if parent is not None:
            self.scheduler.wake_all(cpu, self._child_ended[parent])

    def kill(self, cpu: PerCpu, process: Process) -> None:
        """End a process."""
        if process.task.state is not TaskState.ENDED:
            self.scheduler.kill(cpu, process.task)

    def child(self, process: Process, number: int) -> Process:
        """A child by the number of its task. Fails with ESRCH."""
        child = process.children.get(number)
        if child is None:
            raise CallFailed(Errno.ESRCH)
        return child

    def parent_number(self, process: Process) -> int:
        """Number of the parent's task, 0 if there is none."""
        parent = self._parents.get(process)
        return 0 if parent is None else parent.task.number

    def wait(
        self, process: Process, number: int, deadline: int | None, *, poll: bool
    ) -> Handler[tuple[int, int]]:
        """Number and exit status of a child that has ended. Fails with ECHILD, ETIMEDOUT."""
        while True:
            if number == -1:
                candidates = list(process.children.values())
            else:
                candidates = [c for n, c in process.children.items() if n == number]
            if not candidates:
                raise CallFailed(Errno.ECHILD)
            for child in candidates:
                if child.exit_status is not None:
                    del process.children[child.task.number]
                    self._parents.pop(child, None)
                    return child.task.number, child.exit_status
            if poll or not (yield Block(self._child_ended[process], deadline)):
                raise CallFailed(Errno.ETIMEDOUT)
