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

#define SVSM_PRIVATE_MAP 0xffff800000000000 /* + gpa: all memory with C = 1 */
#define SVSM_SHARED_MAP 0xffff900000000000 /* + gpa: all memory with C = 0 */
#define SVSM_DIRECT_MAP_GIB 512 /* size of either */

/* The area of one CPU (cpu.h): control page, then the stacks. The core allocates it, zeroed, for APs. */
#define SVSM_CPU_SIZE 0x4000
#define SVSM_CPU_STACK_TOP SVSM_CPU_SIZE
#define SVSM_CPU_IST_SIZE 0x1000

/* Selectors of the GDT in that area. */
#define SVSM_CS 0x08
#define SVSM_DS 0x10
#define SVSM_TSS 0x18

/*
 * The core gate: UD2 at `svsm_core_gate`. Silicon hands it to the core instead of raising #UD.
 * RBX says why the stub came (going in) and what it shall do (coming back, after RIP += 2). After an
 * exception the stub comes by a second gate, `svsm_exception_gate` (gate.S), with RBX = vector and
 * RDI = frame; what it shall do then is said in the same way.
 */
#define SVSM_GATE_FROM_VMGEXIT 0 /* in: VMGEXIT done, RAX = GHCB MSR as it reads now */
#define SVSM_GATE_FROM_BOOT 1 /* in: first call of the boot CPU, RAX = GPA of the launch-info page */
#define SVSM_GATE_FROM_AP 2 /* in: first call of another CPU */
#define SVSM_GATE_FROM_LOOP 3 /* in: came back at once, or from HLT */

#define SVSM_GATE_VMGEXIT 0 /* out: WRMSR GHCB := EDX:EAX, VMGEXIT, come back with RDMSR GHCB */
#define SVSM_GATE_LOOP 1 /* out: come back at once */
#define SVSM_GATE_HLT 2 /* out: HLT, then come back */

#endif
