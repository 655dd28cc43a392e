/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints: hits that do not count are seen here, and the guest goes on without an exit.
 *
 * The rules are those of svsmd/snp/breakpoint.py, the instructions those of svsmd/snp/predicate.py,
 * which has checked them: a program cannot loop or leave its stack. Where this knows no answer, and
 * where the answer is that a breakpoint is hit, the exit is taken and Python decides, from the start.
 */
#include "accel.h"

/* enum Op of svsmd/snp/predicate.py. */
enum op {
	OP_END, OP_JUMP, OP_JUMP_IF, OP_CONST, OP_REGISTER, OP_LOAD, OP_ADD, OP_SUB, OP_MUL,
	OP_DIV_SIGNED, OP_DIV_UNSIGNED, OP_REM_SIGNED, OP_REM_UNSIGNED, OP_SHIFT_LEFT,
	OP_SHIFT_RIGHT_SIGNED, OP_SHIFT_RIGHT, OP_AND, OP_OR, OP_XOR, OP_EQUAL, OP_LESS_SIGNED,
	OP_LESS_UNSIGNED, OP_LOGICAL_NOT, OP_NOT, OP_EXTEND, OP_ZERO_EXTEND, OP_DUPLICATE, OP_POP,
	OP_SWAP, OP_PICK, OP_ROTATE,
};

/* What the operand of OP_REGISTER says in its upper half; the lower one is an offset into the state.
 * class _Register of svsmd/snp/native_breakpoints.py. */
enum register_kind { REGISTER_64, REGISTER_32, REGISTER_16, REGISTER_RIP, REGISTER_RFLAGS,
		     REGISTER_VMPL };

enum { MAX_DEPTH = 64 };

struct instruction {
	uint64_t op, operand;
};

/* svsmd/snp/native_breakpoints.py has these two, too. */
struct point {
	uint64_t ask;   /* only Python can tell */
	uint64_t vmpl;  /* or all ones */
	uint64_t root, root_mask;
	const struct instruction *const *programs;
	uint64_t count; /* of programs */
	uint64_t evaluations;
};

struct site {
	struct shared *shared;
	struct point *points;
	uint64_t count;
};

#define NEVER (~(uint64_t)0)
#define C_BIT ((uint64_t)1 << 39)
#define PRESENT 1u
#define PAGE_SIZE_BIT 0x80u
#define NX ((uint64_t)1 << 63)
#define FRAME 0x000000fffffff000u
#define RESERVED 0x000fff0000000000u
#define PAT_LARGE 0x1000u
#define CR0_PG 0x80000000u
#define CR4_PAE 0x20u
#define EFER_LMA 0x400u
#define EFER_NXE 0x800u

/*
 * Whether the VMPL has a leaf for a private page, and so may read it. The tables are those of
 * svsmd/snp/nested_paging.py.
 */
static int has_leaf(const struct shared *s, const struct engine *e, uint64_t page)
{
	const struct region *pool = e->regions + e->count - 1;
	uint64_t table = get64(s, s->nested_cr3), entry;
	unsigned index[4] = { 1, page >> 18 & 0x1ff, page >> 9 & 0x1ff, page & 0x1ff };
	int level;

	for (level = 0; level < 4; level++) {
		memcpy(&entry, pool->host + (table - pool->start) + 8 * index[level], sizeof(entry));
		if (!(entry & PRESENT))
			return 0;
		if (entry & PAGE_SIZE_BIT)
			return 1;
		table = entry & FRAME;
	}
	return 1;
}

/* Where bytes of RAM are that lie on one page, or NULL. */
static const uint8_t *ram_at(const struct engine *e, uint64_t gpa, unsigned nbytes)
{
	unsigned i;

	for (i = 0; i + 1 < e->count; i++) {
		const struct region *it = e->regions + i;
		uint64_t offset = gpa - it->start;

		if (offset < it->size && it->size - offset >= nbytes)
			return it->host + offset;
	}
	return NULL;
}

/*
 * Walks 4-level tables as a debugger does: no permission is looked at, nothing is marked. Returns
 * whether there is an answer; what is unusual, faults included, is Python's.
 */
