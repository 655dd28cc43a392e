# SPDX-License-Identifier: MIT
"""The gate between the native stub at VMPL0 and the core's handlers.

Theory of operation. Each vCPU has one handler, a generator that lives as long as the vCPU. The stub
executes the gate instruction, the silicon calls `Gate.entry`, and the handler runs up to its next
yield. What it yields is an effect: what the stub shall execute natively before it comes back. So
everything between two yields is one instruction to the rest of the machine, and at a yield the host
may run anything else, resume any vCPU in any order, or none ever again.

=================  =====================================  =====================================
effect             the stub                               the handler is resumed with
=================  =====================================  =====================================
`Vmgexit`          WRMSR GHCB, VMGEXIT, RDMSR GHCB        GHCB MSR as it reads now
`Preempt`          comes back at once                     0
`Wait`             HLT with interrupts on                 1 after an interrupt, else 0
`TakeInterrupt`    STI, NOP, CLI                          1 after an interrupt, else 0
`EnterUser`        goes on at CPL 3                       GVA of the frame, when CPL 3 was left
`StartCpu`         loads CR3, CR4, the CPU's descriptor   0
                   tables, stack and GS base
`NestedPageFault`  nothing: the gate instruction exits    0, when the host runs the vCPU again
                   with #VMEXIT(NPF) and is restarted
=================  =====================================  =====================================

`Block` and `Reschedule` are for the scheduler (`svsmd.core.tasks.scheduler`), which is the handler
that the gate knows, and whose tasks are such generators too.

An exception that escapes a handler is a panic of the SVSM: the core wipes its secrets and writes a
report, the stub goes to `svsm_panic`, where a debugger stops, and asks the host to terminate. So
does every vCPU that comes to the gate from then on.

Spec: none of AMD's; the register convention is `svsmd/core/native/layout.h`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Never, Protocol, TypeAlias, TypeVar, assert_never

from svsmd.core import costs
from svsmd.core.backtrace import handler_frames
from svsmd.core.backtrace.frames import Backtrace
from svsmd.core.port import GateCall
from svsmd.snp.faults import NestedFault

_LOW_32: Final = 0xFFFF_FFFF


class GateReason(IntEnum):
    """RBX on the way in: why the stub came (SVSM_GATE_FROM_*)."""

    VMGEXIT = 0
    """RAX is the GHCB MSR after VMGEXIT."""
    BOOT = 1
    """First call of the boot CPU; RAX is the GPA of the kernel-launch page."""
    AP = 2
    """First call of another CPU."""
    LOOP = 3
    """Came back as it was told, or from HLT; RAX is 1 if an interrupt has come meanwhile."""
    USER = 4
    """CPL 3 was left: by SYSCALL, an exception or an interrupt; RDI is the GVA of the frame."""


class GateAction(IntEnum):
    """RBX on the way out: what the stub shall do (SVSM_GATE_*)."""

    VMGEXIT = 0
    """EDX:EAX is the new GHCB MSR."""
    LOOP = 1
    HLT = 2
    START = 3
    """EDX:EAX is the new CR3, RCX the new CR4; the stub starts again in the area of its CPU."""
    USER = 4
    """RAX is the GVA of a frame, RDX the FS base."""
    WINDOW = 5
    PANIC = 15
    """EDX:EAX as for VMGEXIT; the stub does not come back."""


@dataclass(frozen=True, slots=True)
class Vmgexit:
    """Write the GHCB MSR and VMGEXIT.

    `msr_value` is a request of the MSR protocol, or the GPA of a GHCB page with a request in it.
    """

    msr_value: int


@dataclass(frozen=True, slots=True)
class Preempt:
    """Let the host have the CPU if it wants it, and go on."""


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to do until the host runs this vCPU at VMPL0 again."""


@dataclass(frozen=True, slots=True)
class StartCpu:
    """Run on in the core's own page tables and the area of this CPU (`core/paging`)."""

    cr3: int
    cr4: int


@dataclass(frozen=True, slots=True)
class TakeInterrupt:
    """Let an interrupt come that is pending."""


@dataclass(frozen=True, slots=True)
class EnterUser:
    """Go on at CPL 3 with the frame that lies at GVA `frame`, until something comes up there."""

    frame: int
    fs_base: int


@dataclass(frozen=True, slots=True)
class NestedPageFault:
    """An instruction took a nested page fault; the host may cure it, then it is tried again.

    `fault` is what the silicon raised; its GPA and error code are EXITINFO2 and EXITINFO1.
    """

    fault: NestedFault


class Sleepers(Protocol):
    """Tasks that wait for the same thing."""

    name: str
    """What they wait for, for reports."""

    def append(self, task: object, /) -> None:
        """One more."""
        ...


@dataclass(frozen=True, slots=True)
class Block:
    """The task has nothing to do until somebody wakes it out of `queue`.

    It is resumed with 1 if it was woken, 0 if ticks reached `deadline` first.
    """

    queue: Sleepers
    deadline: int | None = None


@dataclass(frozen=True, slots=True)
class Reschedule:
    """Let another task of this CPU run if one wants to."""


