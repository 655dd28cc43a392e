# SPDX-License-Identifier: MIT
"""The SVSM's own memory: pages from a buddy allocator, small objects from slab caches."""

from svsmd.core.memory.allocator import AllocatorStatistics, OutOfMemory, PageAllocator
from svsmd.core.memory.page_info import MAX_ORDER, PageKind
from svsmd.core.memory.slab import SlabCache, SlabStatistics

__all__ = [
    "MAX_ORDER",
    "AllocatorStatistics",
    "OutOfMemory",
    "PageAllocator",
    "PageKind",
    "SlabCache",
    "SlabStatistics",
]
