/* SPDX-License-Identifier: MIT */
/*
 * Hot callbacks of the CPU engine.
 *
 * Everything in here has a reference in Python (svsmd/snp/cpu_unicorn.py) that behaves the same;
 * both run under the same tests. Nothing here knows about SEV-SNP policy: it counts instructions,
 * stops at deadlines, and turns the engine's events into exits.
 *
 * The clock. Each translation block calls on_block() before its first instruction. The block's
 * instruction count is added in advance; when the block is left early, the instructions that did
 * not run are taken off again (settle()). Both numbers come from the translator's own records, so
 * they are exact whatever the block boundaries are.
 *
 * Deadlines are taken at canonical boundaries only: before an instruction that does not follow its
 * predecessor in memory, or that lies on another page. Translation blocks always start there, with
 * or without a debugger, so a deadline falls on the same instruction however the code was cut.
 */
#include "accel.h"

/*
 * The block record that belongs to a return address in its host code. The record lies in front of
 * the code at a fixed distance, and code starts are aligned, so a few probes find it.
 */
static inline struct block *block_of(const struct shared *s, uintptr_t return_address)
{
	uintptr_t code = return_address & ~(uintptr_t)(BLOCK_ALIGN - 1);
	int i;

	for (i = 0; i < CODE_PROBES; i++, code -= BLOCK_ALIGN) {
		struct block *b = (struct block *)(code - s->header);

		if (b->code == (uint8_t *)code)
			return b;
	}
	return NULL;
}

static inline struct block *current_block(const struct shared *s)
{
	return s->block_call ? block_of(s, s->block_call) : NULL;
}

/*
 * Stores to translated code. The engine sends the stores through a TLB entry on a slow path, which
 * drops the code that they hit, as long as the entry is marked not dirty. It would clear that mark
 * with the first store through a mapping that is not executable, though other code of the page may
 * be stored to next; and it never clears it for one that is executable. Both are put right here:
 *
 * - When a page first gets code, all its mappings are marked, and svsmd_find_region() keeps them
 *   so: the engine does not clear the mark for a region of lower priority than its snapshots.
 * - A page that is stored to again and again while it has code loses that code, between two blocks,
 *   and its stores are fast again. If it soon gets code again, it takes four times as many stores.
 * - Executable mappings of pages without code, such as all data of a kernel that has not set up its
 *   final page tables, lose the mark: with their first slow store if they are where an identity or
 *   direct mapping puts them (unmark()), in a sweep now and then wherever they are.
 *
 * The sweep also sees how full the tables are. The engine makes a full one larger, but only when it
 * is flushed, which a guest that unpacks its kernel does not do for seconds: then the sweep does.
 */
enum { FEW_STORES = 256, MANY_STORES = 1 << 30, SOON_TICKS = 100000000 };

/* A RAM page that has, or had, code. */
struct code_page {
	uint32_t accesses; /* slow ones since it got code; the engine does not tell loads from stores */
	uint32_t limit;    /* at so many it loses its code */
	uint64_t dropped;  /* when it lost it: ticks */
};

static void mark_page(struct shared *s, uint64_t page)
{
	struct code_page *p = s->code_pages + page;

	if (s->has_code[page])
		return;
	s->has_code[page] = 1;
	p->accesses = 0;
	if (!p->limit || s->ticks - p->dropped > SOON_TICKS)
		p->limit = FEW_STORES;
	s->reset_dirty(s->cpu, (uintptr_t)s->ram + (page << 12), 4096);
}

static void watch_code(struct shared *s, const struct block *b)
{
	mark_page(s, b->page[0] >> 12);
	if (b->page[1] != ~(uint64_t)0)
		mark_page(s, b->page[1] >> 12);
}

static inline void count_access(struct shared *s, uint64_t page)
{
	struct code_page *p = s->code_pages + page;

	if (++p->accesses < p->limit)
		return;
	s->drop = page + 1;
	s->next_check = 0;
}

/* `b` is about to run: its own page keeps its code. */
static void drop_code(struct shared *s, uc_engine *uc, const struct block *b)
{
	uint64_t page = s->drop - 1;
	struct code_page *p = s->code_pages + page;

	s->drop = 0;
	p->accesses = 0;
	if (b->page[0] >> 12 == page || b->page[1] >> 12 == page)
		return;
	s->invalidate(uc, page << 12, (page + 1) << 12);
	s->has_code[page] = 0;
	p->dropped = s->ticks;
	if (p->limit < MANY_STORES)
		p->limit *= 4;
}

/* Takes the mark from an entry, if that is all that makes its stores slow and it has no code. */
static inline void unmark_entry(const struct shared *s, struct tlb_entry *e)
{
	uint64_t flags = e->addr_write & (TLB_INVALID | TLB_NOT_DIRTY | TLB_OTHER);
	uint64_t offset;

	/* Without code the engine takes it itself, but not from one that is slow for watchpoints. */
	if ((flags & ~(uint64_t)TLB_WATCHPOINT) != TLB_NOT_DIRTY ||
	    (e->addr_code == ~(uint64_t)0 && flags == TLB_NOT_DIRTY))
		return;
	offset = (e->addr_write & ~(uint64_t)4095) + e->addend - (uintptr_t)s->ram;
	if (offset < s->ram_size && !s->has_code[offset >> 12])
		e->addr_write &= ~(uint64_t)TLB_NOT_DIRTY;
}

