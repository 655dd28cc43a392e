/* SPDX-License-Identifier: MIT */
/*
 * The SYSCALL instruction as functions.
 *
 * RAX = number, arguments in RDI, RSI, RDX, R10, R8, R9; RAX = result or a negative error code. RCX
 * and R11 are lost (docs/modules.md).
 */
#ifndef SVSM_SYSCALL_H
#define SVSM_SYSCALL_H

#include "numbers.h"

static inline long svsm_syscall6(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

static inline long svsm_syscall5(long number, long a, long b, long c, long d, long e)
{
	return svsm_syscall6(number, a, b, c, d, e, 0);
}

static inline long svsm_syscall4(long number, long a, long b, long c, long d)
{
	return svsm_syscall6(number, a, b, c, d, 0, 0);
}

static inline long svsm_syscall3(long number, long a, long b, long c)
{
	return svsm_syscall6(number, a, b, c, 0, 0, 0);
}

static inline long svsm_syscall2(long number, long a, long b)
{
	return svsm_syscall6(number, a, b, 0, 0, 0, 0);
}

static inline long svsm_syscall1(long number, long a)
{
	return svsm_syscall6(number, a, 0, 0, 0, 0, 0);
}

static inline long svsm_syscall0(long number)
{
	return svsm_syscall6(number, 0, 0, 0, 0, 0, 0);
}

#endif
