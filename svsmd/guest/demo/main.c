/* SPDX-License-Identifier: MIT */
/* The demo guest: a small kernel that can do everything an SEV-SNP guest has to do. */
#include "acpi.h"
#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "paging.h"
#include "power.h"
#include "print.h"
#include "selftest.h"
#include "shell.h"
#include "string.h"
#include "svsm.h"
#include "trap.h"
#include "tsc.h"
#include "uart.h"

#define CPUID_SEV 0x8000001f /* EBX[5:0]: position of the C-bit */

void __attribute__((noreturn)) demo_main(uint64_t boot_params);

static uint32_t c_bit_position(void)
{
	struct cpuid_regs sev;

	if (!boot_cpuid(CPUID_SEV, 0, &sev))
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
	return sev.ebx & 0x3f;
}

/*
 * The order matters: no #VC before the IDT, no CPUID before the CC blob is read, no shared page
 * before our own page tables and the SVSM, no output before the GHCB.
 */
void demo_main(uint64_t boot_params)
{
	if (!(rdmsr(MSR_SEV_STATUS) & SEV_STATUS_SNP))
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
	trap_init();
	cpu_init(&cpus[0]);
	boot_init(boot_params);
	paging_init(c_bit_position());
	svsm_init();
	ghcb_init();
	uart_init();

	print("\nsvsmd demo guest at VMPL %u\n", svsm.vmpl);
	if (svsm.present && !svsm_use_own_caa()) {
		print("the SVSM refuses our calling area\n");
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	}
	if (!tsc_init()) {
		print("the security processor does not tell us our TSC\n");
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	}
	memory_init();
	acpi_init(boot_info.rsdp);
	this_cpu()->apic_id = acpi_info.apic_id[0];
	if (apic_init())
		uart_enable_irq();
	irq_enable();

	if (has_word(boot_info.command_line, "selftest")) {
		if (selftest_run(NULL))
			power_off();
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	}
	print("type help\n");
	shell();
}
