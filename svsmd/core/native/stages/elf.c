/* SPDX-License-Identifier: MIT */
/*
 * Loads a position-independent x86-64 ELF. The file is measured, but measured is not checked: every number
 * in it is compared with the room there is before it is used.
 *
 * Spec: System V ABI, chapters 4 and 5 (gABI); x86-64 psABI, 4.4 (relocations).
 */
#include "elf.h"

#include <stdbool.h>
#include <stddef.h>

#define PAGE 0x1000UL

#define ET_EXEC 2
#define ET_DYN 3
#define EM_X86_64 62
#define PT_LOAD 1
#define PT_DYNAMIC 2
#define PT_INTERP 3
#define PT_TLS 7
#define DT_NULL 0
#define DT_NEEDED 1
#define DT_PLTRELSZ 2
#define DT_RELA 7
#define DT_RELASZ 8
#define DT_RELAENT 9
#define DT_REL 17
#define DT_RELR 36
#define DT_FLAGS_1 0x6ffffffb
#define DF_1_PIE 0x08000000
#define R_X86_64_RELATIVE 8
#define SHT_SYMTAB 2
#define SHT_STRTAB 3

struct elf_header {
	uint8_t ident[16];
	uint16_t type;
	uint16_t machine;
	uint32_t version;
	uint64_t entry;
	uint64_t phoff;
	uint64_t shoff;
	uint32_t flags;
	uint16_t ehsize;
	uint16_t phentsize;
	uint16_t phnum;
	uint16_t shentsize;
	uint16_t shnum;
	uint16_t shstrndx;
};

struct program_header {
	uint32_t type;
	uint32_t flags;
	uint64_t offset;
	uint64_t vaddr;
	uint64_t paddr;
	uint64_t filesz;
	uint64_t memsz;
	uint64_t align;
};

struct section_header {
	uint32_t name;
	uint32_t type;
	uint64_t flags;
	uint64_t addr;
	uint64_t offset;
	uint64_t size;
	uint32_t link;
	uint32_t info;
	uint64_t addralign;
	uint64_t entsize;
};

struct dynamic {
	int64_t tag;
	uint64_t value;
};

struct rela {
	uint64_t offset;
	uint64_t info;
	int64_t addend;
};

static const uint8_t IDENT[] = { 0x7f, 'E', 'L', 'F', 2 /* 64 bits */, 1 /* little-endian */, 1 };

/* Whether [offset, offset + size) lies in [0, room). */
static bool inside(uint64_t offset, uint64_t size, uint64_t room)
{
	return offset <= room && size <= room - offset;
}

/* Fields may lie anywhere in the file, at any address. */
static void copy(void *to, const void *from, uint64_t n)
{
	uint8_t *out = to;
	const uint8_t *in = from;

	while (n--)
		*out++ = *in++;
}

static uint64_t page_up(uint64_t bytes)
{
	return (bytes + PAGE - 1) & -PAGE;
}

static const char *add_segment(const struct program_header *ph, uint64_t size, struct elf_kernel *kernel)
{
	struct elf_segment *segment = &kernel->segments[kernel->segment_count];

	if (kernel->segment_count == ELF_SEGMENTS_MAX)
		return "more segments than there is room for";
	if (!inside(ph->offset, ph->filesz, size))
		return "a segment beyond the end of the file";
	if (!ph->memsz || ph->filesz > ph->memsz)
		return "a segment with more in the file than in memory";
	if (ph->vaddr % PAGE)
		return "a segment that does not begin a page";
	if (!(ph->flags & ELF_READ) || (ph->flags & (ELF_WRITE | ELF_EXECUTE)) == (ELF_WRITE | ELF_EXECUTE))
		return "a segment that is writable and executable, or cannot be read";
	if (!kernel->segment_count)
		kernel->linked = ph->vaddr;
	if (ph->vaddr < kernel->linked || ph->vaddr - kernel->linked < kernel->size)
		return "segments that overlap or do not ascend";
	if (!inside(ph->vaddr - kernel->linked, ph->memsz, ELF_IMAGE_MAX))
		return "more memory than there is room for";
	*segment = (struct elf_segment){
		.offset = ph->vaddr - kernel->linked,
		.memory_size = ph->memsz,
		.file_offset = ph->offset,
		.file_size = ph->filesz,
		.flags = ph->flags & (ELF_READ | ELF_WRITE | ELF_EXECUTE),
	};
	kernel->segment_count++;
	kernel->size = page_up(segment->offset + segment->memory_size);
	return NULL;
}

/* Where `n` bytes at offset `offset` in memory come from, or NULL if they are not all out of the file. */
static const uint8_t *in_file(const void *file, const struct elf_kernel *kernel, uint64_t offset, uint64_t n)
{
	for (unsigned int i = 0; i < kernel->segment_count; i++) {
		const struct elf_segment *segment = &kernel->segments[i];

		if (offset >= segment->offset && inside(offset - segment->offset, n, segment->file_size))
			return (const uint8_t *)file + segment->file_offset + (offset - segment->offset);
	}
	return NULL;
}

#define NOT_MOVABLE "an address that it cannot leave"

static const char *read_dynamic(const void *file, const struct program_header *ph, uint64_t size,
				struct elf_kernel *kernel)
{
	uint64_t bytes = 0, entry_size = 0;
	bool ended = false, movable = false;

