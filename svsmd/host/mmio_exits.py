# SPDX-License-Identifier: MIT
"""Device memory accesses of the guest: the MMIO read and write events.

Spec: 56421, 4.1.1 (MMIO access) and table 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from svsmd.snp.ghcb import Ghcb, GhcbError, GhcbInputError

_MAX_ACCESS: Final = 8
"""Bytes of the widest access that a device sees."""
_GPA_END: Final = 1 << 52


class Mmio(Protocol):
    """The device memory space; `size` is 1, 2, 4 or 8 bytes, naturally aligned."""

    def read(self, gpa: int, size: int) -> int: ...
    def write(self, gpa: int, size: int, value: int) -> None: ...


def mmio_read(mmio: Mmio, ghcb: Ghcb, ghcb_gpa: int, gpa: int, nbytes: int) -> None:
    """MMIO read: `nbytes` (SW_EXITINFO2) from `gpa` (SW_EXITINFO1) to the scratch area."""
    scratch = _scratch(ghcb, ghcb_gpa, gpa, nbytes)
    for offset, size in _accesses(gpa, nbytes):
        value = mmio.read(gpa + offset, size) & ((1 << 8 * size) - 1)
        scratch[offset : offset + size] = value.to_bytes(size, "little")


def mmio_write(mmio: Mmio, ghcb: Ghcb, ghcb_gpa: int, gpa: int, nbytes: int) -> None:
    """MMIO write: `nbytes` (SW_EXITINFO2) from the scratch area to `gpa` (SW_EXITINFO1)."""
    scratch = _scratch(ghcb, ghcb_gpa, gpa, nbytes)
    for offset, size in _accesses(gpa, nbytes):
        mmio.write(gpa + offset, size, int.from_bytes(scratch[offset : offset + size], "little"))


def _scratch(ghcb: Ghcb, ghcb_gpa: int, gpa: int, nbytes: int) -> memoryview:
    if not nbytes:
        raise GhcbInputError(GhcbError.INVALID_INPUT, "MMIO access of no bytes")
    scratch = ghcb.scratch(ghcb_gpa, nbytes)
    if gpa + nbytes > _GPA_END:
        raise GhcbInputError(GhcbError.INVALID_INPUT, f"MMIO access at {gpa:#x}: no such address")
    return scratch


def _accesses(gpa: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut an access into naturally aligned ones: yields (offset, size)."""
    offset = 0
    while offset < nbytes:
        size = _MAX_ACCESS
        while size > nbytes - offset or (gpa + offset) % size:
            size //= 2
        yield offset, size
        offset += size
