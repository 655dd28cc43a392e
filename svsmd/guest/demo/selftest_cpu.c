/* SPDX-License-Identifier: MIT */
/* Instructions that the machine emulates, registers, time, self-modifying code. */
#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "paging.h"
#include "selftest.h"
#include "sha256.h"
#include "simd.h"
#include "string.h"
#include "svsm.h"
#include "trap.h"
#include "uart.h"
#include "vc.h"

#define CPUID_1_ECX_RDRAND (1 << 30)
#define CPUID_80000001_EDX_RDTSCP (1 << 27)
#define SCRATCH_PORT (UART_PORT + UART_SCRATCH)
#define MSR_UNKNOWN 0xc0011fff
#define SMC_SLOT 0 /* slots of the paging window */
#define SMC_WRITE_SLOT 1

SELFTEST(cpu_mode, "cpu.mode")
{
	uint64_t status = rdmsr(MSR_SEV_STATUS);

	EXPECT_EQ(status & 7, 7); /* SEV, SEV-ES, SNP */
	EXPECT_EQ(rdmsr(MSR_EFER) & (EFER_LME | EFER_LMA | EFER_NXE), EFER_LME | EFER_LMA | EFER_NXE);
	EXPECT_EQ(read_cr3() & c_bit, c_bit);
}

SELFTEST(cpuid_vc, "cpu.cpuid")
{
	unsigned long before = vc_count;
	struct cpuid_regs r = cpuid(0, 0), page;

	EXPECT_EQ(vc_count - before, 1);
	EXPECT(boot_cpuid(0, 0, &page));
	EXPECT_EQ(r.eax, page.eax);
	EXPECT_EQ(r.ebx, 0x68747541); /* 'Auth'enticAMD */
	r = cpuid(0x8000001f, 0);
	EXPECT_EQ(1UL << (r.ebx & 0x3f), c_bit);
	EXPECT_EQ(r.eax & 0x1a, 0x1a); /* SEV, SEV-ES, SNP */
}

SELFTEST(cpuid_absent, "cpu.cpuid.absent-leaf")
{
	struct cpuid_regs r = cpuid(0x5fffffff, 0);

	EXPECT_EQ(r.eax | r.ebx | r.ecx | r.edx, 0);
}

SELFTEST(rdtsc_monotonic, "cpu.rdtsc")
{
	uint64_t before = rdtsc();

	for (unsigned int i = 0; i < 1000; i++) {
		uint64_t now = rdtsc();

		EXPECT(now > before);
		before = now;
	}
}

SELFTEST(rdtscp, "cpu.rdtscp")
{
	uint32_t low, high, aux;
	uint64_t before = rdtsc();

	NEED(cpuid(0x80000001, 0).edx & CPUID_80000001_EDX_RDTSCP, "no RDTSCP");
	wrmsr(MSR_TSC_AUX, 0x1234);
	__asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
	EXPECT_EQ(aux, 0x1234);
	EXPECT(((uint64_t)high << 32 | low) > before);
}

SELFTEST(rdrand, "cpu.rdrand")
{
	uint64_t values[8] = { 0 };
	unsigned int equal = 0;

	NEED(cpuid(1, 0).ecx & CPUID_1_ECX_RDRAND, "no RDRAND");
	for (unsigned int i = 0; i < 8; i++) {
		bool carry;

		__asm__ volatile("rdrand %0" : "=r"(values[i]), "=@ccc"(carry));
		EXPECT(carry);
		for (unsigned int j = 0; j < i; j++)
			equal += values[i] == values[j];
	}
	EXPECT_EQ(equal, 0);
}

static void read_unknown_msr(uint64_t unused)
{
	(void)unused;
	rdmsr(MSR_UNKNOWN);
}

static void write_unknown_msr(uint64_t unused)
{
	(void)unused;
	wrmsr(MSR_UNKNOWN, 0);
}

SELFTEST(msr_unknown, "cpu.msr.unknown")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, read_unknown_msr, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT_EQ(fault.error_code, 0);
	EXPECT(fault_catch(&fault, write_unknown_msr, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
}

SELFTEST(msr_native, "cpu.msr.native")
{
	unsigned long before = vc_count;
	uint64_t saved = rdmsr(MSR_KERNEL_GS_BASE);

	wrmsr(MSR_KERNEL_GS_BASE, 0x123456789000);
	EXPECT_EQ(rdmsr(MSR_KERNEL_GS_BASE), 0x123456789000);
	wrmsr(MSR_KERNEL_GS_BASE, saved);
	EXPECT_EQ(vc_count, before);
}

SELFTEST(swapgs, "cpu.swapgs")
{
	uint64_t flags = irq_save();
	uint64_t gs = rdmsr(MSR_GS_BASE), saved = rdmsr(MSR_KERNEL_GS_BASE), swapped, other;

	wrmsr(MSR_KERNEL_GS_BASE, 0x5000);
	__asm__ volatile("swapgs");
	swapped = rdmsr(MSR_GS_BASE);
	other = rdmsr(MSR_KERNEL_GS_BASE);
	__asm__ volatile("swapgs");
	wrmsr(MSR_KERNEL_GS_BASE, saved);
	irq_restore(flags);
	EXPECT_EQ(swapped, 0x5000);
	EXPECT_EQ(other, gs);
	EXPECT_EQ((uint64_t)this_cpu(), gs);
}

SELFTEST(dr7, "cpu.dr7")
{
	unsigned long before = vc_count;
	uint64_t value;

	__asm__ volatile("movq %0, %%dr7" : : "r"(DR7_DEFAULT | 0x100UL));
	__asm__ volatile("movq %%dr7, %0" : "=r"(value));
	__asm__ volatile("movq %0, %%dr7" : : "r"((uint64_t)DR7_DEFAULT));
	EXPECT_EQ(value, DR7_DEFAULT | 0x100);
	EXPECT_EQ(vc_count - before, 3);
}

SELFTEST(wbinvd, "cpu.wbinvd")
{
	unsigned long before = vc_count;

	__asm__ volatile("wbinvd" : : : "memory");
	EXPECT_EQ(vc_count - before, 1);
}

SELFTEST(io_byte, "io.byte")
{
	unsigned long before = vc_count;

	outb(SCRATCH_PORT, 0x5a);
	EXPECT_EQ(inb(SCRATCH_PORT), 0x5a);
	outb(SCRATCH_PORT, 0xa5);
	EXPECT_EQ(inb(SCRATCH_PORT), 0xa5);
	EXPECT_EQ(vc_count - before, 4);
}

SELFTEST(io_register, "io.rax-upper-bits")
{
	uint64_t rax = 0x1122334455667788;

	outb(SCRATCH_PORT, 0x99);
	__asm__ volatile("inb %1, %b0" : "+a"(rax) : "d"((uint16_t)SCRATCH_PORT));
	EXPECT_EQ(rax, 0x1122334455667799);
}

SELFTEST(io_absent, "io.absent-port")
{
	uint32_t value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "d"((uint16_t)0x5658));
	EXPECT_EQ(value, 0xffffffff);
}

