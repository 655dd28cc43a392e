/* SPDX-License-Identifier: MIT */
/* The loader of the SVSM kernel. Needs nothing of its surroundings: tests compile it for themselves. */
#ifndef SVSMD_ELF_H
#define SVSMD_ELF_H

#include <stdint.h>

#define ELF_EXECUTE 1
#define ELF_WRITE 2
#define ELF_READ 4
#define ELF_SEGMENTS_MAX 8
#define ELF_IMAGE_MAX 0x200000 /* bytes of a loaded kernel: what one page table maps */

struct elf_segment {
	uint64_t offset; /* from the start of the kernel's memory, page aligned */
	uint64_t memory_size; /* bytes */
	uint64_t file_offset;
	uint64_t file_size; /* bytes */
	uint32_t flags; /* ELF_* */
};

struct elf_kernel {
	uint64_t linked; /* the address that it was linked for, page aligned */
	uint64_t size; /* bytes of its memory, whole pages */
	uint64_t entry; /* offset of the first instruction */
	unsigned int segment_count;
	struct elf_segment segments[ELF_SEGMENTS_MAX]; /* ascending, no page in two of them */
	uint64_t relocations; /* offset in memory of its Elf64_Rela entries */
	uint64_t relocation_count;
	uint64_t symbols; /* file offset of the symbol table, its bytes; 0, 0 if there is none */
	uint64_t symbols_size;
	uint64_t strings; /* and of the table with their names */
	uint64_t strings_size;
};

/* Checks a file of `size` bytes and fills *kernel. Returns NULL, or what is wrong with it. */
const char *elf_check(const void *file, uint64_t size, struct elf_kernel *kernel);

/*
 * Puts a checked kernel into `memory` (kernel->size bytes, zeroed), relocated to run at `virt`.
 * Returns NULL, or what is wrong with its relocations.
 */
const char *elf_load(const void *file, const struct elf_kernel *kernel, void *memory, uint64_t virt);

#endif
