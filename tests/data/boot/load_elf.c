/* SPDX-License-Identifier: MIT */
/*
 * Stage 2's loader on its own: load_elf FILE VIRT. File and memory end at a page that nobody may touch, and
 * begin behind one. Prints what is wrong with the file and exits with 1, or the plan and, on stdout's other
 * lines, nothing else; the loaded memory goes to FILE.memory.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "elf.h"

#define PAGE 0x1000UL

static void *guarded(uint64_t bytes)
{
	uint64_t room = (bytes + PAGE - 1) & -PAGE;
	char *all = mmap(NULL, room + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (all == MAP_FAILED || (room && mprotect(all + PAGE, room, PROT_READ | PROT_WRITE)))
		exit(2);
	return all + PAGE + room - bytes;
}

int main(int argc, char **argv)
{
	static char buffer[1 << 22];
	struct elf_kernel kernel;
	const char *wrong;
	char name[4096];
	FILE *stream;
	size_t size;
	void *file, *memory;

	if (argc != 3 || !(stream = fopen(argv[1], "rb")))
		return 2;
	size = fread(buffer, 1, sizeof(buffer), stream);
	fclose(stream);
	file = guarded(size);
	memcpy(file, buffer, size);
	wrong = elf_check(file, size, &kernel);
	if (!wrong) {
		memory = guarded(kernel.size);
		wrong = elf_load(file, &kernel, memory, strtoull(argv[2], NULL, 0));
	}
	if (wrong) {
		puts(wrong);
		return 1;
	}
	printf("%#lx %#lx %#lx %lu %#lx %#lx %#lx %#lx\n", kernel.linked, kernel.size, kernel.entry,
	       kernel.relocation_count, kernel.symbols, kernel.symbols_size, kernel.strings, kernel.strings_size);
	for (unsigned int i = 0; i < kernel.segment_count; i++)
		printf("%#lx %#lx %#lx %#lx %u\n", kernel.segments[i].offset, kernel.segments[i].memory_size,
		       kernel.segments[i].file_offset, kernel.segments[i].file_size, kernel.segments[i].flags);
	snprintf(name, sizeof(name), "%s.memory", argv[1]);
	stream = fopen(name, "wb");
	if (!stream || fwrite(memory, 1, kernel.size, stream) != kernel.size || fclose(stream))
		return 2;
	return 0;
}
