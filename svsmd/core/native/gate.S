/* SPDX-License-Identifier: MIT */
/*
 * The core gate, the idle loop round it, and the exception entries of VMPL0.
 *
 * Policy is the core's; what must be real instructions of VMPL0 is here. Numbers: layout.h.
 * Spec: AMD 56421, 2.3 (GHCB MSR protocol), 24594 (VMGEXIT).
 */
#include "layout.h"

#define MSR_GHCB 0xc0010130

	.text
	.globl	svsm_gate_loop
	.type	svsm_gate_loop, @function
svsm_gate_loop:
	.cfi_startproc
	.cfi_undefined rip
	.globl	svsm_core_gate
svsm_core_gate:
	ud2
svsm_gate_action:
	cmpq	$SVSM_GATE_LOOP, %rbx
	je	2f
	ja	1f

	/* SVSM_GATE_VMGEXIT: EDX:EAX is a request of the MSR protocol or the GPA of a GHCB page. */
	movl	$MSR_GHCB, %ecx
	wrmsr
	rep
	vmmcall /* F3 0F 01 D9: VMGEXIT */
	movl	$MSR_GHCB, %ecx
	rdmsr
	shlq	$32, %rdx
	orq	%rdx, %rax
	movl	$SVSM_GATE_FROM_VMGEXIT, %ebx
	jmp	svsm_gate_loop

1:	cmpq	$SVSM_GATE_START, %rbx
	je	3f
	cmpq	$SVSM_GATE_PANIC, %rbx
	je	4f
	/* SVSM_GATE_HLT: nothing to do; interrupts stay off, the host runs us again when it likes. */
	hlt
2:	movl	$SVSM_GATE_FROM_LOOP, %ebx
	jmp	svsm_gate_loop

3:	/* SVSM_GATE_START */
	shlq	$32, %rdx
	orq	%rdx, %rax
	movl	$SVSM_GATE_FROM_LOOP, %ebx
	jmp	svsm_cpu_start

4:	call	svsm_panic
	.cfi_endproc
	.size	svsm_gate_loop, . - svsm_gate_loop

/*
 * The end of the SVSM: EDX:EAX asks the host to terminate, as often as it comes back. A debugger that
 * is attached stops at svsm_panic_gate (a UD2 that the silicon takes for that); the core has written
 * its report by then. It is called, so that who called can be seen.
 */
	.globl	svsm_panic
	.type	svsm_panic, @function
svsm_panic:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	.cfi_offset rbp, -16
	movq	%rsp, %rbp
	.cfi_def_cfa_register rbp
	.globl	svsm_panic_gate
svsm_panic_gate:
	ud2
1:	movl	$MSR_GHCB, %ecx
	wrmsr
	rep
	vmmcall
	jmp	1b
	.cfi_endproc
	.size	svsm_panic, . - svsm_panic

/*
 * Exceptions. None is expected: whatever comes is a fault of the SVSM, or of a host that lies about
 * memory. Each entry pushes what the CPU did not push (an error code) and its vector, then the
 * general registers; `svsm_exception_gate` hands the frame to the core: RBX = vector, RDI = frame,
 * RAX = CR2. RBP = frame + 1 marks the frame for those who follow the chain of frame pointers
 * (svsmd/core/backtrace/unwinder.py): code called from here pushes it, and it is no frame pointer.
 *
 * Frame, from RDI up: R15 R14 R13 R12 R11 R10 R9 R8 RBP RDI RSI RDX RCX RBX RAX, vector, error
 * code, RIP, CS, RFLAGS, RSP, SS (8 bytes each).
 *
 * The core answers as at `svsm_core_gate` (with a request to terminate). The interrupted code is
 * not resumed; its frame stays on the stack, where a debugger finds it.
 */
#define HAS_ERROR_CODE 0x60227d00 /* vectors 8, 10-14, 17, 21, 29, 30 */

	.balign	16
	.globl	svsm_vectors
	.type	svsm_vectors, @function
svsm_vectors:
	.set	vector, 0
	.rept	32
	.balign	16
	.if	!((HAS_ERROR_CODE >> vector) & 1)
	pushq	$0
	.endif
	pushq	$vector
	jmp	svsm_exception
	.set	vector, vector + 1
	.endr
	.size	svsm_vectors, . - svsm_vectors

	.type	svsm_exception, @function
svsm_exception:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 56
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	.irp	reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
	pushq	%\reg
	.cfi_adjust_cfa_offset 8
	.cfi_rel_offset \reg, 0
	.endr
	cld
	movq	%rsp, %rdi
	leaq	1(%rsp), %rbp
	movq	15 * 8(%rsp), %rbx
	movq	%cr2, %rax
	.globl	svsm_exception_gate
svsm_exception_gate:
	ud2
	cmpq	$SVSM_GATE_PANIC, %rbx
	jne	1f
	call	svsm_panic
1:	jmp	svsm_gate_action
	.cfi_endproc
	.size	svsm_exception, . - svsm_exception

	.section .note.GNU-stack, "", @progbits
