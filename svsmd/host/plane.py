# SPDX-License-Identifier: MIT
"""What a VMPL of a vCPU has for itself beside its registers: local APIC, NMI, and MSRs.

It is there whether or not the VMPL has a VMSA at the moment. Spec: none of AMD's; KVM calls it a VM
plane.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from svsmd.host.local_apic import ApicBus, ExtIntSource, LocalApic
from svsmd.host.msr_policy import VcpuMsrs
from svsmd.host.timers import TimerQueue


class Plane:
    """One VMPL of one vCPU, as far as the host emulates devices for it."""

    __slots__ = ("apic", "msrs", "nmi_pending")

    def __init__(
        self,
        apic_id: int,
        now: Callable[[], int],
        timers: TimerQueue,
        bus: ApicBus,
        *,
        on_init: Callable[[], None] | None = None,
        on_sipi: Callable[[int], None] | None = None,
        ext_int: ExtIntSource | None = None,
    ) -> None:
        """Parameters are those of `LocalApic`, which attaches itself to *bus*."""
        # Runtime glue.
        self.apic: Final = LocalApic(
            apic_id,
            now,
            timers,
            bus,
            is_bsp=apic_id == 0,
            on_nmi=self._nmi,
            on_init=on_init,
            on_sipi=on_sipi,
            ext_int=ext_int,
        )
        self.msrs: Final = VcpuMsrs(self.apic, now)
        # Volatile state.
        self.nmi_pending = False

    def is_interrupted(self) -> bool:
        """Whether there is an NMI, or an interrupt that has the priority to be taken."""
        return self.nmi_pending or self.apic.pending_vector() is not None

    def take_over(self, old: Plane) -> None:
        """Go on as `old`, whose machine is gone."""
        self.apic.take_over(old.apic)
        self.msrs.values.update(old.msrs.values)
        self.nmi_pending = old.nmi_pending

    def _nmi(self) -> None:
        self.nmi_pending = True
