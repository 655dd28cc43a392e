/* SPDX-License-Identifier: MIT */
/*
 * Replaces functions of a shared library in the calls that the library makes to itself.
 *
 * A library that exports its functions calls them through its procedure linkage table, whose slots
 * are data. Spec: System V ABI, AMD64 supplement, 5.2 (global offset table, procedure linkage table).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int put(void **slot, void *value)
{
	uintptr_t page = (uintptr_t)slot & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);
	size_t length = (uintptr_t)(slot + 1) - page;

	/* It is writable already unless the library was linked with immediate binding. */
	if (mprotect((void *)page, length, PROT_READ | PROT_WRITE))
		return 0;
	__atomic_store_n(slot, value, __ATOMIC_RELAXED);
	return 1;
}

/*
 * In the library that `function` is in, calls of the function `name` go to `replacement` from now on.
 * Returns whether there are such calls.
 */
int svsmd_interpose(void *function, const char *name, void *replacement)
{
	const ElfW(Rela) *relocations = NULL;
	const ElfW(Sym) *symbols = NULL;
	const char *strings = NULL;
	struct link_map *map;
	size_t size = 0, i;
	ElfW(Dyn) *d;
	Dl_info info;

	if (!dladdr1(function, &info, (void **)&map, RTLD_DL_LINKMAP))
		return 0;
	for (d = map->l_ld; d->d_tag != DT_NULL; d++) {
		switch (d->d_tag) {
		case DT_JMPREL:
			relocations = (const ElfW(Rela) *)d->d_un.d_ptr;
			break;
		case DT_PLTRELSZ:
			size = d->d_un.d_val;
			break;
		case DT_SYMTAB:
			symbols = (const ElfW(Sym) *)d->d_un.d_ptr;
			break;
		case DT_STRTAB:
			strings = (const char *)d->d_un.d_ptr;
			break;
		}
	}
	if (!relocations || !symbols || !strings)
		return 0;
	for (i = 0; i < size / sizeof(*relocations); i++) {
		const ElfW(Sym) *symbol = symbols + ELF64_R_SYM(relocations[i].r_info);

		if (!strcmp(strings + symbol->st_name, name))
			return put((void **)(map->l_addr + relocations[i].r_offset), replacement);
	}
	return 0;
}
