// SPDX-License-Identifier: MIT
/* Starting, waiting, killing, priorities, affinity, batches, time. */
#include "svsm/svsm.h"

#define MILLISECOND 1000000ul

static const char *self;

static uint64_t now(void)
{
	struct timespec time;

	CHECK(clock_gettime(0, &time) == 0);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void sleep_for(uint64_t nanoseconds)
{
	struct timespec time = { (long)(nanoseconds / 1000000000u), (long)(nanoseconds % 1000000000u) };

	CHECK(nanosleep(&time, NULL) == 0);
}

static int spawn(const char *what, const struct svsm_spawn *how)
{
	const char *arguments[] = { self, what, NULL };
	long child = svsm_spawn(self, arguments, NULL, how);

	CHECK(child > 0);
	return (int)child;
}

static int status_of(int child)
{
	int status = -1;

	CHECK(svsm_wait(child, &status, SVSM_NO_DEADLINE) == child);
	return status;
}

static void waiting(void)
{
	int status = 77, child = spawn("sleep", NULL);

	CHECK(svsm_wait(child, &status, SVSM_POLL) == -ETIMEDOUT && status == 77);
	uint64_t deadline = now() + 2 * MILLISECOND;

	CHECK(svsm_wait(child, &status, deadline) == -ETIMEDOUT);
	CHECK(now() >= deadline && now() < deadline + 100 * MILLISECOND);
	CHECK(svsm_wait(child, (int *)8, SVSM_NO_DEADLINE) == -EFAULT);
	CHECK(svsm_wait(child, NULL, SVSM_NO_DEADLINE) == -ECHILD);
	CHECK(svsm_wait((int)getpid(), NULL, SVSM_NO_DEADLINE) == -ECHILD);
	CHECK(status_of(spawn("exit", NULL)) == 0xab);
	CHECK(status_of(spawn("batch-exit", NULL)) == 0x17);
}

static void killing(void)
{
	for (int round = 0; round < 6; round++) {
		int child = spawn(round & 1 ? "loop" : "sleep", NULL);

		if (round > 1)
			sleep_for(MILLISECOND * (uint64_t)round / 2);
		CHECK(kill(child, 0) == 0);
		CHECK(kill(child, 15) == -EINVAL);
		CHECK(kill(child, SIGKILL) == 0);
		CHECK(status_of(child) == SVSM_STATUS_KILLED);
		CHECK(kill(child, 0) == -ESRCH);
	}
	CHECK(kill((int)getpid(), SIGKILL) == -ESRCH);
	CHECK(kill(1 << 30, SIGKILL) == -ESRCH);
	CHECK(kill(-1, SIGKILL) == -ESRCH);
	/* With its parent a whole family ends. */
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64, .children = 4,
				  .capabilities = SVSM_CAP_SPAWN };
	int child = spawn("family", &how);

	sleep_for(3 * MILLISECOND);
	CHECK(kill(child, SIGKILL) == 0);
	CHECK(status_of(child) == SVSM_STATUS_KILLED);
}

static void priorities(void)
{
	struct svsm_task_info info;
	int child = spawn("loop", NULL);

	CHECK(svsm_set_priority(child, 0) == 0);
	CHECK(svsm_set_priority(child, 1) == -EPERM);
	CHECK(svsm_set_priority(child, 3) == -EINVAL);
	CHECK(svsm_set_priority(child, -1) == -EINVAL);
	CHECK(svsm_set_priority(0, 2) == -EPERM);
	CHECK(svsm_task_info(child, &info) == 0);
	CHECK(info.number == (uint32_t)child && info.priority == 0 && info.pages <= info.page_limit);
	uint8_t cpu0 = 1, nobody = 0;
	uint64_t far[4] = { 0, 0, 0, 1ul << 63 };

	CHECK(svsm_set_affinity(child, &cpu0, 1) == 0);
	CHECK(svsm_set_affinity(child, &nobody, 1) == -EINVAL);
	CHECK(svsm_set_affinity(child, far, sizeof(far)) == -EINVAL);
	CHECK(svsm_set_affinity(child, far, sizeof(far) + 1) == -EINVAL);
	CHECK(svsm_set_affinity(child, far, 0) == -EINVAL);
	CHECK(svsm_set_affinity(0, &cpu0, 1) == 0);
	sched_yield();
	CHECK(svsm_task_info(0, &info) == 0);
	CHECK(info.cpu == 0 && info.state == 1);
	CHECK(kill(child, SIGKILL) == 0);
	CHECK(status_of(child) == SVSM_STATUS_KILLED);
}

