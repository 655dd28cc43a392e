/* SPDX-License-Identifier: MIT */
/*
 * A kernel that counts for ever, for debuggers to look at. svsmd enters it in 64-bit mode at
 * _start, on its own identity mapping. QEMU enters it in 32-bit mode at start32, by the note
 * (Xen PVH, XEN_ELFNOTE_PHYS32_ENTRY).
 */
	.set	XEN_ELFNOTE_PHYS32_ENTRY, 18
	.set	PAGE_2M, 0x87
	.set	PAGES, 512
	.set	CR4_PAE, 1 << 5
	.set	EFER, 0xc0000080
	.set	EFER_LME, 1 << 8
	.set	CR0_PG_PE, 0x80000001

	.section .note.pvh, "a", @note
	.long	4, 4, XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.long	start32

	.text
	.code32
	.globl	start32
start32:
	lea	page_directory, %edi
	mov	$PAGE_2M, %eax
	mov	$PAGES, %ecx
1:	mov	%eax, (%edi)
	movl	$0, 4(%edi)
	add	$0x200000, %eax
	add	$8, %edi
	dec	%ecx
	jnz	1b
	lea	page_directory + 7, %eax
	mov	%eax, pointers
	lea	pointers + 7, %eax
	mov	%eax, top
	mov	$CR4_PAE, %eax
	mov	%eax, %cr4
	lea	top, %eax
	mov	%eax, %cr3
	mov	$EFER, %ecx
	rdmsr
	or	$EFER_LME, %eax
	wrmsr
	mov	$CR0_PG_PE, %eax
	mov	%eax, %cr0
	lgdt	gdt_pointer
	ljmp	$0x10, $_start

	.code64
	.globl	_start, spin
_start:
	lea	stack_top(%rip), %rsp
	xor	%ebx, %ebx
spin:
	inc	%rbx
	mov	%rbx, counter(%rip)
	call	mix
	jmp	spin
mix:
	push	%rbx
	mov	counter(%rip), %rax
	imul	%rbx, %rax
	pop	%rbx
	ret

	.section .rodata
	.balign	8
gdt:	.quad	0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
	.word	. - gdt - 1
	.quad	gdt

	.bss
	.balign	4096
top:	.skip	4096
pointers:
	.skip	4096
page_directory:
	.skip	4096
	.globl	counter
counter:
	.skip	4096
	.skip	4096
stack_top:
	.section .note.GNU-stack, "", @progbits
