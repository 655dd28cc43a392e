# SPDX-License-Identifier: MIT
"""Interrupts of VMPL0: the local APIC that the host has for it, by MSR exits.

The host is hostile. It may deliver any vector at any time that RFLAGS.IF allows, early, late, twice
or never; so nothing but pre-emption may rest on an interrupt. It may also have one APIC for all
VMPLs, and let the SVSM spoil the guest's, as it could itself. Each handler returns whether the host
says that it did what was asked for. The first refusal is logged, whoever gets it.

Spec: 24593, chapter 16 (local APIC, x2APIC); 56421, 4.1 (MSR_PROT).
"""

from __future__ import annotations

from typing import Final

from svsmd.core.gate import Handler
from svsmd.core.hypervisor import write_msr
from svsmd.core.log import CoreLog
from svsmd.core.percpu import PerCpu
from svsmd.snp.x2apic import (
    ICR_ASSERT,
    ICR_DESTINATION_SHIFT,
    LVT_MASKED,
    SVR_ENABLE,
    TIMER_DIVIDE_BY_1,
    ApicMsr,
)

FIRST_VECTOR: Final = 32
"""Those below are exceptions (24593, 8.2)."""
LAST_VECTOR: Final = 255
MAX_TIMER_TICKS: Final = 0xFFFF_FFFF
"""The initial count has 32 bits: a little more than 4 s at 1 GHz."""


class X2Apic:
    """The local APICs of VMPL0, each by the GHCB page of its vCPU."""

    def __init__(self, log: CoreLog) -> None:
        self._log: Final = log
        self._refusal_logged = False

    def enable(self, cpu: PerCpu, timer_vector: int, spurious_vector: int) -> Handler[bool]:
        """Take interrupts of all priorities; the timer is a one-shot one, and not armed.

        Raises ValueError for vectors that are no interrupts' (32 to 255).
        """
        for vector in (timer_vector, spurious_vector):
            _check(vector)
        for msr, value in (
            (ApicMsr.SVR, SVR_ENABLE | spurious_vector),
            (ApicMsr.TPR, 0),
            (ApicMsr.TIMER_DIVIDE, TIMER_DIVIDE_BY_1),
            (ApicMsr.LVT_TIMER, timer_vector),
            (ApicMsr.TIMER_INITIAL_COUNT, 0),
        ):
            if not (yield from self._write(cpu, msr, value)):
                return False
        return True

    def disable(self, cpu: PerCpu) -> Handler[bool]:
        """Take no interrupt any more: the timer is masked, and the APIC off."""
        masked = yield from self._write(cpu, ApicMsr.LVT_TIMER, LVT_MASKED)
        off = yield from self._write(cpu, ApicMsr.SVR, LAST_VECTOR)
        return masked and off

    def end_of_interrupt(self, cpu: PerCpu) -> Handler[bool]:
        """The interrupt that was taken last has been served: the next one may come."""
        return (yield from self._write(cpu, ApicMsr.EOI, 0))

    def arm_timer(self, cpu: PerCpu, ticks: int) -> Handler[bool]:
        """One interrupt in `ticks` (1 or more), in place of one that was armed before.

        Longer times than `MAX_TIMER_TICKS` end early: who waits has to look at the time.
        Raises ValueError for less than a tick.
        """
        if ticks < 1:
            raise ValueError(f"a timer of {ticks} ticks")
        count = min(ticks, MAX_TIMER_TICKS)
        return (yield from self._write(cpu, ApicMsr.TIMER_INITIAL_COUNT, count))

    def send_ipi(self, cpu: PerCpu, apic_id: int, vector: int) -> Handler[bool]:
        """Interrupt VMPL0 of another vCPU, or of this one.

        Whether there is such a vCPU nobody says. Raises ValueError for a vector below 32 or above
        255, and for an APIC id that has more than 32 bits.
        """
        _check(vector)
        if not 0 <= apic_id < 1 << 32:
            raise ValueError(f"APIC id {apic_id:#x}")
        request = apic_id << ICR_DESTINATION_SHIFT | ICR_ASSERT | vector
        return (yield from self._write(cpu, ApicMsr.ICR, request))

    def _write(self, cpu: PerCpu, msr: ApicMsr, value: int) -> Handler[bool]:
        if (yield from write_msr(cpu, msr, value)):
            return True
        if not self._refusal_logged:
            self._refusal_logged = True
            self._log.write(
                f"vCPU {cpu.apic_id}: the hypervisor refuses {msr.name} of the local APIC"
            )
        return False


def _check(vector: int) -> None:
    if not FIRST_VECTOR <= vector <= LAST_VECTOR:
        raise ValueError(f"vector {vector} is not an interrupt's")
