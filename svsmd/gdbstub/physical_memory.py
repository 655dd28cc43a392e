# SPDX-License-Identifier: MIT
"""RAM by guest-physical address, as a debugger sees it: plaintext, whoever the page belongs to.

The C-bit of an address does not matter: programs that read page tables take it for a part of it.
"""

from __future__ import annotations

from svsmd.gdbstub.target import TargetError
from svsmd.snp.silicon import Silicon
from svsmd.snp.types import C_BIT


def read_physical(silicon: Silicon, address: int, length: int) -> bytes:
    """Up to `length` bytes, fewer at the end of the RAM. Raises `TargetError` if none is there."""
    spa = address & ~C_BIT
    for ram in silicon.memory.ranges:
        if spa in ram:
            length = min(length, ram.stop - spa)
            silicon.make_readable(spa, length)
            return silicon.memory.read(spa, length)
    raise TargetError(f"there is no RAM at {spa:#x}")


def write_physical(silicon: Silicon, address: int, data: bytes) -> None:
    """Write all of `data`. Raises `TargetError`, with nothing written, if not all of it is RAM."""
    spa = address & ~C_BIT
    if not silicon.memory.contains(spa, len(data)):
        raise TargetError(f"there is no RAM for {len(data)} bytes at {spa:#x}")
    silicon.debug_write(spa, data)
