# SPDX-License-Identifier: MIT
"""The ACPI tables of the machine: RSDP, XSDT, FADT, MADT and DSDT.

Spec: ACPI 6.5: 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT), 5.2.12 (MADT), 7.4.2 (`_Sx`), 4.1
(hardware-reduced ACPI), 4.8.3.6 (reset register), 4.8.3.7 (sleep registers).

The platform is *hardware-reduced*: there is no SCI, no fixed-event block and no PIC or PIT that a
kernel would have to calibrate against, which saves an SNP guest thousands of port exits at boot.
Power-off then goes through the sleep control register and reboot through the reset register. The
fixed hardware is there nonetheless (pic8259.py, pit8254.py, acpi_pm.py) for guests without ACPI.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Final

from svsmd.host import aml
from svsmd.host.acpi_pm import (
    RESET_PORT,
    RESET_VALUE,
    SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT,
    SLP_TYP_S5,
)
from svsmd.host.layout import IOAPIC_BASE, LOCAL_APIC_BASE
from svsmd.host.loader_error import LoaderError
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

MAX_XAPIC_ID: Final = 254
"""APIC ids above this one need x2APIC entries (5.2.12.12)."""
TIMER_GSI: Final = 2
"""The PIT's IRQ 0 arrives at this pin of the IOAPIC, as on every PC."""


class IapcBootArch(IntFlag):
    """IAPC_BOOT_ARCH flags of the FADT (table 5.11)."""

    VGA_NOT_PRESENT = 1 << 2


class FadtFlags(IntFlag):
    """Fixed feature flags of the FADT (table 5.10)."""

    WBINVD = 1 << 0
    SLP_BUTTON = 1 << 5
    PWR_BUTTON = 1 << 4
    RESET_REG_SUP = 1 << 10
    HW_REDUCED_ACPI = 1 << 20


class MadtEntry(IntEnum):
    """Interrupt controller structure types of the MADT (table 5.21)."""

    LOCAL_APIC = 0
    IO_APIC = 1
    INTERRUPT_SOURCE_OVERRIDE = 2
    LOCAL_X2APIC = 9


class _Fadt(IntEnum):
    """Offsets of the FADT fields that are not zero (table 5.9)."""

    DSDT = 40
    CENTURY = 108
    IAPC_BOOT_ARCH = 109
    FLAGS = 112
    RESET_REG = 116
    RESET_VALUE = 128
    MINOR_VERSION = 131
    X_DSDT = 140
    SLEEP_CONTROL_REG = 244
    SLEEP_STATUS_REG = 256


_LOCAL_APIC_ENABLED: Final = 1 << 0
_SYSTEM_IO: Final = 1
_BYTE_ACCESS: Final = 1


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


def _io_register(port: int) -> bytes:
    """Generic address of an 8-bit register in I/O space (5.2.3.2)."""
    return struct.pack("<BBBBQ", _SYSTEM_IO, 8, 0, _BYTE_ACCESS, port)


def fadt(dsdt_address: int) -> bytes:
    """Fixed ACPI description table, revision 6.5, of a hardware-reduced platform."""
    data = bytearray(FADT_SIZE)
    struct.pack_into("<I", data, _Fadt.DSDT, dsdt_address)
    data[_Fadt.CENTURY] = CENTURY_INDEX
    struct.pack_into("<H", data, _Fadt.IAPC_BOOT_ARCH, IapcBootArch.VGA_NOT_PRESENT)
    flags = (
        FadtFlags.WBINVD
        | FadtFlags.PWR_BUTTON
        | FadtFlags.SLP_BUTTON
        | FadtFlags.RESET_REG_SUP
        | FadtFlags.HW_REDUCED_ACPI
    )
    struct.pack_into("<I", data, _Fadt.FLAGS, flags)
    for offset, port in (
        (_Fadt.RESET_REG, RESET_PORT),
        (_Fadt.SLEEP_CONTROL_REG, SLEEP_CONTROL_PORT),
        (_Fadt.SLEEP_STATUS_REG, SLEEP_STATUS_PORT),
    ):
        data[offset : offset + 12] = _io_register(port)
    data[_Fadt.RESET_VALUE] = RESET_VALUE
    data[_Fadt.MINOR_VERSION] = 5
    struct.pack_into("<Q", data, _Fadt.X_DSDT, dsdt_address)
    return table(b"FACP", 6, bytes(data[TABLE_HEADER_SIZE:]))


def madt(ncpus: int) -> bytes:
    """Multiple APIC description table: CPUs 0 to *ncpus* - 1, one IOAPIC, the timer's override."""
    body = struct.pack("<II", LOCAL_APIC_BASE, 0)
    for cpu in range(ncpus):
        if cpu <= MAX_XAPIC_ID:
            body += struct.pack("<BBBBI", MadtEntry.LOCAL_APIC, 8, cpu, cpu, _LOCAL_APIC_ENABLED)
        else:
            body += struct.pack(
                "<BBHIII", MadtEntry.LOCAL_X2APIC, 16, 0, cpu, _LOCAL_APIC_ENABLED, cpu
            )
    body += struct.pack("<BBBBII", MadtEntry.IO_APIC, 12, 0, 0, IOAPIC_BASE, 0)
    body += struct.pack("<BBBBIH", MadtEntry.INTERRUPT_SOURCE_OVERRIDE, 10, 0, 0, TIMER_GSI, 0)
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


def build_acpi_tables(base: Gpa, size: int, ncpus: int) -> bytes:
    """All tables for guest-physical address *base*, the RSDP first; *size* bytes, zero padded.

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

    tables = (place(fadt(place(dsdt()))), place(madt(ncpus)))
    blob[:RSDP_SIZE] = rsdp(place(table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables))))
    if len(blob) > size:
        raise LoaderError(f"{ncpus} CPUs are too many: their ACPI tables exceed {size} bytes")
    return bytes(blob.ljust(size, b"\0"))
