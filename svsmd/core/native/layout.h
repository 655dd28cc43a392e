/* SPDX-License-Identifier: MIT */
/*
 * Addresses and numbers that the native stub, its linker script and the Python core agree on.
 *
 * Offsets count from svsm_base, the guest-physical start of the SVSM region (2 MiB aligned).
 */
#ifndef SVSMD_NATIVE_LAYOUT_H
#define SVSMD_NATIVE_LAYOUT_H

#define SVSM_IMAGE_VIRT 0xffffffff80000000 /* the image is linked here; it lies at svsm_base */
#define SVSM_IMAGE_MAX 0x80000 /* bytes that the region keeps for it */
#define LAUNCH_INFO_OFFSET 0x80000

#define SVSM_PRIVATE_MAP 0xffff800000000000 /* + gpa: the SVSM's own memory with C = 1 */
#define SVSM_DIRECT_MAP_GIB 512 /* so much of it is mapped until the core has its own tables */

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

/*
 * The core gate: UD2 at `svsm_core_gate`. Silicon hands it to the core instead of raising #UD.
 * RBX says why the stub came (going in) and what it shall do (coming back, after RIP += 2). After an
 * exception the stub comes by a second gate, `svsm_exception_gate` (gate.S), with RBX = vector and
 * RDI = frame, RAX = CR2; what it shall do then is said in the same way. At either gate RBP leads to
 * the callers: 0 if there are none, the frame + 1 after an exception.
 */
#define SVSM_GATE_FROM_VMGEXIT 0 /* in: VMGEXIT done, RAX = GHCB MSR as it reads now */
#define SVSM_GATE_FROM_BOOT 1 /* in: first call of the boot CPU, RAX = GPA of the launch-info page */
#define SVSM_GATE_FROM_AP 2 /* in: first call of another CPU */
#define SVSM_GATE_FROM_LOOP 3 /* in: came back at once, or from HLT */

#define SVSM_GATE_VMGEXIT 0 /* out: WRMSR GHCB := EDX:EAX, VMGEXIT, come back with RDMSR GHCB */
#define SVSM_GATE_LOOP 1 /* out: come back at once */
#define SVSM_GATE_HLT 2 /* out: HLT, then come back */
#define SVSM_GATE_START 3 /* out: start in the area of this CPU, CR3 := EDX:EAX, CR4 := RCX; come back */
#define SVSM_GATE_PANIC 15 /* out: svsm_panic, with EDX:EAX as for SVSM_GATE_VMGEXIT; no way back */

#endif
