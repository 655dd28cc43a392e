/* SPDX-License-Identifier: MIT */
/*
 * Address space of the demo guest.
 *
 *   0 .. 512 GiB                 every GPA at its own address, private (C = 1), writable, not executable;
 *                                page 0 is absent, the image is mapped by the rights of its sections
 *   SHARED_BASE + gpa            the first 4 GiB once more, shared (C = 0): GHCBs and MMIO
 *   WINDOW_BASE + 4096 * slot    512 pages to map at will, for tests
 *   ABSENT_ADDRESS               never mapped
 */
#ifndef DEMO_PAGING_H
#define DEMO_PAGING_H

#include <stdint.h>

#define SHARED_BASE 0x0000008000000000UL /* PML4 slot 1 */
#define WINDOW_BASE 0x0000010000000000UL /* PML4 slot 2 */
#define ABSENT_ADDRESS 0x0000700000000000UL
#define NONCANONICAL_ADDRESS 0x8000000000000000UL

/* Page table entry bits (24593, 5.4.1). */
#define PTE_PRESENT (1UL << 0)
#define PTE_WRITE (1UL << 1)
#define PTE_USER (1UL << 2)
#define PTE_ACCESSED (1UL << 5)
#define PTE_DIRTY (1UL << 6)
#define PTE_HUGE (1UL << 7)
#define PTE_RESERVED (1UL << 50) /* above the physical address size on every part */
#define PTE_NX (1UL << 63)
#define PTE_DATA (PTE_PRESENT | PTE_WRITE | PTE_ACCESSED | PTE_DIRTY | PTE_NX)

extern uint64_t c_bit; /* the mask, not the position */

void paging_init(uint32_t c_bit_position);

/* The shared alias of a GPA below 4 GiB. */
static inline void *shared_address(uint64_t gpa)
{
	return (void *)(SHARED_BASE + gpa);
}

/* Map (or with entry 0 unmap) a page of the image at its own address. */
void paging_set_image(uint64_t address, uint64_t entry);

/* Map a page in the test window; returns its address. Entry 0 unmaps. */
void *paging_set_window(unsigned int slot, uint64_t entry);

#endif
