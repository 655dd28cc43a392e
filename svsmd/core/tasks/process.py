# SPDX-License-Identifier: MIT
"""Processes: tasks that run a program at CPL 3 on page tables of their own.

Theory of operation. The body of such a task enters CPL 3, looks why it came back, and does what has
to be done: a system call, a page that is touched for the first time, a turn that is over. Anything
else that a program does wrong ends it, and nothing but it.

While a program has no CPU its registers lie in its `state`, in the SVSM's memory. While it has one,
general registers are in the frame on that CPU's stack, and those of x87 and SSE in the CPU's area.

Spec: 24593, chapter 8 (exceptions), 11.4.4 (FXSAVE format); System V ABI, AMD64 supplement, 3.4.1
(initial stack and registers).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntFlag
from typing import TYPE_CHECKING, Final

from svsmd.core import costs
from svsmd.core.access import load_own, store_own
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.backtrace.unwinder import Module
from svsmd.core.gate import EnterUser, Handler, Reschedule
from svsmd.core.memory import OutOfMemory, PageAllocator, SlabCache
from svsmd.core.paging.cpu_area import FPU, FPU_SIZE, STACK
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import (
    STACK_LIMIT,
    STACK_TOP,
    Access,
    AddressSpace,
    Contents,
    Quota,
)
from svsmd.core.tasks.cpuid import (
    EXIT_CPUID,
    INSTRUCTION,
    VMM_COMMUNICATION,
    ProgramCpuid,
)
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.executable import Executable
from svsmd.core.tasks.handles import HandleTable
from svsmd.core.tasks.program_frames import frames_of, module_of
from svsmd.core.tasks.program_view import ProgramView
from svsmd.core.tasks.task import Task, TaskKilled, TaskState
from svsmd.core.trap_frame import (
    FRAME_SIZE,
    NMI,
    PAGE_FAULT,
    USER_TOP,
    VECTOR_INTERRUPT,
    VECTOR_SYSCALL,
    TrapFrame,
    vector_name,
)
from svsmd.snp.types import PAGE_SIZE

if TYPE_CHECKING:
    from svsmd.core.tasks.scheduler import Scheduler

FRAME: Final = STACK.stop - FRAME_SIZE
"""GVA where code that comes from CPL 3 makes its frame."""
STATE_SIZE: Final = 704
"""Bytes of a saved program: FXSAVE area, frame, FS base, padding to 64."""
_LOW_32: Final = 0xFFFF_FFFF
_FS_BASE: Final = struct.Struct("<Q")
_INITIAL_FPU: Final = struct.pack("<HHBBHQQI", 0x37F, 0, 0, 0, 0, 0, 0, 0x1F80).ljust(
    FPU_SIZE, b"\0"
)
"""As FINIT and reset leave it: FCW 0x37F, MXCSR 0x1F80."""

_OF_THE_HOST: Final = frozenset((NMI, VECTOR_INTERRUPT))
"""What says nothing about the program."""
ARGUMENTS_MAX: Final = 16 * 1024
"""Bytes of arguments and environment, with their zeros."""
KILLED_BY_EXCEPTION: Final = 0x100
"""Exit status of a program that an exception has ended, plus the vector."""
KILLED: Final = 0x200
"""Exit status of a program that another one has ended, or a lack of memory."""

# Auxiliary vector (System V ABI, AMD64 supplement, table 3.13).
_AT_NULL, _AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_PAGESZ, _AT_ENTRY = 0, 3, 4, 5, 6, 9
_AT_UID, _AT_EUID, _AT_GID, _AT_EGID, _AT_SECURE, _AT_RANDOM, _AT_EXECFN = (
    11,
    12,
    13,
    14,
    23,
    25,
    31,
)
_PROGRAM_HEADER_SIZE: Final = 56


class Capability(IntFlag):
    """What a program may do beyond computing in its own memory."""

    NONE = 0
    SPAWN = 1
    """Start programs."""
    REGISTER = 2
    """Offer services by name."""
    SERVE_PROTOCOL = 4
    """Answer calls of the guest."""
    GUEST_MEMORY = 8
    """Read and write the memory that a guest's call names, while it serves it."""
    PRIORITY = 16
    """Raise priorities."""


