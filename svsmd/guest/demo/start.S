/* SPDX-License-Identifier: MIT */
/*
 * First instructions. Entry as Linux's 64-bit boot protocol has it: long mode, CPL 0, identity page
 * tables (C-bit set), interrupts off, the loader's GDT, RSI = boot_params.
 */
	.section .text.start, "ax"
	.globl	demo_start
	.type	demo_start, @function
demo_start:
	.cfi_startproc
	.cfi_undefined rip
	cld
	leaq	boot_stack_end(%rip), %rsp
	xorl	%ebp, %ebp
	movq	%rsi, %rdi
	call	demo_main
	ud2
	.cfi_endproc
	.size	demo_start, . - demo_start

/* Second CPU: smp.c writes its VMSA, RDI = its struct cpu, RSP = its stack. */
	.globl	ap_start
	.type	ap_start, @function
ap_start:
	.cfi_startproc
	.cfi_undefined rip
	cld
	xorl	%ebp, %ebp
	call	ap_main
	ud2
	.cfi_endproc
	.size	ap_start, . - ap_start

	.bss
	.balign	4096
	.globl	boot_stack
boot_stack:
	.skip	0x8000
boot_stack_end:

	.section .note.GNU-stack, "", @progbits
