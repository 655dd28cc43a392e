/* SPDX-License-Identifier: MIT */
/* Messages to the security processor, and Secure TSC, which takes one of them. */
#include "aes_gcm.h"
#include "boot.h"
#include "cpu.h"
#include "psp.h"
#include "selftest.h"
#include "string.h"
#include "trap.h"
#include "tsc.h"
#include "vc.h"

/* Test case 14 of "The Galois/Counter Mode of Operation": all is zero. */
SELFTEST(gcm_vector, "psp.aes-256-gcm")
{
	static const uint8_t key[AES_KEY_SIZE], iv[GCM_IV_SIZE];
	static const uint8_t sealed[16] = { 0xce, 0xa7, 0x40, 0x3d, 0x4d, 0x60, 0x6b, 0x6e,
					    0x07, 0x4e, 0xc5, 0xd3, 0xba, 0xf3, 0x9d, 0x18 };
	static const uint8_t wanted[GCM_TAG_SIZE] = { 0xd0, 0xd1, 0xc8, 0xa7, 0x99, 0x99, 0x6b, 0xf0,
						      0x26, 0x5b, 0x98, 0xb5, 0xd4, 0x8a, 0xb9, 0x19 };
	uint8_t data[16] = { 0 }, tag[GCM_TAG_SIZE];
	struct gcm_message message = { .data = data, .size = sizeof(data) };

	gcm_seal(key, iv, &message, tag);
	EXPECT(!memcmp(data, sealed, sizeof(data)));
	EXPECT(!memcmp(tag, wanted, sizeof(tag)));
	tag[0] ^= 1;
	EXPECT(!gcm_open(key, iv, &message, tag));
	tag[0] ^= 1;
	EXPECT(gcm_open(key, iv, &message, tag));
	EXPECT(memory_is(data, 0, sizeof(data)));
}

SELFTEST(psp_tsc_info, "psp.tsc-info")
{
	struct psp_tsc_info message = { 0 };

	EXPECT(psp_request(PSP_TSC_INFO_REQ, &message, sizeof(message)));
	EXPECT_EQ(message.status, PSP_SUCCESS);
	EXPECT_EQ(message.factor, boot_info.secrets->tsc_factor);
	EXPECT(memory_is(message.reserved1, 0, sizeof(message.reserved1)));
	if (tsc_info.secure) { /* and it is what we have heard before */
		EXPECT(message.scale);
		EXPECT_EQ(message.scale, tsc_info.scale);
		EXPECT_EQ(message.offset, tsc_info.offset);
	}
}

SELFTEST(psp_tsc_info_reserved, "psp.tsc-info.reserved")
{
	struct psp_tsc_info message = { .reserved0 = 1 };

	EXPECT(psp_request(PSP_TSC_INFO_REQ, &message, sizeof(message)));
	EXPECT_EQ(message.status, PSP_INVALID_PARAM);
	EXPECT_EQ(message.scale, 0);
}

static void read_frequency(uint64_t unused)
{
	(void)unused;
	rdmsr(MSR_GUEST_TSC_FREQ);
}

static void write_frequency(uint64_t unused)
{
	(void)unused;
	wrmsr(MSR_GUEST_TSC_FREQ, 1);
}

/* The MSRs are the processor's own with Secure TSC; without it the host is asked. */
SELFTEST(tsc_msr, "tsc.msr")
{
	unsigned long asked = vc_count;
	uint64_t before = rdtsc(), now = rdmsr(MSR_TSC);

	EXPECT(before < now && now < rdtsc());
	EXPECT_EQ(vc_count - asked, !tsc_info.secure);
}

SELFTEST(tsc_frequency, "tsc.frequency")
{
	struct fault fault;
	unsigned long asked = vc_count;

	EXPECT_EQ(fault_catch(&fault, read_frequency, 0), !tsc_info.secure);
	if (tsc_info.secure) {
		EXPECT(rdmsr(MSR_GUEST_TSC_FREQ) & 0x3ffff);
		EXPECT_EQ(vc_count, asked);
	}
	EXPECT(fault_catch(&fault, write_frequency, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
}