	if (!inside(ph->offset, ph->filesz, size))
		return "a dynamic section beyond the end of the file";
	for (uint64_t at = 0; ph->filesz - at >= sizeof(struct dynamic) && !ended; at += sizeof(struct dynamic)) {
		struct dynamic dynamic;

		copy(&dynamic, (const uint8_t *)file + ph->offset + at, sizeof(dynamic));
		switch (dynamic.tag) {
		case DT_NULL:
			ended = true;
			break;
		case DT_RELA:
			kernel->relocations = dynamic.value - kernel->linked;
			break;
		case DT_RELASZ:
			bytes = dynamic.value;
			break;
		case DT_RELAENT:
			entry_size = dynamic.value;
			break;
		case DT_FLAGS_1:
			movable = dynamic.value & DF_1_PIE;
			break;
		case DT_NEEDED:
		case DT_PLTRELSZ:
		case DT_REL:
		case DT_RELR:
			return "relocations of another kind, or other files";
		}
	}
	if (!movable)
		return NOT_MOVABLE;
	if (!bytes)
		return NULL;
	if (entry_size != sizeof(struct rela) || bytes % sizeof(struct rela) ||
	    !in_file(file, kernel, kernel->relocations, bytes))
		return "relocations that are not in the file";
	kernel->relocation_count = bytes / sizeof(struct rela);
	return NULL;
}

/* Symbols are for debuggers and backtraces: a file whose section table makes no sense has none. */
static void find_symbols(const void *file, uint64_t size, const struct elf_header *header, struct elf_kernel *kernel)
{
	struct section_header symbols, strings;

	if (header->shentsize != sizeof(symbols) ||
	    !inside(header->shoff, (uint64_t)header->shnum * sizeof(symbols), size))
		return;
	for (unsigned int i = 0; i < header->shnum; i++) {
		const uint8_t *table = (const uint8_t *)file + header->shoff;

		copy(&symbols, table + i * sizeof(symbols), sizeof(symbols));
		if (symbols.type != SHT_SYMTAB)
			continue;
		if (symbols.link >= header->shnum)
			return;
		copy(&strings, table + symbols.link * sizeof(strings), sizeof(strings));
		if (strings.type != SHT_STRTAB || !inside(symbols.offset, symbols.size, size) ||
		    !inside(strings.offset, strings.size, size))
			return;
		kernel->symbols = symbols.offset;
		kernel->symbols_size = symbols.size;
		kernel->strings = strings.offset;
		kernel->strings_size = strings.size;
		return;
	}
}

const char *elf_check(const void *file, uint64_t size, struct elf_kernel *kernel)
{
	struct elf_header header;
	const char *wrong;
	bool has_dynamic = false;

	*kernel = (struct elf_kernel){ 0 };
	if (size < sizeof(header))
		return "no room for a header";
	copy(&header, file, sizeof(header));
	for (unsigned int i = 0; i < sizeof(IDENT); i++)
		if (header.ident[i] != IDENT[i])
			return "no ELF of 64 bits";
	/* Linkers call an image with a base address ET_EXEC even if it can be moved: DF_1_PIE tells. */
	if ((header.type != ET_DYN && header.type != ET_EXEC) || header.machine != EM_X86_64 || header.version != 1)
		return "another type, or code for another processor";
	if (header.phentsize != sizeof(struct program_header) ||
	    !inside(header.phoff, (uint64_t)header.phnum * sizeof(struct program_header), size))
		return "program headers beyond the end of the file";
	/* First the segments: the dynamic section speaks of addresses in them. */
	for (unsigned int pass = 0; pass < 2; pass++) {
		for (unsigned int i = 0; i < header.phnum; i++) {
			struct program_header ph;

			copy(&ph, (const uint8_t *)file + header.phoff + i * sizeof(ph), sizeof(ph));
			if (ph.type == PT_INTERP || ph.type == PT_TLS)
				return "an interpreter, or thread-local storage";
			wrong = NULL;
			if (ph.type == PT_LOAD && pass == 0)
				wrong = add_segment(&ph, size, kernel);
			else if (ph.type == PT_DYNAMIC && pass == 1) {
				wrong = has_dynamic ? "two dynamic sections" : read_dynamic(file, &ph, size, kernel);
				has_dynamic = true;
			}
			if (wrong)
				return wrong;
		}
	}
	if (!has_dynamic)
		return NOT_MOVABLE;
	kernel->entry = header.entry - kernel->linked;
	for (unsigned int i = 0; i < kernel->segment_count; i++) {
		const struct elf_segment *segment = &kernel->segments[i];

		if (segment->flags & ELF_EXECUTE && kernel->entry >= segment->offset &&
		    kernel->entry - segment->offset < segment->file_size) {
			find_symbols(file, size, &header, kernel);
			return NULL;
		}
	}
	return "an entry point that is not code";
}

const char *elf_load(const void *file, const struct elf_kernel *kernel, void *memory, uint64_t virt)
{
	const uint8_t *relocations = in_file(file, kernel, kernel->relocations,
					     kernel->relocation_count * sizeof(struct rela));

	for (unsigned int i = 0; i < kernel->segment_count; i++) {
		const struct elf_segment *segment = &kernel->segments[i];

		copy((uint8_t *)memory + segment->offset, (const uint8_t *)file + segment->file_offset,
		     segment->file_size);
	}
	for (uint64_t i = 0; i < kernel->relocation_count; i++) {
		struct rela rela;
		uint64_t where, value;

		copy(&rela, relocations + i * sizeof(rela), sizeof(rela));
		where = rela.offset - kernel->linked;
		if (rela.info != R_X86_64_RELATIVE)
			return "a relocation of another kind";
		if (!inside(where, sizeof(value), kernel->size))
			return "a relocation outside of its memory";
		value = (uint64_t)rela.addend - kernel->linked + virt;
		copy((uint8_t *)memory + where, &value, sizeof(value));
	}
	return NULL;
}
