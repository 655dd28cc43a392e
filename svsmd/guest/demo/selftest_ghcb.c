/* SPDX-License-Identifier: MIT */
/* The hypervisor: MSR protocol, events of the GHCB page, answers to nonsense. */
#include "acpi.h"
#include "apic.h"
#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "paging.h"
#include "selftest.h"
#include "string.h"
#include "svsm.h"
#include "trap.h"
#include "uart.h"
#include "vc.h"

#define PAGE (ARENA_BASE + 0x10000) /* page of the arena that changes its state here */
#define PSC_PAGES 4

struct psc_list {
	uint16_t current;
	uint16_t end;
	uint32_t reserved;
	uint64_t entry[PSC_PAGES];
};

SELFTEST(msr_sev_info, "ghcb.msr.sev-info")
{
	uint64_t info = ghcb_msr(GHCB_MSR_SEV_INFO_REQ);

	EXPECT_EQ(info & GHCB_MSR_INFO_MASK, GHCB_MSR_SEV_INFO_RESP);
	EXPECT(info >> 48 >= 2 && (info >> 32 & 0xffff) <= 2);
	EXPECT_EQ(1UL << (info >> 24 & 0xff), c_bit);
}

SELFTEST(msr_cpuid, "ghcb.msr.cpuid")
{
	struct cpuid_regs page;
	uint64_t answer;

	EXPECT(boot_cpuid(0, 0, &page));
	answer = ghcb_msr(GHCB_MSR_CPUID_REQ | 1UL << 30); /* leaf 0, EBX */
	EXPECT_EQ(answer & GHCB_MSR_INFO_MASK, GHCB_MSR_CPUID_RESP);
	EXPECT_EQ(answer >> 32, page.ebx);
	EXPECT_EQ(ghcb_msr(GHCB_MSR_CPUID_REQ | 2UL << 30) >> 32, page.ecx);
	EXPECT_EQ(ghcb_msr(GHCB_MSR_CPUID_REQ | 3UL << 30) >> 32, page.edx);
}

SELFTEST(msr_features, "ghcb.msr.hv-features")
{
	uint64_t answer = ghcb_msr(GHCB_MSR_HV_FT_REQ);

	EXPECT_EQ(answer & GHCB_MSR_INFO_MASK, GHCB_MSR_HV_FT_RESP);
	EXPECT(answer >> 12 & GHCB_HV_FT_SNP);
	EXPECT(answer >> 12 & GHCB_HV_FT_AP_CREATION);
	EXPECT(!svsm.present || answer >> 12 & GHCB_HV_FT_MULTI_VMPL);
}

SELFTEST(msr_preferred, "ghcb.msr.preferred-gpa")
{
	EXPECT_EQ(ghcb_msr(GHCB_MSR_PREF_GPA_REQ) & GHCB_MSR_INFO_MASK, GHCB_MSR_PREF_GPA_RESP);
}

SELFTEST(msr_register, "ghcb.msr.register-gpa")
{
	uint64_t gpa = this_cpu()->ghcb_gpa;

	EXPECT_EQ(ghcb_msr(GHCB_MSR_REG_GPA_REQ | gpa), gpa | GHCB_MSR_REG_GPA_RESP);
}

SELFTEST(msr_psc, "ghcb.msr.page-state")
{
	volatile uint64_t *shared = shared_address(PAGE);

	NEED(arena_present(), "too little memory");
	EXPECT(page_make_shared(PAGE));
	shared[0] = 0x1122334455667788;
	EXPECT_EQ(shared[0], 0x1122334455667788);
	EXPECT(page_make_private(PAGE));
	*(volatile uint64_t *)PAGE = 0x55; /* private again: no #VC, no #NPF */
	EXPECT_EQ(*(volatile uint64_t *)PAGE, 0x55);
}

