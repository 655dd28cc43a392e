/* SPDX-License-Identifier: MIT */
/* Local APIC in x2APIC mode, and the IOAPIC. Spec: AMD 24593, 16; IOAPIC: 82093AA. */
#ifndef DEMO_APIC_H
#define DEMO_APIC_H

#include <stdbool.h>
#include <stdint.h>

#define X2APIC_ID 0x802
#define X2APIC_VERSION 0x803
#define X2APIC_TPR 0x808
#define X2APIC_EOI 0x80b
#define X2APIC_SVR 0x80f
#define X2APIC_ISR 0x810
#define X2APIC_IRR 0x820
#define X2APIC_ICR 0x830
#define X2APIC_LVT_TIMER 0x832
#define X2APIC_TIMER_INITIAL 0x838
#define X2APIC_TIMER_CURRENT 0x839
#define X2APIC_TIMER_DIVIDE 0x83e
#define X2APIC_SELF_IPI 0x83f

#define APIC_TIMER_DIVIDE_1 0xb
#define APIC_LVT_MASKED (1 << 16)

/* Switch to x2APIC mode, accept interrupts. False: this machine has no x2APIC. */
bool apic_init(void);

/* Do nothing if there is no x2APIC. */
void apic_eoi(void);

/* One interrupt with `vector` in about `ticks` ticks of the APIC timer (divided by 1). */
void apic_timer_start(uint8_t vector, uint32_t ticks);
void apic_timer_stop(void);

/* Route an ISA interrupt to this CPU. False: no IOAPIC. */
bool ioapic_route(unsigned int isa_irq, uint8_t vector);

/* A register of the IOAPIC, by an MMIO move that raises #VC. */
uint32_t ioapic_read(uint32_t index);

#endif