/*
 * A physical address missed the TLB or was stored to slowly. Where linear addresses differ from
 * physical ones by a multiple of the table's reach, its entry is at once found.
 */
static void unmark(const struct shared *s, uint64_t address)
{
	int i;

	for (i = 0; i < MMU_MODES; i++) {
		uintptr_t at = (address >> 12) * sizeof(struct tlb_entry) & s->tlb[i].mask;

		unmark_entry(s, (struct tlb_entry *)((uint8_t *)s->tlb[i].table + at));
	}
}

static void sweep(struct shared *s)
{
	uint64_t total = 0, most = s->translated ? FEW_ENTRIES : MAX_ENTRIES;
	int i, crowded = 0;

	s->translated = 0;

	for (i = 0; i < MMU_MODES; i++) {
		struct tlb_entry *e = s->tlb[i].table, *end;
		uint64_t entries, used = 0;

		entries = s->tlb[i].mask / sizeof(*e) + 1;
		end = e + entries;
		for (; e < end; e++) {
			used += (e->addr_read & e->addr_write & e->addr_code) != ~(uint64_t)0;
			unmark_entry(s, e);
		}
		crowded |= entries < most && used > entries / 4 * 3;
		total += entries;
	}
	s->next_sweep = s->ticks + SWEEP_TICKS * (1 + total / SWEEP_ENTRIES);
	if (crowded)
		s->flush_tlb(s->cpu);
}

void svsmd_on_translation(uc_engine *uc, void *current, void *previous, void *user)
{
	struct shared *s = user;

	(void)uc;
	(void)current;
	(void)previous;
	s->generated = 1;
	s->translated = 1;
	s->next_check = 0;
}

/* Where the last block ended, for who asks whether a boundary is canonical. */
static void remember_end(struct shared *s)
{
	const struct block *b = current_block(s);

	if (!b)
		return;
	s->previous_end = b->pc + b->size;
	s->previous_page = b->pc >> 12;
	s->block_call = 0;
}

/*
 * Shortening. What the translator puts at the start of a block ends with
 *
 *	ba size		mov  edx, size of the guest code
 *	48 b9 user	mov  rcx, user		or lea rcx, [rip + rel32]
 *	e8 rel32	call on_block		or call [rip + rel32]
 *	48 bf uc	mov  rdi, uc		or lea rdi, [rip + rel32]
 *	33 f6		xor  esi, esi
 *	e8 rel32	call check_exit_request	or call [rip + rel32]
 *
 * The last three look whether the engine is to stop. Nobody but on_block() asks for that at the
 * start of a block, and they cost as much as the counting does: from a block's first run on they
 * are jumped over, and the size, which nobody needs, becomes the count of instructions, negative to
 * tell it from a size, so that on_block() need not find the block's record. A block that has to
 * stop gets back what was there. Code that does not look as above stays as it is.
 */
enum { MOV_SIZE = 10, LEA_SIZE = 7, XOR_SIZE = 2, JUMP_SIZE = 2 };

static int is_xor_and_call(const uint8_t *code, int *size)
{
	if (code[0] != 0x33 || code[1] != 0xf6)
		return 0;
	*size += XOR_SIZE + (code[2] == 0xe8 ? 5 : 6);
	return code[2] == 0xe8 || (code[2] == 0xff && code[3] == 0x15);
}

/*
 * The two bytes at which the exit check begins, and its size in bytes; 0 if it is not there. They
 * are told by what follows them, so that it does not matter whether they are in place.
 */
static int exit_check(const uint8_t *code, uc_engine *uc, uint8_t start[2])
{
	int size = MOV_SIZE;

	start[0] = 0x48;
	start[1] = 0xbf;
	if (!memcmp(code + 2, &uc, sizeof(uc)) && is_xor_and_call(code + MOV_SIZE, &size))
		return size;
	start[1] = 0x8d;
	size = LEA_SIZE;
	if (code[2] == 0x3d && is_xor_and_call(code + LEA_SIZE, &size))
		return size;
	return 0;
}

/* Where the operand of `mov edx` is, which has this value, or NULL. */
static uint8_t *size_operand(uint8_t *code, int32_t value)
{
	uint8_t *call = code - (code[-5] == 0xe8 ? 5 : 6);
	int i;

	if (call[0] != 0xe8 && (call[0] != 0xff || call[1] != 0x15))
		return NULL;
	for (i = 0; i < 2; i++) {
		uint8_t *user = call - (i ? LEA_SIZE : MOV_SIZE);

		if (user[0] == 0x48 && user[1] == (i ? 0x8d : 0xb9) && user[-5] == 0xba &&
		    !memcmp(user - 4, &value, sizeof(value)))
			return user - 4;
	}
	return NULL;
}

