# SPDX-License-Identifier: MIT
"""The virtual PC: puts the devices on their buses and draws the interrupt wires.

Spec: the wiring of a PC/AT with an IOAPIC as the MADT of `svsmd.host.acpi_tables` describes it: ISA
interrupts go to the 8259 pair and to the IOAPIC pin of the same number, IRQ 0 to pin 2; the 8259
pair drives LINT0 of the boot CPU's local APIC. Debug ports: 0xE9 as Bochs has it, 0x402 as the
debug console of OVMF; 0x64 takes the keyboard controller's reset command alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from svsmd.host.acpi_pm import AcpiPm
from svsmd.host.acpi_tables import TIMER_GSI
from svsmd.host.dma import Dma
from svsmd.host.fw_cfg import FwCfg
from svsmd.host.guest_request import HostPage
from svsmd.host.ioapic import IoApic
from svsmd.host.local_apic import ApicBus
from svsmd.host.mmio_bus import MmioBus
from svsmd.host.msr_policy import MsrPolicy
from svsmd.host.outcome import PoweredOff, Reset
from svsmd.host.pic8259 import Pic8259Pair
from svsmd.host.pit8254 import Pit8254
from svsmd.host.plane import Plane
from svsmd.host.pm_timer import PmTimer
from svsmd.host.port_bus import PortBus
from svsmd.host.rtc_cmos import RTC_IRQ, RtcCmos
from svsmd.host.timers import TimerQueue
from svsmd.host.uart16550 import COM1_IRQ, Uart16550
from svsmd.host.virtio_blk import BlockBackend
from svsmd.host.virtio_slots import fill_slots
from svsmd.snp.entropy import EntropySource
from svsmd.snp.types import Vmpl

PIT_IRQ: Final = 0

BOCHS_DEBUG_PORT: Final = 0xE9
OVMF_DEBUG_PORT: Final = 0x402
KEYBOARD_COMMAND_PORT: Final = 0x64
KEYBOARD_RESET: Final = 0xFE
"""Keyboard controller command: pulse the reset line."""

_BYTES: Final = tuple(bytes((value,)) for value in range(256))


@dataclass(frozen=True, slots=True)
class PlatformConfig:
    """What an operator decides.

    Attributes:
        ncpus: number of vCPUs; their APIC IDs are 0 and up.
        rtc_epoch: date at tick 0, seconds since 1970.
    """

    ncpus: int = 1
    rtc_epoch: int = 0


class Platform:
    """All devices of the machine.

    `now` is the clock in ticks; `on_console` gets what the guest writes to COM1, `on_debug` what it
    writes to the debug ports.
    """

    def __init__(
        self,
        config: PlatformConfig,
        now: Callable[[], int],
        on_console: Callable[[bytes], None],
        on_debug: Callable[[bytes], None],
    ) -> None:
        # Fixed configuration.
        self.rtc_epoch: Final = config.rtc_epoch
        # Runtime glue.
        self._on_debug: Final = on_debug
        self.timers: Final = TimerQueue()
        self.ports: Final = PortBus()
        self.mmio: Final = MmioBus()
        self.on_init: Callable[[int], None] = _ignore
        """Called with the index of a vCPU that an INIT arrived for."""
        self.on_sipi: Callable[[int], None] = _ignore
        """Called with the index of a vCPU that a start-up IPI arrived for."""
        bus = ApicBus()
        self.pic: Final = Pic8259Pair(lambda level: self.apics[0].set_lint0(level))
        self.ioapic: Final = IoApic(bus)
        self._now: Final = now
        self.planes: Final = tuple(self._guest_plane(n, bus) for n in range(config.ncpus))
        """The guest's VMPL of each vCPU: devices are wired to its local APIC."""
        self.apics: Final = tuple(plane.apic for plane in self.planes)
        self.msrs: Final = MsrPolicy([plane.msrs for plane in self.planes])
        self._buses: Final[defaultdict[Vmpl, ApicBus]] = defaultdict(ApicBus)
        """Of the VMPLs that are not the guest's."""
        self.uart: Final = Uart16550(self._isa_line(COM1_IRQ), on_console)
        self.rtc: Final = RtcCmos(config.rtc_epoch, now, self.timers, self._isa_line(RTC_IRQ))
        self.pit: Final = Pit8254(now, self.timers, self._isa_line(PIT_IRQ))
        # Volatile state.
        self.end: PoweredOff | Reset | None = None
        """How the guest ended the machine through a device, if it did."""

        bus.add_eoi_listener(self.ioapic)
        self.ioapic.attach(self.mmio)
        for device in (
            self.pic,
            self.uart,
            self.rtc,
            self.pit,
            PmTimer(now),
            AcpiPm(self._power_off, self._reset),
        ):
            device.attach(self.ports)
        for port in (BOCHS_DEBUG_PORT, OVMF_DEBUG_PORT):
            # Reading back the port's number tells software that the port is there.
            self.ports.map_port(port, lambda: BOCHS_DEBUG_PORT, self._write_debug)
        self.ports.map_port(KEYBOARD_COMMAND_PORT, None, self._write_keyboard_command)

    def attach_virtio(
        self, host_page: HostPage, disks: Sequence[BlockBackend], entropy: EntropySource
    ) -> None:
        """Puts the virtio devices into their slots: disks, and the entropy device.

        `host_page` is how they reach memory (`svsmd.host.silicon_port.HostSilicon.host_page`).
        """
        dma = Dma(host_page)
        fill_slots(self.mmio, self.ioapic, dma, disks, entropy, self.timers, self._now)

    def attach_fw_cfg(self, host_page: HostPage, files: Mapping[str, bytes]) -> None:
        """Puts fw_cfg at its ports, with these files. Raises ValueError as `FwCfg` does."""
        FwCfg(files, Dma(host_page)).attach(self.ports)

    def make_plane(self, index: int, vmpl: Vmpl) -> Plane:
        """A VMPL of a vCPU that is not the guest's: its APIC has a timer, and IPIs, and no devices.

        IPIs stay within the VMPL; INIT and SIPI mean nothing there.
        """
        return Plane(index, self._now, self.timers, self._buses[vmpl])

    def _guest_plane(self, index: int, bus: ApicBus) -> Plane:
        return Plane(
            index,
            self._now,
            self.timers,
            bus,
            on_init=lambda: self.on_init(index),
            on_sipi=lambda _vector: self.on_sipi(index),
            ext_int=self.pic if index == 0 else None,
        )

    def _isa_line(self, irq: int) -> Callable[[bool], None]:
        """The wire of an ISA interrupt."""
        to_ioapic = self.ioapic.line(TIMER_GSI if irq == PIT_IRQ else irq)
        to_pic = self.pic.set_irq

        def set_irq(level: bool) -> None:
            to_ioapic(level)
            to_pic(irq, level)

        return set_irq

    def _power_off(self) -> None:
        self.end = PoweredOff()

    def _reset(self) -> None:
        self.end = Reset()

    def _write_debug(self, value: int) -> None:
        self._on_debug(_BYTES[value & 0xFF])

    def _write_keyboard_command(self, value: int) -> None:
        if value == KEYBOARD_RESET:
            self._reset()


def _ignore(_index: int) -> None:
    """Nobody listens yet."""
