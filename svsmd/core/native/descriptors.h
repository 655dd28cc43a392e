/* SPDX-License-Identifier: MIT */
/* Descriptor tables as the CPU reads them. Spec: AMD 24593, 4.6 (table registers) and 4.8.4 (gates). */
#ifndef SVSMD_DESCRIPTORS_H
#define SVSMD_DESCRIPTORS_H

#include <stdint.h>

#define GATE_INTERRUPT 0x8e

struct table_register {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

struct idt_gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
};

static inline struct idt_gate interrupt_gate(uint64_t entry, uint16_t selector, uint8_t ist)
{
	return (struct idt_gate){
		.offset_low = (uint16_t)entry,
		.selector = selector,
		.ist = ist,
		.type = GATE_INTERRUPT,
		.offset_middle = (uint16_t)(entry >> 16),
		.offset_high = (uint32_t)(entry >> 32),
	};
}

#endif
