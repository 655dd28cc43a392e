/* SPDX-License-Identifier: MIT */
/* The core protocol of the SVSM, with good and bad arguments. Spec: AMD 58019. */
#include "boot.h"
#include "cpu.h"
#include "memory.h"
#include "paging.h"
#include "selftest.h"
#include "string.h"
#include "svsm.h"

#define NO_SVSM "no SVSM"
#define UNKNOWN_PROTOCOL 0x1234
#define UNKNOWN_CALL 0x99
#define BEYOND_RAM 0x7ff0000000UL

static uint8_t other_caa[PAGE_SIZE] __attribute__((aligned(4096)));

SELFTEST(svsm_secrets, "svsm.secrets-page")
{
	const struct secrets_page *secrets = boot_info.secrets;

	NEED(svsm.present, NO_SVSM);
	EXPECT(secrets->svsm_guest_vmpl >= 1 && secrets->svsm_guest_vmpl <= 3);
	EXPECT_EQ(secrets->svsm_max_version, 1);
	EXPECT_EQ(secrets->svsm_base % PAGE_SIZE, 0);
	EXPECT(!boot_is_ram(secrets->svsm_base, PAGE_SIZE));
	for (unsigned int i = 0; i < secrets->svsm_guest_vmpl; i++) /* keys of the levels above are not ours */
		EXPECT(memory_is(secrets->vmpck[i], 0, sizeof(secrets->vmpck[i])));
	EXPECT(!memory_is(secrets->vmpck[secrets->svsm_guest_vmpl], 0, sizeof(secrets->vmpck[0])));
}

SELFTEST(svsm_by_msr, "svsm.call.by-msr")
{
	struct svsm_regs regs = { .rax = SVSM_CORE_QUERY_PROTOCOL, .rcx = 1 };

	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_call_once(&regs, SVSM_BY_MSR), SVSM_SUCCESS);
	EXPECT_EQ(regs.rcx, 1UL << 32 | 1);
}

SELFTEST(svsm_by_ghcb, "svsm.call.by-ghcb")
{
	struct svsm_regs regs = { .rax = SVSM_CORE_QUERY_PROTOCOL, .rcx = 1, .r9 = 0x9999 };

	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_call_once(&regs, SVSM_BY_GHCB), SVSM_SUCCESS);
	EXPECT_EQ(regs.rcx, 1UL << 32 | 1);
	EXPECT_EQ(regs.r9, 0x9999);
	EXPECT_EQ(this_cpu()->caa->call_pending, 0);
}

SELFTEST(svsm_not_pending, "svsm.call.not-pending")
{
	uint64_t rax = SVSM_CORE_QUERY_PROTOCOL, rcx = 1, flags, before;

	NEED(svsm.present, NO_SVSM);
	flags = irq_save();
	before = rdmsr(MSR_GHCB);
	wrmsr(MSR_GHCB, 0x016); /* run VMPL 0, but call_pending is 0: nobody asked for anything */
	__asm__ volatile("rep; vmmcall" : "+a"(rax), "+c"(rcx) : : "memory");
	wrmsr(MSR_GHCB, before);
	irq_restore(flags);
	EXPECT_EQ(rax, SVSM_CORE_QUERY_PROTOCOL);
	EXPECT_EQ(rcx, 1);
}

SELFTEST(svsm_registers, "svsm.call.registers")
{
	uint64_t flags, before, sum;

	NEED(svsm.present, NO_SVSM);
	flags = irq_save();
	before = rdmsr(MSR_GHCB);
	wrmsr(MSR_GHCB, 0x016);
	this_cpu()->caa->call_pending = 1;
	__asm__ volatile("movl $0x11, %%ebx; movl $0x22, %%esi; movl $0x33, %%edi; movl $0x44, %%r10d\n\t"
			 "movl $0x55, %%r11d; movl $0x66, %%r12d; movl $0x77, %%r13d; movl $0x88, %%r14d\n\t"
			 "movl $0x99, %%r15d; movl $6, %%eax; movl $1, %%ecx\n\t"
			 "rep; vmmcall\n\t"
			 "leaq (%%rbx,%%rsi), %%rax; addq %%rdi, %%rax; addq %%r10, %%rax; addq %%r11, %%rax\n\t"
			 "addq %%r12, %%rax; addq %%r13, %%rax; addq %%r14, %%rax; addq %%r15, %%rax"
			 : "=a"(sum)
			 :
			 : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
			   "memory", "cc");
	wrmsr(MSR_GHCB, before);
	irq_restore(flags);
	EXPECT_EQ(sum, 0x11 + 0x22 + 0x33 + 0x44 + 0x55 + 0x66 + 0x77 + 0x88 + 0x99);
}

