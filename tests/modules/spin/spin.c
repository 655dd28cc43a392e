// SPDX-License-Identifier: MIT
/* A neighbour: computes for so many ms, and says whether its memory stayed what it was. */
#include "svsm/svsm.h"

#define WORDS 4096
#define MILLISECOND 1000000ul

static uint64_t words[WORDS];

static __attribute__((noinline)) uint64_t now(void)
{
	struct timespec time;

	CHECK(clock_gettime(1, &time) == 0);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

int main(int argc, char **argv, char **envp)
{
	uint64_t milliseconds = 0, rounds = 0;

	(void)envp;
	CHECK(argc == 2);
	for (const char *digit = argv[1]; *digit; digit++)
		milliseconds = milliseconds * 10 + (uint64_t)(*digit - '0');
	uint64_t end = now() + milliseconds * MILLISECOND;
	do {
		for (size_t i = 0; i < WORDS; i++)
			CHECK(words[i]++ == rounds);
		rounds++;
	} while (now() < end);
	printf("done, %s\n", rounds ? "unharmed" : "never run");
	return 0;
}
