/* SPDX-License-Identifier: MIT */
/*
 * Stage 1: the first instructions of the launch. Finds the C-bit, and leaves 32-bit code with a stack
 * and segments of its own to stage 2.
 *
 * Spec: AMD 24593, 15.34.10 (SEV_STATUS), 15.36 (SNP); 56860, "CPUID page format"; 56421, 2.3.1.
 *
 * Entry (VMSA written by the launcher):
 *   EIP = svsm_base, paging off, flat 32-bit segments of no table, IF = 0, no stack
 *   ESI = svsm_base, EDI = physical address of the launch-info page
 * With paging off every access is private (24593, 15.34.5). Code of both stages addresses memory
 * relative to where it runs. It executes nothing that would raise #VC (no CPUID, no I/O): there is no
 * handler. RDMSR of SEV_STATUS and of the GHCB MSR is not intercepted in an SNP guest.
 *
 * The C-bit comes from the CPUID page, whose contents the security processor has compared with what
 * the processor can do; the launch info has to name the same. Whoever disagrees is not trusted with a
 * log line: termination with SVSM_REASON_LAUNCH.
 */
#include "launch_info.h"
#include "stages.h"

#define CPUID_PAGE_ENTRIES 0x10 /* of the CPUID page; its first field is their count */
#define CPUID_ENTRY_SIZE 48
#define CPUID_ENTRY_EBX 28
#define CPUID_ENTRIES_MAX 64
#define CPUID_ENCRYPTION 0x8000001f
#define CBIT_MASK 0x3f
#define CBIT_MIN 32
#define CBIT_MAX 51

#define RELATIVE(symbol) ((symbol) - stage1_start)

	.code32
	.section .text.stage1, "ax"
	.globl	stage1_start
	.type	stage1_start, @function
stage1_start:
	.cfi_startproc simple
	.cfi_def_cfa 7, 8 /* RSP, and 16 is RIP: in code of 32 bits the assembler has other numbers */
	.cfi_undefined 16
	cld
	cmpl	$LAUNCH_INFO_MAGIC_LOW, (%edi)
	jne	stage1_refuse
	cmpl	$LAUNCH_INFO_MAGIC_HIGH, 4(%edi)
	jne	stage1_refuse
	cmpl	$LAUNCH_INFO_VERSION, 8(%edi)
	jne	stage1_refuse

	movl	$MSR_SEV_STATUS, %ecx
	rdmsr
	andl	$SEV_STATUS_NEEDED, %eax
	cmpl	$SEV_STATUS_NEEDED, %eax
	jne	stage1_refuse

	/* EAX walks over the entries of the CPUID page, ECX counts them. */
	leal	SVSM_CPUID_OFFSET(%esi), %eax
	movl	(%eax), %ecx
	cmpl	$CPUID_ENTRIES_MAX, %ecx
	ja	stage1_refuse
	addl	$CPUID_PAGE_ENTRIES, %eax
1:	subl	$1, %ecx
	jb	stage1_refuse
	cmpl	$CPUID_ENCRYPTION, (%eax)
	je	2f
	addl	$CPUID_ENTRY_SIZE, %eax
	jmp	1b
2:	movl	CPUID_ENTRY_EBX(%eax), %ecx
	andl	$CBIT_MASK, %ecx
	cmpl	LAUNCH_INFO_CBIT(%edi), %ecx
	jne	stage1_refuse
	cmpl	$CBIT_MIN, %ecx
	jb	stage1_refuse
	cmpl	$CBIT_MAX, %ecx
	ja	stage1_refuse
	/* EBP = the C-bit, as it lies in the high half of a page table entry. */
	subl	$32, %ecx
	movl	$1, %ebp
	shll	%cl, %ebp

	leal	RELATIVE(stage1_gdt)(%esi), %eax
	movl	%eax, (RELATIVE(stage1_gdtr) + 2)(%esi)
	lgdt	RELATIVE(stage1_gdtr)(%esi)
	movl	$STAGE1_DS, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%eax, %fs
	movl	%eax, %gs
	leal	RELATIVE(stage2_stack_top)(%esi), %esp
	leal	RELATIVE(stage2_start32)(%esi), %ebx
	jmp	*%ebx

	/* Also the end of stage 2's 32-bit part: nobody can be told more than a code. */
	.globl	stage1_refuse
stage1_refuse:
	movl	$GHCB_MSR_TERMINATE(SVSM_REASON_LAUNCH), %eax
	xorl	%edx, %edx
	movl	$MSR_GHCB, %ecx
	wrmsr
	rep
	vmmcall /* VMGEXIT */
3:	hlt
	jmp	3b
	.cfi_endproc
	.size	stage1_start, . - stage1_start

	.data
	.balign	8
stage1_gdt:
	.quad	0
	.quad	0x00af9b000000ffff /* STAGE_CS64 */
	.quad	0x00cf93000000ffff /* STAGE1_DS */
stage1_gdtr:
	.word	. - stage1_gdt - 1
	.long	0

	.section .note.GNU-stack, "", @progbits