SELFTEST(svsm_query_good, "svsm.query-protocol")
{
	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_query(SVSM_CORE, 1), 1UL << 32 | 1);
}

SELFTEST(svsm_query_bad, "svsm.query-protocol.not-offered")
{
	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_query(SVSM_CORE, 2), 0);
	EXPECT_EQ(svsm_query(SVSM_CORE, 0), 0);
	EXPECT_EQ(svsm_query(UNKNOWN_PROTOCOL, 1), 0);
}

SELFTEST(svsm_unknown, "svsm.unknown-call")
{
	struct svsm_regs regs = { 0 };

	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_call(SVSM_CORE, UNKNOWN_CALL, &regs), SVSM_ERR_UNSUPPORTED_CALL);
	EXPECT_EQ(svsm_call(UNKNOWN_PROTOCOL, 0, &regs), SVSM_ERR_UNSUPPORTED_PROTOCOL);
	EXPECT_EQ(svsm_call(0xffffffff, 0xffffffff, &regs), SVSM_ERR_UNSUPPORTED_PROTOCOL);
}

SELFTEST(svsm_vtom, "svsm.configure-vtom")
{
	struct svsm_regs regs = { .rcx = 1 };

	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_call(SVSM_CORE, SVSM_CORE_CONFIGURE_VTOM, &regs), SVSM_SUCCESS);
	EXPECT_EQ(regs.rcx, 0); /* not supported */
	EXPECT_EQ(svsm_core(SVSM_CORE_CONFIGURE_VTOM, 0, 0, 0), SVSM_ERR_INVALID_REQUEST);
}

SELFTEST(svsm_remap, "svsm.remap-ca")
{
	struct cpu *cpu = this_cpu();
	uint64_t old = cpu->caa_gpa, query;
	bool zeroed, back;

	NEED(svsm.present, NO_SVSM);
	memset(other_caa, 0xff, sizeof(other_caa));
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, (uint64_t)other_caa, 0, 0), SVSM_SUCCESS);
	zeroed = memory_is(other_caa, 0, 8);
	cpu->caa_gpa = (uint64_t)other_caa;
	cpu->caa = (volatile struct svsm_caa *)other_caa;
	query = svsm_query(SVSM_CORE, 1);
	back = svsm_core(SVSM_CORE_REMAP_CA, old, 0, 0) == SVSM_SUCCESS;
	cpu->caa_gpa = old;
	cpu->caa = (volatile struct svsm_caa *)old;
	EXPECT(back);
	EXPECT(zeroed);
	EXPECT_EQ(query, 1UL << 32 | 1);
	EXPECT_EQ(svsm_query(SVSM_CORE, 1), 1UL << 32 | 1);
}

SELFTEST(svsm_remap_same, "svsm.remap-ca.same")
{
	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, this_cpu()->caa_gpa, 0, 0), SVSM_SUCCESS);
	EXPECT_EQ(svsm_query(SVSM_CORE, 1), 1UL << 32 | 1);
}

SELFTEST(svsm_remap_bad, "svsm.remap-ca.bad")
{
	uint64_t page = (uint64_t)other_caa;

	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, page + 8, 0, 0), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, svsm.base, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, BEYOND_RAM, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, page | c_bit, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_REMAP_CA, NONCANONICAL_ADDRESS, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_query(SVSM_CORE, 1), 1UL << 32 | 1); /* the old one still works */
}

SELFTEST(svsm_memory, "svsm.deposit-withdraw")
{
	uint64_t deposit, withdraw;

	NEED(svsm.present, NO_SVSM);
	deposit = svsm_core(SVSM_CORE_DEPOSIT_MEM, (uint64_t)other_caa, 0, 0);
	withdraw = svsm_core(SVSM_CORE_WITHDRAW_MEM, (uint64_t)other_caa, 0, 0);
	/* Optional calls; whoever offers them refuses an empty list. */
	EXPECT(deposit == SVSM_ERR_UNSUPPORTED_CALL || deposit == SVSM_ERR_INVALID_PARAMETER);
	EXPECT(withdraw == SVSM_ERR_UNSUPPORTED_CALL || withdraw == SVSM_ERR_INVALID_PARAMETER);
}
