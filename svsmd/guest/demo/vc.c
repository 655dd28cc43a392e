/* SPDX-License-Identifier: MIT */
/*
 * The handler runs on its own stack (IST), which a second #VC would overwrite: nothing below may
 * execute an instruction that raises #VC. It reaches the host by the GHCB alone.
 */
#include "vc.h"

#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "insn.h"
#include "paging.h"
#include "string.h"

#define EVENT_VECTOR 0xff
#define EVENT_TYPE_SHIFT 8
#define EVENT_TYPE_EXCEPTION 3
#define EVENT_ERROR_VALID (1 << 11)
#define EVENT_VALID (1UL << 31)

/* CR4 and XCR0 state that CPUID reports besides what the page says. */
#define CPUID_1_ECX_OSXSAVE (1 << 27)
#define CR4_OSXSAVE (1 << 18)

volatile unsigned long vc_count;

/* What the handler of one event has to say. */
enum outcome {
	OUTCOME_DONE, /* emulated: step over the instruction */
	OUTCOME_AGAIN, /* stay at the instruction (REP goes on) */
	OUTCOME_RAISED, /* another exception has been delivered */
	OUTCOME_UNKNOWN, /* not ours: it stays a #VC */
};

/* The host's answer, as far as all events have it in common. */
static enum outcome finish(struct trap_frame *f, const struct ghcb_exit *e)
{
	uint64_t event = e->info2;
	uint64_t vector = event & EVENT_VECTOR;

	if ((uint32_t)e->info1 == GHCB_OK)
		return OUTCOME_DONE;
	/* The host may inject #GP and #UD here (56421, 4.1.1), nothing else. */
	if ((uint32_t)e->info1 == GHCB_EXCEPTION && event & EVENT_VALID &&
	    (event >> EVENT_TYPE_SHIFT & 7) == EVENT_TYPE_EXCEPTION && (vector == VECTOR_GP || vector == VECTOR_UD)) {
		trap_raise(f, (enum vector)vector, event & EVENT_ERROR_VALID ? event >> 32 : 0);
		return OUTCOME_RAISED;
	}
	return OUTCOME_UNKNOWN;
}

static enum outcome emulate_cpuid(struct trap_frame *f)
{
	struct cpuid_regs r;

	/* A leaf that the page does not have reads as zero: the host is not asked (56421, 2.3.1). */
	boot_cpuid((uint32_t)f->rax, (uint32_t)f->rcx, &r);
	if ((uint32_t)f->rax == 1) {
		r.ebx = (r.ebx & 0x00ffffff) | this_cpu()->apic_id << 24;
		r.ecx &= ~(uint32_t)CPUID_1_ECX_OSXSAVE;
		if (read_cr4() & CR4_OSXSAVE)
			r.ecx |= CPUID_1_ECX_OSXSAVE;
	}
	f->rax = r.eax;
	f->rbx = r.ebx;
	f->rcx = r.ecx;
	f->rdx = r.edx;
	return OUTCOME_DONE;
}

static enum outcome emulate_msr(struct trap_frame *f, const struct insn *insn)
{
	bool write = insn->opcode == 0x30;
	struct ghcb_exit e = {
		.code = SVM_EXIT_MSR,
		.info1 = write,
		.rcx = (uint32_t)f->rcx,
		.rax = (uint32_t)f->rax,
		.rdx = (uint32_t)f->rdx,
		.pass = write ? PASS_RCX | PASS_RAX | PASS_RDX : PASS_RCX,
	};
	enum outcome outcome;

	ghcb_call(&e);
	outcome = finish(f, &e);
	if (outcome == OUTCOME_DONE && !write) {
		f->rax = (uint32_t)e.rax;
		f->rdx = (uint32_t)e.rdx;
	}
	return outcome;
}

/* RDTSC, RDTSCP, RDPMC: no input but RCX, answer in RDX:RAX. */
static enum outcome emulate_counter(struct trap_frame *f, uint64_t code)
{
	struct ghcb_exit e = { .code = code, .rcx = f->rcx, .pass = PASS_RCX };
	enum outcome outcome;

	ghcb_call(&e);
	outcome = finish(f, &e);
	if (outcome == OUTCOME_DONE) {
		f->rax = (uint32_t)e.rax;
		f->rdx = (uint32_t)e.rdx;
		if (code == SVM_EXIT_RDTSCP)
			f->rcx = (uint32_t)e.rcx;
	}
	return outcome;
}

