/* SPDX-License-Identifier: MIT */
#include "acpi.h"

#include "string.h"

#define MADT_LOCAL_APIC 0
#define MADT_IOAPIC 1
#define MADT_OVERRIDE 2
#define MADT_LOCAL_X2APIC 9
#define MADT_ENABLED 1
#define TABLE_MAX 0x10000 /* bytes of a table that we are ready to believe */

struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt;
	uint32_t length;
	uint64_t xsdt;
} __attribute__((packed));

struct acpi_table {
	char signature[4];
	uint32_t length;
	uint8_t rest[28];
};

struct acpi_info acpi_info;

static uint32_t read32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return value;
}

static void add_cpu(uint32_t apic_id, uint32_t flags)
{
	if (!(flags & MADT_ENABLED))
		return;
	if (acpi_info.cpus < sizeof(acpi_info.apic_id) / sizeof(acpi_info.apic_id[0]))
		acpi_info.apic_id[acpi_info.cpus] = apic_id;
	acpi_info.cpus++;
}

static void read_madt(const struct acpi_table *madt)
{
	const uint8_t *at = (const uint8_t *)madt + sizeof(*madt) + 8;
	const uint8_t *end = (const uint8_t *)madt + madt->length;

	for (; at + 2 <= end && at[1] >= 2 && at + at[1] <= end; at += at[1]) {
		if (at[0] == MADT_LOCAL_APIC && at[1] >= 8) {
			add_cpu(at[3], read32(at + 4));
		} else if (at[0] == MADT_LOCAL_X2APIC && at[1] >= 16) {
			add_cpu(read32(at + 4), read32(at + 8));
		} else if (at[0] == MADT_IOAPIC && at[1] >= 12 && !acpi_info.ioapic) {
			acpi_info.ioapic = read32(at + 4);
			acpi_info.ioapic_gsi_base = read32(at + 8);
		} else if (at[0] == MADT_OVERRIDE && at[1] >= 10 && at[3] < 16) {
			acpi_info.irq_gsi[at[3]] = read32(at + 4);
		}
	}
}

void acpi_init(uint64_t address)
{
	const struct rsdp *rsdp = (const struct rsdp *)address;
	const struct acpi_table *xsdt;

	for (uint32_t irq = 0; irq < 16; irq++)
		acpi_info.irq_gsi[irq] = irq;
	if (address && !memcmp(rsdp->signature, "RSD PTR ", 8) && rsdp->revision >= 2 && rsdp->xsdt) {
		xsdt = (const struct acpi_table *)rsdp->xsdt;
		for (uint32_t at = sizeof(*xsdt); at + 8 <= xsdt->length && at < TABLE_MAX; at += 8) {
			uint64_t entry;
			const struct acpi_table *table;

			memcpy(&entry, (const uint8_t *)xsdt + at, sizeof(entry));
			table = (const struct acpi_table *)entry;
			if (!memcmp(table->signature, "APIC", 4) && table->length < TABLE_MAX)
				read_madt(table);
		}
	}
	if (!acpi_info.cpus)
		acpi_info.cpus = 1;
}