static void batches(void)
{
	struct timespec time;
	struct svsm_batch_entry entries[] = {
		{ .number = SVSM_SYS_getpid },
		{ .number = SVSM_SYS_clock_gettime, .arguments = { 0, (uint64_t)&time } },
		{ .number = SVSM_SYS_close, .arguments = { 63 } },
		{ .number = SVSM_SYS_sched_yield, .result = 5 },
		{ .number = 0x123456789 },
	};
	struct svsm_batch_entry nested = { .number = SVSM_SYS_batch, .result = 5 };

	CHECK(svsm_batch(entries, 5, 0) == 5);
	CHECK(entries[0].result == (uint64_t)getpid() && entries[1].result == 0);
	CHECK(entries[2].result == (uint64_t)-EBADF && entries[3].result == 0);
	CHECK(entries[4].result == (uint64_t)-ENOSYS);
	entries[3].result = 5;
	CHECK(svsm_batch(entries, 5, SVSM_BATCH_STOP_AT_ERROR) == 3 && entries[3].result == 5);
	CHECK(svsm_batch(entries, 0, 0) == 0);
	CHECK(svsm_batch(entries, 65, 0) == -EINVAL);
	CHECK(svsm_batch(entries, ~0ul, 0) == -EINVAL);
	CHECK(svsm_batch(entries, 1, 2) == -EINVAL);
	CHECK(svsm_batch(NULL, 1, 0) == -EFAULT);
	CHECK(svsm_batch(&nested, 1, 0) == -EINVAL && nested.result == 5);

	/* Who is killed comes first: that ends before the batch goes on, on the same CPU. */
	int victim = spawn("loop", NULL);
	uint8_t cpu0 = 1;
	struct svsm_batch_entry ends[] = {
		{ .number = SVSM_SYS_set_affinity, .arguments = { 0, (uint64_t)&cpu0, 1 } },
		{ .number = SVSM_SYS_set_affinity, .arguments = { (uint64_t)victim, (uint64_t)&cpu0, 1 } },
		{ .number = SVSM_SYS_sched_yield },
		{ .number = SVSM_SYS_kill, .arguments = { (uint64_t)victim, SIGKILL } },
		{ .number = SVSM_SYS_wait, .arguments = { (uint64_t)victim, 0, SVSM_POLL } },
	};

	CHECK(svsm_batch(ends, 5, SVSM_BATCH_STOP_AT_ERROR) == 5);
	CHECK(ends[4].result == (uint64_t)victim);
}

static void limits(void)
{
	struct svsm_spawn how = { .size = sizeof(how), .pages = 64 };
	const char *arguments[] = { self, "spawn", NULL };

	CHECK(status_of(spawn("no-spawn", NULL)) == 1);
	how.capabilities = SVSM_CAP_PRIORITY;
	CHECK(svsm_spawn(self, arguments, NULL, &how) == -EPERM);
	how.capabilities = 1u << 31;
	CHECK(svsm_spawn(self, arguments, NULL, &how) == -EINVAL);
	how.capabilities = 0;
	how.reserved = 1;
	CHECK(svsm_spawn(self, arguments, NULL, &how) == -EINVAL);
	how.reserved = 0;
	how.pages = 3;
	CHECK(svsm_spawn(self, arguments, NULL, &how) == -ENOMEM);
	CHECK(svsm_spawn("/bin/none", arguments, NULL, NULL) == -ENOENT);
	CHECK(svsm_spawn("/svsm.toml", arguments, NULL, NULL) == -ENOEXEC);
}

static void times(void)
{
	struct timespec bad[] = { { -1, 0 }, { 0, -1 }, { 0, 1000000000 } };
	uint64_t start = now();

	for (size_t i = 0; i < 3; i++)
		CHECK(nanosleep(&bad[i], NULL) == -EINVAL);
	sleep_for(3 * MILLISECOND);
	CHECK(now() - start >= 3 * MILLISECOND && now() - start < 100 * MILLISECOND);
	CHECK(clock_gettime(99, bad) == -EINVAL);
}

static int child(const char *what)
{
	struct svsm_batch_entry end[] = {
		{ .number = SVSM_SYS_exit, .arguments = { 0xf17 } },
		{ .number = SVSM_SYS_exit, .arguments = { 0x18 } },
	};
	const char *arguments[] = { self, "exit", NULL };

	if (strcmp(what, "exit") == 0)
		exit(0x1ab);
	if (strcmp(what, "sleep") == 0)
		sleep_for(20 * MILLISECOND);
	if (strcmp(what, "loop") == 0)
		for (;;)
			__asm__ volatile("");
	if (strcmp(what, "batch-exit") == 0)
		svsm_batch(end, 2, 0);
	if (strcmp(what, "no-spawn") == 0)
		return (int)-svsm_spawn(self, arguments, NULL, NULL);
	if (strcmp(what, "family") == 0) {
		spawn("loop", NULL);
		spawn("sleep", NULL);
		svsm_wait(-1, NULL, SVSM_NO_DEADLINE);
		for (;;)
			sleep_for(100 * MILLISECOND);
	}
	return 0;
}

int main(int argc, char **argv, char **envp)
{
	(void)envp;
	self = argv[0];
	if (argc > 1)
		return child(argv[1]);
	waiting();
	killing();
	priorities();
	batches();
	limits();
	times();
	printf("passed\n");
	return 0;
}
