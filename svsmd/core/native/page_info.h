/* SPDX-License-Identifier: MIT */
/*
 * The SVSM's bookkeeping of its own memory, as it lies there: for whoever looks at it in a debugger.
 *
 * `struct svsm_page_allocator` is followed by one page for each MiB of the region, with 256 entries
 * of `struct svsm_page_info`. svsmd/core/memory/page_info.py and slab.py are the same in Python, and
 * tests/unit/test_page_info.py compares them.
 */
#ifndef SVSMD_PAGE_INFO_H
#define SVSMD_PAGE_INFO_H

#include <stddef.h>
#include <stdint.h>

#define SVSM_PAGE_ORDERS 9
#define SVSM_PAGE_KINDS 32
#define SVSM_NO_FRAME 0xffffffffu

enum svsm_page_kind {
	SVSM_PAGE_ABSENT, /* no memory of the SVSM */
	SVSM_PAGE_FREE,
	SVSM_PAGE_DEPOSITED, /* free, and the guest may take it back */
	SVSM_PAGE_RESERVED, /* not the allocator's: the image, the launch pages */
	SVSM_PAGE_PAGE_INFO,
	SVSM_PAGE_ANONYMOUS,
	SVSM_PAGE_PAGE_TABLE,
	SVSM_PAGE_PER_CPU,
	SVSM_PAGE_VMSA,
	SVSM_PAGE_GHCB,
	SVSM_PAGE_SHARED, /* with the host */
	SVSM_PAGE_SLAB,
	SVSM_PAGE_VALIDATION,
	SVSM_PAGE_PROCESS,
	SVSM_PAGE_FILE,
};

#define SVSM_PAGE_TAIL 1 /* flags: not the first page of its block */
#define SVSM_PAGE_POISONED 2 /* flags: filled with 0xcc since it was freed */

struct svsm_page_info {
	uint8_t kind; /* enum svsm_page_kind */
	uint8_t order; /* of the block: 2^order pages */
	uint16_t flags;
	uint32_t references; /* of an allocated block, in its first page */
	uint32_t next; /* frame numbers: list of free blocks of this order */
	uint32_t prev;
};

struct svsm_page_allocator {
	uint64_t magic; /* "SVSMPAGE" */
	uint64_t region_base; /* GPA */
	uint32_t region_pages;
	uint32_t deposited_pages; /* by the guest */
	uint32_t promised_pages; /* free ones that are kept for the validation bitmap */
	uint32_t failures;
	uint32_t heads[2][SVSM_PAGE_ORDERS]; /* frames; first index: 0 region, 1 deposits */
	uint32_t blocks[2][SVSM_PAGE_ORDERS]; /* free blocks */
	uint32_t pages_of_kind[SVSM_PAGE_KINDS];
};

#define SVSM_SLAB_MAGIC 0x42414c53 /* "SLAB" */

/* At the beginning of a page; the objects follow. */
struct svsm_slab {
	uint32_t magic;
	uint16_t object_size;
	uint16_t capacity;
	uint8_t used[32]; /* one bit for each object */
	uint8_t reserved[24];
};

_Static_assert(sizeof(struct svsm_page_info) == 16, "size of a page's entry");
_Static_assert(offsetof(struct svsm_page_allocator, heads) == 32, "offset of heads");
_Static_assert(offsetof(struct svsm_page_allocator, blocks) == 104, "offset of blocks");
_Static_assert(offsetof(struct svsm_page_allocator, pages_of_kind) == 176, "offset of the kinds");
_Static_assert(sizeof(struct svsm_slab) == 64, "size of a slab's header");

#endif
