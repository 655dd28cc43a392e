/* SPDX-License-Identifier: MIT */
/* The compiler uses general registers only; these two reach the others. */
#ifndef DEMO_SIMD_H
#define DEMO_SIMD_H

#define SIMD_SIZE 256 /* XMM0 to XMM15 */

#ifndef __ASSEMBLER__
#include <stdint.h>

void simd_load(const uint8_t from[SIMD_SIZE]);
void simd_store(uint8_t to[SIMD_SIZE]);
#endif
#endif
