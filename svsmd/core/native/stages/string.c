/* SPDX-License-Identifier: MIT */
/* The functions that a compiler takes for granted. */
#include "stages.h"

void *memcpy(void *to, const void *from, size_t n)
{
	void *end = to;

	__asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(n) : : "memory");
	return to;
}

void *memset(void *to, int value, size_t n)
{
	void *end = to;
	size_t words = n / 8;

	__asm__ volatile("rep stosq"
			 : "+D"(end), "+c"(words)
			 : "a"((value & 0xff) * 0x0101010101010101UL)
			 : "memory");
	n %= 8;
	__asm__ volatile("rep stosb" : "+D"(end), "+c"(n) : "a"(value) : "memory");
	return to;
}
