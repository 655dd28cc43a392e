/* SPDX-License-Identifier: MIT */
/* What a CPU has for itself: descriptor tables and TSS in its control page, and stacks. */
#ifndef SVSMD_NATIVE_CPU_H
#define SVSMD_NATIVE_CPU_H

#include <stddef.h>
#include <stdint.h>

#include "descriptors.h"
#include "layout.h"

/* 64-bit task state segment (24593, 12.2.5): the stacks that exceptions switch to. */
struct tss {
	uint32_t reserved0;
	uint64_t rsp[3];
	uint64_t reserved1;
	uint64_t ist[7]; /* ist[0] is IST 1 */
	uint64_t reserved2;
	uint16_t reserved3;
	uint16_t iopb;
} __attribute__((packed));

_Static_assert(sizeof(struct tss) == 0x68, "24593, figure 12-8");

struct svsm_cpu {
	struct svsm_cpu *self; /* at GS:0 */
	uint64_t stack_pointer; /* where code that comes from CPL 3 begins to push; RSP0 of the TSS too */
	uint64_t user_rsp; /* between SYSCALL and the frame */
	uint64_t interrupted; /* an interrupt came while the CPU was halted */
	uint8_t fpu[512];
	uint64_t gdt[7]; /* null, SVSM_CS, SVSM_DS, SVSM_TSS (two slots), SVSM_USER_DS, SVSM_USER_CS */
	struct tss tss;
	uint64_t ghcb; /* GPA of the GHCB page of this CPU; the core writes it */
	uint8_t pad[0x1000 - 5 * 8 - 512 - 7 * 8 - sizeof(struct tss)];
};

_Static_assert(sizeof(struct svsm_cpu) == 0x1000, "a page");
_Static_assert(offsetof(struct svsm_cpu, stack_pointer) == SVSM_CPU_STACK_POINTER, "layout.h");
_Static_assert(offsetof(struct svsm_cpu, user_rsp) == SVSM_CPU_USER_RSP, "layout.h");
_Static_assert(offsetof(struct svsm_cpu, interrupted) == SVSM_CPU_INTERRUPTED, "layout.h");
_Static_assert(offsetof(struct svsm_cpu, fpu) == SVSM_CPU_FPU, "layout.h");
_Static_assert(offsetof(struct svsm_cpu, ghcb) == SVSM_CPU_GHCB_GPA, "layout.h");

/* The boot CPU's, until the core starts it in an area as other CPUs have it. */
struct svsm_boot_area {
	struct svsm_cpu cpu;
	uint8_t ist_stack[SVSM_CPU_IST_SIZE];
	uint8_t stack[SVSM_CPU_STACK_SIZE];
};

_Static_assert(offsetof(struct svsm_boot_area, stack) == SVSM_BOOT_IST_TOP, "layout.h");
_Static_assert(sizeof(struct svsm_boot_area) == SVSM_BOOT_STACK_TOP, "layout.h");

#define SVSM_EXCEPTIONS 32
#define SVSM_VECTORS 256

extern struct svsm_boot_area svsm_boot_cpu;
extern struct idt_gate svsm_idt[SVSM_VECTORS];
extern const char svsm_vectors[]; /* entry points of the exceptions, 16 bytes each */
extern const char svsm_interrupt[], svsm_ignored[], svsm_syscall[];

void svsm_idt_init(void);
void svsm_cpu_init(struct svsm_cpu *cpu, uint64_t ist_top);

#endif
