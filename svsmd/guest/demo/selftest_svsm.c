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
#define NO_ECHO "no module that echoes"
#define UNKNOWN_PROTOCOL 0x1234
#define UNKNOWN_CALL 0x99
#define BEYOND_RAM 0x7ff0000000UL

static uint8_t other_caa[PAGE_SIZE] __attribute__((aligned(4096)));
static uint8_t module_pages[2 * PAGE_SIZE] __attribute__((aligned(4096)));

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

static uint8_t own_pages[3][PAGE_SIZE] __attribute__((aligned(4096)));
static uint8_t list_page[PAGE_SIZE] __attribute__((aligned(4096)));

static uint64_t deposit(uint64_t entry)
{
	struct pvalidate_list *list = (struct pvalidate_list *)list_page;

	*list = (struct pvalidate_list){ .entries = 1, .entry = { entry } };
	return svsm_core(SVSM_CORE_DEPOSIT_MEM, (uint64_t)list, 0, 0);
}

SELFTEST(svsm_deposit, "svsm.deposit-withdraw")
{
	struct withdraw_list *back = (struct withdraw_list *)list_page;
	uint64_t seen = 0;

	NEED(svsm.present, NO_SVSM);
	memset(own_pages, 0x5a, sizeof(own_pages));
	for (unsigned int i = 0; i < 3; i++)
		EXPECT_EQ(deposit((uint64_t)own_pages[i]), SVSM_SUCCESS);
	EXPECT_EQ(this_cpu()->caa->mem_available, 1);
	EXPECT_EQ(deposit((uint64_t)own_pages[1]), SVSM_ERR_INVALID_ADDRESS); /* not ours any more */
	EXPECT_EQ(svsm_pvalidate((uint64_t)own_pages[1]), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_WITHDRAW_MEM, (uint64_t)back, 0, 0), SVSM_SUCCESS);
	EXPECT_EQ(back->entries, 3);
	for (unsigned int i = 0; i < 3; i++)
		for (unsigned int j = 0; j < 3; j++)
			if (back->page[i] == (uint64_t)own_pages[j])
				seen |= 1UL << j;
	EXPECT_EQ(seen, 7);
	EXPECT(memory_is(own_pages, 0, sizeof(own_pages)));
	EXPECT_EQ(this_cpu()->caa->mem_available, 0);
	EXPECT_EQ(svsm_core(SVSM_CORE_WITHDRAW_MEM, (uint64_t)back, 0, 0), SVSM_SUCCESS);
	EXPECT_EQ(back->entries, 0);
}