@dataclass(slots=True)
class Limits:
    """What a program gets at most."""

    pages: int = 1024
    children: int = 8


@dataclass(slots=True)
class Program:
    """What is to be run."""

    path: str
    executable: Executable
    arguments: Sequence[bytes]
    environment: Sequence[bytes] = ()
    limits: Limits = field(default_factory=Limits)
    capabilities: Capability = Capability.NONE
    services: frozenset[str] = frozenset()
    """Services that it may open, by name."""
    protocols: frozenset[int] = frozenset()
    """Protocols of the guest that it may serve, by number."""
    symbols: Symbols = field(default_factory=lambda: Symbols(b""))
    """What its file says of its code, where it is loaded."""


SystemCall = Callable[["Process", TrapFrame], Handler[None]]
"""Serves the call that the frame holds, and leaves its result there."""


class Process:
    """One program that runs, or has ended and was not waited for."""

    def __init__(
        self,
        cpu: PerCpu,
        program: Program,
        pages: PageAllocator,
        states: SlabCache,
        system_call: SystemCall,
        log: Callable[[str], None],
        cpuid: ProgramCpuid,
    ) -> None:
        """`states` gives objects of `STATE_SIZE`.

        Raises:
            CallFailed: E2BIG, ENOMEM, EINVAL (a segment lies where nothing may be).
            OutOfMemory: the SVSM has not enough pages.
        """
        self.program: Final = program
        self.handles: Final = HandleTable()
        self.children: Final[dict[int, Process]] = {}
        self.fs_base = 0
        self.heap_start = self.heap_end = (program.executable.end + PAGE_SIZE - 1) & -PAGE_SIZE
        self.quota: Final = Quota(program.limits.pages)
        self._states = states
        self._system_call = system_call
        self._log = log
        self._cpuid = cpuid
        self._task: Task | None = None
        self._loaded: PerCpu | None = None
        self._exit_status: int | None = None
        self._final_status: int | None = None
        self.on_end: Callable[[PerCpu, Process], None] = lambda cpu, process: None
        """Called when it has given everything back."""
        self._state = states.allocate(cpu)
        try:
            self.space: Final = AddressSpace(cpu, pages, self.quota)
            try:
                frame = self._load_program(cpu)
            except (CallFailed, OutOfMemory):
                self.space.free(cpu)
                raise
        except (CallFailed, OutOfMemory):
            states.free(cpu, self._state)
            raise
        store_own(cpu, self._state, _INITIAL_FPU + frame.pack() + _FS_BASE.pack(0))

    # Loading ---------------------------------------------------------------------------------

    def _load_program(self, cpu: PerCpu) -> TrapFrame:
        executable = self.program.executable
        for segment in executable.segments:
            self.space.map(cpu, segment.start, segment.size, segment.access, Contents(segment.data))
        self.space.map(cpu, STACK_TOP - STACK_LIMIT, STACK_LIMIT, Access.READ | Access.WRITE)
        return TrapFrame(rip=executable.entry, rsp=self._write_stack(cpu))

    def _write_stack(self, cpu: PerCpu) -> int:
        """Arguments, environment and auxiliary vector; returns the stack pointer."""
        program, executable = self.program, self.program.executable
        strings = [*program.arguments, *program.environment, program.path.encode()]
        if any(b"\0" in text for text in strings):
            raise CallFailed(Errno.EINVAL)
        blob = b"".join(text + b"\0" for text in strings)
        if len(blob) > ARGUMENTS_MAX:
            raise CallFailed(Errno.E2BIG)
        random = b"".join(cpu.port.rdrand().to_bytes(8, "little") for _ in range(2))
        data = random + blob
        base = (STACK_TOP - len(data)) & -16
        addresses, where = [], base + len(random)
        for text in strings:
            addresses.append(where)
            where += len(text) + 1
        count = len(program.arguments)
        auxiliary = (
            (_AT_PHDR, executable.headers), (_AT_PHENT, _PROGRAM_HEADER_SIZE),
            (_AT_PHNUM, executable.header_count), (_AT_PAGESZ, PAGE_SIZE),
            (_AT_ENTRY, executable.entry), (_AT_UID, 0), (_AT_EUID, 0), (_AT_GID, 0),
            (_AT_EGID, 0), (_AT_SECURE, 0), (_AT_RANDOM, base), (_AT_EXECFN, addresses[-1]),
            (_AT_NULL, 0),
        )  # fmt: skip
        words = [count, *addresses[:count], 0, *addresses[count:-1], 0]
        words += [word for pair in auxiliary for word in pair]
        pointer = (base - 8 * len(words)) & -16
        self.space.write(cpu, base, data)
        self.space.write(cpu, pointer, struct.pack(f"<{len(words)}Q", *words))
        return pointer

    # Life ------------------------------------------------------------------------------------

    @property
    def task(self) -> Task:
        """The task that runs it."""
        assert self._task is not None, "the process was not started"
        return self._task

    @property
    def cpu(self) -> PerCpu:
        """The CPU that runs it; see `Task.cpu`."""
        return self.task.cpu

    def start(self, cpu: PerCpu, scheduler: Scheduler, name: str) -> Task:
        """Make it a task, ready to run."""
        self._scheduler = scheduler
        self._task = scheduler.start(cpu, name, self._body())
        return self._task

    @property
    def is_loaded(self) -> bool:
        """Whether a CPU has its registers and its memory."""
        return self._loaded is not None

    def module(self, cpu: PerCpu) -> Module:
        """Its memory and its code, for a backtrace."""
        return module_of(cpu, self.space, self.program.symbols)

    @property
    def exiting(self) -> bool:
        """It ends as soon as its system call is over."""
        return self._exit_status is not None

    @property
    def exit_status(self) -> int | None:
        """How it ended; None before that."""
        return self._final_status

    def view(self, in_user: Callable[[int], bool]) -> ProgramView:
        """What a debugger may know; `in_user` tells whether a CPU was told to go on at CPL 3."""
        task, loaded = self.task, self._loaded
        at_cpl3 = loaded is not None and in_user(loaded.apic_id)
        match task.state:
            case TaskState.BLOCKED if task.waits_in is not None:
                doing = f"waits for {task.waits_in.name}"
            case TaskState.RUNNING:
                doing = "at CPL 3" if at_cpl3 else "served by the SVSM"
            case _:
                doing = "ready"
        return ProgramView(
            number=task.number,
            name=task.name,
            path=self.program.path,
            doing=doing,
            entry=self.program.executable.entry,
            loaded_on=None if loaded is None else loaded.apic_id,
            in_user=at_cpl3,
            frame=None if loaded is None or at_cpl3 else self._frame,
            state=self._state,
            fs_base=self.fs_base,
            table=self.space.table.root,
            untouched=self.space.untouched,
        )

    def set_heap_end(self, end: int) -> None:
        """Move the end of the heap. Fails with EINVAL, ENOMEM, EEXIST."""
        cpu, old = self.cpu, self.heap_end
        if end < self.heap_start:
            raise CallFailed(Errno.EINVAL)
        first, last = -(-old // PAGE_SIZE) * PAGE_SIZE, -(-end // PAGE_SIZE) * PAGE_SIZE
        if last > first:
            self.space.map(cpu, first, last - first, Access.READ | Access.WRITE)
        elif last < first:
            self.space.unmap(cpu, last, first - last)
        self.heap_end = end

    def exit(self, status: int) -> None:
        """End as soon as the system call is over."""
        self._exit_status = status

    def _body(self) -> Handler[int]:
        try:
            while self._exit_status is None:
                frame = yield from self._run()
                yield from self._serve(frame)
                if self._loaded is None:
                    # It gave the CPU up meanwhile; the result of the call has come since.
                    store_own(self.cpu, self._state + FPU_SIZE, frame.pack())
        except TaskKilled:
            self._exit_status = KILLED
        return self._end(self._exit_status)

    def _run(self) -> Handler[TrapFrame]:
        """At CPL 3 until something comes up; returns the registers then."""
        cpu = self.cpu
        if self._loaded is not cpu:
            self._load(cpu)
        cpu.port.write(FRAME, self._frame.pack())
        where = yield EnterUser(FRAME, self.fs_base)
        # Exceptions that have a stack of their own made the frame there.
        return TrapFrame.unpack(self.cpu.port.read(where, FRAME_SIZE))

    def _serve(self, frame: TrapFrame) -> Handler[None]:
        self._frame = frame
        cpu, vector = self.cpu, frame.vector
        if vector == VECTOR_INTERRUPT:
            # In any case: without its end this CPU would get no other one.
            yield from self._scheduler.interrupted(cpu)
        if frame.rip >= USER_TOP:
            # IRETQ may refuse to go there. An interrupt came before the fetch could fail.
            if vector in _OF_THE_HOST:
                frame.vector = PAGE_FAULT
            self._kill(frame, "RIP is outside of its half")
        elif vector == VECTOR_SYSCALL:
            cpu.port.charge(costs.SYSTEM_CALL)
            yield from self._system_call(self, frame)
            if self._scheduler.wants_cpu(self.cpu):
                yield Reschedule()
        elif vector == PAGE_FAULT:
            cpu.port.charge(costs.PAGE_FAULT)
            self._serve_fault(cpu, frame)
        elif (vector, frame.error_code) == (VMM_COMMUNICATION, EXIT_CPUID):
            cpu.port.charge(costs.SYSTEM_CALL)
            self._serve_cpuid(cpu, frame)
        elif vector not in _OF_THE_HOST:
            self._kill(frame, f"{vector_name(vector)}, error code {frame.error_code:#x}")

    def _serve_fault(self, cpu: PerCpu, frame: TrapFrame) -> None:
        address = cpu.port.read_cr2()
        try:
            self.space.fault(cpu, address, frame.error_code)
        except CallFailed as error:
            self._kill(frame, f"#PF at {address:#x}, error code {frame.error_code:#x}")
            if error.errno is Errno.ENOMEM:
                self._log(f"{self.task.name}: no memory for it")
                self._exit_status = KILLED

    def _serve_cpuid(self, cpu: PerCpu, frame: TrapFrame) -> None:
        # The error code is what the silicon says; with a prefix it would be longer.
        try:
            code = self.space.read(cpu, frame.rip, len(INSTRUCTION))
        except CallFailed:
            code = b""
        if code != INSTRUCTION:
            self._kill(frame, "#VC that is no CPUID")
            return
        answer = self._cpuid.query(frame.rax & _LOW_32, frame.rcx & _LOW_32, cpu.apic_id)
        frame.rax, frame.rbx, frame.rcx, frame.rdx = answer
        frame.rip += len(INSTRUCTION)

    def _kill(self, frame: TrapFrame, why: str) -> None:
        cpu, name = self.cpu, self.task.name
        lines = [f"killed at {frame.rip:#x}: {why}"]
        lines += frames_of(self.module(cpu), frame).lines()
        for line in lines:
            text = f"{name}: {line}"
            cpu.port.charge(costs.LOG_BYTE * len(text))
            self._log(text)
        self._exit_status = KILLED_BY_EXCEPTION + (frame.vector & 0xFF)

    def _end(self, status: int) -> int:
        """Give everything back but the exit status."""
        cpu = self.cpu
        self._final_status = status
        if self._loaded is not None:
            cpu.switch_user(None)
            self._loaded = None
        self.handles.close_all(cpu)
        self.space.free(cpu)
        self._states.free(cpu, self._state)
        self.on_end(cpu, self)
        return status

    # CPU state -------------------------------------------------------------------------------

    def _load(self, cpu: PerCpu) -> None:
        raw = load_own(cpu, self._state, FPU_SIZE + FRAME_SIZE + _FS_BASE.size)
        cpu.port.write(FPU, raw[:FPU_SIZE])
        self._frame = TrapFrame.unpack(raw[FPU_SIZE : FPU_SIZE + FRAME_SIZE])
        cpu.switch_user(self.space.table)
        self._loaded = cpu

    def leave(self) -> None:
        """Give the CPU up: save all registers, and take the user half out of its address space."""
        cpu = self._loaded
        if cpu is not None:
            fpu = cpu.port.read(FPU, FPU_SIZE)
            store_own(cpu, self._state, fpu + self._frame.pack() + _FS_BASE.pack(self.fs_base))
            cpu.switch_user(None)
            self._loaded = None
