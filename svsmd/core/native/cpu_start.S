/* SPDX-License-Identifier: MIT */
/*
 * A CPU in the page tables and the area that the core has made for it: the boot CPU when the core
 * says so (SVSM_GATE_START), every other CPU as its first instruction.
 *
 * Spec: none; the area is in layout.h.
 */
#include "layout.h"

#define MSR_GS_BASE 0xc0000101

/*
 * RAX = CR3, RCX = CR4, RBX = reason for the next gate call; 64-bit mode, CPL 0, IF = 0. For APs the
 * core writes these into the VMSA. Nothing of what was on another stack is kept.
 */
	.text
	.globl	svsm_cpu_start
	.type	svsm_cpu_start, @function
svsm_cpu_start:
	.cfi_startproc
	.cfi_undefined rip
	movq	%rax, %cr3
	movq	%rcx, %cr4
	movabsq	$(SVSM_CPU_STACK + SVSM_CPU_STACK_SIZE), %rsp
	xorl	%ebp, %ebp
	movq	%rbx, %r12
	movabsq	$SVSM_PERCPU_MAP, %rbx
	movabsq	$(SVSM_CPU_IST + SVSM_CPU_IST_SIZE), %rsi
	call	svsm_load_tables
	xorl	%eax, %eax
	movq	%r12, %rbx
	jmp	svsm_gate_loop
	.cfi_endproc
	.size	svsm_cpu_start, . - svsm_cpu_start

/*
 * RBX = control page of this CPU, RSI = top of its IST stack: loads its tables, its segments, its GS
 * base. Changes RAX, RCX, RDX and C's scratch registers.
 */
	.globl	svsm_load_tables
	.type	svsm_load_tables, @function
svsm_load_tables:
	.cfi_startproc
	movq	%rbx, %rdi
	call	svsm_cpu_init
	movl	$SVSM_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	/* Null ones: IRETQ to CPL 3 takes any other one of CPL 0 away, and its base with it. */
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movl	$MSR_GS_BASE, %ecx
	movl	%ebx, %eax
	movq	%rbx, %rdx
	shrq	$32, %rdx
	wrmsr
	popq	%rax
	.cfi_adjust_cfa_offset -8
	.cfi_register rip, rax
	pushq	$SVSM_CS
	.cfi_adjust_cfa_offset 8
	pushq	%rax
	.cfi_adjust_cfa_offset 8
	lretq
	.cfi_endproc
	.size	svsm_load_tables, . - svsm_load_tables

	.section .note.GNU-stack, "", @progbits