SELFTEST(msr_psc_bad, "ghcb.msr.page-state.bad")
{
	EXPECT(!ghcb_page_state(PAGE, 9)); /* no such operation */
	EXPECT(!ghcb_page_state(0x7ff0000000, PSC_SHARED)); /* no such page */
}

SELFTEST(msr_run_vmpl_bad, "ghcb.msr.run-vmpl.bad")
{
	uint64_t answer = ghcb_msr(GHCB_MSR_RUN_VMPL_REQ | 7UL << 32);

	EXPECT_EQ(answer & GHCB_MSR_INFO_MASK, GHCB_MSR_RUN_VMPL_RESP);
	EXPECT(answer >> 32);
}

SELFTEST(nae_cpuid, "ghcb.nae.cpuid")
{
	struct ghcb_exit e = { .code = SVM_EXIT_CPUID, .rax = 0x80000000, .pass = PASS_RAX | PASS_RCX };
	struct cpuid_regs page;

	EXPECT(boot_cpuid(0x80000000, 0, &page));
	EXPECT_EQ(ghcb_call(&e), GHCB_OK);
	EXPECT_EQ(e.pass & 0xf, PASS_RAX | PASS_RBX | PASS_RCX | PASS_RDX);
	EXPECT_EQ(e.rax, page.eax);
	EXPECT_EQ(e.rbx, page.ebx);
}

SELFTEST(nae_features, "ghcb.nae.hv-features")
{
	struct ghcb_exit e = { .code = GHCB_EXIT_HV_FEATURES };

	EXPECT_EQ(ghcb_call(&e), GHCB_OK);
	EXPECT_EQ(e.info2, ghcb_msr(GHCB_MSR_HV_FT_REQ) >> 12);
}

SELFTEST(nae_ioio, "ghcb.nae.ioio")
{
	ghcb_out(UART_PORT + UART_SCRATCH, 1, 0x3c);
	EXPECT_EQ(ghcb_in(UART_PORT + UART_SCRATCH, 1), 0x3c);
	ghcb_out_string(UART_PORT + UART_SCRATCH, "12345", 5);
	EXPECT_EQ(ghcb_in(UART_PORT + UART_SCRATCH, 1), '5');
}

SELFTEST(nae_msr, "ghcb.nae.msr")
{
	struct ghcb_exit e = { .code = SVM_EXIT_MSR, .rcx = 0xc0011fff, .pass = PASS_RCX };

	EXPECT_EQ(ghcb_call(&e), GHCB_EXCEPTION);
	EXPECT_EQ(e.info2 & 0x80000fff, 0x80000b00 | VECTOR_GP); /* valid, error code, exception, #GP */
	EXPECT_EQ(e.info2 >> 32, 0);
}

SELFTEST(nae_psc, "ghcb.nae.page-state")
{
	struct psc_list list = { .end = PSC_PAGES - 1 };
	struct ghcb_exit e = { .code = GHCB_EXIT_PSC, .data = &list, .data_in = sizeof(list), .data_out = sizeof(list) };

	NEED(arena_present(), "too little memory");
	for (uint64_t i = 0; i < PSC_PAGES; i++) {
		EXPECT(page_validate(PAGE + i * PAGE_SIZE, false));
		list.entry[i] = (PAGE + i * PAGE_SIZE) | (uint64_t)PSC_SHARED << PSC_OPERATION_SHIFT;
	}
	EXPECT_EQ(ghcb_call(&e), GHCB_OK);
	EXPECT_EQ(e.info2, 0);
	EXPECT_EQ(list.current, PSC_PAGES);
	for (uint64_t i = 0; i < PSC_PAGES; i++)
		*(volatile uint64_t *)shared_address(PAGE + i * PAGE_SIZE) = i;
	for (uint64_t i = 0; i < PSC_PAGES; i++)
		EXPECT(page_make_private(PAGE + i * PAGE_SIZE));
}

