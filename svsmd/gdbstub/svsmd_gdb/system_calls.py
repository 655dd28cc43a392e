# SPDX-License-Identifier: MIT
"""Backtraces at VMPL0 through the border of CPL 3: into the program that the SVSM serves.

Theory of operation. Native code of the SVSM that has come from CPL 3 waits at the core gate with
RBP = saved registers + 1, which no frame pointer ever is. The caller of the gate is then the code
that has saved them: `svsm_exception`, whose CFI leads to the program with all its registers. From
there on it goes by the frames that `programs` has found, and a frame filter names them.

Spec: svsmd/core/native/gate.S; GDB manual, "Unwinding Frames in Python", "Frame Filter API".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Union

import gdb
import gdb.FrameDecorator
import gdb.unwinder

from . import connections
from .catalogue import Kernel
from .inferior_memory import WORD, FrameId, read, register, value
from .programs import (
    FRAME_TAG,
    KERNEL_FILE,
    SAVED_SIZE,
    USER_END,
    Frame,
    Programs,
    Registers,
    Served,
    at_vmpl0,
    by_frame_pointer,
)

_Decorator = Union[gdb.FrameDecorator.FrameDecorator, "gdb.FrameDecorator.DAPFrameDecorator"]


class _Unwinder(gdb.unwinder.Unwinder):
    """From the core gate to the program at CPL 3 that has called it, and on in that."""

    def __init__(self, kernel: Kernel, programs: Programs) -> None:
        super().__init__("svsmd-system-call")
        self._kernel, self._programs = kernel, programs

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        if not at_vmpl0():
            return None
        names = ("rip", "rsp", "rbp")
        registers = Registers(*(register(pending_frame, name) for name in names))
        caller = self._caller(registers)
        if caller is None:
            return None
        # The stack of CPL 3 is below that of CPL 0: the gate's identity must not be above it.
        rsp = registers.rsp if registers.rip < USER_END else registers.rsp - WORD
        info = pending_frame.create_unwind_info(FrameId(rsp, registers.rip))
        for name, number in zip(names, caller):
            info.add_saved_register(name, value(number))
        return info

    def _caller(self, registers: Registers) -> Registers | None:
        if self._kernel.is_gate(registers.rip):
            saved = registers.rbp - FRAME_TAG
            if registers.rbp % WORD != FRAME_TAG or read(saved, SAVED_SIZE) is None:
                return None
            return Registers(self._kernel.saved, saved, registers.rbp)
        if not 0 < registers.rip < USER_END:
            return None
        served = self._programs.served()
        frames = () if served is None else served.frames
        for frame, following in zip(frames, frames[1:]):
            if frame.registers == registers:
                return following.registers
        # The last one, or a thread that nobody has looked at; what returns to 0 returns nowhere.
        return by_frame_pointer(registers) or Registers(0, registers.rsp, 0)


class _Border(gdb.FrameDecorator.FrameDecorator):
    """The frame in which the SVSM has saved the registers of a program."""

    def __init__(self, frame: gdb.Frame, served: Served) -> None:
        super().__init__(frame)
        self._served = served

    def function(self) -> str:
        return f"<{self._served.why} of {self._served.who}>"

    def filename(self) -> None:
        return None

    def line(self) -> None:
        return None

    def address(self) -> None:
        return None

    def frame_args(self) -> None:
        return None


class _ProgramFrame(gdb.FrameDecorator.FrameDecorator):
    """A frame of a program among those of VMPL0."""

    def __init__(self, frame: gdb.Frame, found: Frame | None) -> None:
        super().__init__(frame)
        self._function = None if found is None else found.function

    def function(self) -> str:
        return "??" if self._function is None else self._function.name

    def filename(self) -> str | None:
        return None if self._function is None else self._function.file

    def line(self) -> int | None:
        return None if self._function is None else self._function.line


class _Names:
    """The frame filter that decorates both."""

    def __init__(self, kernel: Kernel, programs: Programs) -> None:
        self.name = "svsmd"
        self.enabled = True
        self.priority = 100
        self._kernel, self._programs = kernel, programs

    def filter(self, iterator: Iterator[_Decorator]) -> Iterator[_Decorator]:
        # A program's last frame has nowhere to return to.
        with_pc = takewhile(lambda each: each.inferior_frame().pc() != 0, iterator)
        return map(self._decorated, with_pc)

    def _decorated(self, decorator: _Decorator) -> _Decorator:
        frame, served = decorator.inferior_frame(), self._programs.served()
        pc = frame.pc()
        if pc < USER_END and frame.function() is None:
            found = (
                next((f for f in served.frames if f.registers.rip == pc), None) if served else None
            )
            return _ProgramFrame(frame, found)
        if served is not None and pc == self._kernel.saved:
            return _Border(frame, served)
        return decorator


def register_all(kernel: Kernel) -> None:
    """Make unwinder and names known to gdb."""
    programs = Programs(kernel)
    gdb.unwinder.register_unwinder(None, _Unwinder(kernel, programs), replace=True)

    def name_frames(objfile: gdb.Objfile) -> None:
        # Of backtraces of the SVSM only: gdb itself prints others better than a filter has it do.
        if (objfile.filename or "").endswith(KERNEL_FILE):
            names = _Names(kernel, programs)
            objfile.frame_filters[names.name] = names

    for space in gdb.progspaces():
        for objfile in space.objfiles():
            name_frames(objfile)
    connections.connect(gdb.events.new_objfile, lambda event: name_frames(event.new_objfile))
