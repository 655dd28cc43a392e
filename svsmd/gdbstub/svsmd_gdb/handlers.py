# SPDX-License-Identifier: MIT
"""Backtraces from an exception handler of a guest to what it has interrupted.

At the beginning of a handler, where `catch vc` stops, RSP points at what the CPU has pushed; that
it is the beginning, the IDT says. This unwinder is for guests without symbols. Where there are
some, the guest's own debug information does better, but for one place: Linux's unwind tables leave
out the error code of #VC before asm_exc_vmm_communication has saved its registers.

Spec: 24593, 8.9.3 (exception frames), 4.8.4 (gates), table 8-1; Linux, arch/x86/entry/entry_64.S
(idtentry_vc); GDB manual, "Unwinding Frames in Python".
"""

from __future__ import annotations

import re
import struct

import gdb
import gdb.unwinder

from .inferior_memory import WORD, FrameId, read, register, value

_VC = 29
_UPPER_HALF = 1 << 63
_GATE = struct.Struct("<HHHHI4x")
"""Bits 15:0 of the address, selector, stack and type, bits 31:16 and 63:32."""
_FRAME = struct.Struct("<5Q")
_EXCEPTIONS = 32
_HARMLESS = re.compile(
    rb"(?:\xf3\x0f\x1e\xfa|\x0f\x01\xca|\x0f\x1f\x00|\x90|\xfc|\xf6\x44\x24.\x03|\x75.)*",
    re.DOTALL,
)
"""What handlers begin with and leaves RSP alone: ENDBR64, CLAC, NOP, CLD, TESTB $3 and JNE."""
_LONGEST = 24
"""Bytes of these that are looked at."""


class _Unwinder(gdb.unwinder.Unwinder):
    """From the beginning of an exception handler to what it has interrupted."""

    def __init__(self, with_error_code: frozenset[int]) -> None:
        super().__init__("svsmd-exception-handler")
        self._with_error_code = with_error_code

    def __call__(self, pending_frame: gdb.PendingFrame) -> gdb.UnwindInfo | None:
        if pending_frame.level() != 0:
            return None  # the beginning of a handler has called nobody
        space = gdb.current_progspace()
        has_symbols = space is not None and any(space.objfiles())
        pc, rsp = register(pending_frame, "rip"), register(pending_frame, "rsp")
        if has_symbols and pc < _UPPER_HALF:
            return None
        try:
            table = register(pending_frame, "idtr_base")
        except ValueError:
            # gdb 13 knows it in its first inferior only.
            return None
        vector = _vector(pc, table)
        if vector is None or (has_symbols and vector != _VC):
            return None
        start = rsp + (WORD if vector in self._with_error_code else 0)
        data = read(start, _FRAME.size)
        if data is None:
            return None
        rip, cs, rflags, interrupted, ss = _FRAME.unpack(data)
        # The handler may have a stack higher up: its identity has to be below its caller's.
        info = pending_frame.create_unwind_info(FrameId(min(rsp, interrupted - WORD), pc))
        info.add_saved_register("rip", value(rip))
        info.add_saved_register("rsp", value(interrupted))
        short = gdb.lookup_type("unsigned int")
        for name, number in (("eflags", rflags), ("cs", cs), ("ss", ss)):
            info.add_saved_register(name, value(number).cast(short))
        return info


def _vector(pc: int, table: int) -> int | None:
    """The exception whose handler begins at `pc`, or a few harmless instructions before."""
    data = read(table, _EXCEPTIONS * _GATE.size)
    if data is None:
        return None
    handlers = {
        high << 32 | middle << 16 | low: vector
        for vector, (low, _, _, middle, high) in enumerate(_GATE.iter_unpack(data))
    }
    before = [entry for entry in handlers if 0 < entry <= pc]
    if not before or pc >= max(before) + _LONGEST:
        return None
    code = read(max(before), pc - max(before)) if pc > max(before) else b""
    harmless = code is not None and _HARMLESS.fullmatch(code) is not None
    return handlers[max(before)] if harmless else None


def register_all(with_error_code: frozenset[int]) -> None:
    """Make the unwinder known to gdb; it is told of the vectors that push an error code."""
    gdb.unwinder.register_unwinder(None, _Unwinder(with_error_code), replace=True)
