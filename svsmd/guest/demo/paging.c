/* SPDX-License-Identifier: MIT */
/* Page tables. Spec: AMD 24593, 5.3 (long mode paging), 15.34.4 (C-bit). */
#include "paging.h"

#include "cpu.h"

#define ENTRIES 512
#define LOW_TABLES 4 /* page directories of the first 4 GiB */
#define TABLE_FLAGS (PTE_PRESENT | PTE_WRITE | PTE_USER | PTE_ACCESSED)

typedef uint64_t page_table[ENTRIES] __attribute__((aligned(4096)));

uint64_t c_bit;

static page_table pml4, pdpt_private, pdpt_shared, pdpt_window;
static page_table pd_private[LOW_TABLES], pd_window;
static page_table pt_low, pt_image, pt_window;

extern const char image_start[], user_text_start[], user_text_end[], rodata_end[];
extern const char user_data_start[], user_data_end[];

static uint64_t table(const uint64_t *next)
{
	return (uint64_t)next | TABLE_FLAGS | c_bit;
}

static uint64_t image_rights(uint64_t address)
{
	if (address < (uint64_t)user_text_start)
		return PTE_PRESENT | PTE_ACCESSED;
	if (address < (uint64_t)user_text_end)
		return PTE_PRESENT | PTE_ACCESSED | PTE_USER;
	if (address < (uint64_t)rodata_end)
		return PTE_PRESENT | PTE_ACCESSED | PTE_NX;
	if (address >= (uint64_t)user_data_start && address < (uint64_t)user_data_end)
		return PTE_DATA | PTE_USER;
	return PTE_DATA;
}

void paging_init(uint32_t c_bit_position)
{
	c_bit = 1UL << c_bit_position;

	pml4[0] = table(pdpt_private);
	pml4[1] = table(pdpt_shared);
	pml4[2] = table(pdpt_window);
	for (uint64_t i = 0; i < ENTRIES; i++) {
		uint64_t address = (uint64_t)image_start + i * PAGE_SIZE;

		pdpt_private[i] = i << 30 | PTE_DATA | PTE_HUGE | c_bit;
		pt_low[i] = i ? i * PAGE_SIZE | PTE_DATA | c_bit : 0;
		pt_image[i] = address | image_rights(address) | c_bit;
		for (uint64_t gib = 0; gib < LOW_TABLES; gib++)
			pd_private[gib][i] = gib << 30 | i << 21 | PTE_DATA | PTE_HUGE | c_bit;
	}
	for (uint64_t gib = 0; gib < LOW_TABLES; gib++) {
		pdpt_private[gib] = table(pd_private[gib]);
		pdpt_shared[gib] = gib << 30 | PTE_DATA | PTE_HUGE;
	}
	pd_private[0][0] = table(pt_low);
	pd_private[0][(uint64_t)image_start >> 21] = table(pt_image);
	pdpt_window[0] = table(pd_window);
	pd_window[0] = table(pt_window);

	write_cr3((uint64_t)pml4 | c_bit);
}

void paging_set_image(uint64_t address, uint64_t entry)
{
	pt_image[(address - (uint64_t)image_start) / PAGE_SIZE] = entry;
	invlpg((void *)address);
}

void *paging_set_window(unsigned int slot, uint64_t entry)
{
	void *address = (void *)(WINDOW_BASE + slot * PAGE_SIZE);

	pt_window[slot] = entry;
	invlpg(address);
	return address;
}
