/* SPDX-License-Identifier: MIT */
/* One CPU: its tables and stacks, and the instructions C has no words for. Spec: AMD 24593, 24594. */
#ifndef DEMO_CPU_H
#define DEMO_CPU_H

/* Selectors. SYSRET wants user data below user code (24594, SYSRET). */
#define KERNEL_CS 0x08
#define KERNEL_DS 0x10
#define USER_CS32 0x18
#define USER_DS 0x20
#define USER_CS 0x28
#define TSS_SELECTOR 0x30
#define ABSENT_SELECTOR 0x40 /* a data segment that is not present, for #NP and #SS */
#define RPL_USER 3

/* Offsets in struct cpu, for assembly. */
#define CPU_KERNEL_RSP 8
#define CPU_USER_RSP 16

#define MSR_TSC 0x10
#define MSR_APIC_BASE 0x1b
#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_TSC_AUX 0xc0000103
#define MSR_GHCB 0xc0010130
#define MSR_SEV_STATUS 0xc0010131
#define MSR_GUEST_TSC_FREQ 0xc0010134

#define SEV_STATUS_SNP (1 << 2)
#define SEV_STATUS_SECURE_TSC (1 << 11)

#define EFER_SCE (1 << 0)
#define EFER_LME (1 << 8)
#define EFER_LMA (1 << 10)
#define EFER_NXE (1 << 11)
#define EFER_SVME (1 << 12)

#define CR0_MP (1 << 1)
#define CR0_TS (1 << 3)
#define CR0_WP (1 << 16)
#define CR4_OSFXSR (1 << 9)
#define CR4_OSXMMEXCPT (1 << 10)

#define RFLAGS_CF (1 << 0)
#define RFLAGS_TF (1 << 8)
#define RFLAGS_IF (1 << 9)
#define RFLAGS_DF (1 << 10)
#define RFLAGS_AC (1 << 18)

#define DR6_BS (1 << 14)
#define DR7_DEFAULT 0x400

#ifndef __ASSEMBLER__
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SIZE 4096UL
#define HUGE_PAGE_SIZE 0x200000UL
#define MAX_CPUS 2

/* Interrupt stack table slots (24593, 8.9.4): exceptions that need a stack known to be good. */
enum { IST_DF = 1, IST_NMI, IST_VC, IST_MC, IST_COUNT = IST_MC };

/* 64-bit task state segment (24593, 12.2.5). */
struct tss {
	uint32_t reserved0;
	uint64_t rsp[3];
	uint64_t reserved1;
	uint64_t ist[7]; /* ist[0] is IST 1 */
	uint64_t reserved2;
	uint16_t reserved3;
	uint16_t iopb;
} __attribute__((packed));

struct cpuid_regs {
	uint32_t eax, ebx, ecx, edx;
};

struct catch_context;
struct ghcb;
struct svsm_caa;

struct cpu {
	struct cpu *self; /* at GS:0 */
	uint64_t kernel_rsp; /* stack of system calls */
	uint64_t user_rsp;
	struct catch_context *catch; /* who waits for an exception, see trap.h */
	volatile struct ghcb *ghcb; /* null until the page is registered */
	uint64_t ghcb_gpa;
	volatile struct svsm_caa *caa;
	uint64_t caa_gpa;
	uint64_t dr7; /* last value written: reads of DR7 are answered with it */
	uint32_t apic_id;
	uint32_t index; /* in cpus[] */
	uint64_t gdt[10];
	struct tss tss;
	uint8_t ist_stack[IST_COUNT][PAGE_SIZE] __attribute__((aligned(16)));
	uint8_t trap_stack[4 * PAGE_SIZE] __attribute__((aligned(16))); /* RSP0 */
};

_Static_assert(offsetof(struct cpu, kernel_rsp) == CPU_KERNEL_RSP, "assembly uses it");
_Static_assert(offsetof(struct cpu, user_rsp) == CPU_USER_RSP, "assembly uses it");
_Static_assert(sizeof(struct tss) == 0x68, "24593, figure 12-8");

struct table_register {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

extern struct cpu cpus[MAX_CPUS];

void cpu_init(struct cpu *cpu);

static inline struct cpu *this_cpu(void)
{
	struct cpu *cpu;

	__asm__ volatile("movq %%gs:0, %0" : "=r"(cpu));
	return cpu;
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
	return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline struct cpuid_regs cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid_regs r;

	__asm__ volatile("cpuid"
			 : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx)
			 : "a"(leaf), "c"(subleaf)
			 : "memory");
	return r;
}

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (uint64_t)high << 32 | low;
}

static inline uint64_t read_cr0(void)
{
	uint64_t value;

	__asm__ volatile("movq %%cr0, %0" : "=r"(value));
	return value;
}

static inline void write_cr0(uint64_t value)
{
	__asm__ volatile("movq %0, %%cr0" : : "r"(value) : "memory");
}

static inline uint64_t read_cr2(void)
{
	uint64_t value;

	__asm__ volatile("movq %%cr2, %0" : "=r"(value));
	return value;
}

static inline uint64_t read_cr3(void)
{
	uint64_t value;

	__asm__ volatile("movq %%cr3, %0" : "=r"(value));
	return value;
}

static inline void write_cr3(uint64_t value)
{
	__asm__ volatile("movq %0, %%cr3" : : "r"(value) : "memory");
}

static inline uint64_t read_cr4(void)
{
	uint64_t value;

	__asm__ volatile("movq %%cr4, %0" : "=r"(value));
	return value;
}

static inline void write_cr4(uint64_t value)
{
	__asm__ volatile("movq %0, %%cr4" : : "r"(value) : "memory");
}

static inline void invlpg(const volatile void *address)
{
	__asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* Interrupts off; returns RFLAGS for irq_restore. */
static inline uint64_t irq_save(void)
{
	uint64_t flags;

	__asm__ volatile("pushfq; popq %0; cli" : "=r"(flags) : : "memory");
	return flags;
}

static inline void irq_restore(uint64_t flags)
{
	if (flags & RFLAGS_IF)
		__asm__ volatile("sti" : : : "memory");
}

static inline void irq_enable(void)
{
	__asm__ volatile("sti" : : : "memory");
}

static inline void irq_disable(void)
{
	__asm__ volatile("cli" : : : "memory");
}

/* Halts until an interrupt has been taken; none gets lost between STI and HLT. Returns with interrupts off. */
static inline void irq_wait(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

static inline void cpu_pause(void)
{
	__asm__ volatile("pause" : : : "memory");
}
#endif
#endif
