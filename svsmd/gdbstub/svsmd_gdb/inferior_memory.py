# SPDX-License-Identifier: MIT
"""Memory, and values for gdb, as unwinders need them: they must not ask gdb for a frame.

Whatever makes gdb forget its frames, such as a packet to the stub, or has it look at the selected
frame, such as a command or an expression, must not happen in the middle of unwinding: gdb does not
survive that.
"""

from __future__ import annotations

import gdb

WORD = 8
MASK = (1 << 64) - 1
_WORD_TYPE = "unsigned long"


class FrameId:
    """What identifies a frame to gdb, which wants values."""

    def __init__(self, sp: int, pc: int) -> None:
        self.sp, self.pc = value(sp), value(pc)


def value(number: int) -> gdb.Value:
    """A number as a register of 64 bits holds it."""
    return gdb.Value(number & MASK).cast(gdb.lookup_type(_WORD_TYPE))


def read(address: int, length: int) -> bytes | None:
    """Memory of the current inferior; None if not all of it is there."""
    try:
        return bytes(gdb.selected_inferior().read_memory(address & MASK, length))
    except gdb.MemoryError:
        return None


def read_word(address: int) -> int | None:
    """Eight bytes of it."""
    data = read(address, WORD)
    return None if data is None else int.from_bytes(data, "little")


def register(frame: gdb.PendingFrame, name: str) -> int:
    """A register of a frame that is being unwound."""
    return int(frame.read_register(name)) & MASK
