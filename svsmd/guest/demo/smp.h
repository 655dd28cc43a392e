/* SPDX-License-Identifier: MIT */
/* The second vCPU. */
#ifndef DEMO_SMP_H
#define DEMO_SMP_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu.h"

/* What the second CPU has told. */
struct smp_report {
	volatile uint64_t counter; /* it adds one again and again */
	volatile uint64_t protocol; /* its own QUERY_PROTOCOL answer for the core protocol, by its own CAA */
	volatile uint64_t tsc; /* when it was about to run */
	volatile uint32_t apic_id; /* as its x2APIC has it */
	volatile uint32_t ipis; /* interrupts with VECTOR_IPI that it has taken */
	volatile bool running;
	volatile bool halt; /* we ask it to halt until an interrupt comes */
	volatile bool halted; /* it is about to */
	volatile bool echo; /* we ask it to call the echoing module again and again */
	volatile uint32_t echoes; /* right answers that it got */
	volatile bool wrong_echo; /* it got another one */
	volatile bool stop; /* we ask it to come to rest */
	volatile bool parked; /* it has */
};

extern struct smp_report smp_report;

/* Result of smp_start and smp_stop: an SVSM code, or one of these. */
#define SMP_HOST_REFUSED 0xfffffffffffffffe
#define SMP_SILENT 0xfffffffffffffffd /* it never said a word */

/* GPA of its VMSA page. */
uint64_t smp_vmsa(void);

/* Write its VMSA as Linux would, for 64-bit mode. */
void smp_prepare(uint32_t apic_id);

/* Make the page a VMSA: SVSM_CORE_CREATE_VCPU, or RMPADJUST at VMPL0. */
uint64_t smp_create(uint32_t apic_id);

/* smp_prepare, smp_create, AP creation event, wait until it runs. It prints a line if `talk`. */
uint64_t smp_start(uint32_t apic_id, bool talk);

/* Park it, AP destroy event, SVSM_CORE_DELETE_VCPU: its page is memory again. */
uint64_t smp_stop(uint32_t apic_id);

/* Sends it an interrupt with VECTOR_IPI. */
void smp_send_ipi(uint32_t apic_id);

/* Waits for something that it is going to report. False: it took too long. */
bool smp_wait(const volatile bool *flag);

/* start.S */
void ap_start(void);

#endif
