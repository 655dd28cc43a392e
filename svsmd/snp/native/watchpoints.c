/* SPDX-License-Identifier: MIT */
/*
 * Watchpoints: accesses to pages with watched bytes.
 *
 * The nested leaf of such a page has a bit that means nothing to the engine. When a translation that
 * used it gets into the TLB, the engine asks whether there are watchpoints on the page; the answer yes
 * sends every access through its slow path, where it asks again, with address and length of the
 * access. Both questions are answered here. The access that hits is not made: Python gets an exit, and
 * has the instruction executed once with this switched off.
 *
 * What the engine asks about is no less than the instruction accesses, but may be more, so Python has
 * the last word. A load that is not aligned is two that are. A store that is not aligned asks twice, in
 * advance, for its parts on each of two pages; if it is on one, its length there is wrong: with the
 * first question it is less than 0, and the second one is about the page up to its end.
 */
#include "accel.h"

enum { WATCHED_LEAF = 1 << 9, MAX_ACCESS = 8 };

struct watch {
	uint64_t first, last; /* guest-physical, without the C-bit */
	uint64_t kinds;       /* enum access */
};

static struct tlb_entry *entry_of(const struct shared *s, uint64_t address)
{
	int i;

	for (i = 0; i < MMU_MODES; i++) {
		uintptr_t at = (address >> 12) * sizeof(struct tlb_entry) & s->tlb[i].mask;
		struct tlb_entry *e = (struct tlb_entry *)((uint8_t *)s->tlb[i].table + at);
		uint64_t page = address & ~(uint64_t)4095;

		if ((e->addr_read & (~(uint64_t)4095 | TLB_INVALID)) == page ||
		    (e->addr_write & (~(uint64_t)4095 | TLB_INVALID)) == page)
			return e;
	}
	return NULL;
}

/* In place of the engine's cpu_watchpoint_address_matches(): asked when a TLB entry is made. */
int svsmd_is_watched(void *cpu, uint64_t address, uint64_t length)
{
	const struct engine *e = svsmd_engine_of_cpu(cpu);

	(void)address;
	(void)length;
	return e && e->shared->watch_count && e->shared->last_leaf & WATCHED_LEAF ?
		       ACCESS_READ | ACCESS_WRITE : 0;
}

/* In place of the engine's cpu_check_watchpoint(): asked at each access through such an entry. */
void svsmd_check_watch(void *cpu, uint64_t address, uint64_t length, uint32_t attributes, int kind,
		       uintptr_t return_address)
{
	const struct engine *e = svsmd_engine_of_cpu(cpu);
	struct tlb_entry *entry;
	struct shared *s;
	uint64_t first, last, left = 4096 - (address & 4095);
	uint32_t i;

	(void)attributes;
	if (!e || (s = e->shared)->watch_off || s->delivering || !(entry = entry_of(s, address)))
		return;
	if (length > MAX_ACCESS) {
		if (!(address & 4095))
			return;
		length = left < MAX_ACCESS ? left : MAX_ACCESS;
	}
	first = entry->paddr | (address & 4095);
	last = first + length - 1;
	for (i = 0; i < s->watch_count; i++) {
		const struct watch *w = s->watches + i;

		if (!(w->kinds & (uint64_t)kind) || first > w->last || last < w->first)
			continue;
		s->watched_access = first;
		s->watched_length = (uint32_t)length;
		s->watched_kind = (uint32_t)kind;
		s->trap = TRAP_WATCH;
		s->raise(s->env, VECTOR_DB, 0, return_address);
	}
}
