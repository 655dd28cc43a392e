# SPDX-License-Identifier: MIT
"""Class 1: programs start, watch and end others.

Spec: `svsmd.core.syscalls.table`; the structures are those of svsmd/modules/sdk/include/svsm.h.
"""

from __future__ import annotations

import struct
from typing import Final

from svsmd.core.gate import Handler, Reschedule
from svsmd.core.ipc.objects import POLL
from svsmd.core.syscalls.dispatch import Arguments, Dispatcher, Function, failed, signed
from svsmd.core.syscalls.posix import read_path
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.process import ARGUMENTS_MAX, Capability, Limits, Process, Program
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.task import Priority, TaskState

SPAWN: Final = struct.Struct("<IIIIQ")
"""struct svsm_spawn: size, pages, children, capabilities, reserved."""
TASK_INFO: Final = struct.Struct("<IIIIQQQ")
"""struct svsm_task_info: number, state, priority, CPU, ticks, pages, page limit."""
BATCH_ENTRY: Final = struct.Struct("<8Q")
"""struct svsm_batch_entry: number, six arguments, result."""
BATCH_MAX: Final = 64
BATCH_STOP_AT_ERROR: Final = 1
POINTERS_MAX: Final = 256
AFFINITY_BYTES_MAX: Final = 32

_POINTER: Final = struct.Struct("<Q")
_STATES: Final = {
    TaskState.READY: 0, TaskState.RUNNING: 1, TaskState.BLOCKED: 2, TaskState.ENDED: 3,
}  # fmt: skip


class TaskCalls:
    """The functions of class 1."""

    def __init__(self, processes: ProcessTable) -> None:
        self._processes = processes
        self.dispatcher: Dispatcher | None = None

    @property
    def functions(self) -> dict[str, Function]:
        """By name."""
        return {
            "svsm_spawn": self._spawn, "svsm_wait": self._wait,
            "svsm_set_priority": self._set_priority, "svsm_set_affinity": self._set_affinity,
            "svsm_task_info": self._task_info, "svsm_batch": self._batch,
        }  # fmt: skip

    def _spawn(self, process: Process, arguments: Arguments) -> int:
        path_at, argv_at, envp_at, how_at, *_ = arguments
        own = process.program
        if not own.capabilities & Capability.SPAWN:
            raise CallFailed(Errno.EPERM)
        path = read_path(process, path_at)
        argv, envp = _strings(process, argv_at), _strings(process, envp_at)
        limits, capabilities = Limits(own.limits.pages, own.limits.children), Capability.NONE
        if how_at:
            raw = process.space.read(process.cpu, how_at, SPAWN.size)
            size, pages, children, wanted, reserved = SPAWN.unpack(raw)
            if size != SPAWN.size or reserved or wanted & ~sum(Capability):
                raise CallFailed(Errno.EINVAL)
            if Capability(wanted) & ~own.capabilities:
                raise CallFailed(Errno.EPERM)
            capabilities = Capability(wanted)
            limits = Limits(min(pages, limits.pages), min(children, limits.children))
        cpu = process.cpu

        def program() -> Program:
            return self._processes.program(
                cpu, path, arguments=argv, environment=envp, limits=limits,
                capabilities=capabilities, services=own.services, protocols=own.protocols,
            )  # fmt: skip

        child = self._processes.spawn(cpu, program, process, path.rpartition("/")[2])
        return child.task.number

    def _wait(self, process: Process, arguments: Arguments) -> Handler[int]:
        number, status_at, deadline, *_ = arguments
        ended, status = yield from self._processes.wait(
            process,
            signed(number, 32),
            deadline or None,
            poll=deadline == POLL,
        )
        if status_at:
            process.space.write(process.cpu, status_at, status.to_bytes(4, "little"))
        return ended

    def _self_or_child(self, process: Process, number: int) -> Process:
        number = signed(number, 32)
        if number in (0, process.task.number):
            return process
        return self._processes.child(process, number)

    def _set_priority(self, process: Process, arguments: Arguments) -> int:
        target = self._self_or_child(process, arguments[0])
        try:
            priority = Priority(signed(arguments[1], 32))
        except ValueError:
            raise CallFailed(Errno.EINVAL) from None
        allowed = process.program.capabilities & Capability.PRIORITY
        if priority > target.task.priority and not allowed:
            raise CallFailed(Errno.EPERM)
        self._processes.scheduler.set_priority(target.task, priority)
        return 0

    def _set_affinity(self, process: Process, arguments: Arguments) -> int:
        target = self._self_or_child(process, arguments[0])
        _, mask_at, size, *_ = arguments
        if not 0 < size <= AFFINITY_BYTES_MAX:
            raise CallFailed(Errno.EINVAL)
        mask = int.from_bytes(process.space.read(process.cpu, mask_at, size), "little")
        cpus = frozenset(n for n in range(8 * size) if mask >> n & 1)
        try:
            self._processes.scheduler.set_affinity(process.cpu, target.task, cpus)
        except ValueError:
            raise CallFailed(Errno.EINVAL) from None
        return 0

    def _task_info(self, process: Process, arguments: Arguments) -> int:
        target = self._self_or_child(process, arguments[0])
        task = target.task
        info = TASK_INFO.pack(
            task.number, _STATES[task.state], task.priority, task.run_on, task.ticks,
            target.quota.used, target.quota.limit,
        )  # fmt: skip
        process.space.write(process.cpu, arguments[1], info)
        return 0

    def _batch(self, process: Process, arguments: Arguments) -> Handler[int]:
        entries, count, flags, *_ = arguments
        if count > BATCH_MAX or flags & ~BATCH_STOP_AT_ERROR:
            raise CallFailed(Errno.EINVAL)
        assert self.dispatcher is not None
        scheduler, size = self._processes.scheduler, BATCH_ENTRY.size
        for index in range(count):
            if index and scheduler.wants_cpu(process.cpu):
                yield Reschedule()
            where = entries + index * size
            number, *values, _ = BATCH_ENTRY.unpack(process.space.read(process.cpu, where, size))
            if self.dispatcher.is_batch(number):
                raise CallFailed(Errno.EINVAL)
            a, b, c, d, e, f = values
            result = yield from self.dispatcher.call(process, number, (a, b, c, d, e, f))
            if process.exiting:
                return index + 1
            raw = (result & (1 << 64) - 1).to_bytes(8, "little")
            process.space.write(process.cpu, where + size - len(raw), raw)
            if failed(result) and flags & BATCH_STOP_AT_ERROR:
                return index + 1
        return count


def _strings(process: Process, where: int) -> list[bytes]:
    """An array of pointers to strings, as of argv; none for a null pointer."""
    strings: list[bytes] = []
    left = ARGUMENTS_MAX
    while where:
        raw = process.space.read(process.cpu, where, _POINTER.size)
        (pointer,) = _POINTER.unpack(raw)
        if not pointer:
            break
        if len(strings) == POINTERS_MAX:
            raise CallFailed(Errno.E2BIG)
        try:
            text = process.space.read_string(process.cpu, pointer, left)
        except CallFailed as error:
            raise CallFailed(
                Errno.E2BIG if error.errno is Errno.ENAMETOOLONG else error.errno
            ) from None
        strings.append(text)
        left -= len(text)
        where += _POINTER.size
    return strings