SELFTEST(nae_psc_bad, "ghcb.nae.page-state.bad")
{
	struct psc_list list = { .end = 0, .entry = { PAGE | 9UL << PSC_OPERATION_SHIFT } };
	struct ghcb_exit e = { .code = GHCB_EXIT_PSC, .data = &list, .data_in = sizeof(list), .data_out = sizeof(list) };

	EXPECT_EQ(ghcb_call(&e), GHCB_OK);
	EXPECT(e.info2);
	EXPECT_EQ(list.current, 0);
}

SELFTEST(nae_psc_scratch, "ghcb.nae.page-state.bad-scratch")
{
	struct ghcb_exit e = { .code = GHCB_EXIT_PSC, .scratch = PAGE, .pass = PASS_SCRATCH };

	EXPECT_EQ(ghcb_call(&e), GHCB_MALFORMED);
	EXPECT_EQ(e.info2, GHCB_ERR_INVALID_SCRATCH);
}

SELFTEST(nae_run_vmpl_bad, "ghcb.nae.run-vmpl.bad")
{
	struct ghcb_exit e = { .code = GHCB_EXIT_RUN_VMPL, .info1 = 7 };

	EXPECT(ghcb_call(&e) != GHCB_OK);
}

SELFTEST(nae_usage, "ghcb.malformed.usage")
{
	struct ghcb_exit e = { .code = SVM_EXIT_CPUID, .pass = PASS_RAX | PASS_RCX, .usage = 0xdead };

	EXPECT_EQ(ghcb_call(&e), GHCB_MALFORMED);
	EXPECT_EQ(e.info2, GHCB_ERR_INVALID_USAGE);
}

SELFTEST(nae_missing, "ghcb.malformed.missing-input")
{
	struct ghcb_exit e = { .code = SVM_EXIT_CPUID, .pass = PASS_RAX }; /* no RCX */

	EXPECT_EQ(ghcb_call(&e), GHCB_MALFORMED);
	EXPECT_EQ(e.info2, GHCB_ERR_MISSING_INPUT);
	e = (struct ghcb_exit){ .code = SVM_EXIT_CPUID, .pass = PASS_RAX | PASS_RCX | OMIT_EXIT_CODE };
	EXPECT_EQ(ghcb_call(&e), GHCB_MALFORMED);
	EXPECT_EQ(e.info2, GHCB_ERR_MISSING_INPUT);
}

SELFTEST(nae_event, "ghcb.malformed.event")
{
	struct ghcb_exit e = { .code = 0x12345678 };

	EXPECT_EQ(ghcb_call(&e), GHCB_MALFORMED);
	EXPECT_EQ(e.info2, GHCB_ERR_INVALID_EVENT);
}

SELFTEST(mmio, "ghcb.mmio")
{
	unsigned long before = vc_count;

	NEED(acpi_info.ioapic, "no IOAPIC");
	EXPECT_EQ(ioapic_read(1) & 0xff, 0x20); /* version register, MMIO by #VC 0x400 */
	EXPECT_EQ(vc_count - before, 2);
}

/* One MOV of each kind to and from the IOAPIC's select register, an eight-bit one. */
SELFTEST(mmio_forms, "ghcb.mmio.forms")
{
	volatile uint32_t *select;
	uint64_t value = 0x1111111111111111;

	NEED(acpi_info.ioapic, "no IOAPIC");
	select = shared_address(acpi_info.ioapic);
	__asm__ volatile("movl $0x12, (%0)" : : "r"(select) : "memory");
	__asm__ volatile("movl (%1), %k0" : "+r"(value) : "r"(select) : "memory");
	EXPECT_EQ(value, 0x12); /* and the upper half is clear */
	__asm__ volatile("movl %k0, (%1,%2,4)" : : "r"(0x13), "r"(select - 3), "r"(3UL) : "memory");
	__asm__ volatile("movl (%1), %k0" : "=r"(value) : "r"(select) : "memory");
	EXPECT_EQ(value, 0x13);
	*select = 0;
}
