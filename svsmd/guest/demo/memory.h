/* SPDX-License-Identifier: MIT */
/* Validation and page state of memory, and the instructions that ask the RMP. Spec: AMD 24594, 24593 15.36. */
#ifndef DEMO_MEMORY_H
#define DEMO_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

/* Return codes of PVALIDATE and RMPADJUST. */
#define RMP_SUCCESS 0
#define RMP_FAIL_INPUT 1
#define RMP_FAIL_PERMISSION 2
#define RMP_FAIL_SIZEMISMATCH 6

/* RMPADJUST, RDX. */
#define RMPADJUST_VMPL(vmpl) ((uint64_t)(vmpl))
#define RMPADJUST_RWX 0xf00
#define RMPADJUST_VMSA (1UL << 16)

/* 4 MiB of RAM that belongs to tests and benchmarks; 2 MiB aligned. */
#define ARENA_BASE 0x1000000UL
#define ARENA_SIZE 0x400000UL

struct pvalidate_result {
	uint32_t code;
	bool unchanged; /* CF */
};

/* The instructions. `size`: 0 = 4 KiB, 1 = 2 MiB. */
struct pvalidate_result pvalidate(uint64_t address, uint32_t size, bool validate);
uint32_t rmpadjust(uint64_t address, uint32_t size, uint64_t attributes);

/*
 * At VMPL0 nobody has validated more than was launched: make the arena ours. Below an SVSM all RAM
 * is validated when the guest starts.
 */
void memory_init(void);

/* True if the machine has enough RAM for the arena. */
bool arena_present(void);

/* Validate or rescind one 4 KiB page, by the SVSM or (at VMPL0) by PVALIDATE. */
bool page_validate(uint64_t gpa, bool validate);

/* Hand a page to the host and take it back; its content is lost both ways. */
bool page_make_shared(uint64_t gpa);
bool page_make_private(uint64_t gpa);

#endif
