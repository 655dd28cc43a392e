// SPDX-License-Identifier: MIT
/* Takes all memory that there is, after others have taken theirs. */
#include "svsm/svsm.h"

int main(int argc, char **argv, char **envp)
{
	struct timespec moment = { 0, 10000000 };
	size_t size = 1ul << 32;
	volatile char *start = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE,
					    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	(void)argc, (void)argv, (void)envp;
	CHECK((long)start > 0 && nanosleep(&moment, NULL) == 0);
	printf("eats\n");
	for (size_t i = 0; i < size; i += 4096)
		start[i] = 1;
	printf("is full\n");
	return 0;
}
