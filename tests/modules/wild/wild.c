// SPDX-License-Identifier: MIT
/*
 * Pointers and numbers that mean nothing, in every argument of every system call: each call in a
 * process of its own. What is no memory of the caller's is refused with EFAULT; a caller is never
 * harmed but by taking its own memory away.
 */
#include "svsm/svsm.h"
#include "svsm/table.h"

#define PAGE 4096ul
#define COUNT(array) (sizeof(array) / sizeof(*(array)))
#define TIMEOUT 2000000000ul /* of one process, in ns */
#define RANDOM_NUMBERS 3000

struct call {
	const char *name;
	uint64_t number;
	const char *arguments;
};

#define X(name, number, arguments) { #name, number, arguments },
static const struct call calls[] = { SVSM_SYSTEM_CALLS(X) };

static const char read_only[16] = "\xff\xff\xff\xff\xff\xff\xff\xff"; /* as a time: -1 s */
static uint64_t unreadable[] = {
	0, 8, 0xffff, /* null, and what may be near it */
	0x100000, 0x200000, 0x3c00000, /* memory of the guest and the SVSM, by its GPA */
	0x10000000, 0x7fffff0000, 0x8000000000, /* nothing; behind this half's end; the next entry */
	0x7fffffffff8, 0x00007fffffffffff, 0x0000800000000000, 0x8000000000000000,
	0xffff7fffffffffff, 0xffff800000000000, 0xffff800003c00000, /* the SVSM's memory */
	0xffffff0000000000, 0xffffff0000005f00, /* the area of this CPU, its stack */
	0xffffffff80000000, 0xffffffffffffff00, ~7ul, ~0ul, /* the image; addresses that wrap around */
	0, 0, /* filled in: a page that allows nothing, the end of a page */
};
static const uint64_t numbers[] = { 0, 1, 8, 64, PAGE, 1ul << 32, 1ul << 63, ~0ul };
static uint8_t scratch[512] __attribute__((aligned(16)));

static void make_pages(void)
{
	long none = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	long two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(none > 0 && two > 0);
	memset((void *)two, 'a', PAGE);
	CHECK(munmap((char *)two + PAGE, PAGE) == 0);
	unreadable[COUNT(unreadable) - 2] = (uint64_t)none;
	unreadable[COUNT(unreadable) - 1] = (uint64_t)two + PAGE - 3;
}

static long call_with(const struct call *call, const uint64_t *a)
{
	return svsm_syscall6((long)call->number, (long)a[0], (long)a[1], (long)a[2], (long)a[3],
			     (long)a[4], (long)a[5]);
}

/* The argument at `position` is wild, the other pointers are good, all numbers are `number`. */
static void try(const struct call *call, size_t position, uint64_t wild, uint64_t number)
{
	uint64_t arguments[6] = { 0 };

	memset(scratch, 0, sizeof(scratch));
	for (size_t i = 0; i < strlen(call->arguments); i++)
		arguments[i] = i == position ? wild : call->arguments[i] == 'p' ? (uint64_t)scratch : number;
	if (call_with(call, arguments) == (long)0x8000000000000000)
		exit(98); /* no call has such a result */
}

static int fuzz(const struct call *call)
{
	make_pages();
	if (call->number == SVSM_SYS_exit || call->number == SVSM_SYS_exit_group)
		return 0;
	for (size_t position = 0; position <= strlen(call->arguments); position++)
		for (size_t n = 0; n < COUNT(numbers); n++) {
			for (size_t w = 0; w < COUNT(unreadable); w++)
				try(call, position, unreadable[w], numbers[n]);
			try(call, position, (uint64_t)read_only, numbers[n]);
			try(call, position, 1ul << (7 * n), numbers[n]);
		}
	return 0;
}

static long read_at(int file, void *buffer)
{
	CHECK(lseek(file, 0, 0) == 0);
	return read(file, buffer, 16);
}

/* Calls that write to a wild pointer. */
static void cannot_write(void *wild, int file)
{
	struct timespec nothing = { 0, 0 };

	CHECK(read_at(file, wild) == -EFAULT);
	CHECK(clock_gettime(0, wild) == -EFAULT);
	CHECK(getrandom(wild, 16, 0) == -EFAULT);
	CHECK(svsm_task_info(0, wild) == -EFAULT);
	CHECK(arch_prctl(ARCH_GET_FS, (unsigned long)wild) == -EFAULT);
	CHECK(nanosleep(&nothing, wild) == 0); /* there is never a rest */
}

