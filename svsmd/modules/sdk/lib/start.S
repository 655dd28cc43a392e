/* SPDX-License-Identifier: MIT */
/* A program's first instruction: argc, argv and envp lie on the stack (System V ABI, AMD64, 3.4.1). */
	.text
	.globl	_start
	.type	_start, @function
_start:
	.cfi_startproc
	.cfi_undefined rip
	xorl	%ebp, %ebp
	movq	(%rsp), %rdi
	leaq	8(%rsp), %rsi
	leaq	8(%rsi,%rdi,8), %rdx
	andq	$-16, %rsp
	call	main
	movl	%eax, %edi
	movl	$231, %eax /* exit_group */
	syscall
	ud2
	.cfi_endproc
	.size	_start, . - _start

	.section .note.GNU-stack, "", @progbits
