/* SPDX-License-Identifier: MIT */
/* Secure TSC: what VMSAs that we make have to have. Spec: AMD 24593, 15.36.18. */
#ifndef DEMO_TSC_H
#define DEMO_TSC_H

#include <stdbool.h>
#include <stdint.h>

struct tsc_info {
	bool secure;
	uint64_t scale; /* GUEST_TSC_SCALE, GUEST_TSC_OFFSET; 0 without Secure TSC */
	uint64_t offset;
};

extern struct tsc_info tsc_info;

/* Asks the security processor, if there is Secure TSC. False: it does not answer. */
bool tsc_init(void);

#endif
