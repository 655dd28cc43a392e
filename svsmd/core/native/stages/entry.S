/* SPDX-License-Identifier: MIT */
/*
 * Stage 2's way into long mode and out of it: page tables with the C-bit for the first 2 MiB of the
 * region, exception entries, and the jump to the kernel.
 *
 * Spec: AMD 24593, 14.6 (activating long mode), 15.34.5 and 15.36 (C-bit, SNP-active guests).
 *
 * stage2_start32, from stage 1: EBX = its own address, ESI = svsm_base, EDI = launch-info page, EBP =
 * the C-bit in the high half of an entry, flat segments, a stack; paging is off.
 */
#include "stages.h"

#define RELATIVE(symbol) ((symbol) - stage2_start32)

	/* Write one entry: address in EAX (below 4 GiB), flags, and the C-bit out of EBP. */
	.macro	write_entry target:req, flags:req
	orl	$(\flags), %eax
	movl	%eax, \target
	movl	%ebp, 4 + \target
	.endm

	.code32
	.section .text.start, "ax"
	.globl	stage2_start32
	.type	stage2_start32, @function
stage2_start32:
	.cfi_startproc simple
	.cfi_def_cfa 7, 8 /* RSP, and 16 is RIP: in code of 32 bits the assembler has other numbers */
	.cfi_undefined 16
	/* The tables are zero: .bss comes as zeroed, measured pages. Identity map, upper levels. */
	leal	RELATIVE(stage2_pdpt)(%ebx), %eax
	write_entry RELATIVE(stage2_pml4)(%ebx), PTE_TABLE
	movl	%esi, %edx
	shrl	$30, %edx
	leal	RELATIVE(stage2_pd)(%ebx), %eax
	leal	RELATIVE(stage2_pdpt)(%ebx,%edx,8), %edx
	write_entry 0(%edx), PTE_TABLE
	movl	%esi, %edx
	shrl	$21, %edx
	andl	$511, %edx
	leal	RELATIVE(stage2_pt)(%ebx), %eax
	leal	RELATIVE(stage2_pd)(%ebx,%edx,8), %edx
	write_entry 0(%edx), PTE_TABLE

	/* Page by page: text may be executed, read-only data read, the rest written. */
	xorl	%ecx, %ecx
1:	movl	%ecx, %eax
	shll	$12, %eax
	addl	%esi, %eax
	xorl	%edx, %edx
	leal	RELATIVE(stages_text_end)(%ebx), %esp
	cmpl	%esp, %eax
	jb	2f
	movl	$PTE_NX_HIGH, %edx
	leal	RELATIVE(stages_rodata_end)(%ebx), %esp
	cmpl	%esp, %eax
	jb	2f
	orl	$PTE_WRITE, %eax
2:	orl	%ebp, %edx
	orl	$PTE_READ_ONLY, %eax
	movl	%eax, RELATIVE(stage2_pt)(%ebx,%ecx,8)
	movl	%edx, (RELATIVE(stage2_pt) + 4)(%ebx,%ecx,8)
	incl	%ecx
	cmpl	$512, %ecx
	jb	1b
	leal	RELATIVE(stage2_stack_top)(%ebx), %esp

	movl	%cr4, %eax
	orl	$(CR4_PAE | CR4_OSFXSR), %eax
	movl	%eax, %cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$(EFER_LME | EFER_NXE), %eax
	wrmsr
	/*
	 * CR3 has 32 bits to write here, so it cannot carry the C-bit: walks of an SNP guest are private
	 * all the same (24593, 15.36.10). stage2_start64 writes it in full.
	 */
	leal	RELATIVE(stage2_pml4)(%ebx), %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_WP), %eax
	movl	%eax, %cr0
	leal	RELATIVE(stage2_start64)(%ebx), %eax
	pushl	$STAGE_CS64
	pushl	%eax
	lretl
	.cfi_endproc
	.size	stage2_start32, . - stage2_start32

	.code64
	.type	stage2_start64, @function
stage2_start64:
	.cfi_startproc
	.cfi_undefined rip
	movl	%esi, %esi
	movl	%edi, %edi
	shlq	$32, %rbp
	leaq	stage2_pml4(%rip), %rax
	orq	%rbp, %rax
	movq	%rax, %cr3
	leaq	stage2_stack_top(%rip), %rsp
	movq	%rbp, %rdx
	xorl	%ebp, %ebp
	xchgq	%rsi, %rdi /* (base, launch info, C-bit) */
	call	stage2_main
	ud2
	.cfi_endproc
	.size	stage2_start64, . - stage2_start64

	.text
	/* stage2_enter_kernel(CR3, GVA of kernel_launch, entry): the identity map is in both sets of tables. */
	.globl	stage2_enter_kernel
	.type	stage2_enter_kernel, @function
stage2_enter_kernel:
	.cfi_startproc
	movq	%rdi, %cr3
	movq	%rsi, %rdi
	jmp	*%rdx
	.cfi_endproc
	.size	stage2_enter_kernel, . - stage2_enter_kernel

/* Exceptions: none is expected, none returns. struct stage2_frame is what lies on the stack in the end. */
#define HAS_ERROR_CODE 0x60227d00 /* vectors 8, 10-14, 17, 21, 29, 30 */

	.balign	16
	.globl	stage2_vectors
	.type	stage2_vectors, @function
stage2_vectors:
	.set	vector, 0
	.rept	STAGE2_VECTORS
	.balign	STAGE2_VECTOR_SIZE
	.if	!((HAS_ERROR_CODE >> vector) & 1)
	pushq	$0
	.endif
	pushq	$vector
	jmp	stage2_exception_entry
	.set	vector, vector + 1
	.endr
	.size	stage2_vectors, . - stage2_vectors

	.type	stage2_exception_entry, @function
stage2_exception_entry:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 56
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	cld
	pushq	%rax
	.cfi_adjust_cfa_offset 8
	movq	%cr2, %rax
	xchgq	%rax, (%rsp)
	movq	%rsp, %rdi
	andq	$-16, %rsp
	call	stage2_exception
	ud2
	.cfi_endproc
	.size	stage2_exception_entry, . - stage2_exception_entry

	.macro	object name:req, bytes:req
	.globl	\name
	.type	\name, @object
	.size	\name, \bytes
\name:	.skip	\bytes
	.endm

	.section .bss.page_tables, "aw", @nobits
	.balign	PAGE_SIZE
	object	stage2_pml4, PAGE_SIZE
	object	stage2_pdpt, PAGE_SIZE
	object	stage2_pd, 2*PAGE_SIZE /* the region may lie across a boundary of 1 GiB */
	object	stage2_pt, PAGE_SIZE
	object	stage2_stack, STAGE2_STACK_SIZE
	.globl	stage2_stack_top
stage2_stack_top:

	.section .note.GNU-stack, "", @progbits