SELFTEST(io_outs, "io.outs")
{
	static const char text[] = "abcd";
	const char *from = text;
	uint64_t count = 4;

	__asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"((uint16_t)SCRATCH_PORT) : "memory");
	EXPECT_EQ(count, 0);
	EXPECT_EQ((uint64_t)from, (uint64_t)text + 4);
	EXPECT_EQ(inb(SCRATCH_PORT), 'd');
}

SELFTEST(io_ins, "io.ins")
{
	char text[6] = "......", *to = text + 1;
	uint64_t count = 4;

	outb(SCRATCH_PORT, 'x');
	__asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"((uint16_t)SCRATCH_PORT) : "memory");
	EXPECT_EQ(count, 0);
	EXPECT_EQ((uint64_t)to, (uint64_t)text + 5);
	EXPECT(!memcmp(text, ".xxxx.", 6));
}

SELFTEST(io_ins_once, "io.ins-without-rep")
{
	char text[2] = "..", *to = text;

	outb(SCRATCH_PORT, 'y');
	__asm__ volatile("insb" : "+D"(to) : "d"((uint16_t)SCRATCH_PORT) : "memory");
	EXPECT_EQ((uint64_t)to, (uint64_t)text + 1);
	EXPECT(!memcmp(text, "y.", 2));
}

SELFTEST(io_ins_zero, "io.ins-of-nothing")
{
	char text[1] = ".", *to = text;
	uint64_t count = 0;

	__asm__ volatile("rep insb" : "+D"(to), "+c"(count) : "d"((uint16_t)SCRATCH_PORT) : "memory");
	EXPECT_EQ((uint64_t)to, (uint64_t)text);
	EXPECT_EQ(text[0], '.');
}

SELFTEST(simd_exits, "cpu.simd.across-exits")
{
	static uint8_t before[SIMD_SIZE], after[SIMD_SIZE];

	for (unsigned int i = 0; i < SIMD_SIZE; i++)
		before[i] = (uint8_t)(i * 7 + 1);
	simd_load(before);
	cpuid(0, 0);
	outb(SCRATCH_PORT, 0);
	ghcb_msr(GHCB_MSR_SEV_INFO_REQ);
	if (svsm.present)
		svsm_query(SVSM_CORE, 1);
	simd_store(after);
	EXPECT(!memcmp(before, after, SIMD_SIZE));
}

SELFTEST(sha256_vector, "cpu.sha256")
{
	static const uint8_t wanted[SHA256_SIZE] = {
		0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
		0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
	}; /* FIPS 180-4, "abc" */
	uint8_t digest[SHA256_SIZE];

	sha256("abc", 3, digest);
	EXPECT(!memcmp(digest, wanted, SHA256_SIZE));
}

/* movl $value, %eax; ret */
static void write_function(volatile uint8_t *to, uint8_t value)
{
	to[0] = 0xb8;
	to[1] = value;
	to[2] = to[3] = to[4] = 0;
	to[5] = 0xc3;
}

SELFTEST(smc_same, "cpu.self-modifying-code")
{
	NEED(arena_present(), "too little memory");
	uint8_t *code = paging_set_window(SMC_SLOT, ARENA_BASE | (PTE_DATA & ~PTE_NX) | c_bit);
	uint32_t (*function)(void) = (uint32_t (*)(void))(uint64_t)code;

	for (uint8_t i = 0; i < 20; i++) {
		write_function(code, i);
		EXPECT_EQ(function(), i);
	}
}

SELFTEST(smc_alias, "cpu.self-modifying-code.by-alias")
{
	NEED(arena_present(), "too little memory");
	uint8_t *code = paging_set_window(SMC_SLOT, ARENA_BASE | PTE_PRESENT | PTE_ACCESSED | c_bit);
	uint8_t *data = paging_set_window(SMC_WRITE_SLOT, ARENA_BASE | PTE_DATA | c_bit);
	uint32_t (*function)(void) = (uint32_t (*)(void))(uint64_t)code;

	for (uint8_t i = 0; i < 20; i++) {
		write_function(data, i);
		cpuid(0, 0); /* serializes, as 24593, 7.6.1 asks for */
		EXPECT_EQ(function(), i);
	}
}
