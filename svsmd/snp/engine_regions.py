# SPDX-License-Identifier: MIT
"""RAM as the engine's memory tree has it.

At each store that may hit translated code the engine asks for the region of the address, and then
takes the mark off the TLB entry that made it ask, unless the region is of an older snapshot than
the machine: of a priority below the machine's level of snapshots, which is 0 here.

Spec: none; Unicorn 2.1.4, qemu/include/exec/memory.h (struct MemoryRegion) and cputlb.c
(notdirty_write).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from svsmd.snp.engine_layout import EngineMismatch

if TYPE_CHECKING:
    from svsmd.snp.engine_callbacks import Engine

_UC_BYTES: Final = 1024
"""Of the engine's own structure, its functions being at the beginning."""

_NEVER_DIRTY: Final = -1


class _MemoryRegion(ctypes.Structure):
    """struct MemoryRegion: the fields by which it is recognised, and the one that is changed."""

    _fields_ = (
        ("ram", ctypes.c_uint8), ("before", ctypes.c_uint8 * 87),
        ("terminates", ctypes.c_uint8), ("enabled", ctypes.c_uint8),
        ("priority", ctypes.c_int32), ("lists", ctypes.c_uint8 * 32),
        ("uc", ctypes.c_uint64), ("perms", ctypes.c_uint32), ("end", ctypes.c_uint64),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory of the engine that no guest reaches.

    Attributes:
        start: its address in the engine's physical memory.
        size: in bytes.
        host: its address in this process.
    """

    start: int
    size: int
    host: int


@dataclass(frozen=True, slots=True)
class RamRegion(HostMemory):
    """One range of RAM.

    Attributes:
        start: GPA of its first byte.
        size: in bytes.
        host: its address in this process.
        address: where the engine's record of it is in this process.
    """

    address: int

    def never_dirty(self) -> ctypes.Structure:
        """A copy of the record for which the engine never takes the mark off a TLB entry."""
        copy = _MemoryRegion.from_buffer_copy(_MemoryRegion.from_address(self.address))
        copy.priority = _NEVER_DIRTY
        return copy

    def keep_marks(self) -> None:
        """Has the engine never take the mark off a TLB entry: each store is a slow one."""
        _MemoryRegion.from_address(self.address).priority = _NEVER_DIRTY


def ram_regions(engine: Engine) -> list[RamRegion]:
    """The records of all RAM, in the order in which it lies there.

    Raises:
        EngineMismatch: the engine has them in another form.
    """
    search = engine.internal("find_memory_mapping")
    search.restype = ctypes.c_void_p
    handle = ctypes.c_void_p(engine.address)
    regions = []
    for span in engine.memory.ranges:
        address = search(handle, ctypes.c_uint64(span.start))
        if address is None:
            raise EngineMismatch("the engine does not find the RAM that it was given")
        found = _MemoryRegion.from_address(address)
        seen = (found.ram, found.terminates, found.enabled, found.priority, found.uc, found.end)
        if seen != (1, 1, 1, 0, engine.address, span.stop):
            raise EngineMismatch("the engine's record of RAM is not in the form that it must be in")
        memory = engine.memory
        host = memory.address + memory.offset_of(span.start)
        regions.append(RamRegion(span.start, len(span), host, address))
    return regions


def replace_search(engine: Engine, function: Any) -> None:
    """Has the engine call a C function of ours where it searched its memory tree.

    Raises:
        EngineMismatch: it is not known where the engine keeps its own.
    """
    was = ctypes.cast(engine.internal("find_memory_mapping"), ctypes.c_void_p).value
    words = (ctypes.c_uint64 * (_UC_BYTES // 8)).from_address(engine.address)
    found = [index for index, word in enumerate(words) if word == was]
    if len(found) != 1:
        raise EngineMismatch(f"the engine's memory_mapping is at {len(found)} places")
    words[found[0]] = ctypes.cast(function, ctypes.c_void_p).value or 0