/* Shortens a block, or undoes it. Returns whether the code looked as expected and is changed. */
static int shorten(const struct block *b, uc_engine *uc, uint8_t *code, int wanted)
{
	int32_t size = b->size, count = -(int32_t)b->icount;
	uint8_t *operand = size_operand(code, wanted ? size : count);
	uint8_t start[2], jump[2];
	int check_size = exit_check(code, uc, start);

	jump[0] = 0xeb;
	jump[1] = (uint8_t)(check_size - JUMP_SIZE);
	if (!operand || !check_size || memcmp(code, wanted ? start : jump, JUMP_SIZE))
		return 0;
	memcpy(operand, wanted ? &count : &size, sizeof(size));
	memcpy(code, wanted ? jump : start, JUMP_SIZE);
	return 1;
}

static void stop_block(struct shared *s, uc_engine *uc, const struct block *b,
		       uintptr_t return_address, enum stop_reason reason)
{
	shorten(b, uc, (uint8_t *)return_address, 0);
	s->stopped = reason;
	s->emu_stop(uc);
}

/* All that is not due at every block. Returns whether the block must not run now. */
static int check(struct shared *s, uc_engine *uc, const struct block *b, uintptr_t return_address)
{
	int first = s->first;

	if (first) {
		s->first = 0;
		s->first_pc = b->pc;
		s->first_rcx = get64(s, s->regs + 8 * RCX);
		s->first_shadow = get32(s, s->hflags) & HF_INHIBIT_IRQ;
	}
	remember_end(s);
	if (s->generated) {
		s->generated = 0;
		/*
		 * Fetches are private accesses, and a page that is not assigned has no private content.
		 * Looking once is enough: translations are dropped when the RMP entry of a page changes.
		 */
		if (!s->assigned[b->page[0] >> 12] ||
		    (b->page[1] != ~(uint64_t)0 && !s->assigned[b->page[1] >> 12])) {
			s->trap = TRAP_SHARED_FETCH;
			s->raise(s->env, VECTOR_DB, 0, 0);
		}
		watch_code(s, b);
		if (b->pc != s->passed_block &&
		    (s->trapped[b->page[0] >> 12] ||
		     (b->page[1] != ~(uint64_t)0 && s->trapped[b->page[1] >> 12]))) {
			s->trap = TRAP_CODE_PAGE;
			s->raise(s->env, VECTOR_DB, 0, 0);
		}
	}
	if (s->drop)
		drop_code(s, uc, b);
	if (s->ticks >= s->next_sweep)
		sweep(s);
	s->next_check = s->next_sweep;
	if (s->deadline < s->next_check)
		s->next_check = s->deadline;
	if (s->slice_end < s->next_check)
		s->next_check = s->slice_end;
	if (__atomic_load_n(&s->stop, __ATOMIC_RELAXED))
		s->next_check = 0;
	/*
	 * A deadline that is due goes first: were the machine given back here, its owner could not tell
	 * a deadline that waits for a canonical boundary from one that was taken.
	 */
	if (s->ticks >= s->deadline) {
		if (b->pc != s->previous_end || b->pc >> 12 != s->previous_page) {
			stop_block(s, uc, b, return_address, STOP_DEADLINE);
			return 1;
		}
	} else if ((s->ticks >= s->slice_end || __atomic_load_n(&s->stop, __ATOMIC_RELAXED)) && !first) {
		stop_block(s, uc, b, return_address, STOP_REQUESTED);
		return 1;
	}
	return 0;
}

/* The rest of on_block(), apart so that the usual block needs no stack frame. */
static __attribute__((noinline, cold)) void on_block_slow(struct shared *s, uc_engine *uc,
							  uint64_t pc, int32_t size,
							  uintptr_t return_address)
{
	const struct block *b = block_of(s, return_address);

	if (!b || b->pc != pc) {
		s->stopped = STOP_BROKEN;
		s->emu_stop(uc);
		return;
	}
	if (s->ticks >= s->next_check && check(s, uc, b, return_address))
		return;
	if (size >= 0)
		s->shortened += shorten(b, uc, (uint8_t *)return_address, 1);
	s->ticks += b->icount;
	s->block_call = return_address;
}

/* `size` is the block's, in bytes, or after shorten() its count of instructions, negative. */
void svsmd_on_block(uc_engine *uc, uint64_t pc, int32_t size, void *user)
{
	struct shared *s = user;
	uintptr_t return_address = (uintptr_t)__builtin_return_address(0);
	uint64_t ticks = s->ticks;

	if (__builtin_expect(size >= 0, 0) || __builtin_expect(ticks >= s->next_check, 0)) {
		on_block_slow(s, uc, pc, size, return_address);
		return;
	}
	s->ticks = ticks - (uint64_t)(int64_t)size;
	s->block_call = return_address;
}

/*
 * Functions of ours that the engine calls instead of its own; what they answer is the same.
 *
 * - Which memory region an address is in: asked at each access that misses the TLB, and at each store
 *   to a page that is marked not dirty. The engine walks its memory tree, which never changes.
 * - A quadword of physical memory, of which a walk of nested tables takes up to two dozens.
 * - Marking TLB entries not dirty: the engine looks at all of them after each translation. Here
 *   mark_page() has done it when the page first got code.
 *
 * They are given the engine, or its CPU, alone: there is one record for each engine, until
 * svsmd_forget_engine().
 */
static struct engine *all_engines;
static struct engine *last_engine; /* of the last call */

/* The engine's own functions. */
static struct {
	void *(*find_region)(uc_engine *uc, uint64_t address);
	uint64_t (*load_physical)(void *cpu, uint64_t address);
	void (*mark)(void *cpu, uint64_t start, uint64_t length);
} own;

