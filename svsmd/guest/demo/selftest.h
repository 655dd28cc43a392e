/* SPDX-License-Identifier: MIT */
/*
 * Checks of the machine, seen from inside. Each is a function in one of selftest_*.c:
 *
 *	SELFTEST(pf_write, "fault.pf.write")
 *	{
 *		EXPECT_EQ(error_code, PF_WRITE);
 *	}
 *
 * The first expectation that does not hold ends its check. They run in the order of the link.
 */
#ifndef DEMO_SELFTEST_H
#define DEMO_SELFTEST_H

#include <stdbool.h>
#include <stdint.h>

struct selftest_result {
	bool failed;
	bool has_values;
	const char *why;
	uint64_t got, wanted;
	const char *skipped; /* why there was nothing to check on this machine */
};

struct selftest {
	const char *name;
	void (*run)(struct selftest_result *result);
};

/* GCC would rather lay the entries out backwards; Clang keeps their order by itself. */
#if __has_attribute(no_reorder)
#define IN_ORDER no_reorder
#else
#define IN_ORDER
#endif

#define SELFTEST(identifier, title)                                                                     \
	static void identifier(struct selftest_result *check);                                          \
	static const struct selftest identifier##_entry                                                 \
		__attribute__((section("selftests"), used, aligned(16), IN_ORDER)) = { title, identifier }; \
	static void identifier(struct selftest_result *check)

#define EXPECT(condition)                                                                               \
	do {                                                                                            \
		if (!(condition)) {                                                                     \
			selftest_fail(check, #condition);                                               \
			return;                                                                         \
		}                                                                                       \
	} while (0)

#define EXPECT_EQ(got, wanted)                                                                          \
	do {                                                                                            \
		uint64_t got_value = (uint64_t)(got), wanted_value = (uint64_t)(wanted);                \
		if (got_value != wanted_value) {                                                        \
			selftest_fail_values(check, #got, got_value, wanted_value);                     \
			return;                                                                         \
		}                                                                                       \
	} while (0)

#define NEED(condition, why)                                                                            \
	do {                                                                                            \
		if (!(condition)) {                                                                     \
			check->skipped = why;                                                           \
			return;                                                                         \
		}                                                                                       \
	} while (0)

void selftest_fail(struct selftest_result *result, const char *why);
void selftest_fail_values(struct selftest_result *result, const char *what, uint64_t got, uint64_t wanted);

/* Runs the checks whose names start with `prefix` (null: all), a line each. True if none failed. */
bool selftest_run(const char *prefix);

#endif
