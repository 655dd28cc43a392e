/* SPDX-License-Identifier: MIT */
/* RDI times CPUID. */
	.text
	.globl work
work:
	push	%rbx
	mov	%rdi, %rsi
1:	xor	%eax, %eax
	xor	%ecx, %ecx
	cpuid
	dec	%rsi
	jnz	1b
	pop	%rbx
	ret
	.section .note.GNU-stack, "", @progbits
