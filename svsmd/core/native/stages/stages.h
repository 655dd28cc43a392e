/* SPDX-License-Identifier: MIT */
/* What the boot's two stages share: numbers of the architecture, and who calls whom in stage 2. */
#ifndef SVSMD_STAGES_H
#define SVSMD_STAGES_H

#include "layout.h"

#define STAGE_CS64 0x08
#define STAGE1_DS 0x10

#define PAGE_SIZE 0x1000
#define HUGE_PAGE_SIZE 0x200000

/* Page table entries (24593, 5.3). */
#define PTE_PRESENT 0x001
#define PTE_WRITE 0x002
#define PTE_DIRTY_ACCESSED 0x060
#define PTE_HUGE 0x080
#define PTE_NX_HIGH 0x80000000 /* bit 63, in the high half */
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_DIRTY_ACCESSED)
#define PTE_READ_ONLY (PTE_PRESENT | PTE_DIRTY_ACCESSED)

#define CR0_WP (1 << 16)
#define CR0_PG (1 << 31)
#define CR4_PAE (1 << 5)
#define CR4_OSFXSR (1 << 9)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)
#define EFER_NXE (1 << 11)
#define MSR_GHCB 0xc0010130
#define MSR_SEV_STATUS 0xc0010131
#define SEV_STATUS_NEEDED 0x7 /* SEV, SEV-ES and SEV-SNP are active */

/* GHCB MSR protocol (56421, 2.3.1): GHCBInfo in bits 11:0. */
#define GHCB_MSR_INFO_MASK 0xfff
#define GHCB_MSR_SEV_INFO_REQ 0x002
#define GHCB_MSR_SEV_INFO_RESP 0x001
#define GHCB_MSR_REGISTER_REQ 0x012
#define GHCB_MSR_REGISTER_RESP 0x013
#define GHCB_MSR_PSC_REQ 0x014
#define GHCB_MSR_PSC_RESP 0x015
#define GHCB_MSR_FEATURES_REQ 0x080
#define GHCB_MSR_FEATURES_RESP 0x081
#define GHCB_MSR_TERMINATE_REQ 0x100
#define GHCB_MSR_TERMINATE(code) (GHCB_MSR_TERMINATE_REQ | SVSM_REASON_SET << 12 | (code) << 16)

#define STAGE2_STACK_SIZE 0x2000
#define STAGE2_VECTORS 32
#define STAGE2_VECTOR_SIZE 16

#ifndef __ASSEMBLER__
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "elf.h"
#include "kernel_launch.h"
#include "launch_info.h"

/* entry.S */
extern char stage1_start[], stages_text_end[], stages_rodata_end[], stages_end[];
extern const char stage2_vectors[];
extern uint64_t stage2_pd[2][512];
extern uint64_t stage2_pt[512];
void stage2_enter_kernel(uint64_t cr3, uint64_t launch, uint64_t entry) __attribute__((noreturn));

/* The registers that an exception leaves on the stack. */
struct stage2_frame {
	uint64_t cr2;
	uint64_t vector;
	uint64_t error_code;
	uint64_t rip;
	uint64_t cs;
	uint64_t rflags;
	uint64_t rsp;
	uint64_t ss;
};

void stage2_main(uint64_t base, const struct launch_info *info, uint64_t cbit_mask) __attribute__((noreturn));
void stage2_exception(const struct stage2_frame *frame) __attribute__((noreturn));

/* ghcb.c */
struct ghcb_agreement {
	uint64_t features; /* the hypervisor's */
	uint32_t version;
};

struct ghcb_agreement ghcb_negotiate(uint32_t cbit);
void ghcb_set_up(uint64_t gpa);
void ghcb_print(const char *text, unsigned int length);
void ghcb_terminate(unsigned int code) __attribute__((noreturn));

/* print.c: one line each, at most LINE_MAX characters; %s, %u (32 bits), %x (32), %lx and %lu (64). */
#define LINE_MAX 160
void print_line(const char *format, ...) __attribute__((format(printf, 1, 2)));
void print_arguments(const char *format, va_list arguments);

/* panic.c: says why, wipes the keys, and ends the machine with a code of SVSM_REASON_*. */
void panic(unsigned int code, const char *format, ...) __attribute__((noreturn, format(printf, 2, 3)));
void panic_wipes(uint64_t secrets);

/* paging.c */
void paging_init(uint64_t cbit_mask);
void paging_map_region(uint64_t base, uint64_t size);
void paging_share_page(uint64_t gpa);
/* Makes the kernel's tables in KERNEL_TABLE_PAGES zeroed pages at `tables`, the first of which is its PML4. */
#define KERNEL_TABLE_PAGES 5
void paging_make_kernel_tables(uint64_t *tables, const struct elf_kernel *kernel, uint64_t gpa, uint64_t virt,
			       uint64_t region, uint64_t region_size);

/* validate.c */
struct page_counts {
	uint64_t launched; /* bytes */
	uint64_t validated; /* bytes */
	uint32_t huge; /* pages of 2 MiB that were validated at once */
	uint32_t small; /* pages of 4 KiB */
};

struct page_counts validate_region(const struct launch_info *info);

/* string.c; the compiler calls them, too */
void *memcpy(void *to, const void *from, size_t n);
void *memset(void *to, int value, size_t n);

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
	return low | (uint64_t)high << 32;
}

static inline void vmgexit(void)
{
	__asm__ volatile("rep; vmmcall" : : : "memory");
}
#endif
#endif
