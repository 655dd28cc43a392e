# SPDX-License-Identifier: MIT
"""Registers of a local APIC in x2APIC mode, as software and its hypervisor know them.

Spec: AMD64 APM vol. 2 (24593), 16.4 (LVT), 16.5 (ICR), 16.11 (x2APIC MSRs).
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class ApicMsr(IntEnum):
    """x2APIC registers by their MSR numbers; ISR, TMR and IRR are eight each."""

    ID = 0x802
    VERSION = 0x803
    TPR = 0x808
    PPR = 0x80A
    EOI = 0x80B
    LDR = 0x80D
    SVR = 0x80F
    ISR = 0x810
    TMR = 0x818
    IRR = 0x820
    ESR = 0x828
    ICR = 0x830
    LVT_TIMER = 0x832
    LVT_THERMAL = 0x833
    LVT_PERFORMANCE = 0x834
    LVT_LINT0 = 0x835
    LVT_LINT1 = 0x836
    LVT_ERROR = 0x837
    TIMER_INITIAL_COUNT = 0x838
    TIMER_CURRENT_COUNT = 0x839
    TIMER_DIVIDE = 0x83E
    SELF_IPI = 0x83F


SVR_ENABLE: Final = 1 << 8
LVT_MASKED: Final = 1 << 16
ICR_ASSERT: Final = 1 << 14
ICR_DESTINATION_SHIFT: Final = 32
TIMER_DIVIDE_BY_1: Final = 0xB
