/* SPDX-License-Identifier: MIT */
/* Copies 4 MiB, RDI times, by REP MOVSQ: the engine translates each iteration as a block. */
	.text
	.globl work
	.set	ARENA, 0x400000
	.set	SIZE, 0x400000
	.set	SKEW, 0x13000
work:
	mov	%rdi, %rdx
1:	mov	$ARENA, %esi
	mov	$ARENA + SIZE + SKEW, %edi
	mov	$SIZE / 8, %ecx
	rep movsq
	dec	%rdx
	jnz	1b
	ret
	.section .note.GNU-stack, "", @progbits
