# SPDX-License-Identifier: MIT
"""The processor's operating modes, as they follow from the state that is loaded.

Spec: 24593, 1.3 (operating modes), 4.7.3 (L and D of code segments).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from svsmd.snp.cpu_unicorn import UnicornCpu
from svsmd.snp.engine_layout import HF_CS32, HF_CS64
from svsmd.snp.page_walk import EFER_LMA

_CR0_PE: Final = 1 << 0
_EFLAGS_VM: Final = 1 << 17


class CpuMode(IntEnum):
    """Operating modes; where two sizes of code are possible, the default operand size is told."""

    REAL = 0
    VIRTUAL_8086 = 1
    PROTECTED_16 = 2
    PROTECTED_32 = 3
    COMPATIBILITY_16 = 4
    COMPATIBILITY_32 = 5
    LONG_64 = 6
    """64-bit mode."""


def mode_of(cpu: UnicornCpu) -> CpuMode:
    """The mode of the loaded context."""
    flags = cpu.hflags
    if cpu.word(cpu.layout.efer) & EFER_LMA:
        if flags & HF_CS64:
            return CpuMode.LONG_64
        return CpuMode.COMPATIBILITY_32 if flags & HF_CS32 else CpuMode.COMPATIBILITY_16
    if not cpu.cr[0] & _CR0_PE:
        return CpuMode.REAL
    if cpu.eflags_system & _EFLAGS_VM:
        return CpuMode.VIRTUAL_8086
    return CpuMode.PROTECTED_32 if flags & HF_CS32 else CpuMode.PROTECTED_16
