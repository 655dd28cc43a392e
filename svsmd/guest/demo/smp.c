/* SPDX-License-Identifier: MIT */
/* Spec: AMD 24593, table B-4 (VMSA); 56421, SNP AP creation; 58019, SVSM_CORE_CREATE_VCPU. */
#include "smp.h"

#include "apic.h"
#include "ghcb.h"
#include "memory.h"
#include "print.h"
#include "string.h"
#include "svsm.h"
#include "trap.h"
#include "tsc.h"

#define AP 1 /* its index in cpus[] */
#define AP_STACK_SIZE 0x4000
#define PATIENCE 1000000000UL /* ticks that it may take to answer: one second */

/* Offsets in the VMSA. Segments: selector, attributes, limit, base. */
#define VMSA_ES 0x000
#define VMSA_CS 0x010
#define VMSA_SS 0x020
#define VMSA_DS 0x030
#define VMSA_FS 0x040
#define VMSA_GS 0x050
#define VMSA_GDTR 0x060
#define VMSA_LDTR 0x070
#define VMSA_IDTR 0x080
#define VMSA_TR 0x090
#define VMSA_VMPL 0x0ca
#define VMSA_EFER 0x0d0
#define VMSA_CR4 0x148
#define VMSA_CR3 0x150
#define VMSA_CR0 0x158
#define VMSA_DR7 0x160
#define VMSA_DR6 0x168
#define VMSA_RFLAGS 0x170
#define VMSA_RIP 0x178
#define VMSA_RSP 0x1d8
#define VMSA_G_PAT 0x268
#define VMSA_TSC_SCALE 0x2f0
#define VMSA_TSC_OFFSET 0x2f8
#define VMSA_RDI 0x338
#define VMSA_SEV_FEATURES 0x3b0
#define VMSA_XCR0 0x3e8
#define VMSA_MXCSR 0x408
#define VMSA_X87_FTW 0x40c
#define VMSA_X87_FCW 0x410

#define ATTRIBUTES_CODE64 0xa9b
#define ATTRIBUTES_DATA 0xc93
#define ATTRIBUTES_LDT 0x082
#define ATTRIBUTES_TSS 0x08b
#define DR6_DEFAULT 0xffff0ff0
#define PAT_DEFAULT 0x0007040600070406
#define MXCSR_DEFAULT 0x1f80
#define FTW_EMPTY 0x5555
#define FCW_DEFAULT 0x037f

struct smp_report smp_report;

/* Two pages, of which the one is taken that does not start a 2 MiB page: a VMSA there is an erratum. */
static uint8_t vmsa_pages[2][PAGE_SIZE] __attribute__((aligned(4096)));
static uint8_t ap_stack[AP_STACK_SIZE] __attribute__((aligned(16)));
static bool ap_talks;
static bool ap_ghcb_shared;

uint64_t smp_vmsa(void)
{
	uint64_t first = (uint64_t)vmsa_pages;

	return first % HUGE_PAGE_SIZE ? first : first + PAGE_SIZE;
}

static void put16(uint8_t *vmsa, unsigned int offset, uint16_t value)
{
	memcpy(vmsa + offset, &value, sizeof(value));
}

static void put32(uint8_t *vmsa, unsigned int offset, uint32_t value)
{
	memcpy(vmsa + offset, &value, sizeof(value));
}

static void put64(uint8_t *vmsa, unsigned int offset, uint64_t value)
{
	memcpy(vmsa + offset, &value, sizeof(value));
}

static void put_segment(uint8_t *vmsa, unsigned int offset, uint16_t selector, uint16_t attributes, uint32_t limit,
			uint64_t base)
{
	put16(vmsa, offset, selector);
	put16(vmsa, offset + 2, attributes);
	put32(vmsa, offset + 4, limit);
	put64(vmsa, offset + 8, base);
}

void smp_prepare(uint32_t apic_id)
{
	uint8_t *vmsa = (uint8_t *)smp_vmsa();
	struct cpu *cpu = &cpus[AP];
	struct cpu *boot = this_cpu();

	memset(vmsa, 0, PAGE_SIZE);
	cpu->apic_id = apic_id;
	put_segment(vmsa, VMSA_CS, KERNEL_CS, ATTRIBUTES_CODE64, 0xffffffff, 0);
	put_segment(vmsa, VMSA_SS, KERNEL_DS, ATTRIBUTES_DATA, 0xffffffff, 0);
	put_segment(vmsa, VMSA_DS, KERNEL_DS, ATTRIBUTES_DATA, 0xffffffff, 0);
	put_segment(vmsa, VMSA_ES, KERNEL_DS, ATTRIBUTES_DATA, 0xffffffff, 0);
	put_segment(vmsa, VMSA_FS, 0, ATTRIBUTES_DATA, 0xffffffff, 0);
	put_segment(vmsa, VMSA_GS, 0, ATTRIBUTES_DATA, 0xffffffff, (uint64_t)cpu);
	put_segment(vmsa, VMSA_GDTR, 0, 0, sizeof(boot->gdt) - 1, (uint64_t)boot->gdt);
	put_segment(vmsa, VMSA_LDTR, 0, ATTRIBUTES_LDT, 0xffff, 0);
	put_segment(vmsa, VMSA_TR, 0, ATTRIBUTES_TSS, 0xffff, 0);
	vmsa[VMSA_VMPL] = (uint8_t)svsm.vmpl;
	put64(vmsa, VMSA_EFER, EFER_SVME | EFER_LME | EFER_LMA | EFER_NXE);
	put64(vmsa, VMSA_CR4, read_cr4());
	put64(vmsa, VMSA_CR3, read_cr3());
	put64(vmsa, VMSA_CR0, read_cr0());
	put64(vmsa, VMSA_DR7, DR7_DEFAULT);
	put64(vmsa, VMSA_DR6, DR6_DEFAULT);
	put64(vmsa, VMSA_RFLAGS, 2);
	put64(vmsa, VMSA_RIP, (uint64_t)ap_start);
	put64(vmsa, VMSA_RSP, (uint64_t)ap_stack + sizeof(ap_stack));
	put64(vmsa, VMSA_RDI, (uint64_t)cpu);
	put64(vmsa, VMSA_G_PAT, PAT_DEFAULT);
	put64(vmsa, VMSA_TSC_SCALE, tsc_info.scale);
	put64(vmsa, VMSA_TSC_OFFSET, tsc_info.offset);
	put64(vmsa, VMSA_SEV_FEATURES, rdmsr(MSR_SEV_STATUS) >> 2);
	put64(vmsa, VMSA_XCR0, 1);
	put32(vmsa, VMSA_MXCSR, MXCSR_DEFAULT);
	put16(vmsa, VMSA_X87_FTW, FTW_EMPTY);
	put16(vmsa, VMSA_X87_FCW, FCW_DEFAULT);
}

