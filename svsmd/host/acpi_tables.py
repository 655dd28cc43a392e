# SPDX-License-Identifier: MIT
"""The ACPI tables of the machine: RSDP, XSDT, FADT, FACS, MADT and DSDT.

Spec: ACPI 6.5: 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.10 (FACS), 5.2.12 (MADT), 7.4.2
(`_Sx`), 4.8.3 (fixed hardware registers), 4.8.3.6 (reset register).

The platform has the fixed hardware of a PC, and is in ACPI mode from the start. A hardware-reduced
one would be simpler, but Linux takes it for one with EFI runtime services, and reboots through them
whether or not they are there. No event is ever signalled, so that the SCI is never raised.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from svsmd.host import aml
from svsmd.host.acpi_pm import (
    PM1_CONTROL_PORT,
    PM1_EVENT_PORT,
    RESET_PORT,
    RESET_VALUE,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
    SLP_TYP_S5,
)
from svsmd.host.layout import IOAPIC_BASE, LOCAL_APIC_BASE
from svsmd.host.loader_error import LoaderError
from svsmd.host.pm_timer import PM_TIMER_PORT
from svsmd.host.rtc_cmos import CENTURY_INDEX, RTC_IRQ, RTC_PORT
from svsmd.host.uart16550 import COM1_IRQ, COM1_PORT, UART_PORTS
from svsmd.host.virtio_slots import SLOT_SIZE, SLOTS, slot_base, slot_gsi
from svsmd.snp.types import Gpa

OEM_ID: Final = b"SVSMD "
OEM_TABLE_ID: Final = b"SVSMDTBL"
CREATOR_ID: Final = b"SVSM"
TABLE_ALIGNMENT: Final = 16

RSDP_SIZE: Final = 36
_RSDP_V1_SIZE: Final = 20
TABLE_HEADER_SIZE: Final = 36
FADT_SIZE: Final = 276
FACS_SIZE: Final = 64

MAX_XAPIC_ID: Final = 254
"""APIC ids above this one need x2APIC entries (5.2.12.12)."""
TIMER_GSI: Final = 2
"""The PIT's IRQ 0 arrives at this pin of the IOAPIC, as on every PC."""
SCI_IRQ: Final = 9
_ACTIVE_HIGH_LEVEL: Final = 0xD
"""MPS INTI flags (table 5.30)."""


class IapcBootArch(IntFlag):
    """IAPC_BOOT_ARCH flags of the FADT (table 5.11)."""

    VGA_NOT_PRESENT = 1 << 2


class FadtFlags(IntFlag):
    """Fixed feature flags of the FADT (table 5.10)."""

    WBINVD = 1 << 0
    PWR_BUTTON = 1 << 4
    SLP_BUTTON = 1 << 5
    TMR_VAL_EXT = 1 << 8
    RESET_REG_SUP = 1 << 10


class MadtEntry(IntEnum):
    """Interrupt controller structure types of the MADT (table 5.21)."""

    LOCAL_APIC = 0
    IO_APIC = 1
    INTERRUPT_SOURCE_OVERRIDE = 2
    LOCAL_X2APIC = 9


class _Fadt(IntEnum):
    """Offsets of the FADT fields that are not zero (table 5.9)."""

    FIRMWARE_CTRL = 36
    DSDT = 40
    SCI_INT = 46
    PM1A_EVT_BLK = 56
    PM1A_CNT_BLK = 64
    PM_TMR_BLK = 76
    PM1_EVT_LEN = 88
    PM1_CNT_LEN = 89
    PM_TMR_LEN = 91
    P_LVL2_LAT = 96
    P_LVL3_LAT = 98
    CENTURY = 108
    IAPC_BOOT_ARCH = 109
    FLAGS = 112
    RESET_REG = 116
    RESET_VALUE = 128
    MINOR_VERSION = 131
    X_DSDT = 140
    X_PM1A_EVT_BLK = 148
    X_PM1A_CNT_BLK = 172
    X_PM_TMR_BLK = 208
    SLEEP_CONTROL_REG = 244
    SLEEP_STATUS_REG = 256


