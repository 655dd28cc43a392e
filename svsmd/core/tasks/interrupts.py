# SPDX-License-Identifier: MIT
"""The one interrupt of VMPL0, as the scheduler uses it.

Timer and inter-processor interrupts have the same vector: whoever gets one looks at his run queue
and at the time, whatever the reason.

Spec: none; the vector is SVSM_VECTOR_INTERRUPT of `svsmd/core/native/layout.h`.
"""

from __future__ import annotations

from svsmd.core.gate import Handler
from svsmd.core.log import CoreLog
from svsmd.core.percpu import PerCpu
from svsmd.core.trap_frame import VECTOR_INTERRUPT
from svsmd.core.x2apic import X2Apic


class ApicInterrupts:
    """Interrupts by the local APICs of VMPL0, where the host offers them."""

    def __init__(self, log: CoreLog) -> None:
        self._apic = X2Apic(log)
        self._enabled: set[int] = set()

    def enable(self, cpu: PerCpu) -> Handler[None]:
        """Set up the APIC of this CPU. Where the host refuses, tasks are switched as they block."""
        if (yield from self._apic.enable(cpu, VECTOR_INTERRUPT, VECTOR_INTERRUPT)):
            self._enabled.add(cpu.apic_id)

    def arm_timer(self, cpu: PerCpu, ticks: int) -> Handler[None]:
        """One interrupt in `ticks`."""
        if cpu.apic_id in self._enabled:
            yield from self._apic.arm_timer(cpu, ticks)

    def end_of_interrupt(self, cpu: PerCpu) -> Handler[None]:
        """The interrupt has been taken."""
        if cpu.apic_id in self._enabled:
            yield from self._apic.end_of_interrupt(cpu)

    def kick(self, cpu: PerCpu, apic_id: int) -> Handler[None]:
        """Interrupt another CPU; it finds its task anyway when the host runs it again."""
        if cpu.apic_id in self._enabled and apic_id in self._enabled:
            yield from self._apic.send_ipi(cpu, apic_id, VECTOR_INTERRUPT)
