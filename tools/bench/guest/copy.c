/* SPDX-License-Identifier: MIT */
/* Copies 4 MiB, `rounds` times, by eight bytes: more pages than the engine's TLB has to begin with. */
#include <stddef.h>
#include <stdint.h>

#define ARENA 0x400000UL
#define SIZE 0x400000UL
#define SKEW 0x13000UL /* else source and target would evict each other from the engine's TLB */

void work(unsigned long rounds);

void work(unsigned long rounds)
{
	uint64_t *to = (uint64_t *)(ARENA + SIZE + SKEW);
	const uint64_t *from = (const uint64_t *)ARENA;

	while (rounds--)
		for (size_t i = 0; i < SIZE / sizeof(*to); i += 4) {
			to[i] = from[i];
			to[i + 1] = from[i + 1];
			to[i + 2] = from[i + 2];
			to[i + 3] = from[i + 3];
			__asm__ volatile("" : : : "memory"); /* a loop of moves, not memcpy */
		}
}
