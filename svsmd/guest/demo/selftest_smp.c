/* SPDX-License-Identifier: MIT */
/* SVSM_CORE_CREATE_VCPU, SVSM_CORE_DELETE_VCPU, and a second CPU that runs. */
#include "acpi.h"
#include "cpu.h"
#include "paging.h"
#include "selftest.h"
#include "smp.h"
#include "string.h"
#include "svsm.h"

#define NO_SVSM "no SVSM"
#define ONE_CPU "one CPU"
#define UNKNOWN_APIC_ID 0x7777
#define BEYOND_RAM 0x7ff0000000UL
#define ECHOES 50
#define ECHO_TICKS 1000000000 /* more than these may take */
#define IPI_TICKS 50000000 /* more than an interrupt may take */
#define VMSA_VMPL 0x0ca
#define VMSA_EFER 0x0d0
#define VMSA_SEV_FEATURES 0x3b0

static uint64_t create(uint64_t vmsa, uint64_t caa, uint64_t apic_id)
{
	return svsm_core(SVSM_CORE_CREATE_VCPU, vmsa, caa, apic_id);
}

SELFTEST(create_address, "vcpu.create.bad-address")
{
	uint64_t vmsa = smp_vmsa(), caa = svsm_own_caa(1);
	uint32_t apic_id = acpi_info.apic_id[0];

	NEED(svsm.present, NO_SVSM);
	smp_prepare(apic_id);
	EXPECT_EQ(create(vmsa + 8, caa, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(vmsa, caa + 8, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(vmsa, vmsa, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(svsm.base, caa, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(vmsa, svsm.base, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(BEYOND_RAM, caa, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(vmsa | c_bit, caa, apic_id), SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(create(this_cpu()->caa_gpa, caa, apic_id), SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(create_apic_id, "vcpu.create.unknown-apic-id")
{
	NEED(svsm.present, NO_SVSM);
	smp_prepare(UNKNOWN_APIC_ID);
	EXPECT_EQ(create(smp_vmsa(), svsm_own_caa(1), UNKNOWN_APIC_ID), SVSM_ERR_INVALID_PARAMETER);
}

SELFTEST(create_content, "vcpu.create.bad-vmsa")
{
	uint8_t *vmsa = (uint8_t *)smp_vmsa();
	uint32_t apic_id = acpi_info.apic_id[acpi_info.cpus > 1];
	uint64_t value;

	NEED(svsm.present, NO_SVSM);
	smp_prepare(apic_id);
	vmsa[VMSA_VMPL] = 0; /* nobody is made VMPL0 */
	EXPECT_EQ(create(smp_vmsa(), svsm_own_caa(1), apic_id), SVSM_ERR_INVALID_PARAMETER);
	smp_prepare(apic_id); /* the page is ours again after the refusal */
	value = EFER_LME | EFER_LMA; /* no SVME */
	memcpy(vmsa + VMSA_EFER, &value, sizeof(value));
	EXPECT_EQ(create(smp_vmsa(), svsm_own_caa(1), apic_id), SVSM_ERR_INVALID_PARAMETER);
	smp_prepare(apic_id);
	value = 0; /* not an SNP guest */
	memcpy(vmsa + VMSA_SEV_FEATURES, &value, sizeof(value));
	EXPECT_EQ(create(smp_vmsa(), svsm_own_caa(1), apic_id), SVSM_ERR_INVALID_PARAMETER);
	smp_prepare(apic_id);
}

SELFTEST(delete_bad, "vcpu.delete.bad")
{
	NEED(svsm.present, NO_SVSM);
	EXPECT_EQ(svsm_core(SVSM_CORE_DELETE_VCPU, smp_vmsa(), 0, 0), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_DELETE_VCPU, smp_vmsa() + 8, 0, 0), SVSM_ERR_INVALID_PARAMETER);
	EXPECT_EQ(svsm_core(SVSM_CORE_DELETE_VCPU, BEYOND_RAM, 0, 0), SVSM_ERR_INVALID_PARAMETER);
}

SELFTEST(vcpu_run, "vcpu.start-stop")
{
	uint32_t apic_id = acpi_info.apic_id[1];
	uint64_t before, start;

	NEED(acpi_info.cpus > 1, ONE_CPU);
	for (unsigned int round = 0; round < 2; round++) { /* what has been stopped can be started again */
		start = rdtsc();
		EXPECT_EQ(smp_start(apic_id, false), SVSM_SUCCESS);
		EXPECT(start < smp_report.tsc && smp_report.tsc < rdtsc()); /* one TSC for all */
		EXPECT_EQ(smp_report.apic_id, apic_id);
		if (svsm.present)
			EXPECT_EQ(smp_report.protocol, 1UL << 32 | 1);
		before = smp_report.counter;
		for (uint64_t end = rdtsc() + 10000000; smp_report.counter == before && rdtsc() < end;)
			cpu_pause();
		EXPECT(smp_report.counter > before);
		EXPECT_EQ(smp_stop(apic_id), SVSM_SUCCESS);
		memset((void *)smp_vmsa(), 0, PAGE_SIZE); /* memory like any other again */
	}
}

SELFTEST(vcpu_ipi, "vcpu.ipi")
{
	uint32_t apic_id = acpi_info.apic_id[1];
	uint32_t running, halted;
	bool did_halt;

	NEED(acpi_info.cpus > 1, ONE_CPU);
	EXPECT_EQ(smp_start(apic_id, false), SVSM_SUCCESS);
	smp_send_ipi(apic_id);
	for (uint64_t end = rdtsc() + IPI_TICKS; !smp_report.ipis && rdtsc() < end;)
		cpu_pause();
	running = smp_report.ipis;
	smp_report.halt = true;
	did_halt = smp_wait(&smp_report.halted);
	smp_send_ipi(apic_id);
	for (uint64_t end = rdtsc() + IPI_TICKS; smp_report.halt && rdtsc() < end;)
		cpu_pause();
	halted = smp_report.ipis;
	EXPECT_EQ(smp_stop(apic_id), SVSM_SUCCESS);
	EXPECT_EQ(running, 1);
	EXPECT(did_halt);
	EXPECT_EQ(halted, 2);
}

SELFTEST(vcpu_registered, "vcpu.registered-pages")
{
	uint32_t apic_id = acpi_info.apic_id[1];
	uint64_t rescind_vmsa, rescind_caa, twice, remap;

	NEED(svsm.present && acpi_info.cpus > 1, ONE_CPU);
	EXPECT_EQ(smp_start(apic_id, false), SVSM_SUCCESS);
	rescind_vmsa = svsm_pvalidate(smp_vmsa());
	rescind_caa = svsm_pvalidate(svsm_own_caa(1));
	twice = create(smp_vmsa(), svsm_own_caa(1), apic_id);
	remap = svsm_core(SVSM_CORE_REMAP_CA, smp_vmsa(), 0, 0);
	EXPECT_EQ(smp_stop(apic_id), SVSM_SUCCESS);
	EXPECT_EQ(rescind_vmsa, SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(rescind_caa, SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(twice, SVSM_ERR_INVALID_ADDRESS);
	EXPECT_EQ(remap, SVSM_ERR_INVALID_ADDRESS);
}

SELFTEST(vcpu_module, "svsm.module.two-cpus")
{
	uint32_t apic_id = acpi_info.apic_id[1], before;
	uint64_t end;

	NEED(svsm.present, NO_SVSM);
	NEED(acpi_info.cpus > 1, ONE_CPU);
	NEED(svsm_query(SVSM_ECHO, 1), "no module that echoes");
	EXPECT_EQ(smp_start(apic_id, false), SVSM_SUCCESS);
	smp_report.echo = true;
	end = rdtsc() + ECHO_TICKS;
	for (uint64_t i = 0; i < ECHOES || (smp_report.echoes < ECHOES && rdtsc() < end); i++) {
		struct svsm_regs regs = { .rdx = i, .r8 = 2 * i, .r9 = 3 * i };

		EXPECT_EQ(svsm_call(SVSM_ECHO, SVSM_ECHO_ROTATE, &regs), SVSM_SUCCESS);
		EXPECT_EQ(regs.rcx, i);
		EXPECT_EQ(regs.rdx, 2 * i);
		EXPECT_EQ(regs.r8, 3 * i);
	}
	before = smp_report.echoes;
	EXPECT_EQ(smp_stop(apic_id), SVSM_SUCCESS);
	EXPECT(before >= ECHOES);
	EXPECT(!smp_report.wrong_echo);
}
