/* SPDX-License-Identifier: MIT */
/* Messages to the security processor, behind the host's back. Spec: AMD 56860, SNP_GUEST_REQUEST. */
#ifndef DEMO_PSP_H
#define DEMO_PSP_H

#include <stdbool.h>
#include <stdint.h>

#define PSP_TSC_INFO_REQ 17

#define PSP_SUCCESS 0
#define PSP_INVALID_PARAM 0x16

/* MSG_TSC_INFO_REQ, which is all zeros, and MSG_TSC_INFO_RSP. */
struct psp_tsc_info {
	uint32_t status; /* PSP_* */
	uint32_t reserved0;
	uint64_t scale;
	uint64_t offset;
	uint32_t factor;
	uint8_t reserved1[100];
};

_Static_assert(sizeof(struct psp_tsc_info) == 0x80, "56860, MSG_TSC_INFO_RSP");

/*
 * Sends a request of `size` bytes, a multiple of 16, and puts the response, which has to have as many,
 * in its place. False: there was none, or it was not made with our key. Nothing is ever sent again then.
 */
bool psp_request(uint8_t type, void *payload, uint16_t size);

#endif
