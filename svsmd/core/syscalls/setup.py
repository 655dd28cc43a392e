# SPDX-License-Identifier: MIT
"""Joins processes with the system calls that they can make."""

from __future__ import annotations

from svsmd.core.archive import Archive
from svsmd.core.guest_memory import GuestMemory
from svsmd.core.ipc.kernel import IpcKernel
from svsmd.core.ipc.served_protocol import ServedProtocols
from svsmd.core.log import CoreLog
from svsmd.core.memory import PageAllocator
from svsmd.core.syscalls.dispatch import Dispatcher
from svsmd.core.syscalls.ipc import IpcCalls
from svsmd.core.syscalls.posix import PosixCalls
from svsmd.core.syscalls.protocol import ProtocolCalls
from svsmd.core.syscalls.tasks import TaskCalls
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.scheduler import Scheduler
from svsmd.snp.events import SnpEvents


def make_processes(
    scheduler: Scheduler,
    pages: PageAllocator,
    archive: Archive,
    log: CoreLog,
    cpuid: ProgramCpuid,
    ipc: IpcKernel,
    served: ServedProtocols,
    memory: GuestMemory,
    events: SnpEvents | None = None,
) -> ProcessTable:
    """A table of processes that have all system calls; `events` is told of them."""
    processes = ProcessTable(scheduler, pages, archive, log, cpuid)
    tasks = TaskCalls(processes)
    dispatcher = Dispatcher(
        PosixCalls(archive, processes).functions
        | tasks.functions
        | IpcCalls(ipc).functions
        | ProtocolCalls(served, memory).functions,
        events,
    )
    tasks.dispatcher = dispatcher
    processes.system_call = dispatcher.serve
    return processes
