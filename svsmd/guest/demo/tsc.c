/* SPDX-License-Identifier: MIT */
#include "tsc.h"

#include "cpu.h"
#include "psp.h"

struct tsc_info tsc_info;

bool tsc_init(void)
{
	struct psp_tsc_info message = { 0 };

	if (!(rdmsr(MSR_SEV_STATUS) & SEV_STATUS_SECURE_TSC))
		return true;
	if (!psp_request(PSP_TSC_INFO_REQ, &message, sizeof(message)) || message.status != PSP_SUCCESS)
		return false;
	tsc_info = (struct tsc_info){ .secure = true, .scale = message.scale, .offset = message.offset };
	return true;
}