static int translate(const struct shared *s, const struct engine *e, uint64_t address, uint64_t *gpa)
{
	uint64_t efer = get64(s, s->efer), table = get64(s, s->cr + 8 * 3) & FRAME, entry;
	int shift;

	if (!(get64(s, s->cr) & CR0_PG) || !(get64(s, s->cr + 8 * 4) & CR4_PAE) ||
	    !(efer & EFER_LMA) || (address >> 47 && address >> 47 != 0x1ffff))
		return 0;
	for (shift = 39;; shift -= 9) {
		uint64_t where = (table & ~C_BIT) + 8 * (address >> shift & 0x1ff), size;
		const uint8_t *p = ram_at(e, where, 8);

		if (!p || !has_leaf(s, e, where >> 12))
			return 0;
		memcpy(&entry, p, sizeof(entry));
		if (!(entry & PRESENT) || entry & RESERVED || (entry & NX && !(efer & EFER_NXE)) ||
		    (entry & PAGE_SIZE_BIT && shift == 39))
			return 0;
		size = (uint64_t)1 << shift;
		if (shift == 12 || entry & PAGE_SIZE_BIT) {
			if (entry & FRAME & (size - 1) & ~(uint64_t)PAT_LARGE && shift != 12)
				return 0;
			*gpa = (entry & FRAME & ~(size - 1) & ~C_BIT) | (address & (size - 1));
			return 1;
		}
		table = entry & FRAME;
	}
}

/* Reads as `m` of the debugger does. Returns whether it could. */
static int load(const struct shared *s, const struct engine *e, uint64_t address, unsigned nbytes,
		uint64_t *value)
{
	unsigned first = 4096 - (address & 4095), done = 0;
	uint8_t bytes[8] = { 0 };

	while (done < nbytes) {
		unsigned chunk = !done && first < nbytes ? first : nbytes - done;
		const uint8_t *p;
		uint64_t gpa;

		if (!translate(s, e, address + done, &gpa) || gpa >> 12 == s->vmsa_page ||
		    !(p = ram_at(e, gpa, chunk)))
			return 0;
		memcpy(bytes + done, p, chunk);
		done += chunk;
	}
	memcpy(value, bytes, sizeof(*value));
	return 1;
}

static uint64_t read_register(const struct shared *s, uint64_t operand)
{
	uint32_t offset = (uint32_t)operand;

	switch (operand >> 32) {
	case REGISTER_64:
		return get64(s, offset);
	case REGISTER_32:
		return get32(s, offset);
	case REGISTER_16:
		return get32(s, offset) & 0xffff;
	case REGISTER_RIP:
		return get64(s, s->eip) + get64(s, s->cs_base);
	case REGISTER_VMPL:
		return s->vmpl;
	}
	return (s->read_eflags(s->env) & ~(uint64_t)EFLAGS_RF) | (get64(s, s->eflags) & EFLAGS_VM);
}

static uint64_t shift_right_signed(uint64_t a, uint64_t b)
{
	uint64_t sign = a >> 63 ? NEVER : 0;

	return b < 64 ? (b ? a >> b | sign << (64 - b) : a) : sign;
}

/* Quotient or remainder of numbers that are not 0, rounded to zero. */
static uint64_t divide_signed(uint64_t a, uint64_t b, int remainder)
{
	uint64_t x = a >> 63 ? -a : a, y = b >> 63 ? -b : b;
	uint64_t result = remainder ? x % y : x / y;

	return (remainder ? a >> 63 : (a ^ b) >> 63) ? -result : result;
}

static uint64_t extend(uint64_t a, uint64_t bits)
{
	uint64_t sign = (uint64_t)1 << (bits - 1);

	return ((a & (2 * sign - 1)) ^ sign) - sign;
}