_LOCAL_APIC_ENABLED: Final = 1 << 0
_SYSTEM_IO: Final = 1
_NO_C2: Final = 101
_NO_C3: Final = 1001
"""Latencies in microseconds that say that there is no such state."""


def checksum(table: bytes | bytearray) -> int:
    """The byte that makes *table* (with a zero in the checksum's place) add up to zero."""
    return -sum(table) & 0xFF


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: the common header (5.2.6) and *body*, checksum filled in."""
    data = bytearray(
        struct.pack(
            "<4sIBB6s8sI4sI",
            signature,
            TABLE_HEADER_SIZE + len(body),
            revision,
            0,
            OEM_ID,
            OEM_TABLE_ID,
            1,
            CREATOR_ID,
            1,
        )
        + body
    )
    data[9] = checksum(data)
    return bytes(data)


def rsdp(xsdt: int) -> bytes:
    """Root system description pointer, revision 2 (5.2.5.3); there is no RSDT."""
    data = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, 0, RSDP_SIZE, xsdt, 0))
    data[8] = checksum(data[:_RSDP_V1_SIZE])
    data[32] = checksum(data)
    return bytes(data)


def _io_register(port: int, size: int = 1) -> bytes:
    """Generic address of a register of `size` bytes (1, 2, 4) in I/O space (5.2.3.2)."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8 * size, 0, size.bit_length(), port)


def fadt(dsdt_address: int, facs_address: int) -> bytes:
    """Fixed ACPI description table, revision 6.5."""
    data = bytearray(FADT_SIZE)
    struct.pack_into("<II", data, _Fadt.FIRMWARE_CTRL, facs_address, dsdt_address)
    struct.pack_into("<H", data, _Fadt.SCI_INT, SCI_IRQ)
    struct.pack_into("<HH", data, _Fadt.P_LVL2_LAT, _NO_C2, _NO_C3)
    data[_Fadt.CENTURY] = CENTURY_INDEX
    struct.pack_into("<H", data, _Fadt.IAPC_BOOT_ARCH, IapcBootArch.VGA_NOT_PRESENT)
    # The buttons are not those of the fixed hardware: there are none.
    flags = (
        FadtFlags.WBINVD
        | FadtFlags.PWR_BUTTON
        | FadtFlags.SLP_BUTTON
        | FadtFlags.TMR_VAL_EXT
        | FadtFlags.RESET_REG_SUP
    )
    struct.pack_into("<I", data, _Fadt.FLAGS, flags)
    for offset, length, extended, port, size in (
        (_Fadt.PM1A_EVT_BLK, _Fadt.PM1_EVT_LEN, _Fadt.X_PM1A_EVT_BLK, PM1_EVENT_PORT, 4),
        (_Fadt.PM1A_CNT_BLK, _Fadt.PM1_CNT_LEN, _Fadt.X_PM1A_CNT_BLK, PM1_CONTROL_PORT, 2),
        (_Fadt.PM_TMR_BLK, _Fadt.PM_TMR_LEN, _Fadt.X_PM_TMR_BLK, PM_TIMER_PORT, 4),
    ):
        struct.pack_into("<I", data, offset, port)
        data[length] = size
        data[extended : extended + 12] = _io_register(port, size)
    for register, port in (
        (_Fadt.RESET_REG, RESET_PORT),
        (_Fadt.SLEEP_CONTROL_REG, SLEEP_CONTROL_PORT),
        (_Fadt.SLEEP_STATUS_REG, SLEEP_STATUS_PORT),
    ):
        data[register : register + 12] = _io_register(port)
    data[_Fadt.RESET_VALUE] = RESET_VALUE
    data[_Fadt.MINOR_VERSION] = 5
    struct.pack_into("<Q", data, _Fadt.X_DSDT, dsdt_address)
    return table(b"FACP", 6, bytes(data[TABLE_HEADER_SIZE:]))


