// SPDX-License-Identifier: MIT
/*
 * Memory of a process: maps, unmaps, protects, grows heap and stack, starts children that do the
 * same, and looks at what is in every page.
 */
#include "svsm/svsm.h"

#define PAGE 4096ul
#define SLOTS 24
#define ROUNDS 400
#define HEAP_STEPS 300
#define STACK_DEPTH 200 /* frames of a page: nearly all of the stack's 1 MiB */

struct slot {
	uint64_t *start;
	size_t pages;
	uint64_t tag;
	bool writable;
};

static struct slot slots[SLOTS];
static uint64_t state = 88172645463325252u;

static uint64_t random_number(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static uint64_t *word(const struct slot *slot, size_t page)
{
	return slot->start + page * (PAGE / sizeof(uint64_t)) + page;
}

static void check_slot(const struct slot *slot)
{
	for (size_t page = 0; page < slot->pages; page++)
		CHECK(*word(slot, page) == slot->tag + page);
}

static void fill_slot(struct slot *slot)
{
	slot->tag = random_number();
	for (size_t page = 0; page < slot->pages; page++)
		*word(slot, page) = slot->tag + page;
}

static void map_slot(struct slot *slot)
{
	slot->pages = 1 + random_number() % 8;
	long address = mmap(NULL, slot->pages * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(address > 0);
	slot->start = (uint64_t *)address;
	slot->writable = true;
	for (size_t i = 0; i < slot->pages * PAGE / sizeof(uint64_t); i++)
		CHECK(slot->start[i] == 0);
	fill_slot(slot);
}

/* Nothing of it may be left; a hole in the middle is one too. */
static void unmap_slot(struct slot *slot)
{
	size_t middle = random_number() % slot->pages;

	CHECK(munmap(slot->start + middle * (PAGE / sizeof(uint64_t)), PAGE) == 0);
	CHECK(write(1, slot->start + middle * (PAGE / sizeof(uint64_t)), 1) == -EFAULT);
	for (size_t page = 0; page < slot->pages; page++)
		if (page != middle)
			CHECK(*word(slot, page) == slot->tag + page);
	CHECK(munmap(slot->start, slot->pages * PAGE) == 0);
	slot->start = NULL;
}

static void protect_slot(struct slot *slot)
{
	slot->writable = !slot->writable;
	int prot = slot->writable ? PROT_READ | PROT_WRITE : PROT_READ;

	CHECK(mprotect(slot->start, slot->pages * PAGE, prot) == 0);
	CHECK(mprotect(slot->start, slot->pages * PAGE, PROT_WRITE | PROT_EXEC) == -EINVAL);
	/* The core may not write there either. */
	CHECK(getrandom((char *)slot->start + PAGE - 8, 8, 0) == (slot->writable ? 8 : -EFAULT));
	if (slot->writable)
		fill_slot(slot);
}

static void maps(void)
{
	for (int round = 0; round < ROUNDS; round++) {
		struct slot *slot = &slots[random_number() % SLOTS];

		if (!slot->start) {
			map_slot(slot);
			continue;
		}
		check_slot(slot);
		switch (random_number() % 3) {
		case 0:
			unmap_slot(slot);
			break;
		case 1:
			protect_slot(slot);
			break;
		default:
			if (slot->writable)
				fill_slot(slot);
		}
	}
	for (struct slot *slot = slots; slot < slots + SLOTS; slot++)
		if (slot->start) {
			check_slot(slot);
			unmap_slot(slot);
		}
}

static void heap(void)
{
	unsigned char *start = (unsigned char *)brk(NULL);

	/* More steps than a process may have regions. */
	for (size_t step = 1; step <= HEAP_STEPS; step++) {
		CHECK(brk(start + step * 512) == (long)(start + step * 512));
		start[step * 512 - 1] = (unsigned char)step;
	}
	for (size_t step = 1; step <= HEAP_STEPS; step++)
		CHECK(start[step * 512 - 1] == (unsigned char)step);
	CHECK(brk(start + PAGE) == (long)(start + PAGE));
	CHECK(write(1, start + PAGE, 1) == -EFAULT);
	CHECK(brk(start + 2 * PAGE) == (long)(start + 2 * PAGE));
	CHECK(start[2 * PAGE - 1] == 0);
	CHECK(brk(start) == (long)start);
	CHECK(brk((void *)(1ul << 63)) == (long)start);
}

static unsigned int __attribute__((noinline)) stack(unsigned int depth)
{
	volatile unsigned char page[PAGE];

	page[0] = (unsigned char)depth;
	page[PAGE - 1] = (unsigned char)~depth;
	unsigned int sum = depth ? stack(depth - 1) : 0;

	CHECK(page[0] == (unsigned char)depth && page[PAGE - 1] == (unsigned char)~depth);
	return sum + 1;
}

/* 400 GiB of nothing cost nothing, and end as quickly; pages far apart need tables of their own. */
static void wide(void)
{
	size_t size = 400ul << 30;
	char *start = (char *)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct svsm_task_info before, after;

	CHECK((long)start > 0);
	CHECK(svsm_task_info(0, &before) == 0);
	for (size_t i = 0; i < 8; i++)
		start[i << 35] = (char)i;
	CHECK(svsm_task_info(0, &after) == 0);
	CHECK(after.pages - before.pages >= 3 * 8 - 2);
	CHECK(mprotect(start, size, PROT_READ) == 0);
	for (size_t i = 0; i < 8; i++)
		CHECK(start[i << 35] == (char)i);
	CHECK(munmap(start, size) == 0);
	CHECK(svsm_task_info(0, &after) == 0);
	CHECK(after.pages == before.pages);
}

int main(int argc, char **argv, char **envp)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 512 };
	const char *child[] = { argv[0], "child", NULL };
	struct svsm_task_info info;

	(void)envp;
	if (argc > 1)
		state += (uint64_t)getpid();
	heap();
	maps();
	CHECK(stack(STACK_DEPTH) == STACK_DEPTH + 1);
	wide();
	if (argc > 1)
		return 42;
	for (int i = 0; i < 3; i++)
		CHECK(svsm_spawn(argv[0], child, NULL, &how) > 0);
	maps();
	for (int i = 0; i < 3; i++) {
		int status = 0;

		CHECK(svsm_wait(-1, &status, SVSM_NO_DEADLINE) > 0);
		CHECK(status == 42);
	}
	CHECK(svsm_wait(-1, NULL, SVSM_NO_DEADLINE) == -ECHILD);
	CHECK(svsm_task_info(0, &info) == 0);
	printf("passed\n");
	return 0;
}
