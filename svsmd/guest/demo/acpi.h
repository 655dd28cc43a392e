/* SPDX-License-Identifier: MIT */
/* What the MADT says. Spec: ACPI 6.5, 5.2.12. */
#ifndef DEMO_ACPI_H
#define DEMO_ACPI_H

#include <stdint.h>

#include "cpu.h"

struct acpi_info {
	unsigned int cpus; /* enabled processors */
	uint32_t apic_id[8]; /* of the first eight */
	uint32_t ioapic; /* GPA, 0 = none */
	uint32_t ioapic_gsi_base;
	uint32_t irq_gsi[16]; /* ISA IRQ -> GSI */
};

extern struct acpi_info acpi_info;

/* Without tables: one processor, no IOAPIC. */
void acpi_init(uint64_t rsdp);

#endif