/* Leaves the value of a program; returns 0 if Python has to tell. */
static int evaluate(const struct shared *s, const struct engine *e,
		    const struct instruction *program, uint64_t *value)
{
	const struct instruction *i = program;
	uint64_t stack[MAX_DEPTH + 1], *top = stack, a;

	/* `top` is the one on the top, stack[0] none. */
	for (stack[0] = 0;; i++) {
		switch (i->op) {
		case OP_END:
			*value = *top;
			return 1;
		case OP_JUMP:
			i = program + i->operand - 1;
			break;
		case OP_JUMP_IF:
			if (*top--)
				i = program + i->operand - 1;
			break;
		case OP_CONST:
			*++top = i->operand;
			break;
		case OP_REGISTER:
			*++top = read_register(s, i->operand);
			break;
		case OP_LOAD:
			if (!load(s, e, *top, (unsigned)i->operand, top))
				return 0;
			break;
		case OP_LOGICAL_NOT:
			*top = !*top;
			break;
		case OP_NOT:
			*top = ~*top;
			break;
		case OP_EXTEND:
			*top = extend(*top, i->operand);
			break;
		case OP_ZERO_EXTEND:
			if (i->operand < 64)
				*top &= ((uint64_t)1 << i->operand) - 1;
			break;
		case OP_DUPLICATE:
			top++;
			*top = top[-1];
			break;
		case OP_POP:
			top--;
			break;
		case OP_SWAP:
			a = top[0];
			top[0] = top[-1];
			top[-1] = a;
			break;
		case OP_PICK:
			top++;
			*top = top[-1 - (int64_t)i->operand];
			break;
		case OP_ROTATE:
			a = top[0];
			top[0] = top[-1];
			top[-1] = top[-2];
			top[-2] = a;
			break;
		default:
			a = *top--;
			switch (i->op) {
			case OP_ADD: *top += a; break;
			case OP_SUB: *top -= a; break;
			case OP_MUL: *top *= a; break;
			case OP_AND: *top &= a; break;
			case OP_OR: *top |= a; break;
			case OP_XOR: *top ^= a; break;
			case OP_EQUAL: *top = *top == a; break;
			case OP_LESS_SIGNED: *top = (int64_t)*top < (int64_t)a; break;
			case OP_LESS_UNSIGNED: *top = *top < a; break;
			case OP_SHIFT_LEFT: *top = a < 64 ? *top << a : 0; break;
			case OP_SHIFT_RIGHT: *top = a < 64 ? *top >> a : 0; break;
			case OP_SHIFT_RIGHT_SIGNED: *top = shift_right_signed(*top, a); break;
			default:
				if (!a)
					return 0;
				switch (i->op) {
				case OP_DIV_UNSIGNED: *top /= a; break;
				case OP_REM_UNSIGNED: *top %= a; break;
				case OP_DIV_SIGNED: *top = divide_signed(*top, a, 0); break;
				case OP_REM_SIGNED: *top = divide_signed(*top, a, 1); break;
				default: return 0;
				}
			}
		}
	}
}

static int in_world(const struct shared *s, const struct point *p)
{
	return (p->vmpl == NEVER || p->vmpl == s->vmpl) &&
	       (get64(s, s->cr + 8 * 3) & p->root_mask) == p->root;
}

/* Whether the point is not hit, for certain. */
static int is_rejected(const struct shared *s, const struct engine *e, const struct point *p)
{
	uint64_t i, value;

	if (!in_world(s, p))
		return 1;
	if (p->ask || !p->count)
		return 0;
	for (i = 0; i < p->count; i++)
		if (!evaluate(s, e, p->programs[i], &value) || value)
			return 0;
	return 1;
}

/* For tests: what evaluate() makes of one program; returns whether it has a value. */
int svsmd_evaluate(struct shared *s, const struct instruction *program, uint64_t *value)
{
	const struct engine *e = svsmd_engine_of_cpu(s->cpu);

	return e && evaluate(s, e, program, value);
}

/* Bounded to one address by the engine; the instruction there has not run. */
void svsmd_on_breakpoint(uc_engine *uc, uint64_t pc, uint32_t size, void *user)
{
	struct site *site = user;
	struct shared *s = site->shared;
	const struct engine *e = svsmd_engine_of_cpu(s->cpu);
	uint64_t i;

	(void)uc;
	(void)size;
	/* Who steps looks where it has arrived, unless the step has gone on from there. */
	if (s->skip_breakpoint == pc || (s->stepping && !(s->plain_steps && s->range_steps))) {
		s->skip_breakpoint = NEVER;
		s->passed_breakpoint = pc;
		return;
	}
	for (i = 0; i < site->count && is_rejected(s, e, site->points + i); i++)
		;
	if (site->count && i == site->count) {
		for (i = 0; i < site->count; i++)
			site->points[i].evaluations += site->points[i].count && in_world(s, site->points + i);
		s->passed_breakpoint = pc;
		return;
	}
	s->trap = TRAP_BREAKPOINT;
	s->raise(s->env, VECTOR_DB, 0, 0);
}
