/* SPDX-License-Identifier: MIT */
/*
 * Addresses and numbers that the boot's stages, the native kernel, the linker scripts and the Python
 * core agree on.
 *
 * Offsets count from svsm_base, the guest-physical start of the SVSM region (2 MiB aligned).
 */
#ifndef SVSMD_NATIVE_LAYOUT_H
#define SVSMD_NATIVE_LAYOUT_H

#define SVSM_IMAGE_VIRT 0xffffffff80000000 /* the kernel is linked and mapped here */

/* The region as it is launched: stages, kernel file and digest page of the core, then single pages. */
#define SVSM_IMAGE_MAX 0x80000
#define LAUNCH_INFO_OFFSET 0x80000
#define SVSM_CPUID_OFFSET 0x81000 /* CPUID page, checked by the security processor */
#define SVSM_SECRETS_OFFSET 0x82000
#define SVSM_VMSA_OFFSET 0x83000
#define SVSM_CAA_OFFSET 0x84000 /* calling area of the guest's boot CPU; not launched */
#define SVSM_GHCB_OFFSET 0x85000 /* GHCB of the boot CPU; not launched */
#define SVSM_ARCHIVE_OFFSET 0x86000 /* the modules' archive; behind it is what stage 2 gives out */

#define SVSM_PRIVATE_MAP 0xffff800000000000 /* + gpa: the SVSM's own memory with C = 1 */

/*
 * The area of a CPU, in its own page tables only (core/paging/cpu_area.py). What lies between these
 * pages is not mapped, so that a stack that overflows faults.
 */
#define SVSM_PERCPU_MAP 0xffffff0000000000 /* control page, struct svsm_cpu; GS base */
#define SVSM_CPU_IST 0xffffff0000002000 /* stack of IST 1 */
#define SVSM_CPU_IST_SIZE 0x1000
#define SVSM_CPU_STACK 0xffffff0000004000
#define SVSM_CPU_STACK_SIZE 0x2000
#define SVSM_CPU_GHCB 0xffffff0000007000 /* GHCB page, C = 0 */

/* What the boot CPU has instead, in the image, until the core starts it in its area (cpu.h). */
#define SVSM_BOOT_IST_TOP 0x2000
#define SVSM_BOOT_STACK_TOP 0x4000

/* Selectors of the GDT in that area. */
#define SVSM_CS 0x08
#define SVSM_DS 0x10
#define SVSM_TSS 0x18
#define SVSM_USER_DS 0x2b
#define SVSM_USER_CS 0x33

/* Offsets in that area, for assembly. */
#define SVSM_CPU_STACK_POINTER 0x08
#define SVSM_CPU_USER_RSP 0x10
#define SVSM_CPU_INTERRUPTED 0x18
#define SVSM_CPU_FPU 0x20 /* FXSAVE area of the CPL 3 code that ran last */
#define SVSM_CPU_GHCB_GPA 0x2c0 /* what the GHCB MSR is at CPL 3 */

/*
 * The core gate: UD2 at `svsm_core_gate`. Silicon hands it to the core instead of raising #UD.
 * RBX says why the stub came (going in) and what it shall do (coming back, after RIP += 2). After an
 * exception the stub comes by a second gate, `svsm_exception_gate` (gate.S), with RBX = vector and
 * RDI = frame, RAX = CR2; what it shall do then is said in the same way. At either gate RBP leads to
 * the callers: 0 if there are none, the frame + 1 after an exception.
 */
#define SVSM_GATE_FROM_VMGEXIT 0 /* in: VMGEXIT done, RAX = GHCB MSR as it reads now */
#define SVSM_GATE_FROM_BOOT 1 /* in: first call of the boot CPU, RAX = GPA of the kernel_launch page */
#define SVSM_GATE_FROM_AP 2 /* in: first call of another CPU */
#define SVSM_GATE_FROM_LOOP 3 /* in: came back at once, or from HLT; RAX = 1 if an interrupt came */
#define SVSM_GATE_FROM_USER 4 /* in: CPL 3 was left, RDI = its frame (gate.S) */

#define SVSM_GATE_VMGEXIT 0 /* out: WRMSR GHCB := EDX:EAX, VMGEXIT, come back with RDMSR GHCB */
#define SVSM_GATE_LOOP 1 /* out: come back at once */
#define SVSM_GATE_HLT 2 /* out: HLT with interrupts on, then come back */
#define SVSM_GATE_START 3 /* out: start in the area of this CPU, CR3 := EDX:EAX, CR4 := RCX; come back */
#define SVSM_GATE_USER 4 /* out: go on at CPL 3; RAX = frame, RDX = FS base */
#define SVSM_GATE_WINDOW 5 /* out: take an interrupt if one is pending, then come back */
#define SVSM_GATE_PANIC 15 /* out: svsm_panic, with EDX:EAX as for SVSM_GATE_VMGEXIT; no way back */

/* Vectors of a frame that no exception has: SYSCALL, and the interrupt of VMPL0's own APIC. */
#define SVSM_VECTOR_INTERRUPT 0x40
#define SVSM_VECTOR_SYSCALL 0x100

/* Termination by the GHCB MSR protocol (56421, 2.3.1): reason set and codes of this SVSM. */
#define SVSM_REASON_SET 2
#define SVSM_REASON_PANIC 0
#define SVSM_REASON_EXCEPTION 1
#define SVSM_REASON_PAYLOAD 2
#define SVSM_REASON_LAUNCH 3 /* stage 1: launch info, CPUID page and SEV_STATUS do not fit together */
#define SVSM_REASON_GHCB 4 /* stage 2: no GHCB that both sides agree on, so there is no log either */
#define SVSM_REASON_STAGE2 5 /* stage 2 panicked, and its log says why */
#define SVSM_REASON_VALIDATION 6 /* a page of the SVSM is not as the host has to leave it */

#endif
