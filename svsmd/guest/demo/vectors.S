/* SPDX-License-Identifier: MIT */
/* Entries of all 256 vectors, and catch_call. */
#include "trap.h"

#define HAS_ERROR_CODE 0x60227d00 /* vectors 8, 10-14, 17, 21, 29, 30 (24593, table 8-1) */

	.text
	.balign	16
	.globl	trap_vectors
	.type	trap_vectors, @function
trap_vectors:
	/* What the CPU has pushed, down from the CFA: SS, RSP, RFLAGS, CS, RIP, and an error code maybe. */
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 40
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	.macro	entry number:req, push_zero:req
	.balign	16
	.if	\push_zero
	.cfi_def_cfa_offset 40
	pushq	$0
	.endif
	.cfi_def_cfa_offset 48
	pushq	$\number
	.cfi_def_cfa_offset 56
	jmp	trap_common
	.endm
	.set	vector, 0
	.rept	32 /* exceptions */
	entry	vector, (!((HAS_ERROR_CODE >> vector) & 1))
	.set	vector, vector + 1
	.endr
	.rept	224 /* interrupts */
	entry	vector, 1
	.set	vector, vector + 1
	.endr
	.cfi_endproc
	.size	trap_vectors, . - trap_vectors

	.type	trap_common, @function
trap_common:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 56
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	.irp	reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	pushq	%\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endr
	cld
	movq	%rsp, %rdi
	/* The CPU aligned RSP before it pushed 5 or 6 words; make it so again for C. */
	movq	%rsp, %rbx
	.cfi_def_cfa_register rbx
	andq	$-16, %rsp
	call	trap_dispatch
	movq	%rbx, %rsp
	.cfi_def_cfa_register rsp
	.irp	reg, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
	popq	%\reg
	.cfi_adjust_cfa_offset -8
	.cfi_restore \reg
	.endr
	addq	$16, %rsp
	.cfi_adjust_cfa_offset -16
	iretq
	.cfi_endproc
	.size	trap_common, . - trap_common

/* catch_call(context, function, argument): 0 if it returned, 1 if an exception brought us to catch_resume. */
	.globl	catch_call
	.type	catch_call, @function
catch_call:
	.cfi_startproc
	.irp	reg, rbx, rbp, r12, r13, r14, r15
	pushq	%\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endr
	pushfq
	.cfi_adjust_cfa_offset 8
	movq	%rsp, CATCH_RSP(%rdi)
	movq	%rdx, %rdi
	call	*%rsi
	xorl	%eax, %eax
	.globl	catch_resume
catch_resume:
	popfq
	.cfi_adjust_cfa_offset -8
	.irp	reg, r15, r14, r13, r12, rbp, rbx
	popq	%\reg
	.cfi_adjust_cfa_offset -8
	.cfi_restore \reg
	.endr
	ret
	.cfi_endproc
	.size	catch_call, . - catch_call

	.section .note.GNU-stack, "", @progbits
