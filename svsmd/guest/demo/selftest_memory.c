/* SPDX-License-Identifier: MIT */
/* SVSM_CORE_PVALIDATE and the instructions behind it. Spec: AMD 58019; 24594. */
#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "paging.h"
#include "selftest.h"
#include "string.h"
#include "svsm.h"
#include "trap.h"

#define NO_SVSM "no SVSM, or too little memory"
#define HAVE_SVSM (svsm.present && arena_present())
#define PAGE (ARENA_BASE + 0x20000)
#define HUGE (ARENA_BASE + HUGE_PAGE_SIZE)
#define PATTERN 0xa7
#define BEYOND_RAM 0x7ff0000000UL

static struct pvalidate_list list __attribute__((aligned(4096)));

/* A call with the list as it is. */
static uint64_t call_list(void)
{
	return svsm_core(SVSM_CORE_PVALIDATE, (uint64_t)&list, 0, 0);
}

static uint64_t call_one(uint64_t entry)
{
	list.entries = 1;
	list.next = 0;
	list.entry[0] = entry;
	return call_list();
}

SELFTEST(pv_round, "pvalidate.round-trip")
{
	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT_EQ(call_one(PAGE), SVSM_SUCCESS);
	EXPECT_EQ(list.next, 1);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE), SVSM_SUCCESS);
	EXPECT_EQ(list.next, 1);
}

SELFTEST(pv_zeroed, "pvalidate.zeroed-before-granted")
{
	NEED(HAVE_SVSM, NO_SVSM);
	memset((void *)PAGE, PATTERN, PAGE_SIZE);
	EXPECT_EQ(call_one(PAGE), SVSM_SUCCESS);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE), SVSM_SUCCESS);
	EXPECT(memory_is((void *)PAGE, 0, PAGE_SIZE));
}

SELFTEST(pv_unchanged, "pvalidate.no-change")
{
	NEED(HAVE_SVSM, NO_SVSM);
	memset((void *)PAGE, PATTERN, PAGE_SIZE);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE), SVSM_ERR_PVALIDATE_NO_CHANGE);
	EXPECT_EQ(list.next, 0);
	EXPECT(memory_is((void *)PAGE, PATTERN, PAGE_SIZE)); /* and nothing was harmed */
}

SELFTEST(pv_ignore_cf, "pvalidate.ignore-cf")
{
	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE | PVALIDATE_IGNORE_CF), SVSM_SUCCESS);
	EXPECT_EQ(list.next, 1);
	*(volatile uint64_t *)PAGE = 1; /* it is still ours */
}

SELFTEST(pv_bits, "pvalidate.bad-bits")
{
	NEED(HAVE_SVSM, NO_SVSM);
	for (uint64_t bit = 4; bit < 12; bit++) {
		EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE | 1UL << bit), SVSM_ERR_INVALID_PARAMETER);
		EXPECT_EQ(list.next, 0);
	}
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE | 2), SVSM_ERR_INVALID_PARAMETER); /* page sizes 2 and 3 */
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE | 3), SVSM_ERR_INVALID_PARAMETER);
}

SELFTEST(pv_misaligned, "pvalidate.2m.misaligned")
{
	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_2M | PVALIDATE_VALIDATE), SVSM_ERR_INVALID_PARAMETER);
}

