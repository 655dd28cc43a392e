/* SPDX-License-Identifier: MIT */
/* The area of one CPU: descriptor tables, TSS and stacks. Its address is the CPU's GS base. */
#ifndef SVSMD_NATIVE_CPU_H
#define SVSMD_NATIVE_CPU_H

#include <stddef.h>
#include <stdint.h>

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
	uint64_t gdt[5]; /* null, SVSM_CS, SVSM_DS, SVSM_TSS (two slots) */
	struct tss tss;
	uint8_t pad[0x1000 - 8 - 5 * 8 - sizeof(struct tss)];
	uint8_t ist_stack[SVSM_CPU_IST_SIZE]; /* #DF, NMI, #MC, #VC, #HV: none of them returns */
	uint8_t stack[SVSM_CPU_SIZE - 0x1000 - SVSM_CPU_IST_SIZE];
};

_Static_assert(sizeof(struct svsm_cpu) == SVSM_CPU_SIZE, "layout.h");

/* Interrupt gate (24593, 4.8.4). */
struct idt_gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
};

#define SVSM_VECTORS 32

extern struct svsm_cpu svsm_boot_cpu;
extern struct idt_gate svsm_idt[SVSM_VECTORS];
extern const char svsm_vectors[]; /* entry points, SVSM_VECTOR_SIZE bytes each */

void svsm_idt_init(void);
void svsm_cpu_init(struct svsm_cpu *cpu);

#endif
