/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include "boot.h"
#include "ghcb.h"
#include "svsm.h"

struct pvalidate_result pvalidate(uint64_t address, uint32_t size, bool validate)
{
	struct pvalidate_result result;
	uint64_t rax = address;

	__asm__ volatile(".byte 0xf2, 0x0f, 0x01, 0xff" /* pvalidate */
			 : "+a"(rax), "=@ccc"(result.unchanged)
			 : "c"(size), "d"((uint32_t)validate)
			 : "memory");
	result.code = (uint32_t)rax;
	return result;
}

uint32_t rmpadjust(uint64_t address, uint32_t size, uint64_t attributes)
{
	uint64_t rax = address;

	__asm__ volatile(".byte 0xf3, 0x0f, 0x01, 0xfe" /* rmpadjust */
			 : "+a"(rax)
			 : "c"((uint64_t)size), "d"(attributes)
			 : "memory", "cc");
	return (uint32_t)rax;
}

bool arena_present(void)
{
	return boot_is_ram(ARENA_BASE, ARENA_SIZE);
}

void memory_init(void)
{
	if (svsm.present || !arena_present())
		return;
	for (uint64_t gpa = ARENA_BASE; gpa < ARENA_BASE + ARENA_SIZE; gpa += PAGE_SIZE)
		if (!ghcb_page_state(gpa, PSC_PRIVATE) || pvalidate(gpa, 0, true).code != RMP_SUCCESS)
			ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
}

bool page_validate(uint64_t gpa, bool validate)
{
	if (svsm.present)
		return svsm_pvalidate(gpa | (validate ? PVALIDATE_VALIDATE : 0)) == SVSM_SUCCESS;
	return pvalidate(gpa, 0, validate).code == RMP_SUCCESS;
}

bool page_make_shared(uint64_t gpa)
{
	return page_validate(gpa, false) && ghcb_page_state(gpa, PSC_SHARED);
}

bool page_make_private(uint64_t gpa)
{
	return ghcb_page_state(gpa, PSC_PRIVATE) && page_validate(gpa, true);
}
