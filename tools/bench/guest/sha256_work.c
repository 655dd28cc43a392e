/* SPDX-License-Identifier: MIT */
/* SHA-256 of the arena's first 64 KiB, `rounds` times: calls, loops, table look-ups, arithmetic. */
#include "sha256.h"

#define ARENA 0x400000UL
#define SIZE 0x10000UL

void work(unsigned long rounds);

void work(unsigned long rounds)
{
	uint8_t digest[SHA256_SIZE];

	while (rounds--)
		sha256((const void *)ARENA, SIZE, digest);
}
