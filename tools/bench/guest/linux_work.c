/* SPDX-License-Identifier: MIT */
/*
 * Work for a Linux guest that is hard on an emulator: processes, system calls, page faults.
 *
 *     linux_work fork|syscall|fault COUNT
 *
 * Exit code 0: done. 1: the system refused something. 2: usage.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 4096 };

/* A process that ends at once, and is waited for. */
static int do_fork(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	return child < 0 || waitpid(child, NULL, 0) != child;
}

/* The C library does not answer this one by itself. */
static int do_syscall(void)
{
	return syscall(SYS_getppid) < 0;
}

/* One page more of fresh memory; it goes back when all of it was touched. */
static int do_fault(void)
{
	static char *memory;
	static int next;

	if (next == 0) {
		memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		/* Huge pages would make one fault of many; a kernel without them refuses this. */
		if (memory == MAP_FAILED)
			return 1;
		madvise(memory, (size_t)PAGES * PAGE, MADV_NOHUGEPAGE);
	}
	memory[(size_t)next++ * PAGE] = 1;
	if (next < PAGES)
		return 0;
	next = 0;
	return munmap(memory, (size_t)PAGES * PAGE);
}

int main(int argc, char **argv)
{
	int (*work)(void) = NULL;
	long count;

	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "fork"))
		work = do_fork;
	else if (!strcmp(argv[1], "syscall"))
		work = do_syscall;
	else if (!strcmp(argv[1], "fault"))
		work = do_fault;
	count = atol(argv[2]);
	if (!work || count <= 0)
		return 2;
	while (count-- > 0) {
		if (work())
			return 1;
	}
	return 0;
}
