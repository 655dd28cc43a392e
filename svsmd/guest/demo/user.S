/* SPDX-License-Identifier: MIT */
/* Spec: AMD 24593, 6.1.1 (SYSCALL, SYSRET); 24594 (IRET). */
#include "cpu.h"
#include "user.h"

	.text
/* user_enter(entry, stack, argument): by IRETQ to CPL 3, interrupts on. SYSCALL_EXIT is its return. */
	.globl	user_enter
	.type	user_enter, @function
user_enter:
	.cfi_startproc
	.irp	reg, rbx, rbp, r12, r13, r14, r15
	pushq	%\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endr
	pushfq
	.cfi_adjust_cfa_offset 8
	movq	%rsp, %gs:CPU_KERNEL_RSP
	pushq	$(USER_DS | RPL_USER)
	pushq	%rsi
	pushq	$(RFLAGS_IF | 2)
	pushq	$(USER_CS | RPL_USER)
	pushq	%rdi
	movq	%rdx, %rdi
	iretq
	.cfi_endproc
	.size	user_enter, . - user_enter

	.globl	syscall_entry
	.type	syscall_entry, @function
syscall_entry:
	.cfi_startproc
	.cfi_undefined rip
	movq	%rsp, %gs:CPU_USER_RSP
	movq	%gs:CPU_KERNEL_RSP, %rsp
	cmpq	$SYSCALL_COUNT, %rax
	je	1f
	/* SYSCALL_EXIT, and what nobody knows: back to the caller of user_enter. */
	movq	%rdi, %rax
	movl	$KERNEL_DS, %ecx
	movl	%ecx, %ss
	popfq
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	ret
1:	addq	%rdi, syscall_sum(%rip)
	movq	syscall_sum(%rip), %rax
	movq	%gs:CPU_USER_RSP, %rsp
	sysretq
	.cfi_endproc
	.size	syscall_entry, . - syscall_entry

/* What runs at CPL 3. Each is a test by itself; RDI is its argument. */
	.section .user_text, "ax"
	.macro	user name:req
	.balign	16
	.globl	\name
	.type	\name, @function
\name:
	.endm
	.macro	exit_with value:req
	movq	\value, %rdi
	movl	$SYSCALL_EXIT, %eax
	syscall
	.endm

	user	user_exit
	exit_with %rdi
	user	user_count /* RDI system calls, then the sum */
	movq	%rdi, %rbx
1:	movl	$SYSCALL_COUNT, %eax
	movl	$1, %edi
	syscall
	decq	%rbx
	jnz	1b
	exit_with %rax
	user	user_read
	movq	(%rdi), %rdi
	exit_with %rdi
	user	user_write
	movq	%rdi, (%rdi)
	exit_with %rdi
	user	user_jump
	jmp	*%rdi
	user	user_in
	movl	%edi, %edx
	inb	%dx, %al
	exit_with %rax
	user	user_outs
	movl	%edi, %edx
	leaq	-64(%rsp), %rsi
	movl	$4, %ecx
	rep outsb
	exit_with %rcx
	user	user_hlt
	hlt
	exit_with %rdi
	user	user_int3
	int3
	exit_with %rdi
	user	user_int_gp
	int	$0x50
	exit_with %rdi
	user	user_cli
	cli
	exit_with %rdi
	user	user_spin /* until the word at RDI is not zero */
1:	movq	(%rdi), %rax
	testq	%rax, %rax
	jz	1b
	exit_with %rax
	user	user_cs
	movl	%cs, %edi
	movl	%edi, %edi
	exit_with %rdi

	.section .user_data, "aw", @nobits
	.balign	4096
	.globl	user_page
	.type	user_page, @object
	.size	user_page, 4096
user_page:
	.skip	4096

	.section .note.GNU-stack, "", @progbits
