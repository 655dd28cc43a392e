/* SPDX-License-Identifier: MIT */
#include "provoke.h"

#include "cpu.h"
#include "memory.h"
#include "paging.h"

void provoke_de(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("xorl %%edx, %%edx; movl $1, %%eax; xorl %%ecx, %%ecx; divl %%ecx" : : : "eax", "ecx", "edx");
}

/* TF: the trap comes after the instruction that follows POPF, so at the second NOP. */
void provoke_db(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("pushfq; orq %0, (%%rsp); popfq; nop; nop" : : "i"(RFLAGS_TF) : "memory", "cc");
}

void provoke_bp(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("int3");
}

void provoke_ud(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("ud2");
}

void provoke_nm(uint64_t unused)
{
	(void)unused;
	write_cr0(read_cr0() | CR0_TS);
	__asm__ volatile("fninit");
}

/* INT3 with a stack that is not there: #PF while #BP is delivered, #PF again for that one: #DF. */
void provoke_df(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("movq %0, %%rsp; int3" : : "r"(ABSENT_ADDRESS));
}

void provoke_np(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("movl %0, %%fs" : : "r"(ABSENT_SELECTOR));
}

void provoke_ss(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("movl %0, %%ss" : : "r"(ABSENT_SELECTOR));
}

void provoke_gp(uint64_t unused)
{
	(void)unused;
	provoke_read(NONCANONICAL_ADDRESS);
}

void provoke_gp_selector(uint64_t unused)
{
	(void)unused;
	__asm__ volatile("movl %0, %%fs" : : "r"(0xff8)); /* beyond the GDT */
}

void provoke_read(uint64_t address)
{
	(void)*(volatile uint64_t *)address;
}

void provoke_write(uint64_t address)
{
	*(volatile uint64_t *)address = address;
}

void provoke_jump(uint64_t address)
{
	((void (*)(void))address)();
}

static bool vc_page_rescinded;

void provoke_vc(uint64_t unused)
{
	(void)unused;
	vc_page_rescinded = page_validate(PROVOKE_VC_PAGE, false);
	provoke_read(PROVOKE_VC_PAGE);
}

void provoke_undo(void)
{
	write_cr0(read_cr0() & ~(uint64_t)CR0_TS);
	if (vc_page_rescinded)
		vc_page_rescinded = !page_validate(PROVOKE_VC_PAGE, true);
}

static void provoke_pf(uint64_t unused)
{
	(void)unused;
	provoke_write(ABSENT_ADDRESS);
}

const struct provocation provocations[] = {
	{ "de", "divide by zero", provoke_de },
	{ "db", "single step by RFLAGS.TF", provoke_db },
	{ "bp", "INT3", provoke_bp },
	{ "ud", "UD2", provoke_ud },
	{ "nm", "x87 instruction while CR0.TS = 1", provoke_nm },
	{ "df", "INT3 without a stack", provoke_df },
	{ "np", "load FS with a segment that is not present", provoke_np },
	{ "ss", "load SS with a segment that is not present", provoke_ss },
	{ "gp", "read a non-canonical address", provoke_gp },
	{ "pf", "write to a page that is not mapped", provoke_pf },
	{ "vc", "read a page that is not validated", provoke_vc },
	{ 0 },
};
