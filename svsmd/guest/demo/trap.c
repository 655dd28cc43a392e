/* SPDX-License-Identifier: MIT */
/* The IDT and what stands behind it. Spec: AMD 24593, chapter 8. */
#include "trap.h"

#include <stddef.h>

#include "apic.h"
#include "cpu.h"
#include "ghcb.h"
#include "print.h"
#include "vc.h"

#define VECTOR_ENTRY_SIZE 16 /* vectors.S */
#define GATE_INTERRUPT 0x8e
#define GATE_INTERRUPT_USER 0xee /* INT3 may come from CPL 3 */

struct idt_gate {
	uint16_t offset_low;
	uint16_t selector;
	uint8_t ist;
	uint8_t type;
	uint16_t offset_middle;
	uint32_t offset_high;
	uint32_t reserved;
};

static struct idt_gate idt[VECTOR_COUNT] __attribute__((aligned(16)));
static irq_handler *irq_handlers[VECTOR_COUNT];

static uint8_t ist_of(unsigned int vector)
{
	switch (vector) {
	case VECTOR_DF:
		return IST_DF;
	case VECTOR_NMI:
		return IST_NMI;
	case VECTOR_MC:
		return IST_MC;
	case VECTOR_VC:
		return IST_VC;
	default:
		return 0;
	}
}

void trap_init(void)
{
	for (unsigned int vector = 0; vector < VECTOR_COUNT; vector++) {
		uint64_t entry = (uint64_t)trap_vectors + vector * VECTOR_ENTRY_SIZE;

		idt[vector] = (struct idt_gate){
			.offset_low = (uint16_t)entry,
			.selector = KERNEL_CS,
			.ist = ist_of(vector),
			.type = vector == VECTOR_BP ? GATE_INTERRUPT_USER : GATE_INTERRUPT,
			.offset_middle = (uint16_t)(entry >> 16),
			.offset_high = (uint32_t)(entry >> 32),
		};
	}
}

void trap_load_idt(void)
{
	struct table_register idtr = { sizeof(idt) - 1, (uint64_t)idt };

	__asm__ volatile("lidt %0" : : "m"(idtr));
}

void irq_register(uint8_t vector, irq_handler *handler)
{
	irq_handlers[vector] = handler;
}

const char *vector_name(uint64_t vector)
{
	static const char *const names[] = {
		"#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS",
		"#NP", "#SS", "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XF", "20", "#CP",
		"22", "23", "24", "25", "26", "27", "#HV", "#VC", "#SX", "31",
	};

	return vector < VECTOR_FIRST_IRQ ? names[vector] : "interrupt";
}

static void __attribute__((noreturn)) die(const struct trap_frame *f)
{
	print("\n%s at %lx, error code %lx, CR2 %lx: nobody expected it\n", vector_name(f->vector), f->rip,
	      f->error_code, read_cr2());
	print("rax %016lx rbx %016lx rcx %016lx rdx %016lx\n", f->rax, f->rbx, f->rcx, f->rdx);
	print("rsi %016lx rdi %016lx rbp %016lx rsp %016lx\n", f->rsi, f->rdi, f->rbp, f->rsp);
	print("r8  %016lx r9  %016lx r10 %016lx r11 %016lx\n", f->r8, f->r9, f->r10, f->r11);
	print("r12 %016lx r13 %016lx r14 %016lx r15 %016lx\n", f->r12, f->r13, f->r14, f->r15);
	print("cs %lx ss %lx rflags %lx\n", f->cs, f->ss, f->rflags);
	ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
}

static void exception(struct trap_frame *f)
{
	struct cpu *cpu = this_cpu();
	struct catch_context *catch = cpu->catch;

	if (!catch)
		die(f);
	*catch->fault = (struct fault){
		.vector = f->vector,
		.error_code = f->error_code,
		.rip = f->rip,
		.cs = f->cs,
		.rsp = f->rsp,
		.cr2 = read_cr2(),
		.frame = (uint64_t)f,
	};
	f->rip = (uint64_t)catch_resume;
	f->cs = KERNEL_CS;
	f->rflags = 2; /* catch_resume pops the right value */
	f->rsp = catch->rsp;
	f->ss = KERNEL_DS;
	f->rax = 1;
}

void trap_raise(struct trap_frame *f, enum vector vector, uint64_t error_code)
{
	f->vector = vector;
	f->error_code = error_code;
	exception(f);
}

void trap_dispatch(struct trap_frame *f)
{
	if (f->vector >= VECTOR_FIRST_IRQ) {
		if (irq_handlers[f->vector])
			irq_handlers[f->vector]();
		if (f->vector != VECTOR_SPURIOUS)
			apic_eoi();
		return;
	}
	if (f->vector == VECTOR_VC)
		vc_handle(f);
	else
		exception(f);
}

bool fault_catch(struct fault *fault, void (*function)(uint64_t), uint64_t argument)
{
	struct cpu *cpu = this_cpu();
	struct catch_context context = { .outer = cpu->catch, .fault = fault };
	bool caught;

	*fault = (struct fault){ .vector = VECTOR_COUNT };
	cpu->catch = &context;
	caught = catch_call(&context, function, argument) != 0;
	cpu->catch = context.outer;
	return caught;
}
