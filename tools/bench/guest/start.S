/* SPDX-License-Identifier: MIT */
/* One run of the work for each time that the vCPU is let go; RDI says how much, at the start. */
	.section .text.start, "ax"
	.globl _start
_start:
	mov	%rdi, %rbx
1:	mov	%rbx, %rdi
	call	work
	hlt
	jmp	1b
	.section .note.GNU-stack, "", @progbits
