/* SPDX-License-Identifier: MIT */
/*
 * Every access here raises #VC: RDMSR and WRMSR of the x2APIC registers become MSR events, the
 * IOAPIC's registers MMIO events.
 */
#include "apic.h"

#include "acpi.h"
#include "cpu.h"
#include "paging.h"
#include "trap.h"

#define APIC_BASE_ENABLE (1 << 11)
#define APIC_BASE_X2APIC (1 << 10)
#define SVR_ENABLE (1 << 8)
#define CPUID_1_ECX_X2APIC (1 << 21)

#define IOAPIC_SELECT 0x00
#define IOAPIC_WINDOW 0x10
#define IOAPIC_REDIRECTION 0x10 /* index of the low half of entry 0 */

static bool apic_present;

bool apic_init(void)
{
	uint64_t base;

	if (!(cpuid(1, 0).ecx & CPUID_1_ECX_X2APIC))
		return false;
	base = rdmsr(MSR_APIC_BASE);
	if ((base & (APIC_BASE_ENABLE | APIC_BASE_X2APIC)) != (APIC_BASE_ENABLE | APIC_BASE_X2APIC))
		wrmsr(MSR_APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_X2APIC);
	wrmsr(X2APIC_TPR, 0);
	wrmsr(X2APIC_SVR, SVR_ENABLE | VECTOR_SPURIOUS);
	apic_present = true;
	return true;
}

void apic_eoi(void)
{
	if (apic_present)
		wrmsr(X2APIC_EOI, 0);
}

void apic_timer_start(uint8_t vector, uint32_t ticks)
{
	wrmsr(X2APIC_TIMER_DIVIDE, APIC_TIMER_DIVIDE_1);
	wrmsr(X2APIC_LVT_TIMER, vector);
	wrmsr(X2APIC_TIMER_INITIAL, ticks);
}

void apic_timer_stop(void)
{
	wrmsr(X2APIC_TIMER_INITIAL, 0);
	wrmsr(X2APIC_LVT_TIMER, APIC_LVT_MASKED);
}

static volatile uint32_t *ioapic_register(uint32_t offset)
{
	return (volatile uint32_t *)((uint8_t *)shared_address(acpi_info.ioapic) + offset);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
	*ioapic_register(IOAPIC_SELECT) = index;
	*ioapic_register(IOAPIC_WINDOW) = value;
}

uint32_t ioapic_read(uint32_t index)
{
	*ioapic_register(IOAPIC_SELECT) = index;
	return *ioapic_register(IOAPIC_WINDOW);
}

bool ioapic_route(unsigned int isa_irq, uint8_t vector)
{
	uint32_t entry = IOAPIC_REDIRECTION + 2 * (acpi_info.irq_gsi[isa_irq] - acpi_info.ioapic_gsi_base);

	if (!acpi_info.ioapic || !apic_present)
		return false;
	ioapic_write(entry + 1, this_cpu()->apic_id << 24);
	ioapic_write(entry, vector); /* fixed, physical, edge, active high, not masked */
	return true;
}
