# SPDX-License-Identifier: MIT
"""What the core's work costs in guest time.

Policy at VMPL0 is Python and executes no guest instruction, so it charges the clock itself, by
fixed amounts: one tick is one instruction, or one cycle of the 1 GHz TSC. The amounts are round
numbers in the order of what the native instructions would take; what matters is that they are the
same in every run, so that the clock does not depend on the machine below.

Spec: none.
"""

from __future__ import annotations

from typing import Final

GATE: Final = 100
"""One pass through the gate: saving and loading the state of a handler."""
REQUEST: Final = 400
"""Taking one call from the guest's VMSA and calling area, and writing its result back."""
SYSTEM_CALL: Final = 200
"""Finding out what a program at CPL 3 wants, and giving it the result."""
PAGE_FAULT: Final = 400
"""Finding out where a page belongs that a program has touched."""
MEMORY_ACCESS: Final = 10
"""One load or store of up to a cache line."""
MESSAGE: Final = 100
"""Queueing or taking one message, besides copying it."""
LOG_BYTE: Final = 16
"""One byte for the log."""
SYMBOL: Final = 1000
"""Finding function, file and line of an address."""
COPY_PAGE: Final = 128
"""Reading or writing 4 KiB, 32 bytes a tick."""
HASH_PAGE: Final = 4096
"""SHA-256 of 4 KiB, a byte a tick."""
PVALIDATE: Final = 200
RMPADJUST: Final = 200
INVLPG: Final = 50
FLUSH_TLB: Final = 1000
"""INVLPGB with everything named, and TLBSYNC."""

CALL_BUDGET: Final = 2_000_000
"""SVSM_CORE_PVALIDATE and the like answer INCOMPLETE once a call has cost this much (2 ms): the
guest's interrupts wait no longer. A full list of 4 KiB entries of PVALIDATE fits in."""
MODULE_CALL_BUDGET: Final = 2_000_000
"""A call that a module serves is INCOMPLETE after this long (2 ms), for the same reason."""
