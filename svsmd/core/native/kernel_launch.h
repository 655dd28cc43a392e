/* SPDX-License-Identifier: MIT */
/*
 * What stage 2 tells the SVSM kernel: where everything lies, and what has been done already.
 *
 * The structure begins a page of the SVSM's region, whose other bytes are zero. Stage 2 enters the
 * kernel with its address in RDI, in the private map (SVSM_PRIVATE_MAP + GPA); the kernel's first gate
 * call passes the GPA to the core. svsmd/core/kernel_launch.py is the same layout in Python, and
 * tests/unit/test_kernel_launch.py compares the two.
 *
 * State of the region when the kernel starts: all of it is validated, but for the page at `ghcb`,
 * which is shared with the host. `heap` is what stage 2 has given out, `stages` may be given back once
 * the kernel runs. What no range here and no page of launch_info names is nobody's, and holds whatever
 * the host liked: it has to be cleared before it is used.
 *
 * All fields are little-endian, addresses are GPAs in bytes unless they say otherwise.
 */
#ifndef SVSMD_KERNEL_LAUNCH_H
#define SVSMD_KERNEL_LAUNCH_H

#define KERNEL_LAUNCH_VERSION 1
#define KERNEL_LAUNCH_PAGE_TABLE 0x30 /* offset of `page_table`, for assembly */

#ifndef __ASSEMBLER__
#include <stddef.h>
#include <stdint.h>

struct kernel_range {
	uint64_t base;
	uint64_t size; /* bytes; those of files and of the region as they are, the others whole pages */
};

struct kernel_launch {
	char magic[8]; /* 'SVSMDKL1' */
	uint32_t version; /* KERNEL_LAUNCH_VERSION */
	uint32_t size; /* bytes of this structure */
	uint32_t cbit; /* position of the C-bit: launch info, CPUID page and hypervisor agree on it */
	uint32_t ghcb_version; /* of the GHCB protocol, agreed on with the hypervisor */
	uint64_t hv_features; /* the hypervisor's features (56421, 2.2) */
	uint64_t launch_info; /* the launch-info page */
	uint64_t ghcb; /* GHCB page of the boot CPU: shared, cleared, registered */
	uint64_t page_table; /* PML4 that the kernel starts with */
	uint64_t kernel_virt; /* GVA at which `kernel` is mapped */
	uint64_t kernel_entry; /* GVA of its first instruction */
	struct kernel_range region; /* the SVSM's */
	struct kernel_range stages; /* stage 1 and 2 with their tables and stack */
	struct kernel_range kernel_file; /* the kernel's ELF file, with symbols and DWARF */
	struct kernel_range symbols; /* its symbol table, in the file; size 0 if it has none */
	struct kernel_range strings; /* the names of the symbols, in the file */
	struct kernel_range archive; /* the modules' archive */
	struct kernel_range heap; /* what stage 2 has given out: this page, and the two that follow */
	struct kernel_range page_tables; /* those of `page_table`, in the heap */
	struct kernel_range kernel; /* the loaded kernel, in the heap */
	uint64_t core_digest; /* the page with the digest of the core's sources */
	uint64_t launched; /* bytes of the region that LAUNCH_UPDATE has put there */
	uint64_t validated; /* bytes of it that stage 2 has validated */
};

_Static_assert(offsetof(struct kernel_launch, page_table) == KERNEL_LAUNCH_PAGE_TABLE, "start.S reads it");
_Static_assert(offsetof(struct kernel_launch, region) == 0x48, "layout");
_Static_assert(offsetof(struct kernel_launch, core_digest) == 0xd8, "layout");
_Static_assert(sizeof(struct kernel_launch) == 0xf0, "layout");
#endif
#endif
