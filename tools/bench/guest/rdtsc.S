/* SPDX-License-Identifier: MIT */
/* RDI times RDTSC. */
	.text
	.globl work
work:
	mov	%rdi, %rcx
1:	rdtsc
	dec	%rcx
	jnz	1b
	ret
	.section .note.GNU-stack, "", @progbits
