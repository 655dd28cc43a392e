# SPDX-License-Identifier: MIT
"""From the frame of a SYSCALL to the function that serves it, and back.

Spec: `svsmd.core.syscalls.table`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from svsmd.core.gate import Handler
from svsmd.core.memory import OutOfMemory
from svsmd.core.syscalls.table import SYSTEM_CALLS
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.process import Process
from svsmd.core.trap_frame import TrapFrame
from svsmd.snp.events import EventClass, SnpEvents

_U64: Final = (1 << 64) - 1

Arguments: TypeAlias = tuple[int, int, int, int, int, int]
"""RDI, RSI, RDX, R10, R8, R9, unsigned."""
Function: TypeAlias = Callable[[Process, Arguments], int | Handler[int]]
"""Serves one call, as a piece of a handler if it may suspend; gives what RAX gets, or fails with
CallFailed or OutOfMemory (ENOMEM)."""


def signed(value: int, bits: int = 64) -> int:
    """The low bits of a register as a two's complement number."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


class Dispatcher:
    """Finds the function of a call. Each call of the table has one, and no other number has."""

    def __init__(self, functions: Mapping[str, Function], events: SnpEvents | None = None) -> None:
        """`events` is told of the calls, those of a batch included."""
        self._events = events or SnpEvents()
        self._numbers = {info.name: info.number for info in SYSTEM_CALLS}
        self._functions = {info.number: functions[info.name] for info in SYSTEM_CALLS}

    def is_batch(self, number: int) -> bool:
        """Whether that is the call that makes several."""
        return number == self._numbers["svsm_batch"]

    def serve(self, process: Process, frame: TrapFrame) -> Handler[None]:
        """Serve the call of a frame, and put its result there."""
        arguments = (frame.rdi, frame.rsi, frame.rdx, frame.r10, frame.r8, frame.r9)
        frame.rax = (yield from self.call(process, frame.rax, arguments)) & _U64

    def call(self, process: Process, number: int, arguments: Arguments) -> Handler[int]:
        """Make one call; its result, or -errno."""
        if self._events.armed & EventClass.SYSCALL.bit:
            self._tell(process, number, arguments)
        function = self._functions.get(number)
        if function is None:
            return -Errno.ENOSYS
        try:
            result = function(process, arguments)
            return result if isinstance(result, int) else (yield from result)
        except CallFailed as error:
            return -error.errno
        except OutOfMemory:
            return -Errno.ENOMEM

    def _tell(self, process: Process, number: int, arguments: Arguments) -> None:
        values = {
            "number": number, "task": process.task.number,
            "arg1": arguments[0], "arg2": arguments[1], "arg3": arguments[2],
        }  # fmt: skip
        self._events.note(EventClass.SYSCALL, values)


def failed(result: int) -> bool:
    """Whether a result is an error code."""
    return -4096 < result < 0


__all__ = ["Arguments", "Dispatcher", "Function", "failed", "signed"]