static enum outcome emulate_plain(struct trap_frame *f, uint64_t code)
{
	struct ghcb_exit e = { .code = code };

	ghcb_call(&e);
	return finish(f, &e);
}

static enum outcome emulate_vmmcall(struct trap_frame *f)
{
	struct ghcb_exit e = { .code = SVM_EXIT_VMMCALL, .rax = f->rax, .pass = PASS_RAX };
	enum outcome outcome;

	ghcb_call(&e);
	outcome = finish(f, &e);
	if (outcome == OUTCOME_DONE && e.pass & PASS_RAX)
		f->rax = e.rax;
	return outcome;
}

static enum outcome emulate_dr7(struct trap_frame *f, const struct insn *insn, bool write)
{
	uint64_t *reg = insn_register(f, (insn->modrm & 7) | (insn->rex & 1 ? 8 : 0));
	struct ghcb_exit e = { .code = SVM_EXIT_WRITE_DR7, .pass = PASS_RAX };
	enum outcome outcome;

	if (!write) { /* the hypervisor does not know better than we do (56421, 4.1) */
		*reg = this_cpu()->dr7;
		return OUTCOME_DONE;
	}
	if (*reg >> 32) {
		trap_raise(f, VECTOR_GP, 0);
		return OUTCOME_RAISED;
	}
	e.rax = *reg;
	ghcb_call(&e);
	outcome = finish(f, &e);
	if (outcome == OUTCOME_DONE)
		this_cpu()->dr7 = *reg | DR7_DEFAULT;
	return outcome;
}

/* IN, OUT and their string forms. A string of many goes through the shared buffer in pieces. */
static enum outcome emulate_ioio(struct trap_frame *f, const struct insn *insn)
{
	uint8_t op = insn->opcode;
	bool string = op >= 0x6c && op <= 0x6f;
	bool immediate = op >= 0xe4 && op <= 0xe7;
	bool in = string ? op < 0x6e : !(op & 2);
	unsigned int size = op & 1 ? (insn->operand16 ? 2 : 4) : 1;
	uint16_t port = (uint16_t)(immediate ? insn->immediate : f->rdx);
	uint64_t *pointer = in ? &f->rdi : &f->rsi;
	uint64_t count = insn->rep ? f->rcx : 1;
	uint64_t most = 256 / size; /* elements a piece: `piece` is what the stack has room for */
	uint8_t piece[256];
	struct ghcb_exit e = {
		.code = SVM_EXIT_IOIO,
		.info1 = (uint64_t)port << IOIO_PORT_SHIFT | (uint64_t)size << IOIO_SIZE_SHIFT | IOIO_ADDRESS_64 |
			 (in ? IOIO_IN : 0),
	};
	enum outcome outcome;

	if (!string) {
		e.rax = f->rax & (0xffffffff >> (32 - 8 * size));
		e.pass = PASS_RAX;
		ghcb_call(&e);
		outcome = finish(f, &e);
		if (outcome == OUTCOME_DONE && in) {
			if (size == 4)
				f->rax = (uint32_t)e.rax;
			else
				memcpy(&f->rax, &e.rax, size);
		}
		return outcome;
	}
	if (!count)
		return OUTCOME_DONE;
	if (f->rflags & RFLAGS_DF || insn->address32 || insn->segment_base)
		return OUTCOME_UNKNOWN;
	if (count > most)
		count = most;
	e.info1 |= IOIO_STRING | (insn->rep ? IOIO_REP : 0);
	e.info2 = count;
	e.data = piece;
	e.data_in = in ? 0 : (uint32_t)(count * size);
	e.data_out = in ? (uint32_t)(count * size) : 0;
	if (!in)
		memcpy(piece, (const void *)*pointer, count * size);
	ghcb_call(&e);
	outcome = finish(f, &e);
	if (outcome != OUTCOME_DONE)
		return outcome;
	if (in)
		memcpy((void *)*pointer, piece, count * size);
	*pointer += count * size;
	if (!insn->rep)
		return OUTCOME_DONE;
	f->rcx -= count;
	return f->rcx ? OUTCOME_AGAIN : OUTCOME_DONE;
}