static struct engine *engine_of_uc(const uc_engine *uc)
{
	struct engine *e = last_engine;

	if (e && e->uc == uc)
		return e;
	for (e = all_engines; e && e->uc != uc; e = e->next)
		;
	return last_engine = e;
}

struct engine *svsmd_engine_of_cpu(const void *cpu)
{
	struct engine *e = last_engine;

	if (e && e->cpu == cpu)
		return e;
	for (e = all_engines; e && e->cpu != cpu; e = e->next)
		;
	return last_engine = e;
}

void svsmd_forget_engine(uc_engine *uc)
{
	struct engine **at = &all_engines, *e;

	last_engine = NULL;
	while ((e = *at)) {
		if (e->uc == uc) {
			*at = e->next;
			free(e);
		} else {
			at = &e->next;
		}
	}
}

/* `functions` are those that `own` keeps, in its order. Returns whether it is done. */
int svsmd_add_engine(uc_engine *uc, struct shared *s, void *const functions[3],
		     const struct region *regions, unsigned count)
{
	struct engine *e;

	if (count > MAX_REGIONS || !(e = calloc(1, sizeof(*e))))
		return 0;
	svsmd_forget_engine(uc);
	memcpy(&own, functions, sizeof(own));
	e->uc = uc;
	e->shared = s;
	e->cpu = s->cpu;
	memcpy(e->regions, regions, count * sizeof(*regions));
	e->count = count;
	e->next = all_engines;
	all_engines = e;
	return 1;
}

void *svsmd_find_region(uc_engine *uc, uint64_t address)
{
	const struct engine *e = engine_of_uc(uc);
	uint64_t ram = 0;
	unsigned i;

	for (i = 0; e && i < e->count && e->regions[i].region; i++) {
		const struct region *it = e->regions + i;

		if (address - it->start < it->size) {
			uint64_t page = (ram + address - it->start) >> 12;

			if (e->shared->has_code[page]) {
				count_access(e->shared, page);
				return it->with_code;
			}
			unmark(e->shared, address);
			return it->region;
		}
		ram += it->size;
	}
	return own.find_region(uc, address);
}

uint64_t svsmd_load_physical(void *cpu, uint64_t address)
{
	const struct engine *e = svsmd_engine_of_cpu(cpu);
	unsigned i;

	for (i = 0; e && i < e->count; i++) {
		const struct region *it = e->regions + i;
		uint64_t offset = address - it->start;

		if (offset < it->size && it->size - offset >= sizeof(uint64_t)) {
			uint64_t value;

			memcpy(&value, it->host + offset, sizeof(value));
			if (!it->region)
				e->shared->last_leaf = value;
			return value;
		}
	}
	return own.load_physical(cpu, address);
}

void svsmd_mark(void *cpu, uint64_t start, uint64_t length)
{
	if (!svsmd_engine_of_cpu(cpu))
		own.mark(cpu, start, length);
}

