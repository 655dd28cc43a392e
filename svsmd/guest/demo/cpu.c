/* SPDX-License-Identifier: MIT */
/* Descriptor tables of a CPU. Spec: AMD 24593, 4.8 (descriptors), 6.1.1 (SYSCALL), 8.9 (IST). */
#include "cpu.h"

#include "trap.h"
#include "user.h"

#define DESCRIPTOR_CODE64 0x00af9b000000ffff
#define DESCRIPTOR_DATA 0x00cf93000000ffff
#define DESCRIPTOR_USER_CODE32 0x00cffb000000ffff
#define DESCRIPTOR_USER_DATA 0x00cff3000000ffff
#define DESCRIPTOR_USER_CODE64 0x00affb000000ffff
#define DESCRIPTOR_ABSENT_DATA 0x00cf13000000ffff
#define TYPE_TSS64 0x89ULL

struct cpu cpus[MAX_CPUS];

/*
 * Makes this CPU's tables and loads them; DS..SS and CS included, GS base points to `cpu` afterwards.
 * No instruction here raises #VC: the IDT may not be loaded yet.
 */
void cpu_init(struct cpu *cpu)
{
	uint64_t tss = (uint64_t)&cpu->tss;
	struct table_register gdtr = { sizeof(cpu->gdt) - 1, (uint64_t)cpu->gdt };

	cpu->self = cpu;
	cpu->index = (uint32_t)(cpu - cpus);
	cpu->dr7 = DR7_DEFAULT;
	cpu->gdt[KERNEL_CS / 8] = DESCRIPTOR_CODE64;
	cpu->gdt[KERNEL_DS / 8] = DESCRIPTOR_DATA;
	cpu->gdt[USER_CS32 / 8] = DESCRIPTOR_USER_CODE32;
	cpu->gdt[USER_DS / 8] = DESCRIPTOR_USER_DATA;
	cpu->gdt[USER_CS / 8] = DESCRIPTOR_USER_CODE64;
	cpu->gdt[TSS_SELECTOR / 8] = (sizeof(cpu->tss) - 1) | (tss & 0xffffff) << 16 | TYPE_TSS64 << 40 |
				     (tss >> 24 & 0xff) << 56;
	cpu->gdt[TSS_SELECTOR / 8 + 1] = tss >> 32;
	cpu->gdt[ABSENT_SELECTOR / 8] = DESCRIPTOR_ABSENT_DATA;

	cpu->kernel_rsp = (uint64_t)cpu->trap_stack + sizeof(cpu->trap_stack);
	cpu->tss.rsp[0] = cpu->kernel_rsp;
	for (unsigned int i = 0; i < IST_COUNT; i++)
		cpu->tss.ist[i] = (uint64_t)cpu->ist_stack[i] + sizeof(cpu->ist_stack[i]);
	cpu->tss.iopb = sizeof(cpu->tss); /* no permission bitmap: CPL 3 does no I/O */

	__asm__ volatile("lgdt %0" : : "m"(gdtr));
	__asm__ volatile("movl %0, %%ds; movl %0, %%es; movl %0, %%ss; movl %1, %%fs; movl %1, %%gs\n\t"
			 "pushq %2; leaq 1f(%%rip), %%rax; pushq %%rax; lretq\n"
			 "1:"
			 :
			 : "r"(KERNEL_DS), "r"(0), "i"(KERNEL_CS)
			 : "rax", "memory");
	wrmsr(MSR_GS_BASE, (uint64_t)cpu);
	trap_load_idt();
	__asm__ volatile("ltr %w0" : : "r"(TSS_SELECTOR));

	write_cr0((read_cr0() | CR0_WP | CR0_MP) & ~(uint64_t)CR0_TS);
	write_cr4(read_cr4() | CR4_OSFXSR | CR4_OSXMMEXCPT);
	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE | EFER_NXE);
	wrmsr(MSR_STAR, (uint64_t)KERNEL_CS << 32 | (uint64_t)USER_CS32 << 48);
	wrmsr(MSR_LSTAR, (uint64_t)syscall_entry);
	wrmsr(MSR_SFMASK, RFLAGS_IF | RFLAGS_TF | RFLAGS_DF | RFLAGS_AC);
}
