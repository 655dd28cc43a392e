/* SPDX-License-Identifier: MIT */
/* Work of known size for the host to time; the guest itself can only say how many ticks passed. */
#include "bench.h"

#include "cpu.h"
#include "memory.h"
#include "print.h"
#include "sha256.h"
#include "string.h"
#include "svsm.h"

#define ALU_ROUNDS 100000000UL
#define COPY_ROUNDS 64 /* of half the arena each */
#define SVSM_CALLS 2000
#define CPUID_EXITS 10000
#define RDTSC_READS 1000000

void __attribute__((noinline)) bench_alu_loop(unsigned long rounds)
{
	__asm__ volatile("1: decq %0; jnz 1b" : "+r"(rounds) : : "cc");
}

static unsigned long bench_alu(void)
{
	bench_alu_loop(ALU_ROUNDS);
	return 2 * ALU_ROUNDS;
}

static unsigned long bench_sha256(void)
{
	uint8_t digest[SHA256_SIZE];

	sha256((const void *)ARENA_BASE, ARENA_SIZE, digest);
	return ARENA_SIZE;
}

static unsigned long bench_copy(void)
{
	uint64_t *to = (uint64_t *)ARENA_BASE;
	const uint64_t *from = (const uint64_t *)(ARENA_BASE + ARENA_SIZE / 2);

	for (unsigned int round = 0; round < COPY_ROUNDS; round++)
		for (size_t i = 0; i < ARENA_SIZE / 2 / sizeof(*to); i++) {
			to[i] = from[i];
			__asm__ volatile("" : : : "memory"); /* a loop of moves, not memcpy */
		}
	return COPY_ROUNDS * ARENA_SIZE / 2;
}

static unsigned long bench_svsm(void)
{
	if (!svsm.present)
		return 0;
	for (unsigned int i = 0; i < SVSM_CALLS; i++)
		svsm_query(SVSM_CORE, 1);
	return SVSM_CALLS;
}

static unsigned long bench_module(void)
{
	struct svsm_regs regs = { 0 };

	if (!svsm.present || !svsm_query(SVSM_ECHO, 1))
		return 0;
	for (unsigned int i = 0; i < SVSM_CALLS; i++)
		svsm_call(SVSM_ECHO, SVSM_ECHO_ROTATE, &regs);
	return SVSM_CALLS;
}

static unsigned long bench_cpuid(void)
{
	for (unsigned int i = 0; i < CPUID_EXITS; i++)
		cpuid(0, 0);
	return CPUID_EXITS;
}

static unsigned long bench_rdtsc(void)
{
	for (unsigned int i = 0; i < RDTSC_READS; i++)
		rdtsc();
	return RDTSC_READS;
}

static const struct benchmark {
	const char *name;
	const char *unit;
	unsigned long (*run)(void); /* returns how much work it was */
} benchmarks[] = {
	{ "alu", "instructions", bench_alu }, { "sha256", "bytes", bench_sha256 }, { "copy", "bytes", bench_copy },
	{ "svsm", "calls", bench_svsm },      { "module", "calls", bench_module }, { "cpuid", "#VC", bench_cpuid },
	{ "rdtsc", "reads", bench_rdtsc },
};

bool bench(const char *name)
{
	bool found = false;

	if (!arena_present()) {
		print("bench: this machine has too little memory\n");
		return true;
	}
	for (size_t i = 0; i < sizeof(benchmarks) / sizeof(*benchmarks); i++) {
		const struct benchmark *b = &benchmarks[i];
		uint64_t start, ticks;
		unsigned long work;

		if (name && strcmp(name, b->name))
			continue;
		found = true;
		start = rdtsc();
		work = b->run();
		ticks = rdtsc() - start;
		print("bench %s: %lu %s, %lu ticks\n", b->name, work, b->unit, ticks);
	}
	return found;
}
