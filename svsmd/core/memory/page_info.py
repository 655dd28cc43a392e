# SPDX-License-Identifier: MIT
"""Page information: what the page allocator writes down about each page, in the SVSM's memory.

Memory is cut into sections of 1 MiB, and each section has one page with 256 entries of 16 bytes.
That of the SVSM's region is one array: a page with the allocator's header, then the pages of its
sections in ascending order. A MiB of which the guest has deposited something has its entries in the
first page that was deposited there.

Spec: none; the C twin is `svsmd/core/native/page_info.h`.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple, Self

from svsmd.snp.types import PAGE_SHIFT, PAGE_SIZE

MAX_ORDER: Final = 8
"""The largest block is a whole section of 2**8 pages, so that buddies never lie in two."""
SECTION_PAGES: Final = 1 << MAX_ORDER
SECTION_SHIFT: Final = PAGE_SHIFT + MAX_ORDER
SECTION_SIZE: Final = 1 << SECTION_SHIFT

NO_FRAME: Final = 0xFFFF_FFFF
"""End of a list. Frame 0 is a page like any other: a guest may deposit it."""

POISON: Final = 0xCC
"""What freed memory is filled with, under the debug option."""


class PageKind(IntEnum):
    """What a page is used for."""

    ABSENT = 0
    """No memory of the SVSM."""
    FREE = 1
    """Free, and the SVSM's for good."""
    DEPOSITED = 2
    """Free, and the guest may take it back."""
    RESERVED = 3
    """Not the allocator's: the image, the launch pages."""
    PAGE_INFO = 4
    ANONYMOUS = 5
    PAGE_TABLE = 6
    PER_CPU = 7
    VMSA = 8
    GHCB = 9
    SHARED = 10
    """Shared with the host, other than a GHCB."""
    SLAB = 11
    VALIDATION = 12
    """A part of the validation bitmap."""
    PROCESS = 13
    FILE = 14


FREE_KINDS: Final = (PageKind.FREE, PageKind.DEPOSITED)
FIXED_KINDS: Final = (
    *FREE_KINDS,
    PageKind.ABSENT,
    PageKind.RESERVED,
    PageKind.PAGE_INFO,
)
"""Kinds that nobody can allocate or free."""


class PageFlag(IntFlag):
    """Flags of one page."""

    NONE = 0
    TAIL = 1 << 0
    """Not the first page of its block."""
    POISONED = 1 << 1
    """Filled with `POISON` when it was freed, and not allocated since."""


class PageInfo(NamedTuple):
    """One entry.

    `order` is that of the block; `references` is 0 unless the page begins an allocated block. Of a
    free block's first page `next` and `prev` are frames: its neighbours in the list of its order.
    Those of all other pages are `NO_FRAME`.
    """

    kind: int = PageKind.ABSENT
    order: int = 0
    flags: int = PageFlag.NONE
    references: int = 0
    next: int = NO_FRAME
    prev: int = NO_FRAME

    @classmethod
    def unpack(cls, raw: bytes) -> Self:
        """One entry out of its bytes."""
        return cls(*_ENTRY.unpack(raw))

    def pack(self) -> bytes:
        """Its bytes."""
        return _ENTRY.pack(*self)

    @staticmethod
    def pack_all(entries: Iterable[PageInfo]) -> bytes:
        """The bytes of adjoining entries."""
        return b"".join(_ENTRY.pack(*entry) for entry in entries)

    @staticmethod
    def unpack_all(raw: bytes) -> list[PageInfo]:
        """Adjoining entries out of their bytes."""
        return [PageInfo(*fields) for fields in _ENTRY.iter_unpack(raw)]


_ENTRY: Final = struct.Struct("<BBHIII")
ENTRY_SIZE: Final = _ENTRY.size
NEXT_OFFSET: Final = 8
PREV_OFFSET: Final = 12
assert SECTION_PAGES * ENTRY_SIZE == PAGE_SIZE

KIND_COUNT: Final = 32
"""Kinds that the header has room for."""
POOL_COUNT: Final = 2

_FreeLists = ctypes.c_uint32 * (MAX_ORDER + 1) * POOL_COUNT
_Kinds = ctypes.c_uint32 * KIND_COUNT


class AllocatorHeader(ctypes.LittleEndianStructure):
    """The allocator's header. The first index of `heads` and `blocks` is the pool: 0 the region,
    1 what the guest has deposited; the second is the order."""

    _pack_ = 1
    _layout_ = "ms"
    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("region_base", ctypes.c_uint64),
        ("region_pages", ctypes.c_uint32),
        ("deposited_pages", ctypes.c_uint32),
        ("promised_pages", ctypes.c_uint32),
        ("failures", ctypes.c_uint32),
        ("heads", _FreeLists),
        ("blocks", _FreeLists),
        ("pages_of_kind", _Kinds),
    ]

    MAGIC = int.from_bytes(b"SVSMPAGE", "little")


assert ctypes.sizeof(AllocatorHeader) <= PAGE_SIZE
