/* SPDX-License-Identifier: MIT */
/* Spec: AMD 24594, chapter 1 (instruction encoding) and appendix A (opcode maps). */
#include "insn.h"

#include <stddef.h>

#include "string.h"

#define REX_B 1
#define REX_X 2
#define REX_R 4
#define REX_W 8

uint64_t *insn_register(struct trap_frame *f, unsigned int number)
{
	uint64_t *const registers[16] = {
		&f->rax, &f->rcx, &f->rdx, &f->rbx, &f->rsp, &f->rbp, &f->rsi, &f->rdi,
		&f->r8,	 &f->r9,  &f->r10, &f->r11, &f->r12, &f->r13, &f->r14, &f->r15,
	};

	return registers[number & 15];
}

unsigned int insn_operand_size(const struct insn *insn, bool byte)
{
	if (byte)
		return 1;
	if (insn->rex & REX_W)
		return 8;
	return insn->operand16 ? 2 : 4;
}

void *insn_modrm_register(const struct insn *insn, struct trap_frame *f, unsigned int size)
{
	unsigned int number = (insn->modrm >> 3 & 7) | (insn->rex & REX_R ? 8 : 0);

	if (size == 1 && !insn->rex && number >= 4) /* AH, CH, DH, BH */
		return (uint8_t *)insn_register(f, number - 4) + 1;
	return insn_register(f, number);
}

static int64_t read_signed(const uint8_t *at, unsigned int bytes)
{
	int32_t value32;

	if (bytes == 1)
		return (int8_t)*at;
	memcpy(&value32, at, sizeof(value32));
	return value32;
}

/* ModRM, SIB, displacement: sets memory and address, moves *at behind them. `immediate`: bytes that follow. */
static void decode_modrm(struct insn *insn, const struct trap_frame *frame, const uint8_t **at, unsigned int immediate)
{
	struct trap_frame *f = (struct trap_frame *)frame;
	uint8_t mod, rm;
	unsigned int displacement;
	uint64_t address = 0;
	bool relative = false;

	insn->modrm = *(*at)++;
	mod = insn->modrm >> 6;
	rm = insn->modrm & 7;
	if (mod == 3)
		return;
	insn->memory = true;
	displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0;
	if (rm == 4) {
		uint8_t sib = *(*at)++;
		unsigned int index = (sib >> 3 & 7) | (insn->rex & REX_X ? 8 : 0);

		if ((sib & 7) == 5 && mod == 0)
			displacement = 4;
		else
			address = *insn_register(f, (sib & 7) | (insn->rex & REX_B ? 8 : 0));
		if (index != 4)
			address += *insn_register(f, index) << (sib >> 6);
	} else if (rm == 5 && mod == 0) {
		displacement = 4;
		relative = true;
	} else {
		address = *insn_register(f, rm | (insn->rex & REX_B ? 8 : 0));
	}
	if (displacement) {
		address += (uint64_t)read_signed(*at, displacement);
		*at += displacement;
	}
	if (relative)
		address += (uint64_t)*at + immediate;
	insn->address = insn->address32 ? (uint32_t)address : address;
}

static bool decode_one_byte(struct insn *insn, const struct trap_frame *f, const uint8_t **at)
{
	unsigned int bytes;

	switch (insn->opcode) {
	case 0x6c: /* INS */
	case 0x6d:
	case 0x6e: /* OUTS */
	case 0x6f:
	case 0xec: /* IN, OUT with DX */
	case 0xed:
	case 0xee:
	case 0xef:
		return true;
	case 0xe4: /* IN, OUT with immediate port */
	case 0xe5:
	case 0xe6:
	case 0xe7:
		insn->immediate = *(*at)++;
		return true;
	case 0x88: /* MOV register to memory */
	case 0x89:
	case 0x8a: /* MOV memory to register */
	case 0x8b:
		decode_modrm(insn, f, at, 0);
		return true;
	case 0xa0: /* MOV AL/rAX, moffs and back */
	case 0xa1:
	case 0xa2:
	case 0xa3:
		insn->memory = true;
		bytes = insn->address32 ? 4 : 8;
		memcpy(&insn->address, *at, bytes);
		*at += bytes;
		return true;
	case 0xc6: /* MOV immediate to memory */
	case 0xc7:
		bytes = insn_operand_size(insn, insn->opcode == 0xc6);
		bytes = bytes == 8 ? 4 : bytes;
		decode_modrm(insn, f, at, bytes);
		if (bytes == 2)
			insn->immediate = (uint64_t)(*at)[0] | (uint64_t)(*at)[1] << 8;
		else
			insn->immediate = (uint64_t)read_signed(*at, bytes);
		*at += bytes;
		return true;
	default:
		return false;
	}
}

static bool decode_two_byte(struct insn *insn, const struct trap_frame *f, const uint8_t **at)
{
	switch (insn->opcode) {
	case 0x01: /* VMMCALL, RDTSCP, MONITOR, MWAIT: one ModRM byte */
		insn->modrm = *(*at)++;
		return true;
	case 0x08: /* INVD */
	case 0x09: /* WBINVD */
	case 0x30: /* WRMSR */
	case 0x31: /* RDTSC */
	case 0x32: /* RDMSR */
	case 0x33: /* RDPMC */
	case 0xa2: /* CPUID */
		return true;
	case 0x21: /* MOV from DRn */
	case 0x23: /* MOV to DRn: always registers, whatever ModRM.mod says */
		insn->modrm = *(*at)++;
		return true;
	case 0xb6: /* MOVZX */
	case 0xb7:
	case 0xbe: /* MOVSX */
	case 0xbf:
		decode_modrm(insn, f, at, 0);
		return true;
	default:
		return false;
	}
}

bool insn_decode(struct insn *insn, const struct trap_frame *f)
{
	const uint8_t *at = (const uint8_t *)f->rip;

	*insn = (struct insn){ .bytes = at };
	for (;; at++) {
		if (*at == 0x66)
			insn->operand16 = true;
		else if (*at == 0x67)
			insn->address32 = true;
		else if (*at == 0xf2 || *at == 0xf3)
			insn->rep = true;
		else if (*at == 0x64 || *at == 0x65)
			insn->segment_base = true;
		else if (*at != 0x26 && *at != 0x2e && *at != 0x36 && *at != 0x3e)
			break;
		if (at - insn->bytes >= 14)
			return false;
	}
	if ((*at & 0xf0) == 0x40)
		insn->rex = *at++;
	insn->opcode = *at++;
	if (insn->opcode == 0x0f) {
		insn->two_byte = true;
		insn->opcode = *at++;
		if (!decode_two_byte(insn, f, &at))
			return false;
	} else if (!decode_one_byte(insn, f, &at)) {
		return false;
	}
	insn->length = (uint8_t)(at - insn->bytes);
	return true;
}
