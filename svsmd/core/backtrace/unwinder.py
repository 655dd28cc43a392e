# SPDX-License-Identifier: MIT
"""Unwinds native stacks, from the kernel's frames to those of the module that called it.

Theory of operation. Native code keeps frame pointers: RBP points at the caller's RBP, and the
return address lies above it. Where an exception or a system call came between, the stub has left
RBP = saved registers + 1, which no frame pointer ever is (they are multiples of 8); the chain goes
on with the saved RIP and RBP, maybe on another stack, maybe at CPL 3.

What is unwound may be what is broken, and what lies at CPL 3 is hostile. So nothing that is read is
believed: each step goes up its stack or through a saved frame that was not seen before, there are
`limit` of them at most, a module's chain stays in the module's half of the address space, and
a return address counts only if it is one of code: so the words of a stack that is none do not
appear in the log. A fault while reading ends the chain.

A function that was interrupted before it had pushed RBP is recognised by its offset. One that calls
nobody may never push it, whatever the compiler is told; if it uses no stack either, RSP points at
its return address, which is believed where the CALL before it names the function. Others without a
frame (assembly) hide their callers.

Spec: System V ABI, AMD64 supplement, 3.2.2 (the stack frame); 24594 (CALL).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from svsmd.core.backtrace.exception_frame import Read, load_frame
from svsmd.core.backtrace.frames import MAX_FRAMES, Backtrace, Frame, FrameKind, Location
from svsmd.core.port import IMAGE_MAP
from svsmd.core.trap_frame import VECTOR_SYSCALL, TrapFrame

Lookup: TypeAlias = Callable[[int], Location | None]
"""What is known of an address; None if there is no code."""


class Module(NamedTuple):
    """A program at CPL 3: how its memory is read, which SMAP keeps CPL 0 from, and its code."""

    read: Read
    lookup: Lookup


FRAME_TAG: Final = 1
"""What RBP is more than the address of the saved registers, after an exception or a system call."""

_PAIR: Final = struct.Struct("<2Q")
_USER_END: Final = 1 << 47
_KERNEL_START: Final = (1 << 64) - (1 << 47)
_END: Final = 1 << 64
_PUSH_RBP: Final = b"\x55"
_CALL: Final = b"\xe8"
_CALL_SIZE: Final = 5
"""CALL rel32."""
_WORD: Final = 8


def unwind(
    read: Read,
    rip: int,
    rbp: int,
    rsp: int,
    *,
    kernel: Lookup | None = None,
    module: Module | None = None,
    user: bool = False,
    limit: int = MAX_FRAMES,
) -> Backtrace:
    """The native frames from a RIP on, at CPL 0 or, with `user`, at CPL 3; never raises.

    `kernel` knows the code at CPL 0, without it everything from the image's address up is code.
    Without `module` all of the lower half is code, and `read` reads it. There are `limit` frames at
    most.
    """
    module = module or Module(read, _any_module_code)
    walk = _Walk(read, kernel or _any_kernel_code, module, user, limit)
    try:
        end = walk.run(rip, rbp, rsp)
    except Exception as error:
        end = f"the unwinder failed: {type(error).__name__}"
    return Backtrace(tuple(walk.frames), end)


def _any_kernel_code(address: int) -> Location | None:
    return Location() if IMAGE_MAP <= address < _END else None


def _any_module_code(address: int) -> Location | None:
    return Location() if 0 < address < _USER_END else None


class _Walk:
    def __init__(self, read: Read, kernel: Lookup, module: Module, user: bool, limit: int) -> None:
        self._reads = {False: read, True: module.read}
        self._lookups = {False: kernel, True: module.lookup}
        self._user = user
        self._limit = limit
        self.frames: list[Frame] = []

    def run(self, rip: int, rbp: int, rsp: int) -> str:
        """Collects the frames; returns why there are no more."""
        seen: set[int] = set()
        # The registers are those of the instruction at RIP, not of one that has called.
        exact = True
        below = 0
        while len(self.frames) < self._limit:
            location = self._add(rip, exact=exact)
            if exact:
                caller = self._caller_without_frame(rip, rsp, location)
                if caller is not None:
                    rip, exact = caller, False
                    continue
            if rbp & FRAME_TAG and not self._user:
                gva = rbp - FRAME_TAG
                if gva in seen:
                    return f"the saved registers at {gva:#x} lead to themselves"
                seen.add(gva)
                saved = load_frame(self._read, gva)
                if saved is None:
                    return f"there are no saved registers at {gva:#x}"
                self._add_entry(gva, saved)
                rip, rbp, rsp, self._user = saved.rip, saved.rbp, saved.rsp, saved.user
                exact, below = True, 0
                continue
            if rbp == 0:
                return ""
            if rbp % _WORD or rbp <= below:
                return f"{self._name(rbp)} is no frame"
            pair = self._read(rbp, _PAIR.size)
            if pair is None:
                return f"{self._name(rbp)} cannot be read"
            below = rbp
            rbp, rip = _PAIR.unpack(pair)
            exact = False
            if rip == 0:
                return ""
            if self._locate(rip, exact=False) is None:
                return f"the return address above {self._name(below)} is none"
        return f"more than {self._limit} frames"

    def _name(self, rbp: int) -> str:
        # A module may be compiled without frame pointers: what it has in RBP, or where that leads,
        # may be a secret of its own.
        return "RBP" if self._user else f"RBP {rbp:#x}"

    def _read(self, gva: int, nbytes: int) -> bytes | None:
        """Memory of the half that the code being unwound is in."""
        start, end = (0, _USER_END) if self._user else (_KERNEL_START, _END)
        if not start <= gva <= end - nbytes:
            return None
        try:
            data = self._reads[self._user](gva, nbytes)
        except Exception:
            # Whatever it is: a backtrace is made when things are broken already.
            return None
        return data if data is not None and len(data) == nbytes else None

    def _locate(self, rip: int, *, exact: bool) -> Location | None:
        # A call may be the last instruction of its function: what returns is looked up before.
        return self._lookups[self._user](rip if exact else rip - 1)

    def _add(self, rip: int, *, exact: bool) -> Location | None:
        location = self._locate(rip, exact=exact)
        kind = FrameKind.MODULE if self._user else FrameKind.NATIVE
        if location is None:
            self.frames.append(Frame(kind, address=rip))
        else:
            offset = location.offset + (0 if exact or not location.symbol else 1)
            self.frames.append(
                Frame(kind, location.symbol, rip, offset, location.file, location.line)
            )
        return location

    def _add_entry(self, gva: int, saved: TrapFrame) -> None:
        if len(self.frames) < self._limit:
            call = saved.vector == VECTOR_SYSCALL
            kind = FrameKind.SYSTEM_CALL if call else FrameKind.EXCEPTION
            self.frames.append(Frame(kind, str(saved), gva))

    def _caller_without_frame(self, rip: int, rsp: int, location: Location | None) -> int | None:
        """The return address, if the code at RIP has not made RBP its own yet, or is no code."""
        if location is None:
            at = rsp  # called through a wild pointer
        elif not location.symbol:
            return None
        elif location.offset == 0:
            at = rsp
        elif location.offset == 1 and self._read(rip - 1, 1) == _PUSH_RBP:
            at = rsp + _WORD
        elif self._is_called(rip - location.offset, self._word(rsp)):
            at = rsp
        else:
            return None
        caller = self._word(at)
        if caller is None:
            return None
        return None if self._locate(caller, exact=False) is None else caller

    def _is_called(self, function: int, back: int | None) -> bool:
        """Whether a CALL of that function lies before the address `back`."""
        code = self._read(back - _CALL_SIZE, _CALL_SIZE) if back is not None else None
        if back is None or code is None or code[:1] != _CALL:
            return False
        return back + int.from_bytes(code[1:], "little", signed=True) == function

    def _word(self, gva: int) -> int | None:
        data = self._read(gva, _WORD)
        return None if data is None else int.from_bytes(data, "little")