SELFTEST(svsm_deposit_bad, "svsm.deposit-withdraw.bad")
{
	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(deposit(svsm.base), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(deposit(this_cpu()->caa_gpa), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(deposit((uint64_t)list_page), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(deposit((uint64_t)own_pages | 2), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_WITHDRAW_MEM, (uint64_t)list_page + 0xff8, 0, 0),
		  SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_WITHDRAW_MEM, svsm.base, 0, 0), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(svsm_page_state, "svsm.page-state")
{
	static struct page_state_request request __attribute__((aligned(64)));
	static uint8_t bits[64] __attribute__((aligned(64)));
	static struct page_state_run run __attribute__((aligned(64)));
	uint64_t shared = (uint64_t)own_pages[1], first = (uint64_t)own_pages / PAGE_SIZE;
	struct svsm_regs regs = { 0 };
	uint64_t rescinded, by_bits, by_runs, again;

	NEED(svsm.present, NO_SVSM);
	NEED(svsm_query(SVSMD_PAGE_STATE, 1), "no page state protocol");
	EXPECT_EQ(svsm_call(SVSMD_PAGE_STATE, SVSMD_PAGE_STATE_QUERY, &regs), SVSM_SUCCESS);
	EXPECT(regs.rcx > first);
	EXPECT_EQ(regs.rdx, 3);

	rescinded = svsm_pvalidate(shared);
	request = (struct page_state_request){ first, 3, 0, (uint64_t)bits, sizeof(bits), 0 };
	regs = (struct svsm_regs){ .rcx = (uint64_t)&request };
	by_bits = svsm_call(SVSMD_PAGE_STATE, SVSMD_PAGE_STATE_BITS, &regs);
	request = (struct page_state_request){ first, 3, 0, (uint64_t)&run, sizeof(run), 0 };
	regs = (struct svsm_regs){ .rcx = (uint64_t)&request };
	by_runs = svsm_call(SVSMD_PAGE_STATE, SVSMD_PAGE_STATE_RUNS, &regs);
	again = svsm_pvalidate(shared | PVALIDATE_VALIDATE);

	EXPECT_EQ(rescinded, SVSM_SUCCESS);
	EXPECT_EQ(again, SVSM_SUCCESS);
	EXPECT_EQ(by_bits, SVSM_SUCCESS);
	EXPECT_EQ(bits[0], 5);
	EXPECT_EQ(by_runs, SVSM_SUCCESS);
	EXPECT_EQ(run.gpa, (uint64_t)own_pages);
	EXPECT_EQ(run.pages, 1);
	EXPECT_EQ(request.filled, sizeof(run)); /* there is no room for the second one */
	EXPECT_EQ(request.next, 1);
	request.buffer = svsm.base;
	request.filled = 0;
	regs = (struct svsm_regs){ .rcx = (uint64_t)&request };
	EXPECT_EQ(svsm_call(SVSMD_PAGE_STATE, SVSMD_PAGE_STATE_BITS, &regs), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(svsm_module, "svsm.module.call")
{
	struct svsm_regs regs = { .rcx = 1, .rdx = 2, .r8 = 3, .r9 = 4 };

	NEED(svsm.present, NO_SVSM);
	NEED(svsm_query(SVSM_ECHO, 1), NO_ECHO);
	EXPECT_EQ(svsm_query(SVSM_ECHO, 1), 1UL << 32 | 1);
	EXPECT_EQ(svsm_query(SVSM_ECHO, 2), 0);
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_ROTATE, &regs), SVSM_SUCCESS);
	EXPECT_EQ(regs.rcx, 2);
	EXPECT_EQ(regs.rdx, 3);
	EXPECT_EQ(regs.r8, 4);
	EXPECT_EQ(regs.r9, 4);
	EXPECT_EQ(svsm_call(SVSM_ECHO, UNKNOWN_CALL, &regs), SVSM_ERR_UNSUPPORTED_CALL);
}

SELFTEST(svsm_module_memory, "svsm.module.guest-memory")
{
	/* Across the border of two pages of the guest. */
	uint64_t where = (uint64_t)&module_pages[PAGE_SIZE - 3];
	struct svsm_regs regs = { .rcx = where, .rdx = 6 };

	NEED(svsm.present, NO_SVSM);
	NEED(svsm_query(SVSM_ECHO, 1), NO_ECHO);
	memcpy(&module_pages[PAGE_SIZE - 4], "<svsm!!>", 8);
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_REVERSE, &regs), SVSM_SUCCESS);
	EXPECT(!memcmp(&module_pages[PAGE_SIZE - 4], "<!!msvs>", 8));
	regs.rcx = svsm.base; /* the SVSM's own memory is no memory of ours */
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_REVERSE, &regs), SVSM_ERR_INVALID_ADDRESS);
	regs.rcx = BEYOND_RAM;
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_REVERSE, &regs), SVSM_ERR_INVALID_ADDRESS);
	regs.rcx = where | c_bit;
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_REVERSE, &regs), SVSM_ERR_INVALID_ADDRESS);
	regs.rcx = ~0UL;
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_REVERSE, &regs), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(svsm_module_incomplete, "svsm.module.incomplete")
{
	struct svsm_regs slow = { .rax = (uint64_t)SVSM_ECHO << 32 | SVSM_ECHO_DELAY, .rcx = 5000000 }, regs = slow;
	unsigned int rounds = 0;

	NEED(svsm.present, NO_SVSM);
	NEED(svsm_query(SVSM_ECHO, 1), NO_ECHO);
	while (svsm_call_once(&regs, SVSM_BY_GHCB) == SVSM_ERR_INCOMPLETE) {
		EXPECT_EQ(regs.rcx, slow.rcx); /* ready to be made again */
		regs = slow;
		rounds++;
		EXPECT_EQ(svsm_query(SVSM_CORE, 1), 1UL << 32 | 1); /* other protocols do not wait */
	}
	EXPECT_EQ(regs.rax, SVSM_SUCCESS);
	EXPECT(rounds > 0);
	/* A call that is given up is not what the next one gets. */
	regs = slow;
	EXPECT_EQ(svsm_call_once(&regs, SVSM_BY_GHCB), SVSM_ERR_INCOMPLETE);
	regs = (struct svsm_regs){ .rdx = 7 };
	EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_ROTATE, &regs), SVSM_SUCCESS);
	EXPECT_EQ(regs.rcx, 7);
}
