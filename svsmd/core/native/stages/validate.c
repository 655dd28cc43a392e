/* SPDX-License-Identifier: MIT */
/*
 * Makes the SVSM's region its own: each page of it was put there by LAUNCH_UPDATE (measured, and valid
 * already), or changes from invalid to valid here. A page that is neither is the work of a host that maps
 * one page twice, or took a measured one away. What a page holds that was not launched is the host's
 * choice: whoever takes one clears it.
 *
 * Spec: AMD 24594, PVALIDATE; 24593, 15.36.6 (page validation).
 */
#include "stages.h"

#define PVALIDATE_SIZEMISMATCH 6

static void validate(uint64_t gpa, bool huge, struct page_counts *counts)
{
	uint64_t code = gpa;
	bool unchanged;

	__asm__ volatile(".byte 0xf2, 0x0f, 0x01, 0xff" /* PVALIDATE */
			 : "+a"(code), "=@ccc"(unchanged)
			 : "c"(huge), "d"(1)
			 : "memory");
	if (huge && (uint32_t)code == PVALIDATE_SIZEMISMATCH) {
		/* The host has assigned it in pages of 4 KiB. */
		for (uint64_t page = gpa; page < gpa + HUGE_PAGE_SIZE; page += PAGE_SIZE)
			validate(page, false, counts);
		return;
	}
	if ((uint32_t)code)
		panic(SVSM_REASON_VALIDATION, "panic: stage 2: PVALIDATE of page %lx fails with %u", gpa, (uint32_t)code);
	if (unchanged)
		panic(SVSM_REASON_VALIDATION, "panic: stage 2: page %lx is valid already, but was not launched", gpa);
	counts->validated += huge ? HUGE_PAGE_SIZE : PAGE_SIZE;
	counts->huge += huge;
	counts->small += !huge;
}

/* The end of the launched pages that `gpa` lies in, or `gpa`; *next becomes the start of those that follow. */
static uint64_t launched_until(const struct launch_info *info, uint64_t gpa, uint64_t *next)
{
	for (uint32_t i = 0; i < info->validated_count; i++) {
		uint64_t start = info->validated[i].gpa;
		uint64_t end = start + (uint64_t)info->validated[i].npages * PAGE_SIZE;

		if (start <= gpa && gpa < end)
			return end;
		if (start > gpa && start < *next)
			*next = start;
	}
	return gpa;
}

struct page_counts validate_region(const struct launch_info *info)
{
	struct page_counts counts = { 0 };
	uint64_t end = info->svsm_base + info->svsm_size;
	uint64_t gpa = info->svsm_base;

	while (gpa < end) {
		uint64_t next = end;
		uint64_t launched = launched_until(info, gpa, &next);

		if (launched > gpa) {
			launched = launched < end ? launched : end;
			counts.launched += launched - gpa;
			gpa = launched;
			continue;
		}
		/* The GHCB is shared: stage 2 speaks through it. */
		if (gpa == info->svsm_ghcb) {
			gpa += PAGE_SIZE;
			continue;
		}
		if (info->svsm_ghcb > gpa && info->svsm_ghcb < next)
			next = info->svsm_ghcb;
		while (gpa < next) {
			bool huge = gpa % HUGE_PAGE_SIZE == 0 && next - gpa >= HUGE_PAGE_SIZE;

			validate(gpa, huge, &counts);
			gpa += huge ? HUGE_PAGE_SIZE : PAGE_SIZE;
		}
	}
	return counts;
}
