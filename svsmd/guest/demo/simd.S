/* SPDX-License-Identifier: MIT */
	.text
	.globl	simd_load
	.type	simd_load, @function
simd_load:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	16 * \n(%rdi), %xmm\n
	.endr
	ret
	.size	simd_load, . - simd_load

	.globl	simd_store
	.type	simd_store, @function
simd_store:
	.irp	n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	%xmm\n, 16 * \n(%rdi)
	.endr
	ret
	.size	simd_store, . - simd_store

	.section .note.GNU-stack, "", @progbits
