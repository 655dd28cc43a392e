# SPDX-License-Identifier: MIT
"""What the log says when the SVSM gives up.

Why; the registers of the exception, if it was one; the frames that led there; a line for each vCPU;
the locks that are held. The host reads the log, so it has addresses of code and stacks in it and no
contents: no general registers, and of Python's own messages only those that the core has written
itself.

Spec: none; docs/backtraces.md shows one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from svsmd.core import costs
from svsmd.core.backtrace import handler_frames
from svsmd.core.backtrace.exception_frame import Read, load_frame
from svsmd.core.backtrace.frames import Backtrace
from svsmd.core.backtrace.unwinder import Lookup, Module, unwind
from svsmd.core.gate import Gate, SvsmPanic
from svsmd.core.locks import Deadlock, LockReport
from svsmd.core.percpu import PerCpu
from svsmd.core.port import GateCall
from svsmd.core.trap_frame import vector_name
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, Vector

_NO_FRAMES: Final = Backtrace()
_WITH_TEXT: Final = (GuestFault, NestedFault, Deadlock)
"""Exceptions whose message is the core's or the silicon's, and quotes no memory."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why the SVSM gives up.

    Attributes:
        why: one line.
        handler: frames from where it was raised outwards; empty for an exception of native code.
        vector: of the exception that native code took, else None; `frame` is the GVA of the
            registers that it saved, and `cr2` was read then.
    """

    why: str
    handler: Backtrace = _NO_FRAMES
    vector: int | None = None
    frame: int = 0
    cr2: int = 0

    @classmethod
    def of(cls, call: GateCall, error: Exception | None) -> Cause:
        """What `Gate` says of a panic: a handler let `error` escape; or, with None, native code
        took an exception, and the registers are those of svsm_exception_gate."""
        if error is None:
            why = f"exception {call.rbx} ({vector_name(call.rbx)}) at VMPL0"
            return cls(why, vector=call.rbx, frame=call.rdi, cr2=call.rax)
        why = type(error).__name__
        if isinstance(error, SvsmPanic):
            why = str(error)
        elif isinstance(error, _WITH_TEXT):
            why += f": {error}"
        return cls(why, handler_frames.of_traceback(error.__traceback__))


def reader(call: GateCall) -> Read:
    """Memory as the vCPU that came sees it at CPL 0."""
    port = call.port

    def read(gva: int, nbytes: int) -> bytes | None:
        port.charge(costs.MEMORY_ACCESS)
        try:
            return port.read(gva, nbytes)
        except (GuestFault, NestedFault):
            return None

    return read


def report(
    call: GateCall,
    cause: Cause,
    gate: Gate,
    cpus: Mapping[int, PerCpu],
    locks: Iterable[LockReport],
    kernel: Lookup | None,
    module: Module | None,
) -> list[str]:
    """The lines, for the vCPU that came.

    `kernel` knows the native image's code, `module` is the program at CPL 3 whose turn it is.
    """
    read = reader(call)
    lines = [f"panic: {cause.why}", f"  on vCPU {call.vcpu}"]
    if cause.vector is not None:
        lines += [f"  {line}" for line in _registers(read, cause)]
    native = unwind(read, call.rip, call.rbp, call.rsp, kernel=kernel, module=module)
    # A handler runs inside the gate instruction; when native code faults, it did what the handler
    # has asked for.
    if cause.vector is None:
        whole = cause.handler.before(native)
    else:
        whole = native.before(gate.suspended_at(call.vcpu))
    lines += [f"  {line}" for line in whole.lines()]
    lines += [_state(cpu, gate) for _, cpu in sorted(cpus.items())]
    lines += [f"  {line}" for lock in locks for line in lock.lines()]
    return lines


def _registers(read: Read, cause: Cause) -> list[str]:
    saved = load_frame(read, cause.frame)
    if saved is None:
        return [f"there are no saved registers at {cause.frame:#x}"]
    has_address = cause.vector == Vector.PF or (
        cause.vector == Vector.VC and saved.error_code == PAGE_NOT_VALIDATED
    )
    cr2 = f", CR2 {cause.cr2:#x}" if has_address else ""
    return [f"{saved}{cr2}", saved.summary()]


def _state(cpu: PerCpu, gate: Gate) -> str:
    line = f"  vCPU {cpu.apic_id}: {gate.state_of(cpu.apic_id)}"
    frames = gate.suspended_at(cpu.apic_id).frames
    if frames:
        line += f", {frames[0]}"
    if cpu.world is not None:
        line += f", guest VMSA {cpu.world.vmsa:#x}, calling area {cpu.world.caa:#x}"
    return line


def guarded(make: Callable[[], list[str]]) -> list[str]:
    """The lines that `make` returns, or one that says what it raised: a panic goes on."""
    try:
        return make()
    except Exception as error:
        return [f"panic: {type(error).__name__} while dealing with it"]
