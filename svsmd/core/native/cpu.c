/* SPDX-License-Identifier: MIT */
/* Descriptor tables of a CPU at VMPL0. Spec: AMD 24593, 4.8 (descriptors), 8.9 and 12.2.5 (IST, TSS). */
#include "cpu.h"

#define VECTOR_SIZE 16

#define DESCRIPTOR_CODE64 0x00af9b000000ffff
#define DESCRIPTOR_DATA 0x00cf93000000ffff
#define TYPE_TSS64 0x89ULL
#define DESCRIPTOR_USER_DATA 0x00cff3000000ffff
#define DESCRIPTOR_USER_CODE64 0x00affb000000ffff

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define EFER_SCE 1
/* SYSCALL clears them: TF, IF, DF, IOPL, NT, AC and the arithmetic flags. */
#define SYSCALL_FLAGS 0x47fd5

/* Exceptions that may come when the stack is in no state to be used; none of them returns. */
#define VECTOR_NMI 2
#define VECTOR_DF 8
#define VECTOR_MC 18
#define VECTOR_HV 28
#define VECTOR_VC 29

struct svsm_boot_area svsm_boot_cpu __attribute__((aligned(4096)));
struct idt_gate svsm_idt[SVSM_VECTORS] __attribute__((aligned(16)));

static void write_msr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

static uint64_t entry_of(unsigned int vector)
{
	if (vector < SVSM_EXCEPTIONS)
		return (uint64_t)svsm_vectors + vector * VECTOR_SIZE;
	return (uint64_t)(vector == SVSM_VECTOR_INTERRUPT ? svsm_interrupt : svsm_ignored);
}

static uint8_t ist_of(unsigned int vector)
{
	switch (vector) {
	case VECTOR_NMI:
	case VECTOR_DF:
	case VECTOR_MC:
	case VECTOR_HV:
	case VECTOR_VC:
		return 1;
	default:
		return 0;
	}
}

/* Fills the one IDT; called once, by the boot CPU. */
void svsm_idt_init(void)
{
	for (unsigned int vector = 0; vector < SVSM_VECTORS; vector++)
		svsm_idt[vector] = interrupt_gate(entry_of(vector), SVSM_CS, ist_of(vector));
}

/* Makes GDT and TSS in `cpu` and loads them with the IDT. The caller reloads CS. */
void svsm_cpu_init(struct svsm_cpu *cpu, uint64_t ist_top)
{
	uint64_t tss = (uint64_t)&cpu->tss;
	struct table_register gdtr = { sizeof(cpu->gdt) - 1, (uint64_t)cpu->gdt };
	struct table_register idtr = { sizeof(svsm_idt) - 1, (uint64_t)svsm_idt };

	cpu->self = cpu;
	cpu->gdt[1] = DESCRIPTOR_CODE64;
	cpu->gdt[2] = DESCRIPTOR_DATA;
	cpu->gdt[3] = (sizeof(cpu->tss) - 1) | (tss & 0xffffff) << 16 | TYPE_TSS64 << 40 |
		      (tss >> 24 & 0xff) << 56;
	cpu->gdt[4] = tss >> 32;
	cpu->gdt[5] = DESCRIPTOR_USER_DATA;
	cpu->gdt[6] = DESCRIPTOR_USER_CODE64;
	/* CPL 3 runs in areas that the core has made only. */
	cpu->stack_pointer = SVSM_CPU_STACK + SVSM_CPU_STACK_SIZE;
	cpu->tss.rsp[0] = cpu->stack_pointer;
	cpu->tss.ist[0] = ist_top;
	cpu->tss.iopb = sizeof(cpu->tss); /* no I/O permission bitmap */

	__asm__ volatile("lgdt %0" : : "m"(gdtr));
	__asm__ volatile("lidt %0" : : "m"(idtr));
	__asm__ volatile("ltr %w0" : : "r"(SVSM_TSS));
	/* The one of reset is 64 KiB at 0, where programs have their memory. */
	__asm__ volatile("lldt %w0" : : "r"(0));

	/* SYSRET is not used, so its selectors do not matter. */
	write_msr(MSR_STAR, (uint64_t)SVSM_CS << 32);
	write_msr(MSR_LSTAR, (uint64_t)svsm_syscall);
	write_msr(MSR_SFMASK, SYSCALL_FLAGS);
	uint32_t low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_EFER));
	write_msr(MSR_EFER, ((uint64_t)high << 32 | low) | EFER_SCE);
}
