/* SPDX-License-Identifier: MIT */
/*
 * Stage 2: from 64-bit mode on one vCPU, with a tenth of its memory valid, to the SVSM kernel.
 *
 * In this order: check what the launcher says of the region; agree with the hypervisor and share a GHCB
 * page with it, so that there is a log; validate the rest of the region; load the kernel and make its page
 * tables; leave it a kernel_launch structure, and jump.
 *
 * Whatever is not as it has to be is the end: panic() says why and terminates with a code of ours.
 */
#include "descriptors.h"
#include "stages.h"

#define KIB 1024

static struct idt_gate idt[STAGE2_VECTORS] __attribute__((aligned(16)));

/* Pages that stage 2 gives out, ascending and for good. */
struct heap {
	uint64_t next;
	uint64_t end;
};

static void load_idt(void)
{
	struct table_register idtr = { sizeof(idt) - 1, (uint64_t)idt };

	for (unsigned int vector = 0; vector < STAGE2_VECTORS; vector++) {
		uint64_t entry = (uint64_t)stage2_vectors + vector * STAGE2_VECTOR_SIZE;

		idt[vector] = interrupt_gate(entry, STAGE_CS64, 0);
	}
	__asm__ volatile("lidt %0" : : "m"(idtr));
}

/* `bytes` of whole pages, zeroed. */
static void *allocate(struct heap *heap, uint64_t bytes)
{
	uint64_t gpa = heap->next;

	bytes = (bytes + PAGE_SIZE - 1) & -(uint64_t)PAGE_SIZE;
	if (bytes > heap->end - heap->next)
		panic(SVSM_REASON_STAGE2, "panic: stage 2: the region has no %lu KiB left", bytes / KIB);
	heap->next += bytes;
	return memset((void *)gpa, 0, bytes);
}

/* A run of pages that lies in the region and begins with a page, or nothing at all. */
static bool in_region(const struct launch_info *info, uint64_t gpa, uint64_t size)
{
	return gpa % PAGE_SIZE == 0 && gpa >= info->svsm_base && gpa - info->svsm_base <= info->svsm_size &&
	       size <= info->svsm_size - (gpa - info->svsm_base);
}

/* What stage 2 itself goes by; the core checks the rest, and this again. There is no log yet. */
static bool is_plausible(const struct launch_info *info, uint64_t base)
{
	if (info->size != sizeof(*info) || info->svsm_base != base || base % HUGE_PAGE_SIZE ||
	    info->svsm_size % HUGE_PAGE_SIZE || !info->svsm_size || info->svsm_size > 1UL << 30 ||
	    info->validated_count > LAUNCH_INFO_MAX_VALIDATED)
		return false;
	for (uint32_t i = 0; i < info->validated_count; i++)
		if (info->validated[i].flags & LAUNCH_RANGE_SVSM &&
		    !in_region(info, info->validated[i].gpa, (uint64_t)info->validated[i].npages * PAGE_SIZE))
			return false;
	return info->svsm_ghcb == base + SVSM_GHCB_OFFSET && info->svsm_secrets == base + SVSM_SECRETS_OFFSET &&
	       info->svsm_archive == base + SVSM_ARCHIVE_OFFSET && info->svsm_kernel >= base + (uint64_t)(stages_end - stage1_start) &&
	       in_region(info, info->svsm_kernel, info->svsm_kernel_size) &&
	       in_region(info, info->svsm_archive, info->svsm_archive_size) &&
	       in_region(info, info->svsm_core_digest, PAGE_SIZE);
}

static struct kernel_range pages(uint64_t base, uint64_t end)
{
	return (struct kernel_range){ base, end - base };
}

