/* SPDX-License-Identifier: MIT */
/* Just enough of an instruction decoder for #VC: lengths, and the operands of MMIO moves. */
#ifndef DEMO_INSN_H
#define DEMO_INSN_H

#include <stdbool.h>
#include <stdint.h>

#include "trap.h"

struct insn {
	const uint8_t *bytes;
	uint8_t length; /* of all of it, once decoded */
	uint8_t opcode; /* last byte of it */
	bool two_byte; /* 0F map */
	bool operand16; /* 66 */
	bool address32; /* 67 */
	bool rep; /* F2 or F3 */
	bool segment_base; /* FS or GS prefix: has a base that this decoder does not know */
	uint8_t rex;
	uint8_t modrm;
	bool memory; /* ModRM names memory: `address` */
	uint64_t address;
	uint64_t immediate;
};

/* Decode the instruction at frame->rip. False: not one of those that can raise #VC here. */
bool insn_decode(struct insn *insn, const struct trap_frame *frame);

/* Bytes of the operand: 1 if `byte`, else by REX.W and 66. */
unsigned int insn_operand_size(const struct insn *insn, bool byte);

/* General register by its number 0..15. */
uint64_t *insn_register(struct trap_frame *frame, unsigned int number);

/* ModRM.reg as a register of `size` bytes: where it lies (AH..BH included). */
void *insn_modrm_register(const struct insn *insn, struct trap_frame *frame, unsigned int size);

#endif
