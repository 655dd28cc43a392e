/* SPDX-License-Identifier: MIT */
/* Interrupts: self IPI, timer, HLT, CPL 3. */
#include "apic.h"
#include "cpu.h"
#include "selftest.h"
#include "trap.h"
#include "user.h"

#define TIMER_TICKS 100000
#define CPUID_1_ECX_X2APIC (1 << 21)

static volatile unsigned int taken;
static volatile unsigned int order[4];

static void count(void)
{
	taken++;
}

static void count_low(void)
{
	order[taken++ & 3] = 1;
}

static void count_high(void)
{
	order[taken++ & 3] = 2;
}

static void wake_user(void)
{
	user_page[2] = 0x77;
}

static bool have_x2apic(void)
{
	return cpuid(1, 0).ecx & CPUID_1_ECX_X2APIC;
}

SELFTEST(irq_self_ipi, "irq.self-ipi")
{
	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TEST, count);
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	__asm__ volatile("nop");
	EXPECT_EQ(taken, 1);
}

SELFTEST(irq_masked, "irq.masked-by-if")
{
	unsigned int while_masked;

	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TEST, count);
	irq_disable();
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	__asm__ volatile("nop; nop; nop");
	while_masked = taken;
	irq_enable();
	__asm__ volatile("nop; nop");
	EXPECT_EQ(while_masked, 0);
	EXPECT_EQ(taken, 1);
}

SELFTEST(irq_pending_register, "irq.irr")
{
	uint64_t irr;

	NEED(have_x2apic(), "no x2APIC");
	irq_register(VECTOR_TEST, count);
	irq_disable();
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	irr = rdmsr(X2APIC_IRR + VECTOR_TEST / 32);
	irq_enable();
	__asm__ volatile("nop; nop");
	EXPECT_EQ(irr >> (VECTOR_TEST % 32) & 1, 1);
	EXPECT_EQ(rdmsr(X2APIC_IRR + VECTOR_TEST / 32), 0);
}

SELFTEST(irq_priority, "irq.priority")
{
	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TEST, count_low);
	irq_register(VECTOR_TEST + 0x10, count_high);
	irq_disable();
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST + 0x10);
	irq_enable();
	__asm__ volatile("nop; nop; nop");
	EXPECT_EQ(taken, 2);
	EXPECT_EQ(order[0], 2);
	EXPECT_EQ(order[1], 1);
}

SELFTEST(irq_tpr, "irq.task-priority")
{
	unsigned int while_held;

	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TEST, count);
	wrmsr(X2APIC_TPR, VECTOR_TEST); /* holds back this priority class */
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	__asm__ volatile("nop; nop");
	while_held = taken;
	wrmsr(X2APIC_TPR, 0);
	__asm__ volatile("nop; nop");
	EXPECT_EQ(while_held, 0);
	EXPECT_EQ(taken, 1);
}

SELFTEST(irq_timer, "irq.timer")
{
	uint64_t start, end;

	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TIMER, count);
	start = rdtsc();
	apic_timer_start(VECTOR_TIMER, TIMER_TICKS);
	while (!taken && rdtsc() - start < 1000UL * TIMER_TICKS)
		cpu_pause();
	end = rdtsc();
	apic_timer_stop();
	EXPECT_EQ(taken, 1);
	EXPECT(end - start >= TIMER_TICKS);
}

SELFTEST(irq_hlt, "irq.hlt-wakeup")
{
	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TIMER, count);
	irq_disable();
	apic_timer_start(VECTOR_TIMER, TIMER_TICKS);
	while (!taken)
		irq_wait();
	irq_enable();
	apic_timer_stop();
	EXPECT_EQ(taken, 1);
}

SELFTEST(irq_sti_hlt, "irq.sti-hlt-pending")
{
	NEED(have_x2apic(), "no x2APIC");
	taken = 0;
	irq_register(VECTOR_TEST, count);
	irq_disable();
	wrmsr(X2APIC_SELF_IPI, VECTOR_TEST);
	irq_wait(); /* must not sleep through it */
	irq_enable();
	EXPECT_EQ(taken, 1);
}

SELFTEST(irq_user, "irq.at-cpl3")
{
	uint64_t result;

	NEED(have_x2apic(), "no x2APIC");
	user_page[2] = 0;
	irq_register(VECTOR_TIMER, wake_user);
	apic_timer_start(VECTOR_TIMER, TIMER_TICKS);
	result = user_run(user_spin, (uint64_t)(user_page + 2));
	apic_timer_stop();
	EXPECT_EQ(result, 0x77);
}
