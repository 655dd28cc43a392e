/* SPDX-License-Identifier: MIT */
/*
 * The SVSM kernel's first instructions on each CPU: descriptor tables, stack, and the core gate.
 *
 * Spec: AMD 24593, 4.8 (descriptors), 5.3 (page tables).
 *
 * Entry of the boot CPU (stage 2): 64-bit mode, IF = 0, RDI = GVA of the kernel_launch structure in the
 * private map, CR3 = the tables that it names, stage 2's segments and IDT. Stage 2's identity map is in
 * slot 0 of the PML4 until the first instructions here take it out.
 */
#include "kernel_launch.h"
#include "layout.h"

	.section .text.start, "ax"
	.globl	svsm_start
	.type	svsm_start, @function
svsm_start:
	.cfi_startproc
	.cfi_undefined rip
	movabsq	$SVSM_PRIVATE_MAP, %rcx
	movq	KERNEL_LAUNCH_PAGE_TABLE(%rdi), %rax
	movq	$0, (%rax,%rcx)
	movq	%cr3, %rax
	movq	%rax, %cr3

	movq	%rdi, %r12
	subq	%rcx, %r12
	leaq	svsm_boot_cpu(%rip), %rbx
	leaq	SVSM_BOOT_STACK_TOP(%rbx), %rsp
	xorl	%ebp, %ebp
	call	svsm_idt_init
	leaq	SVSM_BOOT_IST_TOP(%rbx), %rsi
	call	svsm_load_tables
	movq	%r12, %rax
	movl	$SVSM_GATE_FROM_BOOT, %ebx
	jmp	svsm_gate_loop
	.cfi_endproc
	.size	svsm_start, . - svsm_start

	.section .note.GNU-stack, "", @progbits
