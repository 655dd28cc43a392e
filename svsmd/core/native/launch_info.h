/* SPDX-License-Identifier: MIT */
/*
 * The launch-info page: what the launcher tells the SVSM, measured into the launch digest.
 *
 * It lies at svsm_base + LAUNCH_INFO_OFFSET; its physical address is in EDI when the SVSM's first
 * instruction runs. Stage 1 compares `cbit` with the CPUID page, stage 2 reads what concerns the
 * SVSM's own region; the rest is for the core. svsmd/core/launch_info.py is the same layout in
 * Python, and tests/unit/test_launch_info.py compares the two.
 *
 * All fields are little-endian; the page's bytes beyond the structure are zero. Nothing in it is
 * secret. Whoever reads it must check it: a hostile launcher can write anything here (and gets
 * another launch digest for it).
 */
#ifndef SVSMD_LAUNCH_INFO_H
#define SVSMD_LAUNCH_INFO_H

#include "layout.h"

#define LAUNCH_INFO_VERSION 3
#define LAUNCH_INFO_MAGIC_LOW 0x4d535653 /* 'SVSM' */
#define LAUNCH_INFO_MAGIC_HIGH 0x31494c44 /* 'DLI1' */
#define LAUNCH_INFO_CBIT 0x10 /* offset of `cbit`, for assembly */
#define LAUNCH_INFO_MAX_RAM_RANGES 8
#define LAUNCH_INFO_MAX_VALIDATED 16

/* launch_validated_range.flags */
#define LAUNCH_RANGE_SVSM 1 /* belongs to the SVSM: never granted to the guest */

#ifndef __ASSEMBLER__
#include <stddef.h>
#include <stdint.h>

/* One run of RAM. */
struct launch_ram_range {
	uint64_t base; /* GPA, page aligned */
	uint64_t size; /* bytes, whole pages */
};

/* Pages that LAUNCH_UPDATE has put there: private and validated already. */
struct launch_validated_range {
	uint64_t gpa; /* page aligned */
	uint32_t npages; /* 4 KiB pages */
	uint32_t flags; /* LAUNCH_RANGE_* */
	uint8_t sha256[32]; /* of their bytes, if they are the guest's: what a restart must find */
};

/* Where the payload starts: 64-bit mode, CPL 0, flat segments out of its own boot GDT. */
struct launch_entry_state {
	uint64_t rip; /* guest-virtual; the boot page tables map it to itself */
	uint64_t rsp;
	uint64_t rsi; /* GPA of boot_params */
	uint64_t cr3; /* GPA of the boot page tables, C-bit included */
	uint64_t gdtr_base; /* GPA of the boot GDT: CS 0x10, DS/ES/SS 0x18 */
	uint32_t gdtr_limit;
	uint32_t reserved;
};

struct launch_info {
	char magic[8]; /* 'SVSMDLI1' */
	uint32_t version; /* LAUNCH_INFO_VERSION */
	uint32_t size; /* bytes of this structure */
	uint32_t cbit; /* position of the C-bit in a page table entry */
	uint32_t guest_vmpl; /* 1..3 */
	uint32_t cpu_count; /* vCPUs, with APIC ids 0..cpu_count-1 */
	uint32_t ram_range_count;
	uint64_t svsm_base; /* GPA, 2 MiB aligned */
	uint64_t svsm_size; /* bytes */
	uint64_t svsm_vmsa; /* GPA of the boot CPU's VMSA at VMPL0 */
	uint64_t svsm_cpuid; /* GPA of the CPUID page that the security processor checked */
	uint64_t svsm_secrets; /* GPA of the secrets page with all four VMPCKs */
	uint64_t guest_cpuid; /* GPA where the guest's copy of the CPUID page goes */
	uint64_t guest_secrets; /* GPA where the guest's copy of the secrets page goes */
	uint64_t guest_caa; /* GPA of the calling area of the guest's boot CPU */
	uint64_t svsm_kernel; /* GPA of the kernel's ELF file, page aligned */
	uint64_t svsm_kernel_size; /* bytes of the file */
	uint64_t svsm_archive; /* GPA of the modules' archive, page aligned */
	uint64_t svsm_archive_size; /* bytes; 0 if there is none */
	uint64_t svsm_core_digest; /* GPA of the page with the digest of the core's sources */
	uint64_t svsm_ghcb; /* GPA of a page that is not launched: the boot CPU's GHCB */
	struct launch_entry_state entry;
	struct launch_ram_range ram[LAUNCH_INFO_MAX_RAM_RANGES];
	uint32_t validated_count;
	uint32_t reserved;
	struct launch_validated_range validated[LAUNCH_INFO_MAX_VALIDATED];
};

_Static_assert(offsetof(struct launch_info, cbit) == LAUNCH_INFO_CBIT, "stage 1 reads it");
_Static_assert(offsetof(struct launch_info, svsm_base) == 0x20, "layout");
_Static_assert(offsetof(struct launch_info, entry) == 0x90, "layout");
_Static_assert(offsetof(struct launch_info, ram) == 0xc0, "layout");
_Static_assert(offsetof(struct launch_info, validated) == 0x148, "layout");
_Static_assert(sizeof(struct launch_info) == 0x448, "layout");
#endif
#endif