/* Only the shared window maps MMIO, so its GPA is known without a walk. */
static bool mmio_gpa(uint64_t address, uint64_t *gpa)
{
	if (address < SHARED_BASE || address >= SHARED_BASE + (4UL << 30))
		return false;
	*gpa = address - SHARED_BASE;
	return true;
}

static enum outcome emulate_mmio(struct trap_frame *f, const struct insn *insn)
{
	bool byte = !(insn->opcode & 1);
	unsigned int size = insn_operand_size(insn, byte);
	unsigned int bytes = insn->two_byte ? (byte ? 1 : 2) : size; /* MOVZX, MOVSX read less than they write */
	struct ghcb_exit e = { .code = GHCB_EXIT_MMIO_READ, .info2 = bytes };
	uint64_t data = 0;
	uint64_t *target;
	enum outcome outcome;

	if (!insn->memory || insn->segment_base || !mmio_gpa(insn->address, &e.info1))
		return OUTCOME_UNKNOWN;
	e.data = &data;
	if (insn->two_byte) {
		size = insn_operand_size(insn, false);
		target = insn_modrm_register(insn, f, size);
	} else if (insn->opcode >= 0xa0 && insn->opcode <= 0xa3) {
		target = &f->rax;
	} else {
		target = insn_modrm_register(insn, f, size);
	}
	switch (insn->two_byte ? 0 : insn->opcode) {
	case 0xc6:
	case 0xc7:
		target = (uint64_t *)&insn->immediate;
		/* fall through */
	case 0x88:
	case 0x89:
	case 0xa2:
	case 0xa3:
		e.code = GHCB_EXIT_MMIO_WRITE;
		e.data_in = bytes;
		memcpy(&data, target, bytes);
		ghcb_call(&e);
		return finish(f, &e);
	default:
		e.data_out = bytes;
		ghcb_call(&e);
		outcome = finish(f, &e);
	}
	if (outcome != OUTCOME_DONE)
		return outcome;
	if (insn->two_byte && (insn->opcode & 0xf8) == 0xb8) /* MOVSX */
		data = byte ? (uint64_t)(int8_t)data : (uint64_t)(int16_t)data;
	if (size == 4) /* a 32-bit result clears the upper half (24592, 3.1.2) */
		*target = (uint32_t)data;
	else
		memcpy(target, &data, size);
	return outcome;
}

static enum outcome emulate(struct trap_frame *f, const struct insn *insn)
{
	if (!this_cpu()->ghcb && f->error_code != SVM_EXIT_CPUID)
		return OUTCOME_UNKNOWN;
	switch (f->error_code) {
	case SVM_EXIT_CPUID:
		return emulate_cpuid(f);
	case SVM_EXIT_MSR:
		return emulate_msr(f, insn);
	case SVM_EXIT_IOIO:
		return emulate_ioio(f, insn);
	case SVM_EXIT_RDTSC:
	case SVM_EXIT_RDTSCP:
	case SVM_EXIT_RDPMC:
		return emulate_counter(f, f->error_code);
	case SVM_EXIT_WBINVD:
	case SVM_EXIT_MONITOR:
	case SVM_EXIT_MWAIT:
		return emulate_plain(f, f->error_code);
	case SVM_EXIT_VMMCALL:
		return emulate_vmmcall(f);
	case SVM_EXIT_READ_DR7:
		return emulate_dr7(f, insn, false);
	case SVM_EXIT_WRITE_DR7:
		return emulate_dr7(f, insn, true);
	case SVM_EXIT_NPF:
		return emulate_mmio(f, insn);
	default:
		return OUTCOME_UNKNOWN;
	}
}

void vc_handle(struct trap_frame *f)
{
	struct insn insn;
	enum outcome outcome = OUTCOME_UNKNOWN;

	vc_count++;
	if (f->error_code != SVM_EXIT_PAGE_NOT_VALIDATED && insn_decode(&insn, f))
		outcome = emulate(f, &insn);
	switch (outcome) {
	case OUTCOME_DONE:
		f->rip += insn.length;
		break;
	case OUTCOME_UNKNOWN:
		trap_raise(f, VECTOR_VC, f->error_code);
		break;
	case OUTCOME_AGAIN:
	case OUTCOME_RAISED:
		break;
	}
}
