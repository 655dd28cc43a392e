# SPDX-License-Identifier: MIT
"""The program that the SVSM serves on a vCPU, as VMPL0 of that vCPU sees it: who, and its frames.

Theory of operation. The symbols of a program are those of another inferior. To look there, and to
ask the stub, makes gdb forget its frames, and it does not survive that while it unwinds. So the
frames of the program are found before: when the machine has stopped at VMPL0, or when VMPL0 was
selected at the prompt. The unwinder then has only to look them up.

Programs are followed by frame pointers, which svsmd's SDK has them keep. A function that was
interrupted before it had one is recognised by its offset; one that calls nobody may never have one,
and its return address is believed where the CALL before it names the function.

Spec: System V ABI, AMD64 supplement, 3.2.2 (the stack frame); svsmd/core/native/gate.S (saved
registers); svsmd/core/backtrace/unwinder.py, which does the same for the SVSM's own backtraces.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import gdb

from . import connections, remote
from .catalogue import Kernel
from .inferior_memory import MASK, WORD, read, read_word

KERNEL_FILE = "/svsm.elf"
USER_END = 1 << 47
FRAME_TAG = 1
_SAVED = struct.Struct("<22Q")
SAVED_SIZE = _SAVED.size
_RBP, _VECTOR, _RIP, _RSP = 8, 15, 17, 20
"""Places in the saved registers."""
_VECTOR_SYSCALL = 0x100
_EXCEPTIONS = {0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 6: "#UD", 13: "#GP", 14: "#PF", 29: "#VC"}
_CALL = b"\xe8"
_CALL_SIZE = 5
"""CALL rel32."""
_PUSH_RBP = b"\x55"
_MOST = 64
"""Frames of a program."""


class Registers(NamedTuple):
    """What a frame is made of."""

    rip: int
    rsp: int
    rbp: int


class Function(NamedTuple):
    """A function, and the source of an address in it."""

    name: str
    start: int
    file: str | None
    line: int | None


class Frame(NamedTuple):
    """A frame of a program; `exact` if it has not called."""

    registers: Registers
    function: Function | None
    exact: bool


class Served(NamedTuple):
    """A program that the SVSM serves: who, why, and its frames, the newest first."""

    who: str
    why: str
    frames: tuple[Frame, ...]


class Programs:
    """What is known since the machine has stopped, by thread."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._served: dict[tuple[int, int, int], Served | None] = {}
        connections.connect(gdb.events.stop, self._stopped)
        connections.connect(gdb.events.before_prompt, self._look)
        connections.connect(gdb.events.cont, self._forget)
        connections.connect(gdb.events.new_objfile, self._forget)

    def _forget(self, _event: object = None) -> None:
        self._served.clear()

    def _stopped(self, _event: object) -> None:
        self._forget()
        self._look()

    def _look(self, _event: object = None) -> None:
        thread = gdb.selected_thread()
        if thread is None or thread.ptid in self._served or not at_vmpl0():
            return
        try:
            self._served[thread.ptid] = self._find(thread)
        except (gdb.error, gdb.GdbError):
            self._served[thread.ptid] = None

    def served(self) -> Served | None:
        """What is known for the selected thread."""
        thread = gdb.selected_thread()
        return None if thread is None else self._served.get(thread.ptid)

    def _find(self, thread: gdb.InferiorThread) -> Served | None:
        newest = gdb.newest_frame()
        pc, rsp, rbp = (int(newest.read_register(name)) & MASK for name in ("rip", "rsp", "rbp"))
        start = Registers(pc, rsp, rbp)
        why = "program"
        if self._kernel.is_gate(pc):
            saved = read(rbp - FRAME_TAG, SAVED_SIZE) if rbp % WORD == FRAME_TAG else None
            if saved is None:
                return None
            words = _SAVED.unpack(saved)
            start = Registers(words[_RIP], words[_RSP], words[_RBP])
            why = _why(words[_VECTOR])
        if start.rip >= USER_END:
            return None
        core = thread.ptid[1] - 1
        program = next(
            (t for t in remote.threads() if t.pid > remote.FIRST_PROGRAM and t.core == core), None
        )
        if program is None:
            return Served("a task that waits now", why, ())
        spaces = [each.progspace for each in gdb.inferiors() if each.pid == program.pid]
        frames = tuple(_unwind(start, spaces[0] if spaces else None))
        return Served(program.name.partition("/VMPL0 ")[2], why, frames)


def _why(vector: int) -> str:
    if vector == _VECTOR_SYSCALL:
        return "system call"
    return _EXCEPTIONS.get(vector, f"interrupt {vector:#x}")


def _unwind(registers: Registers, space: gdb.Progspace | None) -> list[Frame]:
    frames: list[Frame] = []
    while 0 < registers.rip < USER_END and len(frames) < _MOST:
        exact = not frames
        # A call may be the last instruction of its function: what returns is looked up before.
        function = _function(space, registers.rip - (0 if exact else 1))
        frames.append(Frame(registers, function, exact))
        caller = _without_frame(registers, function) if exact and function else None
        following = caller or by_frame_pointer(registers)
        if following is None:
            break
        registers = following
    return frames


def by_frame_pointer(registers: Registers) -> Registers | None:
    """The caller of a function that has a frame; None if RBP leads to none."""
    rbp = registers.rbp
    pair = read(rbp, 2 * WORD) if rbp % WORD == 0 and rbp >= registers.rsp else None
    if pair is None:
        return None
    outer, rip = struct.unpack("<2Q", pair)
    return Registers(rip, rbp + 2 * WORD, outer)


def _without_frame(registers: Registers, function: Function) -> Registers | None:
    """The caller of a function that has no frame of its own (yet); None if it has one."""
    rip, rsp, rbp = registers
    at = None
    if rip == function.start:
        at = rsp
    elif rip == function.start + 1 and read(function.start, 1) == _PUSH_RBP:
        at = rsp + WORD
    else:
        back = read_word(rsp)
        code = read(back - _CALL_SIZE, _CALL_SIZE) if back else None
        if back and code is not None and code[:1] == _CALL:
            target = back + int.from_bytes(code[1:], "little", signed=True)
            at = rsp if target == function.start else None
    caller = None if at is None else read_word(at)
    return None if at is None or caller is None else Registers(caller, at + WORD, rbp)


def _function(space: gdb.Progspace | None, pc: int) -> Function | None:
    if space is None:
        return None
    block, outermost = space.block_for_pc(pc), None
    while block is not None:
        # Functions that were inlined have no frame of their own.
        outermost = outermost if block.function is None else block
        block = block.superblock
    if outermost is None or outermost.function is None:
        return None
    line = space.find_pc_line(pc)
    file = None if line.symtab is None else line.symtab.filename
    return Function(outermost.function.print_name, outermost.start, file, line.line)


def at_vmpl0() -> bool:
    """Whether the current inferior is the SVSM."""
    space = gdb.current_progspace()
    return space is not None and (space.filename or "").endswith(KERNEL_FILE)