SELFTEST(pv_address, "pvalidate.bad-address")
{
	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT_EQ(call_one(svsm.base | PVALIDATE_VALIDATE), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(call_one(svsm.base), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(call_one(BEYOND_RAM), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(call_one(PAGE | c_bit), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(call_one(NONCANONICAL_ADDRESS), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(call_one(this_cpu()->caa_gpa), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(pv_list_address, "pvalidate.list.bad-address")
{
	uint64_t at = (uint64_t)&list;

	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, at + 4, 0, 0), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, svsm.base, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, BEYOND_RAM, 0, 0), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, at | c_bit, 0, 0), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(pv_list_header, "pvalidate.list.bad-header")
{
	NEED(HAVE_SVSM, NO_SVSM);
	list.entry[0] = list.entry[1] = PAGE | PVALIDATE_VALIDATE | PVALIDATE_IGNORE_CF;
	list.entries = 0;
	list.next = 0;
	EXPECT_EQ(call_list(), SVSM_ERR_INVALID_PARAMETER);
	list.entries = 1;
	list.next = 2;
	EXPECT_EQ(call_list(), SVSM_ERR_INVALID_PARAMETER);
	list.entries = 512; /* one more than fits */
	list.next = 0;
	EXPECT_EQ(call_list(), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(list.next, 0);
}

SELFTEST(pv_list_crosses, "pvalidate.list.crosses-page")
{
	/* The header in the last 8 bytes of the page; the entry would lie in the next one. */
	uint16_t *header = (uint16_t *)((uint8_t *)&list + PAGE_SIZE - 8);

	NEED(HAVE_SVSM, NO_SVSM);
	header[0] = 1;
	header[1] = header[2] = header[3] = 0;
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, (uint64_t)header, 0, 0), SVSM_ERR_INVALID_PARAMETER);
}

SELFTEST(pv_list_offset, "pvalidate.list.anywhere-in-page")
{
	uint64_t *at = &list.entry[100];

	NEED(HAVE_SVSM, NO_SVSM);
	at[0] = 1; /* entries = 1, next = 0 */
	at[1] = PAGE | PVALIDATE_VALIDATE | PVALIDATE_IGNORE_CF;
	EXPECT_EQ(svsm_core(SVSM_CORE_PVALIDATE, (uint64_t)at, 0, 0), SVSM_SUCCESS);
	EXPECT_EQ(at[0], 1 | 1 << 16);
}

SELFTEST(pv_progress, "pvalidate.list.partial-progress")
{
	struct pvalidate_list copy;

	NEED(HAVE_SVSM, NO_SVSM);
	list.entries = 3;
	list.next = 0;
	list.entry[0] = PAGE;
	list.entry[1] = (PAGE + PAGE_SIZE) | 0x10; /* bad */
	list.entry[2] = PAGE + 2 * PAGE_SIZE;
	EXPECT_EQ(call_list(), SVSM_ERR_INVALID_PARAMETER);
	copy.next = list.next;
	EXPECT_EQ(call_one(PAGE), SVSM_ERR_PVALIDATE_NO_CHANGE); /* the first is done, */
	EXPECT_EQ(call_one((PAGE + 2 * PAGE_SIZE) | PVALIDATE_VALIDATE), SVSM_ERR_PVALIDATE_NO_CHANGE);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE), SVSM_SUCCESS); /* the third is not */
	EXPECT_EQ(copy.next, 1);
}

SELFTEST(pv_next, "pvalidate.list.starts-at-next")
{
	NEED(HAVE_SVSM, NO_SVSM);
	list.entries = 2;
	list.next = 1;
	list.entry[0] = 0xff0; /* bad, but not asked for */
	list.entry[1] = PAGE;
	EXPECT_EQ(call_list(), SVSM_SUCCESS);
	EXPECT_EQ(list.next, 2);
	EXPECT_EQ(call_one(PAGE | PVALIDATE_VALIDATE), SVSM_SUCCESS);
}

SELFTEST(pv_full, "pvalidate.list.full")
{
	NEED(HAVE_SVSM, NO_SVSM);
	list.entries = 511;
	list.next = 0;
	for (unsigned int i = 0; i < 511; i++)
		list.entry[i] = ARENA_BASE + i * PAGE_SIZE;
	EXPECT_EQ(call_list(), SVSM_SUCCESS);
	EXPECT_EQ(list.next, 511);
	list.next = 0;
	for (unsigned int i = 0; i < 511; i++)
		list.entry[i] |= PVALIDATE_VALIDATE;
	EXPECT_EQ(call_list(), SVSM_SUCCESS);
	EXPECT(memory_is((void *)PAGE, 0, PAGE_SIZE));
}

/* Make the second half of the arena one 2 MiB RMP entry, not validated. */
static bool make_huge(void)
{
	struct {
		uint16_t current, end;
		uint32_t reserved;
		uint64_t entry[2];
	} psc = {
		.end = 1,
		.entry = { HUGE | (uint64_t)PSC_SHARED << PSC_OPERATION_SHIFT | PSC_ENTRY_2M,
			   HUGE | (uint64_t)PSC_PRIVATE << PSC_OPERATION_SHIFT | PSC_ENTRY_2M },
	};
	struct ghcb_exit e = { .code = GHCB_EXIT_PSC, .data = &psc, .data_in = sizeof(psc), .data_out = sizeof(psc) };

	if (call_one(HUGE | PVALIDATE_2M | PVALIDATE_IGNORE_CF) == SVSM_ERR_PVALIDATE_FAIL_SIZEMISMATCH)
		for (uint64_t i = 0; i < 512; i++)
			call_one((HUGE + i * PAGE_SIZE) | PVALIDATE_IGNORE_CF);
	return ghcb_call(&e) == GHCB_OK && !e.info2;
}

SELFTEST(pv_huge, "pvalidate.2m")
{
	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT(make_huge());
	EXPECT_EQ(call_one(HUGE | PVALIDATE_2M | PVALIDATE_VALIDATE), SVSM_SUCCESS);
	EXPECT(memory_is((void *)HUGE, 0, PAGE_SIZE));
	EXPECT(memory_is((void *)(HUGE + HUGE_PAGE_SIZE - PAGE_SIZE), 0, PAGE_SIZE));
	memset((void *)HUGE, PATTERN, HUGE_PAGE_SIZE);
	EXPECT_EQ(call_one(HUGE | PVALIDATE_2M | PVALIDATE_VALIDATE), SVSM_ERR_PVALIDATE_NO_CHANGE);
	EXPECT_EQ(call_one(HUGE | PVALIDATE_2M), SVSM_SUCCESS);
	EXPECT_EQ(call_one(HUGE | PVALIDATE_2M | PVALIDATE_VALIDATE), SVSM_SUCCESS);
	EXPECT(memory_is((void *)(HUGE + 7 * PAGE_SIZE), 0, PAGE_SIZE));
}

SELFTEST(pv_mismatch, "pvalidate.2m.size-mismatch")
{
	uint64_t page = HUGE + 5 * PAGE_SIZE;
	uint64_t failed_at, result;
	bool restored;

	NEED(HAVE_SVSM, NO_SVSM);
	EXPECT(page_make_shared(page)); /* now the RMP must count this range in 4 KiB pages */
	EXPECT(page_make_private(page));
	result = call_one(HUGE | PVALIDATE_2M);
	failed_at = list.next;
	restored = call_one((HUGE + PAGE_SIZE) | PVALIDATE_VALIDATE) == SVSM_ERR_PVALIDATE_NO_CHANGE;
	EXPECT_EQ(result, SVSM_ERR_PVALIDATE_FAIL_SIZEMISMATCH);
	EXPECT_EQ(failed_at, 0);
	EXPECT(restored);
}

static void execute_pvalidate(uint64_t address)
{
	pvalidate(address, 0, true);
}

SELFTEST(insn_pvalidate, "rmp.pvalidate-instruction")
{
	struct fault fault;
	struct pvalidate_result r;

	NEED(arena_present(), "too little memory");
	if (svsm.present) {
		EXPECT(fault_catch(&fault, execute_pvalidate, PAGE));
		EXPECT_EQ(fault.vector, VECTOR_GP);
		EXPECT_EQ(fault.error_code, 0);
		return;
	}
	r = pvalidate(PAGE, 0, true);
	EXPECT_EQ(r.code, RMP_SUCCESS);
	EXPECT(r.unchanged);
	r = pvalidate(PAGE, 0, false);
	EXPECT(!r.unchanged);
	r = pvalidate(PAGE, 0, true);
	EXPECT(!r.unchanged);
}

SELFTEST(insn_rmpadjust, "rmp.rmpadjust-instruction")
{
	NEED(arena_present(), "too little memory");
	if (svsm.vmpl < 3)
		EXPECT_EQ(rmpadjust(PAGE, 0, RMPADJUST_VMPL(svsm.vmpl + 1) | 0x100), RMP_SUCCESS);
	EXPECT_EQ(rmpadjust(PAGE, 0, RMPADJUST_VMPL(svsm.vmpl) | RMPADJUST_RWX), RMP_FAIL_PERMISSION);
	if (svsm.vmpl > 1)
		EXPECT_EQ(rmpadjust(PAGE, 0, RMPADJUST_VMPL(1) | RMPADJUST_RWX), RMP_FAIL_PERMISSION);
}

static void execute_rmpadjust(uint64_t address)
{
	rmpadjust(address, 0, RMPADJUST_VMPL(3));
}

SELFTEST(insn_rmpadjust_pf, "rmp.rmpadjust-instruction.pf")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, execute_rmpadjust, ABSENT_ADDRESS));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.cr2, ABSENT_ADDRESS);
}