/* Calls that read from there. */
static void cannot_read(const char *self, void *wild)
{
	const struct iovec pieces[] = { { scratch, 1 }, { wild, 16 } };
	const char *const strings[] = { self, wild, NULL };
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64 };

	CHECK(write(1, wild, 16) == -EFAULT);
	CHECK(writev(1, wild, 1) == -EFAULT);
	CHECK(writev(1, pieces, 2) == -EFAULT);
	CHECK(open(wild, 0, 0) == -EFAULT);
	CHECK(openat(AT_FDCWD, wild, 0, 0) == -EFAULT);
	CHECK(nanosleep(wild, NULL) == -EFAULT);
	CHECK(svsm_set_affinity(0, wild, 8) == -EFAULT);
	CHECK(svsm_batch(wild, 1, 0) == -EFAULT);
	CHECK(svsm_spawn(wild, NULL, NULL, NULL) == -EFAULT);
	if (!wild)
		return;
	CHECK(svsm_spawn(self, wild, NULL, &how) == -EFAULT);
	CHECK(svsm_spawn(self, strings, NULL, &how) == -EFAULT);
	CHECK(svsm_spawn(self, NULL, wild, &how) == -EFAULT);
	CHECK(svsm_spawn(self, NULL, NULL, wild) == -EFAULT);
}

static int faults(const char *self)
{
	int file = (int)open("/svsm.toml", O_RDONLY, 0);

	CHECK(file > 2);
	make_pages();
	for (size_t w = 0; w < COUNT(unreadable); w++) {
		cannot_write((void *)unreadable[w], file);
		cannot_read(self, (void *)unreadable[w]);
	}
	cannot_write((void *)read_only, file);
	CHECK(read_at(file, scratch) == 16 && memcmp(scratch, "[[program]]", 11) == 0);
	return 0;
}

static int random_numbers(void)
{
	uint64_t state = 88172645463325252u;

	for (int i = 0; i < RANDOM_NUMBERS; i++) {
		state ^= state << 13;
		state ^= state >> 7;
		state ^= state << 17;
		uint64_t number = i & 1 ? state : (state & 7) << 32 | (state >> 8 & 0x3ff);
		bool known = false;

		for (size_t c = 0; c < COUNT(calls); c++)
			known |= calls[c].number == number;
		if (!known)
			CHECK(svsm_syscall6((long)number, -1, -1, -1, -1, -1, -1) == -ENOSYS);
	}
	return 0;
}

/* How a process ends that gets these arguments. */
static int status_of(const char *self, const char *what, const char *which)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 128, .children = 2,
				  .capabilities = SVSM_CAP_SPAWN };
	const char *arguments[] = { self, what, which, NULL };
	struct timespec now;
	int status = -1;
	long child = svsm_spawn(self, arguments, NULL, &how);

	CHECK(child > 0);
	CHECK(clock_gettime(0, &now) == 0);
	unsigned long deadline = (unsigned long)now.tv_sec * 1000000000u + (unsigned long)now.tv_nsec;

	if (svsm_wait((int)child, &status, deadline + TIMEOUT) == child)
		return status;
	CHECK(kill((int)child, SIGKILL) == 0);
	CHECK(svsm_wait((int)child, &status, SVSM_NO_DEADLINE) == child);
	return status;
}

static bool is_expected(const struct call *call, int status)
{
	if (status == 0)
		return true;
	/* They can take their own program away; and who waits for nobody waits long. */
	if (call->number == SVSM_SYS_munmap || call->number == SVSM_SYS_mprotect)
		return status == SVSM_STATUS_EXCEPTION + 14;
	return status == SVSM_STATUS_KILLED && call->number >> 32 > 1;
}

int main(int argc, char **argv, char **envp)
{
	(void)envp;
	if (argc == 3 && strcmp(argv[1], "fuzz") == 0)
		return fuzz(&calls[(unsigned char)argv[2][0] - 1]);
	if (argc == 3)
		return strcmp(argv[1], "faults") == 0 ? faults(argv[0]) : random_numbers();
	for (size_t c = 0; c < COUNT(calls); c++) {
		const char which[] = { (char)(c + 1), 0 };
		int status = status_of(argv[0], "fuzz", which);

		if (!is_expected(&calls[c], status))
			printf("%s: status 0x%x\n", calls[c].name, (unsigned int)status);
	}
	CHECK(status_of(argv[0], "faults", "") == 0);
	CHECK(status_of(argv[0], "random", "") == 0);
	printf("passed\n");
	return 0;
}
