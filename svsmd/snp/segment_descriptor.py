# SPDX-License-Identifier: MIT
"""What a descriptor of the GDT or LDT says of its segment, as it goes into the segment register.

Spec: 24593, 4.7 (legacy segment descriptors), figure 4-13.
"""

from __future__ import annotations

from typing import Final

GRANULARITY: Final = 1 << 23
"""Of the second word: the limit counts pages."""
_FLAGS: Final = 0xF0_FF00


def segment_base(descriptor: int) -> int:
    """Bits 31:0 of the base."""
    return (descriptor >> 16) & 0xFF_FFFF | (descriptor >> 32) & 0xFF00_0000


def segment_limit(descriptor: int) -> int:
    """Offset of the last byte."""
    limit = (descriptor & 0xFFFF) | (descriptor >> 32) & 0xF_0000
    return limit << 12 | 0xFFF if (descriptor >> 32) & GRANULARITY else limit


def segment_flags(descriptor: int) -> int:
    """The bits of the second word that are no part of base and limit, where they are there."""
    return (descriptor >> 32) & _FLAGS
