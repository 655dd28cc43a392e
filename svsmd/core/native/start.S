/* SPDX-License-Identifier: MIT */
/*
 * The SVSM's first instructions: from 32-bit protected mode to 64-bit mode, and to the core gate.
 *
 * Spec: AMD 24593, 14.6 (activating long mode), 15.34.4 and 15.36 (C-bit, SNP-active guests).
 *
 * Entry of the boot CPU (VMSA written by the launcher):
 *   EIP = svsm_base + (svsm_start32 - SVSM_IMAGE_VIRT), paging off, flat 32-bit segments, IF = 0
 *   ESI = svsm_base, EDI = physical address of the launch-info page, no stack
 * The image runs here at whatever address it was loaded to: code in this part addresses memory by
 * ESI plus an offset only. It executes nothing that would raise #VC (no CPUID, no I/O), since there
 * is no handler yet; RDMSR and WRMSR of EFER are not intercepted in an SEV-ES guest.
 */
#include "launch_info.h"

#define PTE_PRESENT 0x001
#define PTE_WRITE 0x002
#define PTE_DIRTY_ACCESSED 0x060
#define PTE_HUGE 0x080
#define PTE_NX_HIGH 0x80000000 /* bit 63, in the high half */
#define PTE_TABLE (PTE_PRESENT | PTE_WRITE | PTE_DIRTY_ACCESSED)
#define PTE_READ_ONLY (PTE_PRESENT | PTE_DIRTY_ACCESSED)

#define CR0_WP (1 << 16)
#define CR0_PG (1 << 31)
#define CR4_PAE (1 << 5)
#define CR4_OSFXSR (1 << 9)
#define MSR_EFER 0xc0000080
#define EFER_LME (1 << 8)
#define EFER_NXE (1 << 11)

#define PML4_SLOT(va) (((va) >> 39 & 511) * 8)
#define PDPT_SLOT(va) (((va) >> 30 & 511) * 8)

/* A symbol's offset in the image, for use with ESI. */
#define OFFSET(symbol) ((symbol) - SVSM_IMAGE_VIRT)

	/* Write one entry: address in EAX (below 4 GiB), flags, and the C-bit out of EBP. */
	.macro	write_entry target:req, flags:req
	orl	$(\flags), %eax
	movl	%eax, \target
	movl	%ebp, 4 + \target
	.endm

	.code32
	.section .text.start, "ax"
	.globl	svsm_start32
	.type	svsm_start32, @function
svsm_start32:
	cld
	/* EBP = the C-bit, as it lies in the high half of an entry. */
	movl	LAUNCH_INFO_CBIT(%edi), %ecx
	subl	$32, %ecx
	movl	$1, %ebp
	shll	%cl, %ebp

	/* The tables are zero: .bss comes as zeroed, measured pages. Now the upper levels. */
	leal	OFFSET(svsm_pdpt_identity)(%esi), %eax
	write_entry OFFSET(svsm_pml4)(%esi), PTE_TABLE
	leal	OFFSET(svsm_pdpt_private)(%esi), %eax
	write_entry (OFFSET(svsm_pml4) + PML4_SLOT(SVSM_PRIVATE_MAP))(%esi), PTE_TABLE
	leal	OFFSET(svsm_pdpt_image)(%esi), %eax
	write_entry (OFFSET(svsm_pml4) + PML4_SLOT(SVSM_IMAGE_VIRT))(%esi), PTE_TABLE
	leal	OFFSET(svsm_pd_image)(%esi), %eax
	write_entry (OFFSET(svsm_pdpt_image) + PDPT_SLOT(SVSM_IMAGE_VIRT))(%esi), PTE_TABLE
	leal	OFFSET(svsm_pt_image)(%esi), %eax
	write_entry OFFSET(svsm_pd_image)(%esi), PTE_TABLE

	/* Identity map of the 2 MiB that this code lies in, for the switch only (svsm_start64 undoes it). */
	movl	%esi, %ebx
	shrl	$30, %ebx
	leal	OFFSET(svsm_pdpt_identity)(%esi,%ebx,8), %ebx
	leal	OFFSET(svsm_pd_identity)(%esi), %eax
	write_entry 0(%ebx), PTE_TABLE
	movl	%esi, %ebx
	shrl	$21, %ebx
	andl	$511, %ebx
	leal	OFFSET(svsm_pd_identity)(%esi,%ebx,8), %ebx
	movl	%esi, %eax
	write_entry 0(%ebx), PTE_READ_ONLY | PTE_HUGE

	/* Direct map: entry i maps i GiB, no execution. */
	xorl	%ecx, %ecx
