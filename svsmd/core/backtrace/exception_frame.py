# SPDX-License-Identifier: MIT
"""Saved registers found in memory that may hold anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from svsmd.core.trap_frame import FRAME_SIZE, RFLAGS_RESERVED_ONE, VECTOR_SYSCALL, TrapFrame

Read: TypeAlias = Callable[[int, int], bytes | None]
"""Reads memory: GVA and bytes; None if that is not to be had."""

_ERROR_CODE_END: Final = 1 << 32
_SELECTOR_END: Final = 1 << 16
_RFLAGS_END: Final = 1 << 22


def load_frame(read: Read, gva: int) -> TrapFrame | None:
    """The frame at `gva`; None if it cannot be read, or no entry can have left it."""
    data = read(gva, FRAME_SIZE)
    if data is None or len(data) != FRAME_SIZE:
        return None
    frame = TrapFrame.unpack(data)
    return frame if _plausible(frame) else None


def _plausible(frame: TrapFrame) -> bool:
    """Whether it can be what it should be, and not some data that RBP happens to point at."""
    return (
        frame.vector <= VECTOR_SYSCALL
        and frame.error_code < _ERROR_CODE_END
        and frame.cs < _SELECTOR_END
        and frame.cs & 3 in (0, 3)
        and frame.ss < _SELECTOR_END
        and frame.rflags < _RFLAGS_END
        and frame.rflags & RFLAGS_RESERVED_ONE != 0
    )
