# SPDX-License-Identifier: MIT
"""Port accesses of the guest: the IOIO event, single and string.

Spec: 56421, 4.1 (table 6, IOIO_PROT); 24593, 15.10.2 (format of SW_EXITINFO1).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final, Protocol

from svsmd.snp.ghcb import Ghcb, GhcbError, GhcbInputError, IoioInfo

_DISTINCT_ACCESSES: Final = 256
"""Decoded SW_EXITINFO1 values to keep: a guest has some dozens of ports and sizes."""

_SIZE_MASK: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}


class Ports(Protocol):
    """The I/O port space; `size` is 1, 2 or 4 bytes."""

    def read(self, port: int, size: int) -> int: ...
    def write(self, port: int, size: int, value: int) -> None: ...


@lru_cache(maxsize=_DISTINCT_ACCESSES)
def _decode(info_1: int) -> IoioInfo:
    # Once for each kind of access: a console byte costs as much as a dictionary look-up.
    return IoioInfo.decode(info_1)


def handle_ioio(ports: Ports, ghcb: Ghcb, ghcb_gpa: int, info_1: int, info_2: int) -> int | None:
    """Perform the access that SW_EXITINFO1 describes; returns what IN read, for RAX.

    OUT takes its operand from RAX. A string access moves SW_EXITINFO2 elements (its low 32 bits) to
    or from the scratch area, which must lie in the shared buffer; registers and the guest's own
    memory are the guest's affair.
    """
    access = _decode(info_1)
    size = access.size
    if access.string:
        _string_access(ports, ghcb, ghcb_gpa, access, info_2 & 0xFFFF_FFFF)
        return None
    if access.is_in:
        return ports.read(access.port, size) & _SIZE_MASK[size]
    ports.write(access.port, size, ghcb.rax & _SIZE_MASK[size])
    return None


def _string_access(ports: Ports, ghcb: Ghcb, ghcb_gpa: int, access: IoioInfo, count: int) -> None:
    if not access.rep and count != 1:
        raise GhcbInputError(GhcbError.INVALID_INPUT, f"{count} elements without REP")
    size = access.size
    scratch = ghcb.scratch(ghcb_gpa, count * size)
    for offset in range(0, count * size, size):
        if access.is_in:
            value = ports.read(access.port, size) & _SIZE_MASK[size]
            scratch[offset : offset + size] = value.to_bytes(size, "little")
        else:
            value = int.from_bytes(scratch[offset : offset + size], "little")
            ports.write(access.port, size, value)