1:	movl	%ecx, %eax
	shll	$30, %eax
	orl	$(PTE_TABLE | PTE_HUGE), %eax
	movl	%eax, OFFSET(svsm_pdpt_private)(%esi,%ecx,8)
	movl	%ecx, %eax
	shrl	$2, %eax
	orl	$PTE_NX_HIGH, %eax
	orl	%ebp, %eax
	movl	%eax, OFFSET(svsm_pdpt_private) + 4(%esi,%ecx,8)
	incl	%ecx
	cmpl	$SVSM_DIRECT_MAP_GIB, %ecx
	jb	1b

	/* The image, page by page: text may be executed, read-only data read, the rest written. */
	xorl	%ecx, %ecx
2:	movl	%ecx, %eax
	shll	$12, %eax
	xorl	%edx, %edx
	movl	$PTE_READ_ONLY, %ebx
	cmpl	$OFFSET(svsm_text_end), %eax
	jb	3f
	movl	$PTE_NX_HIGH, %edx
	cmpl	$OFFSET(svsm_rodata_end), %eax
	jb	3f
	movl	$PTE_TABLE, %ebx
3:	orl	%ebp, %edx
	addl	%esi, %eax
	orl	%ebx, %eax
	movl	%eax, OFFSET(svsm_pt_image)(%esi,%ecx,8)
	movl	%edx, OFFSET(svsm_pt_image) + 4(%esi,%ecx,8)
	incl	%ecx
	cmpl	$OFFSET(svsm_image_pages), %ecx
	jb	2b

	/* The far pointers below need their physical addresses. */
	leal	OFFSET(svsm_boot_gdt)(%esi), %eax
	movl	%eax, OFFSET(svsm_boot_gdtr) + 2(%esi)
	lgdt	OFFSET(svsm_boot_gdtr)(%esi)
	leal	OFFSET(svsm_enter64)(%esi), %eax
	movl	%eax, OFFSET(svsm_boot_far)(%esi)

	movl	%cr4, %eax
	orl	$(CR4_PAE | CR4_OSFXSR), %eax
	movl	%eax, %cr4
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$(EFER_LME | EFER_NXE), %eax
	wrmsr
	/*
	 * CR3 has 32 bits to write here, so it cannot carry the C-bit: walks of an SNP guest are private
	 * all the same (24593, 15.36.10). svsm_start64 writes it in full.
	 */
	leal	OFFSET(svsm_pml4)(%esi), %eax
	movl	%eax, %cr3
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_WP), %eax
	movl	%eax, %cr0
	ljmpl	*OFFSET(svsm_boot_far)(%esi)
	.size	svsm_start32, . - svsm_start32

	.code64
	.type	svsm_enter64, @function
svsm_enter64:
	/* Still at the identity address. ESI, EDI, EBP keep their values; make them 64 bits wide. */
	movl	%esi, %esi
	movl	%edi, %edi
	movl	%ebp, %ebp
	movabsq	$svsm_start64, %rax
	jmp	*%rax
	.size	svsm_enter64, . - svsm_enter64

	.text
	.type	svsm_start64, @function
svsm_start64:
	/* At the linked address now: the identity map goes, CR3 gets the C-bit. */
	movq	$0, svsm_pml4(%rip)
	shlq	$32, %rbp
	leaq	OFFSET(svsm_pml4)(%rsi), %rax
	orq	%rbp, %rax
	movq	%rax, %cr3
	xorl	%ebp, %ebp /* the end of the chain of frame pointers */

	leaq	svsm_boot_cpu(%rip), %rbx
	leaq	SVSM_BOOT_STACK_TOP(%rbx), %rsp
	movq	%rdi, %r12
	call	svsm_idt_init
	leaq	SVSM_BOOT_IST_TOP(%rbx), %rsi
	call	svsm_load_tables
	movq	%r12, %rax
	movl	$SVSM_GATE_FROM_BOOT, %ebx
	jmp	svsm_gate_loop
	.size	svsm_start64, . - svsm_start64

	.data
	.balign	8
svsm_boot_gdt:
	.quad	0
	.quad	0x00af9b000000ffff /* SVSM_CS: 64-bit code */
	.quad	0x00cf93000000ffff /* SVSM_DS */
svsm_boot_gdtr:
	.word	. - svsm_boot_gdt - 1
	.long	0
	.balign	8
svsm_boot_far:
	.long	0
	.word	SVSM_CS

	.macro	page_table name:req
	.globl	\name
	.type	\name, @object
	.size	\name, 4096
\name:	.skip	4096
	.endm

	.section .bss.page_tables, "aw", @nobits
	.balign	4096
	page_table svsm_pml4
	page_table svsm_pdpt_identity
	page_table svsm_pd_identity
	page_table svsm_pdpt_private
	page_table svsm_pdpt_image
	page_table svsm_pd_image
	page_table svsm_pt_image

	.section .note.GNU-stack, "", @progbits