/* Signed LEB128, as the translator writes its instruction records. */
static const uint8_t *sleb128(const uint8_t *p, int64_t *out)
{
	int64_t v = 0;
	int shift = 0;
	uint8_t byte;

	do {
		byte = *p++;
		v |= (int64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	if (shift < 64 && (byte & 0x40))
		v |= -((int64_t)1 << shift);
	*out = v;
	return p;
}

/*
 * How many instructions of the block lie before the one at `rip`, or icount if none starts there;
 * `length` becomes that instruction's. Each record is three deltas: linear address, flags state,
 * host code offset.
 */
static unsigned index_in_block(const struct block *b, uint64_t rip, uint32_t *length)
{
	const uint8_t *p = b->code + b->code_size;
	uint64_t pc = b->pc;
	unsigned i, found = b->icount;
	int64_t d;

	*length = 0;
	for (i = 0; i < b->icount; i++) {
		p = sleb128(p, &d);
		pc += (uint64_t)d;
		if (found != b->icount) {
			*length = (uint32_t)(pc - rip);
			return found;
		}
		if (pc == rip)
			found = i;
		p = sleb128(p, &d);
		p = sleb128(p, &d);
	}
	if (found != b->icount)
		*length = (uint32_t)(b->pc + b->size - rip);
	return found;
}

/*
 * Compare and exchange of 8 and 16 bytes. The engine's own functions compute RFLAGS from the state,
 * where the translator has not noted by then what the last instruction left the flags in: they mix
 * bits of data into RFLAGS, the single-step flag included, unless the instruction begins its block.
 * Ours, which take their place, look that up in the block's records. All engines of the process get
 * them; what they need is the same for all.
 */
struct exchange {
	uint64_t header;
	uint32_t regs, cc_src, cc_op, padding;
	uint64_t (*load)(void *env, uint64_t address, uintptr_t return_address);
	void (*store)(void *env, uint64_t address, uint64_t value, uintptr_t return_address);
	uint32_t (*flags)(void *env, int cc_op);
	void (*raise)(void *env, int vector, int error_code, uintptr_t return_address);
};

static struct exchange exchange;

/* RFLAGS before the instruction whose host code this address is in. */
static uint32_t flags_before(uint8_t *env, uintptr_t return_address)
{
	const struct shared where = { .header = exchange.header };
	const struct block *b = block_of(&where, return_address);
	uintptr_t host;
	const uint8_t *p;
	int64_t op = CC_OP_DYNAMIC, d;
	uint32_t known;
	unsigned i;

	memcpy(&known, env + exchange.cc_op, sizeof(known));
	if (!b)
		return exchange.flags(env, (int)known);
	host = (uintptr_t)b->code;
	p = b->code + b->code_size;
	for (i = 0; i < b->icount; i++) {
		p = sleb128(p, &d);
		p = sleb128(p, &d);
		op += d;
		p = sleb128(p, &d);
		host += (uintptr_t)d;
		if (host >= return_address)
			break;
	}
	return exchange.flags(env, op == CC_OP_DYNAMIC ? (int)known : (int)op);
}

/* Writes back what was there if it is not what was expected: the store may fault either way. */
static void compare_exchange(uint8_t *env, uint64_t address, int words, uintptr_t return_address)
{
	uint64_t *regs = (uint64_t *)(env + exchange.regs), *cc_src;
	uint64_t flags = flags_before(env, return_address) & ~CC_Z;
	uint64_t old[2], expected[2] = { regs[RAX], regs[RDX] }, wanted[2] = { regs[RBX], regs[RCX] };
	int i, equal = 1;

	if (words == 1) {
		expected[0] = (uint32_t)regs[RAX] | regs[RDX] << 32;
		wanted[0] = (uint32_t)regs[RBX] | regs[RCX] << 32;
	}
	for (i = 0; i < words; i++) {
		old[i] = exchange.load(env, address + 8 * i, return_address);
		equal &= old[i] == expected[i];
	}
	for (i = 0; i < words; i++)
		exchange.store(env, address + 8 * i, equal ? wanted[i] : old[i], return_address);
	if (equal) {
		flags |= CC_Z;
	} else {
		regs[RAX] = words == 1 ? (uint32_t)old[0] : old[0];
		regs[RDX] = words == 1 ? old[0] >> 32 : old[1];
	}
	cc_src = (uint64_t *)(env + exchange.cc_src);
	*cc_src = flags;
}

static void cmpxchg8b(void *env, uint64_t address)
{
	compare_exchange(env, address, 1, (uintptr_t)__builtin_return_address(0));
}

static void cmpxchg16b(void *env, uint64_t address)
{
	uintptr_t return_address = (uintptr_t)__builtin_return_address(0);

	if (address & 15)
		exchange.raise(env, VECTOR_GP, 0, return_address);
	compare_exchange(env, address, 2, return_address);
}

/* Lets a function of the engine begin with a jump to ours. Returns whether that is possible. */
static int replace(void *theirs, void (*ours)(void *, uint64_t))
{
	uint8_t jump[12] = { 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0 }; /* mov rax; jmp rax */
	uintptr_t page = (uintptr_t)theirs & ~(uintptr_t)4095;
	size_t size = (uintptr_t)theirs + sizeof(jump) - page;

	memcpy(jump + 2, &ours, sizeof(ours));
	if (!memcmp(theirs, jump, sizeof(jump)))
		return 1;
	if (mprotect((void *)page, size, PROT_READ | PROT_WRITE | PROT_EXEC))
		return 0;
	memcpy(theirs, jump, sizeof(jump));
	return !mprotect((void *)page, size, PROT_READ | PROT_EXEC);
}

/* Returns whether the engine's functions for CMPXCHG8B and CMPXCHG16B are ours from now on. */
int svsmd_replace_exchanges(const struct exchange *with, void *engines_8b, void *engines_16b)
{
	exchange = *with;
	return replace(engines_8b, cmpxchg8b) && replace(engines_16b, cmpxchg16b);
}

/* Takes off the instructions of the current block that have not run. */
void svsmd_settle(struct shared *s, int completed)
{
	const struct block *b = current_block(s);
	uint64_t rip;

	s->insn_length = 0;
	remember_end(s);
	if (!b || completed)
		return;
	rip = get64(s, s->eip) + get64(s, s->cs_base);
	s->ticks -= b->icount - index_in_block(b, rip, &s->insn_length);
	s->previous_end = rip;
	s->previous_page = rip >> 12;
}

static uint64_t read_rflags(const struct shared *s)
{
	return s->read_eflags(s->env);
}

static void put_rflags(struct shared *s, uint64_t flags)
{
	put64(s, s->cc_src, flags & EFLAGS_ARITHMETIC);
	put32(s, s->cc_op, CC_OP_EFLAGS);
	put32(s, s->df, flags & EFLAGS_DF ? 0xffffffffu : 1);
	put64(s, s->eflags, (flags & ~(uint64_t)(EFLAGS_ARITHMETIC | EFLAGS_DF)) | 2);
}

static void put_segment(struct shared *s, int index, uint32_t selector, uint32_t limit,
			uint32_t flags)
{
	uint32_t at = s->segs + SEGMENT_STRIDE * (uint32_t)index;

	put32(s, at, selector);
	put64(s, at + 8, 0);
	put32(s, at + 16, limit);
	put32(s, at + 20, flags);
}

static int canonical(uint64_t address)
{
	uint64_t sign = address >> 47;

	return sign == 0 || sign == 0x1ffff;
}

/* From here to the end of `delivering`, a fault hands the event over to Python. */
static void begin_event(struct shared *s, uint32_t code)
{
	s->event_code = code;
	s->event_error = get32(s, s->error_code);
	s->event_address = *s->exit_info_2;
	s->delivering = 1;
}

/*
 * Delivers an event through the 64-bit IDT to a handler at CPL 0 (24593, 8.9). Returns 0, nothing
 * changed, for all that is less usual: Python does that. The loads and stores may fault, and then
 * do not return: the fault comes back as an exit while `delivering` is set.
 */
static int deliver(struct shared *s, uint32_t code, unsigned vector, int fault, int64_t error)
{
	uint32_t hflags = get32(s, s->hflags), cpl = hflags & HF_CPL;
	int mmu = hflags & HF_SMAP ? MMU_SMAP : MMU_NO_SMAP;
	uint64_t low, high, descriptor, target, flags, rsp, old_rsp = get64(s, s->regs + 8 * RSP);
	uint64_t tr_base = get64(s, s->tr + 8);
	uint32_t selector, ist, tr_limit = get32(s, s->tr + 16);
	int interrupt_gate;

	if (!(hflags & HF_LMA) || vector * 16 + 15 > get32(s, s->idt + 16))
		return 0;
	begin_event(s, code);
	low = s->load64(s->env, get64(s, s->idt + 8) + vector * 16, mmu, 0);
	high = s->load64(s->env, get64(s, s->idt + 8) + vector * 16 + 8, mmu, 0);
	selector = low >> 16 & 0xffff;
	ist = low >> 32 & 7;
	interrupt_gate = (low >> 40 & 0x1f) == 0xe;
	if (!(low >> 47 & 1) || (!interrupt_gate && (low >> 40 & 0x1f) != 0xf) ||
	    selector & 7 || !selector || (selector | 7) > get32(s, s->gdt + 16))
		goto unusual;
	descriptor = s->load64(s->env, get64(s, s->gdt + 8) + (selector & 0xfff8), mmu, 0);
	/* Present, 64-bit, non-conforming code of DPL 0. */
	if ((descriptor >> 40 & 0xfc) != 0x98 || (descriptor >> 53 & 3) != 1)
		goto unusual;
	rsp = old_rsp;
	if (ist || cpl) {
		uint32_t offset = ist ? 0x24 + 8 * (ist - 1) : 4;

		if (offset + 7 > tr_limit)
			goto unusual;
		rsp = s->load64(s->env, tr_base + offset, mmu, 0);
	}
	target = (low & 0xffff) | (low >> 32 & 0xffff0000u) | (high & 0xffffffffu) << 32;
	if (!canonical(rsp) || !canonical(target))
		goto unusual;
	flags = read_rflags(s);
	rsp &= ~(uint64_t)15;
	s->store64(s->env, rsp -= 8, get32(s, s->segs + SEGMENT_STRIDE * SS) & 0xffff, mmu, 0);
	s->store64(s->env, rsp -= 8, old_rsp, mmu, 0);
	s->store64(s->env, rsp -= 8, fault ? flags | EFLAGS_RF : flags, mmu, 0);
	s->store64(s->env, rsp -= 8, get32(s, s->segs + SEGMENT_STRIDE * CS) & 0xffff, mmu, 0);
	s->store64(s->env, rsp -= 8, get64(s, s->eip), mmu, 0);
	if (error >= 0)
		s->store64(s->env, rsp -= 8, (uint64_t)error, mmu, 0);
	s->delivering = 0;
	put64(s, s->regs + 8 * RSP, rsp);
	put64(s, s->eip, target);
	flags = get64(s, s->eflags) & ~(uint64_t)(EFLAGS_TF | EFLAGS_NT | EFLAGS_RF | EFLAGS_VM);
	put64(s, s->eflags, interrupt_gate ? flags & ~(uint64_t)EFLAGS_IF : flags);
	put_segment(s, CS, selector, 0xffffffffu, descriptor >> 32 & 0xf0ff00);
	if (cpl)
		put_segment(s, SS, 0, 0, 0);
	put32(s, s->hflags, (hflags & ~(HF_CPL | HF_INHIBIT_IRQ | HF_ADDSEG)) | HF_CS64 | HF_CS32 |
				    HF_SS32);
	return 1;

unusual:
	s->delivering = 0;
	return 0;
}

static int deliver_vc(struct shared *s, uint32_t code, uint32_t error)
{
	if (s->fast == FAST_BUT_VC)
		return 0;
	return deliver(s, code, VECTOR_VC, 1, error);
}

/* The instruction at RIP was served: go behind it and count it. */
static void retire(struct shared *s)
{
	put64(s, s->eip, get64(s, s->eip) + s->insn_length);
	put32(s, s->hflags, get32(s, s->hflags) & ~HF_INHIBIT_IRQ);
	s->ticks++;
}

static void put_edx_eax(struct shared *s, uint64_t value)
{
	put64(s, s->regs + 8 * RAX, value & 0xffffffffu);
	put64(s, s->regs + 8 * RDX, value >> 32);
}

static int serve_msr(struct shared *s, uint32_t code)
{
	uint32_t index = get32(s, s->regs + 8 * RCX);

	if (index == MSR_SEV_STATUS || index == MSR_EFER || index == MSR_TSC ||
	    index == MSR_GUEST_TSC_FREQ)
		return 0;
	if (index != MSR_GHCB)
		return deliver_vc(s, code, code & 0xff);
	if (get32(s, s->error_code) & 1)
		s->ghcb_msr = get32(s, s->regs + 8 * RAX) |
			      (uint64_t)get32(s, s->regs + 8 * RDX) << 32;
	else
		put_edx_eax(s, s->ghcb_msr);
	retire(s);
	return 1;
}

/* A byte of the instruction at RIP in 64-bit code. May fault as deliver() does. */
static uint8_t code_byte(struct shared *s, uint32_t code, unsigned offset)
{
	uint32_t hflags = get32(s, s->hflags);
	int mmu = (hflags & HF_CPL) == 3 ? MMU_USER : hflags & HF_SMAP ? MMU_SMAP : MMU_NO_SMAP;
	uint32_t byte;

	begin_event(s, code);
	byte = s->load8(s->env, get64(s, s->eip) + offset, mmu, 0);
	s->delivering = 0;
	return (uint8_t)byte;
}

/* What RDTSC gives; guest_tsc() of svsmd/snp/secure_tsc.py is the same. */
static uint64_t guest_tsc(const struct shared *s)
{
	return (uint64_t)((unsigned __int128)s->ticks * s->tsc_scale >> 32) + s->tsc_offset;
}

/* The engine reports RDTSCP as RDTSC; it has three bytes, 0F 01 F9. */
static int serve_rdtsc(struct shared *s, uint32_t code)
{
	int rdtscp = 0;

	if (s->insn_length != 2) {
		if (s->insn_length != 3 || !(get32(s, s->hflags) & HF_CS64) ||
		    code_byte(s, code, 0) != 0x0f || code_byte(s, code, 1) != 0x01)
			return 0;
		rdtscp = 1;
	}
	if (s->rdtsc_exits)
		return deliver_vc(s, code, rdtscp ? VC_RDTSCP : VC_RDTSC);
	put_edx_eax(s, guest_tsc(s));
	if (rdtscp)
		put64(s, s->regs + 8 * RCX, get32(s, s->tsc_aux));
	retire(s);
	return 1;
}

/* VMGEXIT is VMMCALL with a REP or REPNE prefix (24594). */
static int serve_vmgexit(struct shared *s, uc_engine *uc, uint32_t code)
{
	uint32_t hflags = get32(s, s->hflags);
	uint8_t prefix;

	if (s->insn_length != 4 || !(hflags & HF_CS64))
		return 0;
	prefix = code_byte(s, code, 0);
	if (prefix != 0xf3 && prefix != 0xf2)
		return 0;
	retire(s);
	/* At a deadline, and where each instruction is looked at, the host itself goes on. */
	if (s->answer && !s->stepping && s->ticks < s->deadline &&
	    s->answer(s->answer_argument, s->ghcb_msr, s->ticks, s->v_irq)) {
		s->answered = 1;
		return 1;
	}
	s->stopped = STOP_VMGEXIT;
	s->emu_stop(uc);
	return 1;
}

static int serve_interrupt_window(struct shared *s, uint32_t code)
{
	if (s->v_irq < 0 || !deliver(s, code, (unsigned)s->v_irq, 0, -1))
		return 0;
	s->v_irq = -1;
	*s->interrupt_request &= ~INTERRUPT_VIRQ;
	return 1;
}

/*
 * Whether the step that has just been completed goes on; Processor._in_range() of
 * svsmd/snp/processor.py is the same.
 */
static int in_range(struct shared *s)
{
	uint64_t rip = get64(s, s->eip) + get64(s, s->cs_base);

	if (!s->range_left || rip - s->range_start >= s->range_size ||
	    (get32(s, s->hflags) & HF_CPL) != s->range_cpl ||
	    get64(s, s->cr + 8 * 3) != s->range_cr3 ||
	    __atomic_load_n(&s->stop, __ATOMIC_RELAXED))
		return 0;
	s->range_left--;
	s->range_steps++;
	return 1;
}

/* A debugger's step is done. Python has the guest's own steps, and the last pass of a REP. */
static int serve_step(struct shared *s, uc_engine *uc)
{
	uint64_t rcx = get64(s, s->regs + 8 * RCX);

	if (!s->plain_steps || s->trap || get64(s, s->eflags) & EFLAGS_TF ||
	    ((s->first_rcx & 0xffff) == 1 && !(rcx & 0xffff)))
		return 0;
	put64(s, s->dr + 8 * 6, get64(s, s->dr + 8 * 6) & ~(uint64_t)DR6_BS);
	if (in_range(s)) {
		s->first = 1;
		s->next_check = 0;
		return 1;
	}
	s->stopped = STOP_STEP;
	s->emu_stop(uc);
	return 1;
}

/* The events that come by the ten thousand; 0 leaves one to Python. */
static int serve(struct shared *s, uc_engine *uc, uint32_t code)
{
	uint64_t flags = get64(s, s->eflags);
	unsigned vector;

	if (!s->fast || flags & EFLAGS_TF)
		return 0;
	switch (code) {
	case EXIT_MSR:
		return serve_msr(s, code);
	case EXIT_VMMCALL:
		return serve_vmgexit(s, uc, code);
	case EXIT_RDTSC:
		return serve_rdtsc(s, code);
	case EXIT_VC:
		if ((get32(s, s->hflags) & HF_CPL) > EFLAGS_IOPL(flags) || flags & EFLAGS_VM)
			return 0;
		return deliver_vc(s, code, 0x7b);
	case EXIT_RDPMC:
	case EXIT_CPUID:
	case EXIT_MONITOR:
	case EXIT_MWAIT:
		return deliver_vc(s, code, code & 0xff);
	case EXIT_VINTR:
		return serve_interrupt_window(s, code);
	case EXIT_PF:
		/* A breakpoint comes before the fetch of its instruction. */
		if (s->breakpoints && get32(s, s->error_code) & PF_ID)
			return 0;
		put64(s, s->cr + 8 * 2, *s->exit_info_2);
		break;
	case EXIT_UD:
		return 0;
	}
	if (code < EXIT_EXCEPTION || code >= EXIT_EXCEPTION + 32)
		return 0;
	vector = code - EXIT_EXCEPTION;
	return deliver(s, code, vector, 1,
		       HAS_ERROR_CODE >> vector & 1 ? (int64_t)get32(s, s->error_code) : -1);
}

void svsmd_on_exit(uc_engine *uc, uint32_t code, void *user)
{
	struct shared *s = user;

	s->exits++;
	/* A single-step trap comes after its instruction; everything else names one that has not run. */
	if (!s->delivering) {
		svsmd_settle(s, code == EXIT_DB && !s->trap);
		/* Its instruction is executed again from the start, but was asked for already. */
		if (s->insn_length && !s->trap && s->previous_end == s->passed_breakpoint)
			s->skip_breakpoint = s->passed_breakpoint;
	}
	/* INT n leaves this set, and the next exit would restore a stale RIP. */
	put32(s, s->exception_is_int, 0);
	if (s->delivering) {
		s->delivering = 0;
		code = s->event_code;
		put32(s, s->error_code, s->event_error);
		*s->exit_info_2 = s->event_address;
	} else if (code == EXIT_DB ? serve_step(s, uc) : serve(s, uc, code)) {
		s->skip_breakpoint = ~(uint64_t)0;
		return;
	}
	s->exit_handler(code);
}

/* IN and OUT end as a #VC 0x7B before they take effect; the engine has synchronised RIP. */
static void io_exit(struct shared *s, uint32_t port, uint32_t size, uint32_t is_in, uint32_t value)
{
	s->io_port = port;
	s->io_size = size;
	s->io_is_in = is_in;
	s->io_value = value;
	s->raise(s->env, VECTOR_VC, 0x7b, 0);
}

uint32_t svsmd_on_in(uc_engine *uc, uint32_t port, int size, void *user)
{
	(void)uc;
	io_exit(user, port, (uint32_t)size, 1, 0);
	return 0;
}

void svsmd_on_out(uc_engine *uc, uint32_t port, int size, uint32_t value, void *user)
{
	(void)uc;
	io_exit(user, port, (uint32_t)size, 0, value);
}

/*
 * SYSCALL (24594). It ends its block; the engine adds the instruction's length to RIP after this.
 * The engine looks for RFLAGS.TF alone behind a SYSCALL: our own single step is raised here.
 */
void svsmd_on_syscall(uc_engine *uc, void *user)
{
	struct shared *s = user;
	uint64_t star = get64(s, s->star), rip = get64(s, s->eip), target;
	const struct block *b = current_block(s);
	uint64_t length = b->pc + b->size - rip - get64(s, s->cs_base);
	uint64_t flags = read_rflags(s) & ~(uint64_t)EFLAGS_RF;
	uint32_t hflags = get32(s, s->hflags);
	uint32_t selector = (uint32_t)(star >> 32) & 0xfffc;

	(void)uc;
	if (!(get64(s, s->efer) & EFER_SCE))
		s->raise(s->env, VECTOR_UD, 0, 0);
	put_segment(s, SS, selector + 8, 0xffffffffu, 0x00c09300);
	if (hflags & HF_LMA) {
		put64(s, s->regs + 8 * RCX, rip + length);
		put64(s, s->regs + 8 * R11, flags);
		target = get64(s, hflags & HF_CS64 ? s->lstar : s->cstar);
		put_rflags(s, flags & ~get64(s, s->fmask));
		put_segment(s, CS, selector, 0xffffffffu, 0x00a09b00);
		hflags |= HF_CS64;
	} else {
		put64(s, s->regs + 8 * RCX, (uint32_t)(rip + length));
		target = (uint32_t)star;
		put_rflags(s, flags & ~(uint64_t)(EFLAGS_IF | EFLAGS_VM));
		put_segment(s, CS, selector, 0xffffffffu, 0x00c09b00);
	}
	put32(s, s->hflags, (hflags & ~(HF_CPL | HF_ADDSEG)) | HF_CS32 | HF_SS32);
	if (s->stepping) {
		put64(s, s->eip, target);
		s->raise(s->env, VECTOR_DB, 0, 0);
	}
	put64(s, s->eip, target - length);
}
