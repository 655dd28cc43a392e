/* SPDX-License-Identifier: MIT */
/* What the loader left: boot_params, memory map, CC blob, secrets page, CPUID page. */
#ifndef DEMO_BOOT_H
#define DEMO_BOOT_H

#include <stdbool.h>
#include <stdint.h>

#include "cpu.h"

/* Secrets page (56860, SNP_LAUNCH_UPDATE; SVSM fields: 58019). */
struct secrets_page {
	uint32_t version;
	uint32_t imi_en;
	uint32_t fms;
	uint32_t reserved0;
	uint8_t gosvw[16];
	uint8_t vmpck[4][32];
	uint32_t message_count[4]; /* the guest's own from here on, laid out as Linux does */
	uint8_t guest_area[80];
	uint8_t vmsa_tweak_bitmap[64];
	uint64_t svsm_base;
	uint64_t svsm_size;
	uint64_t svsm_caa;
	uint32_t svsm_max_version;
	uint8_t svsm_guest_vmpl;
	uint8_t reserved1[3];
	uint32_t tsc_factor;
};

_Static_assert(offsetof(struct secrets_page, tsc_factor) == 0x160, "56860, secrets page format");

/* CPUID page (56860, MSG_CPUID_REQ's table). */
struct cpuid_entry {
	uint32_t eax_in, ecx_in;
	uint64_t xcr0_in, xss_in;
	uint32_t eax, ebx, ecx, edx;
	uint64_t reserved;
};

#define CPUID_PAGE_MAX 64

struct cpuid_page {
	uint32_t count;
	uint32_t reserved0;
	uint64_t reserved1;
	struct cpuid_entry entry[CPUID_PAGE_MAX];
};

struct boot_info {
	char command_line[256];
	uint64_t rsdp; /* GPA, 0 = none */
	const struct secrets_page *secrets;
	const struct cpuid_page *cpuid;
	uint64_t secrets_gpa;
	uint64_t cpuid_gpa;
};

extern struct boot_info boot_info;

/* Reads boot_params; terminates if there is no CC blob (an SNP guest cannot do without). */
void boot_init(uint64_t boot_params);

/* True if [gpa, gpa + size) lies in one usable range of the memory map. */
bool boot_is_ram(uint64_t gpa, uint64_t size);

/* First byte above the highest usable range. */
uint64_t boot_ram_end(void);

/* The CPUID page's answer, with what only the host can know left as the page has it. False: no entry. */
bool boot_cpuid(uint32_t leaf, uint32_t subleaf, struct cpuid_regs *regs);

#endif
