// SPDX-License-Identifier: MIT
/*
 * Ends by an exception, or asks the SVSM for something, three calls deep: backtraces must say where.
 * With a second argument it does so with a stack that leads nowhere.
 */
#include "svsm/svsm.h"

#define NOINLINE __attribute__((noinline, noclone))

static uint64_t ring[4];
static volatile int done;

/* An address of which the compiler knows nothing. */
static inline void *somewhere(uint64_t address)
{
	__asm__("" : "+r"(address));
	return (void *)address;
}

static NOINLINE void store(void)
{
	*(volatile int *)somewhere(8) = 1;
	done = 1;
}

static NOINLINE void ask(void)
{
	uint64_t random;

	CHECK(getrandom(&random, sizeof(random), 0) == sizeof(random));
	done = 1;
}

static NOINLINE void middle(bool asks)
{
	if (asks)
		ask();
	else
		store();
	done = 2;
}

static NOINLINE void outer(bool asks)
{
	middle(asks);
	done = 3;
}

/* RBP leads from one word to the next and back; the return addresses are code. */
static void make_ring(void)
{
	ring[0] = (uint64_t)&ring[2];
	ring[2] = (uint64_t)&ring[0];
	ring[1] = ring[3] = (uint64_t)make_ring + 4;
}

static uint64_t hexadecimal(const char *text)
{
	uint64_t value = 0;

	for (; *text; text++)
		value = value << 4 | (uint64_t)(*text < 'a' ? *text - '0' : *text - 'a' + 10);
	return value;
}

int main(int argc, char **argv, char **envp)
{
	(void)envp;
	CHECK(argc >= 2);
	if (argc == 2) {
		outer(strcmp(argv[1], "ask") == 0);
		return 0;
	}
	make_ring();

	uint64_t rbp = strcmp(argv[2], "ring") == 0 ? (uint64_t)ring : hexadecimal(argv[2]);

	__asm__ volatile("movq %0, %%rbp; ud2" : : "r"(rbp));
	return 0;
}