CpuEffect: TypeAlias = (
    Vmgexit | Preempt | Wait | StartCpu | TakeInterrupt | EnterUser | NestedPageFault
)
"""What the stub does."""
Effect: TypeAlias = CpuEffect | Block | Reschedule

T = TypeVar("T")
Handler: TypeAlias = Generator[Effect, int, T]
"""A piece of a handler: yields effects, is sent what the table above says, returns a value."""


class SvsmPanic(Exception):
    """The SVSM cannot go on: its launcher or its host broke a rule that its safety rests on."""


class Gate:
    """Runs the handlers of all vCPUs.

    `start` makes the handler of a vCPU out of its first call. `terminate_request` is the GHCB MSR
    value that asks the host to terminate. `on_panic` gets the first panic: it wipes what has to be
    wiped, writes the report, and raises nothing.
    """

    def __init__(
        self,
        start: Callable[[GateCall], Handler[Never]],
        terminate_request: Callable[[], int],
        on_panic: Callable[[GateCall, Exception | None], None],
    ) -> None:
        self._start = start
        self._make_terminate_request = terminate_request
        self._on_panic = on_panic
        self._handlers: dict[int, Handler[Never]] = {}
        self._effects: dict[int, Effect] = {}
        self._terminate_request: int | None = None

        self.task_of: Callable[[int], Handler[object] | None] = lambda vcpu: None
        """The body of the task that a vCPU's handler drives, if it drives one."""

    @property
    def panicked(self) -> bool:
        """Whether the SVSM has given up."""
        return self._terminate_request is not None

    def entry(self, call: GateCall) -> None:
        """Resume the handler of the vCPU that came, and leave its next effect in the registers.

        Raises NestedFault for the effect of that name: the silicon then ends VMRUN with an NPF and
        does not step over the gate instruction.
        """
        call.port.charge(costs.GATE)
        if self._terminate_request is not None:
            self._leave(call, GateAction.VMGEXIT, self._terminate_request)
            return
        try:
            effect = self._resume(call)
        except Exception as error:
            self.panic(call, error)
            return
        self._effects[call.vcpu] = effect
        match effect:
            case Vmgexit(msr_value):
                self._leave(call, GateAction.VMGEXIT, msr_value)
            case Preempt():
                self._leave(call, GateAction.LOOP)
            case Wait():
                self._leave(call, GateAction.HLT)
            case StartCpu(cr3, cr4):
                self._leave(call, GateAction.START, cr3)
                call.rcx = cr4
            case TakeInterrupt():
                self._leave(call, GateAction.WINDOW)
            case EnterUser(frame, fs_base):
                call.rbx, call.rax, call.rdx = int(GateAction.USER), frame, fs_base
            case NestedPageFault(fault):
                raise fault
            case _:
                assert_never(effect)

    def panic(self, call: GateCall, error: Exception | None) -> None:
        """Stop the SVSM: from now on every vCPU asks the host to terminate.

        `error` is what a handler has let escape; None for an exception that native code took, and
        that the registers tell of. Only the first panic counts, whatever happens while it is
        reported.
        """
        action = GateAction.VMGEXIT
        if self._terminate_request is None:
            action = GateAction.PANIC
            self._terminate_request = self._make_terminate_request()
            self._on_panic(call, error)
        self._leave(call, action, self._terminate_request)

    def suspended_at(self, vcpu: int) -> Backtrace:
        """Where the handler of a vCPU has yielded; empty if it has none, or it has raised."""
        handler = handler_frames.of_generator(self._handlers.get(vcpu))
        return handler_frames.of_generator(self.task_of(vcpu)).before(handler)

    def in_user(self, vcpu: int) -> bool:
        """Whether a vCPU was told to go on at CPL 3, and has not come back to the gate."""
        return isinstance(self._effects.get(vcpu), EnterUser)

    def state_of(self, vcpu: int) -> str:
        """What a vCPU does, in a few words."""
        handler = self._handlers.get(vcpu)
        if handler is None:
            return "not started"
        if inspect.getgeneratorstate(handler) == inspect.GEN_CLOSED:
            return "panicked"
        match self._effects.get(vcpu):
            case Vmgexit(msr_value):
                return f"in VMGEXIT {msr_value:#x}"
            case Wait():
                return "halted"
            case EnterUser():
                return "in a module"
            case NestedPageFault(fault):
                return f"stuck with a nested page fault at gpa {fault.gpa:#x}"
            case _:
                return "running"

    def _resume(self, call: GateCall) -> CpuEffect:
        handler = self._handlers.get(call.vcpu)
        if handler is None:
            handler = self._handlers[call.vcpu] = self._start(call)
            effect = next(handler)
        else:
            effect = handler.send(self._answer(call))
        if isinstance(effect, Block | Reschedule):
            raise SvsmPanic("only a task blocks")
        return effect

    def _answer(self, call: GateCall) -> int:
        """What the stub has brought for the effect that it was given last."""
        if isinstance(self._effects[call.vcpu], NestedPageFault):
            # The stub did nothing: its registers still say why it came before that.
            return 0
        return call.rdi if call.rbx == GateReason.USER else call.rax

    @staticmethod
    def _leave(call: GateCall, action: GateAction, value: int = 0) -> None:
        call.rbx = int(action)
        call.rax = value & _LOW_32
        call.rdx = value >> 32