uint64_t smp_create(uint32_t apic_id)
{
	if (svsm.present)
		return svsm_core(SVSM_CORE_CREATE_VCPU, smp_vmsa(), svsm_own_caa(AP), apic_id);
	return rmpadjust(smp_vmsa(), 0, RMPADJUST_VMPL(1) | RMPADJUST_VMSA);
}

static uint32_t ap_creation(uint32_t apic_id, uint64_t request)
{
	struct ghcb_exit e = {
		.code = GHCB_EXIT_AP_CREATION,
		.info1 = (uint64_t)apic_id << 32 | (uint64_t)svsm.vmpl << 16 | request,
		.info2 = smp_vmsa(),
		.rax = rdmsr(MSR_SEV_STATUS) >> 2,
		.pass = PASS_RAX,
	};

	return ghcb_call(&e);
}

bool smp_wait(const volatile bool *flag)
{
	uint64_t end = rdtsc() + PATIENCE;

	while (!*flag)
		if (rdtsc() > end)
			return false;
		else
			cpu_pause();
	return true;
}

uint64_t smp_start(uint32_t apic_id, bool talk)
{
	uint64_t result;

	memset((void *)&smp_report, 0, sizeof(smp_report));
	ap_talks = talk;
	if (!ap_ghcb_shared) {
		ghcb_share(AP);
		ap_ghcb_shared = true;
	}
	smp_prepare(apic_id);
	result = smp_create(apic_id);
	if (result != SVSM_SUCCESS)
		return result;
	if (ap_creation(apic_id, AP_CREATE) != GHCB_OK)
		return SMP_HOST_REFUSED;
	return smp_wait(&smp_report.running) ? SVSM_SUCCESS : SMP_SILENT;
}

uint64_t smp_stop(uint32_t apic_id)
{
	uint64_t end = rdtsc() + PATIENCE;
	uint64_t result;

	smp_report.stop = true;
	if (!smp_wait(&smp_report.parked))
		return SMP_SILENT;
	if (ap_creation(apic_id, AP_DESTROY) != GHCB_OK)
		return SMP_HOST_REFUSED;
	if (!svsm.present)
		return rmpadjust(smp_vmsa(), 0, RMPADJUST_VMPL(1));
	do
		result = svsm_core(SVSM_CORE_DELETE_VCPU, smp_vmsa(), 0, 0);
	while (result == SVSM_ERR_DELETE_VCPU_IN_USE && rdtsc() < end);
	return result;
}

void smp_send_ipi(uint32_t apic_id)
{
	wrmsr(X2APIC_ICR, (uint64_t)apic_id << 32 | VECTOR_IPI); /* fixed, physical, edge */
}

static void count_ipi(void)
{
	smp_report.ipis++;
}

static void echo(uint64_t value)
{
	struct svsm_regs regs = { .rcx = 1, .rdx = value, .r8 = ~value };

	if (svsm_call(SVSM_ECHO, SVSM_ECHO_ROTATE, &regs) == SVSM_SUCCESS && regs.rcx == value && regs.rdx == ~value)
		smp_report.echoes++;
	else
		smp_report.wrong_echo = true;
}

/* The second CPU's whole life. */
void __attribute__((noreturn)) ap_main(struct cpu *cpu);

void ap_main(struct cpu *cpu)
{
	cpu_init(cpu);
	ghcb_register();
	if (svsm.present) {
		cpu->caa_gpa = svsm_own_caa(AP);
		cpu->caa = (volatile struct svsm_caa *)cpu->caa_gpa;
		smp_report.protocol = svsm_query(SVSM_CORE, 1);
	}
	apic_init();
	smp_report.apic_id = (uint32_t)rdmsr(X2APIC_ID);
	smp_report.tsc = rdtsc();
	if (ap_talks)
		print("Hello from the second CPU, APIC id %x.\n", smp_report.apic_id);
	irq_register(VECTOR_IPI, count_ipi);
	irq_enable();
	smp_report.running = true;
	while (!smp_report.stop) {
		smp_report.counter++;
		cpu_pause();
		if (smp_report.echo)
			echo(smp_report.counter);
		if (smp_report.halt) {
			irq_disable();
			smp_report.halted = true;
			irq_wait(); /* an interrupt that came meanwhile ends it at once */
			smp_report.halt = false;
			irq_enable();
		}
	}
	smp_report.parked = true;
	for (;;)
		__asm__ volatile("cli; hlt");
}
