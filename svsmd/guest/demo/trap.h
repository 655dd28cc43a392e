/* SPDX-License-Identifier: MIT */
/* Exceptions and interrupts: the frame, the handlers, and catching a fault on purpose. */
#ifndef DEMO_TRAP_H
#define DEMO_TRAP_H

/* Offset of `rsp` in struct catch_context, for assembly. */
#define CATCH_RSP 0

#ifndef __ASSEMBLER__
#include <stdbool.h>
#include <stdint.h>

/* Vectors (24593, table 8-1). */
enum vector {
	VECTOR_DE = 0,
	VECTOR_DB = 1,
	VECTOR_NMI = 2,
	VECTOR_BP = 3,
	VECTOR_UD = 6,
	VECTOR_NM = 7,
	VECTOR_DF = 8,
	VECTOR_NP = 11,
	VECTOR_SS = 12,
	VECTOR_GP = 13,
	VECTOR_PF = 14,
	VECTOR_MC = 18,
	VECTOR_VC = 29,
	VECTOR_FIRST_IRQ = 32,
	VECTOR_UART = 0x24,
	VECTOR_TIMER = 0x30,
	VECTOR_TEST = 0x40,
	VECTOR_IPI = 0x60,
	VECTOR_SPURIOUS = 0xff,
	VECTOR_COUNT = 256,
};

/* Page fault error code (24593, 8.4.2). */
#define PF_PRESENT (1 << 0)
#define PF_WRITE (1 << 1)
#define PF_USER (1 << 2)
#define PF_RESERVED (1 << 3)
#define PF_FETCH (1 << 4)

/* What vectors.S pushes below the CPU's own frame. */
struct trap_frame {
	uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
	uint64_t rbp, rdi, rsi, rdx, rcx, rbx, rax;
	uint64_t vector, error_code;
	uint64_t rip, cs, rflags, rsp, ss;
};

/* An exception that was caught. */
struct fault {
	uint64_t vector;
	uint64_t error_code;
	uint64_t rip;
	uint64_t cs;
	uint64_t rsp;
	uint64_t cr2; /* for VECTOR_PF and VECTOR_VC */
	uint64_t frame; /* where the CPU had put its frame: tells which stack it took */
};

struct catch_context {
	uint64_t rsp; /* where catch_call continues */
	struct catch_context *outer;
	struct fault *fault;
};

typedef void irq_handler(void);

void trap_init(void);
void trap_load_idt(void);
void trap_dispatch(struct trap_frame *frame);

/* Deliver another exception in place of the one at hand; continues as if the CPU had raised it. */
void trap_raise(struct trap_frame *frame, enum vector vector, uint64_t error_code);

/* Call `handler` for interrupts of this vector, then EOI; null forgets it. */
void irq_register(uint8_t vector, irq_handler *handler);

/*
 * Call function(argument). True if it raised an exception (and never came back): *fault says which.
 * Callee-saved registers, RSP and RFLAGS are as before the call.
 */
bool fault_catch(struct fault *fault, void (*function)(uint64_t), uint64_t argument);

const char *vector_name(uint64_t vector);

/* vectors.S */
extern const char trap_vectors[];
extern const char catch_resume[];
uint64_t catch_call(struct catch_context *context, void (*function)(uint64_t), uint64_t argument);
#endif
#endif
