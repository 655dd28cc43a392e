// SPDX-License-Identifier: MIT
/* Looks at what it was started with: stack, arguments, environment, auxiliary vector. */
#include "svsm/svsm.h"

#define AT_PHDR 3
#define AT_PHENT 4
#define AT_PHNUM 5
#define AT_PAGESZ 6
#define AT_ENTRY 9
#define AT_SECURE 23
#define AT_RANDOM 25
#define AT_EXECFN 31
#define TYPES 64

extern const char _start[], __executable_start[];

struct elf_header {
	unsigned char identity[16];
	uint16_t type, machine;
	uint32_t version;
	uint64_t entry, program_headers, section_headers;
	uint32_t flags;
	uint16_t size, program_header_size, program_header_count;
};

int main(int argc, char **argv, char **envp)
{
	const struct elf_header *header = (const void *)__executable_start;
	uint64_t values[TYPES] = { 0 }, seen = 0;
	char **end = envp;
	uint16_t cs, ss;
	uint64_t flags;

	CHECK(argc == 3);
	CHECK(strcmp(argv[1], "one") == 0 && strcmp(argv[2], "two words") == 0 && !argv[3]);
	CHECK(strcmp(envp[0], "A=1") == 0 && strcmp(envp[1], "B=") == 0 && !envp[2]);
	while (*end)
		end++;
	for (const uint64_t *pair = (const uint64_t *)(end + 1); pair[0]; pair += 2) {
		CHECK(pair[0] < TYPES && !(seen >> pair[0] & 1));
		seen |= 1ul << pair[0];
		values[pair[0]] = pair[1];
	}
	CHECK(values[AT_PHDR] == (uint64_t)__executable_start + header->program_headers);
	CHECK(values[AT_PHENT] == header->program_header_size);
	CHECK(values[AT_PHNUM] == header->program_header_count);
	CHECK(values[AT_PAGESZ] == 4096);
	CHECK(values[AT_ENTRY] == (uint64_t)_start);
	CHECK(seen >> AT_SECURE & 1 && !values[AT_SECURE]);
	CHECK(values[AT_RANDOM] && *(uint64_t *)values[AT_RANDOM] != *(uint64_t *)(values[AT_RANDOM] + 8));
	CHECK(strcmp((const char *)values[AT_EXECFN], "/bin/start") == 0);
	CHECK(((uint64_t)(argv - 1) & 15) == 0);
	__asm__("mov %%cs, %0; mov %%ss, %1; pushfq; popq %2" : "=r"(cs), "=r"(ss), "=r"(flags));
	CHECK((cs & 3) == 3 && (ss & 3) == 3);
	CHECK((flags & 0x47700) == 0x200); /* IF; not TF, DF, IOPL, NT, AC */
	CHECK(getpid() > 0 && getppid() == 0 && gettid() == getpid());
	printf("passed\n");
	return 0;
}
