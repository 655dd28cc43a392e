# SPDX-License-Identifier: MIT
"""Power management: ACPI sleep and reset registers, in fixed and in hardware-reduced form.

Spec: ACPI 6.5: 4.8.3.1 (PM1 event block), 4.8.3.2 (PM1 control), 4.8.3.6 (reset register), 4.8.3.7
(sleep control and status); Intel ICH9 data sheet 13.7.5 (reset control register, port 0xCF9).
The PM1 block lies where PC firmware of emulators puts it, so that `outw(0x604, 0x2000)` works.
Deviations: no SCI: nothing here raises events, and enable bits are only stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from svsmd.host.port_bus import PortBus

PM1_EVENT_PORT: Final = 0x600
PM1_CONTROL_PORT: Final = 0x604
SLEEP_CONTROL_PORT: Final = 0x60C
SLEEP_STATUS_PORT: Final = 0x60D
RESET_PORT: Final = 0xCF9
PCI_CONFIG_ADDRESS_PORT: Final = 0xCF8

SLP_TYP_S5: Final = 0
"""Sleep type of soft off, as `\\_S5` of the DSDT says."""

PM1_SLP_TYP_SHIFT: Final = 10
PM1_SLP_TYP_MASK: Final = 7 << PM1_SLP_TYP_SHIFT
PM1_SLP_EN: Final = 1 << 13
PM1_SCI_EN: Final = 1 << 0
SLEEP_SLP_TYP_SHIFT: Final = 2
SLEEP_SLP_TYP_MASK: Final = 7 << SLEEP_SLP_TYP_SHIFT
SLEEP_SLP_EN: Final = 1 << 5


class ResetControl(IntFlag):
    """Bits of port 0xCF9."""

    SYS_RST = 1 << 1
    RST_CPU = 1 << 2
    FULL_RST = 1 << 3


RESET_VALUE: Final = int(ResetControl.SYS_RST | ResetControl.RST_CPU)
"""What the FADT tells an operating system to write: a hard reset."""
_STORED: Final = int(ResetControl.SYS_RST | ResetControl.FULL_RST)


@dataclass(slots=True)
class AcpiPmState:
    """Register contents."""

    pm1_enable: int = 0
    pm1_control: int = PM1_SCI_EN
    """ACPI mode is on from the start: there is no SMI command port to switch it."""
    reset_control: int = 0


class AcpiPm:
    """Calls *power_off* or *reset* when the guest asks for it; the machine ends the run."""

    def __init__(self, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        # Runtime glue.
        self._power_off = power_off
        self._reset = reset
        # Volatile state.
        self.state = AcpiPmState()

    def attach(self, bus: PortBus) -> None:
        """Puts the registers at their ports."""
        bus.map_port(PM1_EVENT_PORT, self.read_pm1_status, self.write_pm1_status, 2)
        bus.map_port(PM1_EVENT_PORT + 2, self.read_pm1_enable, self.write_pm1_enable, 2)
        bus.map_port(PM1_CONTROL_PORT, self.read_pm1_control, self.write_pm1_control, 2)
        bus.map_port(SLEEP_CONTROL_PORT, self.read_zero, self.write_sleep_control)
        bus.map_port(SLEEP_STATUS_PORT, self.read_zero, self.write_sleep_status)
        bus.map_port(RESET_PORT, self.read_reset_control, self.write_reset_control)
        # Only byte accesses mean the reset register: wider ones at 0xCF8 are for the configuration
        # address of a PCI host bridge, which this machine does not have.
        bus.map_port(PCI_CONFIG_ADDRESS_PORT, _no_bridge_16, _ignore, 2)
        bus.map_port(PCI_CONFIG_ADDRESS_PORT, _no_bridge_32, _ignore, 4)

    def read_pm1_status(self) -> int:
        """PM1_STS: no event ever happens."""
        return 0

    def write_pm1_status(self, value: int) -> None:
        """PM1_STS is write-one-to-clear, and nothing is set."""

    def read_pm1_enable(self) -> int:
        """PM1_EN."""
        return self.state.pm1_enable

    def write_pm1_enable(self, value: int) -> None:
        """PM1_EN."""
        self.state.pm1_enable = value

    def read_pm1_control(self) -> int:
        """PM1_CNT; SLP_EN reads as zero."""
        return self.state.pm1_control

    def write_pm1_control(self, value: int) -> None:
        """PM1_CNT: SLP_EN with the type of S5 powers the machine off, other types do nothing."""
        self.state.pm1_control = value & ~PM1_SLP_EN | PM1_SCI_EN
        sleep_type = (value & PM1_SLP_TYP_MASK) >> PM1_SLP_TYP_SHIFT
        if value & PM1_SLP_EN and sleep_type == SLP_TYP_S5:
            self._power_off()

    def read_zero(self) -> int:
        """Sleep control and status: write-only bits, and no wake event."""
        return 0

    def write_sleep_control(self, value: int) -> None:
        """Sleep control register of hardware-reduced ACPI."""
        sleep_type = (value & SLEEP_SLP_TYP_MASK) >> SLEEP_SLP_TYP_SHIFT
        if value & SLEEP_SLP_EN and sleep_type == SLP_TYP_S5:
            self._power_off()

    def write_sleep_status(self, value: int) -> None:
        """WAK_STS is write-one-to-clear, and it is not set."""

    def read_reset_control(self) -> int:
        """Port 0xCF9: RST_CPU reads as zero."""
        return self.state.reset_control

    def write_reset_control(self, value: int) -> None:
        """Port 0xCF9: a reset happens when RST_CPU is written as one; it need not be an edge here,
        for the bit never reads as one."""
        self.state.reset_control = value & _STORED
        if value & ResetControl.RST_CPU:
            self._reset()


def _no_bridge_16() -> int:
    return 0xFFFF


def _no_bridge_32() -> int:
    return 0xFFFF_FFFF


def _ignore(_value: int) -> None:
    """A write that nobody takes."""