def facs() -> bytes:
    """Firmware ACPI control structure, version 2; it has no checksum, and must be NVS memory."""
    return struct.pack("<4sII20xB", b"FACS", FACS_SIZE, 0, 2).ljust(FACS_SIZE, b"\0")


def madt(ncpus: int) -> bytes:
    """Multiple APIC description table: CPUs 0 to *ncpus* - 1, one IOAPIC, overrides."""
    body = struct.pack("<II", LOCAL_APIC_BASE, 0)
    for cpu in range(ncpus):
        if cpu <= MAX_XAPIC_ID:
            body += struct.pack("<BBBBI", MadtEntry.LOCAL_APIC, 8, cpu, cpu, _LOCAL_APIC_ENABLED)
        else:
            body += struct.pack(
                "<BBHIII", MadtEntry.LOCAL_X2APIC, 16, 0, cpu, _LOCAL_APIC_ENABLED, cpu
            )
    body += struct.pack("<BBBBII", MadtEntry.IO_APIC, 12, 0, 0, IOAPIC_BASE, 0)
    for irq, gsi, flags in ((0, TIMER_GSI, 0), (SCI_IRQ, SCI_IRQ, _ACTIVE_HIGH_LEVEL)):
        override = MadtEntry.INTERRUPT_SOURCE_OVERRIDE
        body += struct.pack("<BBBBIH", override, 10, 0, irq, gsi, flags)
    return table(b"APIC", 5, body)


def dsdt() -> bytes:
    """Differentiated table: COM1, the RTC, virtio slots, and the sleep type of S5 (soft off)."""
    irq_flags = aml.InterruptFlags.CONSUMER | aml.InterruptFlags.EDGE
    present = aml.integer(0x0F)
    com1 = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_STA", present),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.io_ports(COM1_PORT, UART_PORTS), aml.interrupt(COM1_IRQ, irq_flags)
            ),
        ),
    )
    rtc = aml.device(
        "RTC0",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_STA", present),
        aml.name(
            "_CRS",
            aml.resource_template(aml.io_ports(RTC_PORT, 2), aml.interrupt(RTC_IRQ, irq_flags)),
        ),
    )
    virtio = [_virtio_slot(slot) for slot in range(SLOTS)]
    s5 = aml.package(
        aml.integer(SLP_TYP_S5), aml.integer(SLP_TYP_S5), aml.integer(0), aml.integer(0)
    )
    return table(b"DSDT", 2, aml.name("_S5_", s5) + aml.scope("_SB_", com1, rtc, *virtio))


def _virtio_slot(slot: int) -> aml.Aml:
    """A slot for a virtio device, under the ID that Linux knows its MMIO transport by."""
    return aml.device(
        f"VIO{slot}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(slot)),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.memory32_fixed(slot_base(slot), SLOT_SIZE),
                # No flag but this one: level-triggered, active high, not shared.
                aml.interrupt(slot_gsi(slot), aml.InterruptFlags.CONSUMER),
            ),
        ),
    )


def build_acpi_tables(base: Gpa, size: int, facs_address: Gpa, ncpus: int) -> bytes:
    """All tables for guest-physical address *base*, the RSDP first; *size* bytes, zero padded.

    The FACS, which `facs` makes, lies elsewhere.

    :raises LoaderError: so many CPUs that the MADT does not fit.
    """
    if ncpus < 1:
        raise LoaderError(f"a machine needs at least one CPU, not {ncpus}")
    blob = bytearray(RSDP_SIZE)

    def place(data: bytes) -> int:
        blob.extend(bytes(-len(blob) % TABLE_ALIGNMENT))
        address = base + len(blob)
        blob.extend(data)
        return address

    tables = (place(fadt(place(dsdt()), facs_address)), place(madt(ncpus)))
    blob[:RSDP_SIZE] = rsdp(place(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables))))
    if len(blob) > size:
        raise LoaderError(f"{ncpus} CPUs are too many: their ACPI tables exceed {size} bytes")
    return bytes(blob.ljust(size, b"\0"))
