// SPDX-License-Identifier: MIT
/* x87 and SSE registers and FS are a process' own, whoever else computes meanwhile. */
#include "svsm/svsm.h"

#define CHILDREN 4
#define ROUNDS 60
#define SPIN 20000

struct thread_area {
	struct thread_area *self;
	uint64_t tag;
};

static uint64_t tls_tag(void)
{
	uint64_t tag;

	__asm__ volatile("movq %%fs:8, %0" : "=r"(tag));
	return tag;
}

static int compute(uint64_t tag)
{
	struct thread_area area = { &area, tag };
	uint64_t vectors[32], seen[32];
	uint32_t mxcsr = 0x1f80u | (uint32_t)(tag & 3) << 13, mxcsr_seen;
	uint16_t control = (uint16_t)(0x37f | (tag & 3) << 10), control_seen;
	uint64_t x87 = tag * 3, x87_seen, base;

	CHECK(arch_prctl(ARCH_SET_FS, (unsigned long)&area) == 0);
	CHECK(arch_prctl(ARCH_GET_FS, (unsigned long)&base) == 0);
	CHECK(base == (uint64_t)&area);
	for (size_t i = 0; i < 32; i++)
		vectors[i] = tag << 32 | i;
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t spin = SPIN;

		__asm__ volatile(
			"ldmxcsr %[mxcsr]\n fldcw %[control]\n fildq %[x87]\n"
			".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqu 16*\\n(%[in]), %%xmm\\n\n .endr\n"
			"1: decq %[spin]\n jnz 1b\n"
			".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n movdqu %%xmm\\n, 16*\\n(%[out])\n .endr\n"
			"fistpq %[x87_seen]\n fnstcw %[control_seen]\n stmxcsr %[mxcsr_seen]\n"
			: [spin] "+r"(spin), [x87_seen] "=m"(x87_seen), [control_seen] "=m"(control_seen),
			  [mxcsr_seen] "=m"(mxcsr_seen)
			: [mxcsr] "m"(mxcsr), [control] "m"(control), [x87] "m"(x87), [in] "r"(vectors),
			  [out] "r"(seen)
			: "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
			  "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
		CHECK(memcmp(vectors, seen, sizeof(seen)) == 0);
		CHECK(x87 == x87_seen && control == control_seen && mxcsr == mxcsr_seen);
		CHECK(tls_tag() == tag);
		if (round % 7 == 0) {
			sched_yield();
			CHECK(tls_tag() == tag);
		}
	}
	return 0;
}

int main(int argc, char **argv, char **envp)
{
	(void)envp;
	if (argc > 1)
		return compute((uint64_t)argv[1][0]);
	for (char tag = 'a'; tag < 'a' + CHILDREN; tag++) {
		const char name[] = { tag, 0 };
		const char *arguments[] = { argv[0], name, NULL };

		CHECK(svsm_spawn(argv[0], arguments, NULL, NULL) > 0);
	}
	CHECK(compute('z') == 0);
	for (int i = 0; i < CHILDREN; i++) {
		int status = -1;

		CHECK(svsm_wait(-1, &status, SVSM_NO_DEADLINE) > 0);
		CHECK(status == 0);
	}
	/* What is no address of this half is refused. */
	CHECK(arch_prctl(ARCH_SET_FS, 1ul << 47) == -EINVAL);
	CHECK(arch_prctl(ARCH_SET_FS, ~0ul) == -EINVAL);
	CHECK(arch_prctl(0x1001, 0) == -EINVAL); /* ARCH_SET_GS */
	CHECK(tls_tag() == 'z');
	printf("passed\n");
	return 0;
}
