/* SPDX-License-Identifier: MIT */
/* RDI passes of five instructions that touch registers only: one short block all the time. */
	.text
	.globl work
work:
	mov	%rdi, %rcx
1:	add	%rcx, %rax
	xor	%rdx, %rax
	rol	$1, %rdx
	dec	%rcx
	jnz	1b
	ret
	.section .note.GNU-stack, "", @progbits
