/* SPDX-License-Identifier: MIT */
#include "selftest.h"

#include <stddef.h>

#include "cpu.h"
#include "print.h"
#include "provoke.h"
#include "string.h"

extern const struct selftest selftests_start[], selftests_end[];

void selftest_fail(struct selftest_result *result, const char *why)
{
	result->failed = true;
	result->why = why;
}

void selftest_fail_values(struct selftest_result *result, const char *what, uint64_t got, uint64_t wanted)
{
	selftest_fail(result, what);
	result->has_values = true;
	result->got = got;
	result->wanted = wanted;
}

static void report(const struct selftest *test, const struct selftest_result *result)
{
	if (!result->failed && result->skipped)
		print("ok %s (skipped: %s)\n", test->name, result->skipped);
	else if (!result->failed)
		print("ok %s\n", test->name);
	else if (result->has_values)
		print("FAIL %s: %s is %lx, not %lx\n", test->name, result->why, result->got, result->wanted);
	else
		print("FAIL %s: not so: %s\n", test->name, result->why);
}

static void report_fault(const struct selftest *test, const struct fault *fault)
{
	print("FAIL %s: %s at %lx, error code %lx, CR2 %lx\n", test->name, vector_name(fault->vector), fault->rip,
	      fault->error_code, fault->cr2);
}

/* What a check that nobody expected to fault runs in. */
struct run {
	const struct selftest *test;
	struct selftest_result result;
};

static void run_one(uint64_t argument)
{
	struct run *run = (struct run *)argument;

	run->test->run(&run->result);
}

bool selftest_run(const char *prefix)
{
	unsigned int passed = 0, failed = 0;

	for (const struct selftest *test = selftests_start; test < selftests_end; test++) {
		struct run run = { .test = test };
		struct fault fault;

		if (prefix && memcmp(test->name, prefix, strlen(prefix)))
			continue;
		if (fault_catch(&fault, run_one, (uint64_t)&run)) {
			run.result.failed = true;
			report_fault(test, &fault);
		} else {
			report(test, &run.result);
		}
		provoke_undo();
		if (run.result.failed)
			failed++;
		else
			passed++;
	}
	print("selftest: %u passed, %u failed\n", passed, failed);
	return !failed;
}
