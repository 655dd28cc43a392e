# SPDX-License-Identifier: MIT
"""Page table entries of VMPL0, and what they say of a page.

Spec: 24593, 5.4 (long-mode entries), 15.34.5 (C-bit).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final, NamedTuple

from svsmd.snp.types import C_BIT, PAGE_MASK, Gpa, PageSize

_P: Final = 1 << 0
_W: Final = 1 << 1
_U: Final = 1 << 2
_A: Final = 1 << 5
_D: Final = 1 << 6
LARGE: Final = 1 << 7
"""In a page directory: the entry maps 2 MiB."""
_NX: Final = 1 << 63
ADDRESS: Final = ((1 << 52) - 1) & ~PAGE_MASK & ~C_BIT
"""Bits of an entry that are a GPA."""


class PageFlags(IntFlag):
    """What a mapping allows. None can be both written and executed."""

    READ = 0
    """Data can be read: every mapping."""
    WRITE = 1 << 0
    EXECUTE = 1 << 1
    USER = 1 << 2
    """CPL 3 may use it, and CPL 0 only as SMAP and SMEP allow. Only in the user half."""
    SHARED = 1 << 3
    """The C-bit is clear: memory that the host sees. It cannot be executed."""


class Mapping(NamedTuple):
    """One page that is mapped: its GPA without the C-bit, and how."""

    gpa: Gpa
    flags: PageFlags
    size: PageSize


def leaf_entry(gpa: int, flags: PageFlags, size: PageSize = PageSize.SIZE_4K) -> int:
    """The entry that maps a page. Raises ValueError for flags that no mapping can have."""
    if flags & PageFlags.EXECUTE and flags & (PageFlags.WRITE | PageFlags.SHARED):
        raise ValueError(f"a mapping cannot be {flags!r}")
    # Accessed and Dirty are set from the start: nobody looks at them, and no walk has to write.
    entry = gpa | _P | _A
    if flags & PageFlags.WRITE:
        entry |= _W | _D
    if flags & PageFlags.USER:
        entry |= _U
    if not flags & PageFlags.EXECUTE:
        entry |= _NX
    if not flags & PageFlags.SHARED:
        entry |= C_BIT
    return entry | LARGE if size is PageSize.SIZE_2M else entry


def decode_leaf(entry: int, level: int) -> Mapping:
    """What the entry of a page table (level 1) or page directory (2) maps."""
    flags = PageFlags.READ
    if entry & _W:
        flags |= PageFlags.WRITE
    if not entry & _NX:
        flags |= PageFlags.EXECUTE
    if entry & _U:
        flags |= PageFlags.USER
    if not entry & C_BIT:
        flags |= PageFlags.SHARED
    size = PageSize.SIZE_2M if level == 2 else PageSize.SIZE_4K
    return Mapping(Gpa(entry & ADDRESS), flags, size)


def table_entry(gpa: int, *, user: bool) -> int:
    """The entry that names a table: what is allowed is up to the leaves."""
    return gpa | _P | _W | _A | C_BIT | (_U if user else 0)