void stage2_main(uint64_t base, const struct launch_info *info, uint64_t cbit_mask)
{
	struct ghcb_agreement agreement;
	struct page_counts counts;
	struct elf_kernel kernel;
	struct kernel_launch *launch;
	struct heap heap;
	uint64_t *tables;
	void *memory;
	const char *wrong;

	load_idt();
	paging_init(cbit_mask);
	if (!is_plausible(info, base))
		ghcb_terminate(SVSM_REASON_LAUNCH);
	panic_wipes(info->svsm_secrets);
	agreement = ghcb_negotiate(info->cbit);
	ghcb_set_up(info->svsm_ghcb);
	print_line("stage 1: started at %lx, C-bit %u, SEV status %lx", base, info->cbit, rdmsr(MSR_SEV_STATUS));
	print_line("stage 2: long mode, GHCB protocol %u, hypervisor features %lx", agreement.version,
		   agreement.features);

	paging_map_region(base, info->svsm_size);
	counts = validate_region(info);
	print_line("stage 2: region %lx..%lx: %lu KiB launched, %lu KiB validated in %u pages of 2 MiB and %u of 4 KiB",
		   base, base + info->svsm_size - 1, counts.launched / KIB, counts.validated / KIB, counts.huge,
		   counts.small);

	heap.next = (info->svsm_archive + info->svsm_archive_size + PAGE_SIZE - 1) & -(uint64_t)PAGE_SIZE;
	heap.end = base + info->svsm_size;
	launch = allocate(&heap, PAGE_SIZE);
	wrong = elf_check((const void *)info->svsm_kernel, info->svsm_kernel_size, &kernel);
	if (wrong)
		panic(SVSM_REASON_STAGE2, "panic: stage 2: the kernel's file has %s", wrong);
	tables = allocate(&heap, KERNEL_TABLE_PAGES * PAGE_SIZE);
	memory = allocate(&heap, kernel.size);
	wrong = elf_load((const void *)info->svsm_kernel, &kernel, memory, SVSM_IMAGE_VIRT);
	if (wrong)
		panic(SVSM_REASON_STAGE2, "panic: stage 2: the kernel's file has %s", wrong);
	paging_make_kernel_tables(tables, &kernel, (uint64_t)memory, SVSM_IMAGE_VIRT, base, info->svsm_size);
	print_line("stage 2: kernel of %lu KiB at %lx, mapped at %lx, %lu relocations, %u segments", kernel.size / KIB,
		   (uint64_t)memory, (uint64_t)SVSM_IMAGE_VIRT, kernel.relocation_count, kernel.segment_count);

	*launch = (struct kernel_launch){
		.magic = { 'S', 'V', 'S', 'M', 'D', 'K', 'L', '1' },
		.version = KERNEL_LAUNCH_VERSION,
		.size = sizeof(*launch),
		.cbit = info->cbit,
		.ghcb_version = agreement.version,
		.hv_features = agreement.features,
		.launch_info = (uint64_t)info,
		.ghcb = info->svsm_ghcb,
		.page_table = (uint64_t)tables,
		.kernel_virt = SVSM_IMAGE_VIRT,
		.kernel_entry = SVSM_IMAGE_VIRT + kernel.entry,
		.region = { base, info->svsm_size },
		.stages = pages(base, (uint64_t)stages_end),
		.kernel_file = { info->svsm_kernel, info->svsm_kernel_size },
		.symbols = { info->svsm_kernel + kernel.symbols, kernel.symbols_size },
		.strings = { info->svsm_kernel + kernel.strings, kernel.strings_size },
		.archive = { info->svsm_archive, info->svsm_archive_size },
		.heap = pages((uint64_t)launch, heap.next),
		.page_tables = { (uint64_t)tables, KERNEL_TABLE_PAGES * PAGE_SIZE },
		.kernel = { (uint64_t)memory, kernel.size },
		.core_digest = info->svsm_core_digest,
		.launched = counts.launched,
		.validated = counts.validated,
	};
	print_line("stage 2: memory: stages %lu KiB, kernel file %lu KiB, archive %lu KiB, kernel and tables %lu KiB, "
		   "free behind them %lu KiB",
		   launch->stages.size / KIB, (launch->kernel_file.size + KIB - 1) / KIB, launch->archive.size / KIB,
		   launch->heap.size / KIB, (heap.end - heap.next) / KIB);
	stage2_enter_kernel((uint64_t)tables | cbit_mask, SVSM_PRIVATE_MAP + (uint64_t)launch, launch->kernel_entry);
}
