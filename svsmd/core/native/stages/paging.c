/* SPDX-License-Identifier: MIT */
/* Page tables: stage 2's identity map, and those that the kernel starts with. Spec: AMD 24593, 5.3, 15.34.5. */
#include "stages.h"

#define PTE_NX ((uint64_t)PTE_NX_HIGH << 32)
#define PTE_ADDRESS 0x000ffffffffff000UL
#define ENTRIES 512
#define PML4_SLOT(gva) ((gva) >> 39 & (ENTRIES - 1))
#define PDPT_SLOT(gva) ((gva) >> 30 & (ENTRIES - 1))
#define PD_SLOT(gva) ((gva) >> 21 & (ENTRIES - 1))
#define PT_SLOT(gva) ((gva) >> 12 & (ENTRIES - 1))
#define GIB_SHIFT 30

extern uint64_t stage2_pml4[ENTRIES];
extern uint64_t stage2_pdpt[ENTRIES];

static uint64_t private; /* the C-bit */

void paging_init(uint64_t cbit_mask)
{
	private = cbit_mask;
}

static uint64_t table(const void *page)
{
	return (uint64_t)page | PTE_TABLE | private;
}

/* Identity-map what follows the first 2 MiB of the region, no execution; entry.S has mapped those. */
void paging_map_region(uint64_t base, uint64_t size)
{
	uint64_t first = base >> GIB_SHIFT;

	stage2_pdpt[first + 1] = table(stage2_pd[1]);
	for (uint64_t gpa = base + HUGE_PAGE_SIZE; gpa < base + size; gpa += HUGE_PAGE_SIZE)
		stage2_pd[(gpa >> GIB_SHIFT) - first][PD_SLOT(gpa)] =
			gpa | PTE_TABLE | PTE_HUGE | PTE_NX | private;
}

/* Map a page of the first 2 MiB without the C-bit. */
void paging_share_page(uint64_t gpa)
{
	stage2_pt[PT_SLOT(gpa)] = gpa | PTE_TABLE | PTE_NX;
	__asm__ volatile("invlpg (%0)" : : "r"(gpa) : "memory");
}

/*
 * Private map of the GiB that the region lies in, and the kernel at `virt`, each page with the rights
 * of its segment. Slot 0 has stage 2's identity map, for the jump alone: the kernel clears it.
 */
void paging_make_kernel_tables(uint64_t *tables, const struct elf_kernel *kernel, uint64_t gpa, uint64_t virt,
			       uint64_t region, uint64_t region_size)
{
	uint64_t *pml4 = tables;
	uint64_t *map = pml4 + ENTRIES;
	uint64_t *pdpt = map + ENTRIES;
	uint64_t *pd = pdpt + ENTRIES;
	uint64_t *pt = pd + ENTRIES;

	pml4[0] = stage2_pml4[0];
	pml4[PML4_SLOT(SVSM_PRIVATE_MAP)] = table(map);
	pml4[PML4_SLOT(virt)] = table(pdpt);
	pdpt[PDPT_SLOT(virt)] = table(pd);
	pd[PD_SLOT(virt)] = table(pt);
	for (uint64_t i = region >> GIB_SHIFT; i <= (region + region_size - 1) >> GIB_SHIFT; i++)
		map[i] = i << GIB_SHIFT | PTE_TABLE | PTE_HUGE | PTE_NX | private;
	for (unsigned int n = 0; n < kernel->segment_count; n++) {
		const struct elf_segment *segment = &kernel->segments[n];
		uint64_t rights = PTE_READ_ONLY | private;

		if (segment->flags & ELF_WRITE)
			rights |= PTE_WRITE;
		if (!(segment->flags & ELF_EXECUTE))
			rights |= PTE_NX;
		for (uint64_t at = 0; at < segment->memory_size; at += PAGE_SIZE)
			pt[PT_SLOT(virt + segment->offset + at)] = (gpa + segment->offset + at) | rights;
	}
}
