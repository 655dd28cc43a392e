/* SPDX-License-Identifier: MIT */
/* #VC: instructions that the hypervisor must emulate. Spec: AMD 24593, 15.35.5; 56421, chapter 4. */
#ifndef DEMO_VC_H
#define DEMO_VC_H

#include "trap.h"

extern volatile unsigned long vc_count; /* #VC exceptions taken so far */

/* Emulate the instruction, or turn the #VC into the exception that it comes to. */
void vc_handle(struct trap_frame *frame);

#endif
