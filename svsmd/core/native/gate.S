/* SPDX-License-Identifier: MIT */
/*
 * The core gate, the idle loop round it, and the exception entries of VMPL0.
 *
 * Policy is the core's; what must be real instructions of VMPL0 is here. Numbers: layout.h.
 * Spec: AMD 56421, 2.3 (GHCB MSR protocol), 24594 (VMGEXIT).
 */
#include "layout.h"

#define MSR_FS_BASE 0xc0000100
#define MSR_GHCB 0xc0010130

#define FRAME_VECTOR (15 * 8)
#define FRAME_CS (18 * 8)

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
	cmpq	$SVSM_GATE_USER, %rbx
	je	svsm_enter_user
	cmpq	$SVSM_GATE_WINDOW, %rbx
	je	3f
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
	xorl	%ebp, %ebp /* who has come from CPL 3 last is not on the way to here any more */
	jmp	svsm_gate_loop

1:	cmpq	$SVSM_GATE_START, %rbx
	je	4f
	cmpq	$SVSM_GATE_PANIC, %rbx
	je	5f
	/*
	 * SVSM_GATE_HLT: nothing to do. Here and below are the only places at CPL 0 where interrupts are
	 * on; without one the host runs us again when it likes.
	 */
	sti
	hlt
	cli
	jmp	2f

3:	sti
	nop /* STI holds interrupts off for one instruction */
	cli
2:	xorl	%eax, %eax
	xchgq	%rax, %gs:SVSM_CPU_INTERRUPTED
	xorl	%ebp, %ebp
	movl	$SVSM_GATE_FROM_LOOP, %ebx
	jmp	svsm_gate_loop

4:	/* SVSM_GATE_START */
	shlq	$32, %rdx
	orq	%rdx, %rax
	movl	$SVSM_GATE_FROM_LOOP, %ebx
	jmp	svsm_cpu_start

5:	call	svsm_panic
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
 * SVSM_GATE_USER: RAX = frame of CPL 3 code, which the core has written and checked, RDX = its FS
 * base. IRETQ cannot fault with such a frame. VMGEXIT works at CPL 3 too: the GHCB MSR names the GHCB
 * page, where the core leaves no request, and nothing that a program could make the host do again.
 */
	.type	svsm_enter_user, @function
svsm_enter_user:
	.cfi_startproc
	.cfi_undefined rip
	movq	%rax, %rsp
	fxrstor64 %gs:SVSM_CPU_FPU
	movl	$MSR_FS_BASE, %ecx
	movl	%edx, %eax
	shrq	$32, %rdx
	wrmsr
	movl	$MSR_GHCB, %ecx
	movl	%gs:SVSM_CPU_GHCB_GPA, %eax
	movl	%gs:SVSM_CPU_GHCB_GPA + 4, %edx
	wrmsr
	.irp	reg, r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax
	popq	%\reg
	.endr
	addq	$16, %rsp /* vector, error code */
	swapgs
	iretq
	.cfi_endproc
	.size	svsm_enter_user, . - svsm_enter_user

/*
 * Exceptions. At CPL 0 none is expected: whatever comes is a fault of the SVSM, or of a host that lies
 * about memory. Each entry pushes what the CPU did not push (an error code) and its vector, then the
 * general registers.
 *
 * Frame, from RDI up: R15 R14 R13 R12 R11 R10 R9 R8 RBP RDI RSI RDX RCX RBX RAX, vector, error
 * code, RIP, CS, RFLAGS, RSP, SS (8 bytes each). SYSCALL and the interrupt make one too, with
 * vectors of their own.
 *
 * RBP = frame + 1 marks the frame for those who follow the chain of frame pointers
 * (svsmd/core/backtrace/unwinder.py): code called from here pushes it, and it is no frame pointer.
 *
 * From CPL 3 the core is told with SVSM_GATE_FROM_USER. From CPL 0 `svsm_exception_gate` hands the
 * frame to it: RBX = vector, RDI = frame, RAX = CR2. It answers as at `svsm_core_gate` (with a request to
 * terminate). The interrupted code is not resumed; its frame stays on the stack, where a debugger
 * finds it.
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
	testb	$3, FRAME_CS(%rsp)
	jnz	svsm_from_user
	movq	FRAME_VECTOR(%rsp), %rbx
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

	.type	svsm_from_user, @function
svsm_from_user:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 176
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	swapgs
	fxsave64 %gs:SVSM_CPU_FPU
	movl	$SVSM_GATE_FROM_USER, %ebx
	jmp	svsm_gate_loop
	.cfi_endproc
	.size	svsm_from_user, . - svsm_from_user

/* SYSCALL: RCX = RIP, R11 = RFLAGS of the caller, everything else is still its. */
	.globl	svsm_syscall
	.type	svsm_syscall, @function
svsm_syscall:
	.cfi_startproc
	.cfi_undefined rip
	swapgs
	movq	%rsp, %gs:SVSM_CPU_USER_RSP
	movq	%gs:SVSM_CPU_STACK_POINTER, %rsp
	pushq	$SVSM_USER_DS
	pushq	%gs:SVSM_CPU_USER_RSP
	swapgs /* svsm_from_user does it again */
	pushq	%r11
	pushq	$SVSM_USER_CS
	pushq	%rcx
	pushq	$0
	pushq	$SVSM_VECTOR_SYSCALL
	jmp	svsm_exception
	.cfi_endproc
	.size	svsm_syscall, . - svsm_syscall

/* The interrupt of this CPU's APIC: pre-empts CPL 3, or wakes the halted CPU. */
	.globl	svsm_interrupt
	.type	svsm_interrupt, @function
svsm_interrupt:
	.cfi_startproc simple
	.cfi_signal_frame
	.cfi_def_cfa rsp, 40
	.cfi_offset rip, -40
	.cfi_offset rsp, -16
	testb	$3, 8(%rsp)
	jnz	1f
	movq	$1, %gs:SVSM_CPU_INTERRUPTED
	iretq
1:	pushq	$0
	pushq	$SVSM_VECTOR_INTERRUPT
	jmp	svsm_exception
	.cfi_endproc
	.size	svsm_interrupt, . - svsm_interrupt

/* Any other vector: nobody but a hostile host has a reason to inject it. */
	.globl	svsm_ignored
	.type	svsm_ignored, @function
svsm_ignored:
	iretq
	.size	svsm_ignored, . - svsm_ignored

	.section .note.GNU-stack, "", @progbits
