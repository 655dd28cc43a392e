/* SPDX-License-Identifier: MIT */
/*
 * What the native callbacks share with each other, and with svsmd/snp/native_callbacks.py.
 */
#ifndef SVSMD_ACCEL_H
#define SVSMD_ACCEL_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef struct uc_struct uc_engine;

/* The part of the translator's block record that is read here (checked by the engine's self-test). */
struct block {
	uint64_t pc;      /* linear address of the first instruction */
	uint64_t cs_base;
	uint32_t flags;
	uint16_t size;    /* bytes of guest code */
	uint16_t icount;  /* guest instructions */
	uint32_t cflags;
	uint32_t dstate;
	uint8_t *code;    /* host code; the instruction records follow it */
	size_t code_size;
	void *original;
	uintptr_t page_next[2];
	uint64_t page[2]; /* RAM offset of the guest code */
};

/* The engine's TLB: the part that translated code reads, right in front of the state. */
struct tlb_entry {
	uint64_t addr_read, addr_write, addr_code, paddr;
	uintptr_t addend;
	uint64_t padding[3];
};

struct tlb {
	uintptr_t mask; /* (entries - 1) * sizeof(struct tlb_entry) */
	struct tlb_entry *table;
};

enum {
	MMU_MODES = 3,
	TLB_INVALID = 1 << 11,
	TLB_NOT_DIRTY = 1 << 10,
	TLB_WATCHPOINT = 1 << 8,
	TLB_OTHER = 0x3c0, /* I/O, watchpoint, byte swap, discard */
	SWEEP_TICKS = 100000,    /* for each SWEEP_ENTRIES entries */
	SWEEP_ENTRIES = 1024,
	MAX_ENTRIES = 1 << 14,
	FEW_ENTRIES = 1 << 9,    /* while code is translated: each translation visits them all */
};

enum { BLOCK_ALIGN = 64, CODE_PROBES = 4 };

enum stop_reason {
	STOP_NONE,
	STOP_DEADLINE,
	STOP_REQUESTED,
	STOP_EXIT,
	STOP_BROKEN,
	STOP_VMGEXIT,
	STOP_STEP,
};

/* What is served here; with FAST_BUT_VC somebody wants to hear of each #VC. */
enum fast { FAST_NOTHING, FAST_ALL, FAST_BUT_VC };

/* Why the engine's own code raised #DB. */
enum trap { TRAP_NONE, TRAP_BREAKPOINT, TRAP_SHARED_FETCH, TRAP_CODE_PAGE, TRAP_WATCH };

/* The engine's BP_MEM_READ and BP_MEM_WRITE. */
enum access { ACCESS_READ = 1, ACCESS_WRITE = 2 };

enum { RAX = 0, RCX = 1, RDX = 2, RBX = 3, RSP = 4, R11 = 11, CS = 1, SS = 2, SEGMENT_STRIDE = 24 };

#define EFER_SCE (1u << 0)
#define DR6_BS (1u << 14)
#define EFLAGS_TF (1u << 8)
#define EFLAGS_IF (1u << 9)
#define EFLAGS_NT (1u << 14)
#define EFLAGS_RF (1u << 16)
#define EFLAGS_VM (1u << 17)
#define EFLAGS_IOPL(flags) ((flags) >> 12 & 3)
#define EFLAGS_ARITHMETIC 0x8d5u /* the engine keeps these, and DF, apart */
#define EFLAGS_DF (1u << 10)
#define CC_OP_DYNAMIC 0
#define CC_OP_EFLAGS 1
#define CC_Z (1u << 6)
#define HF_CPL 3u
#define HF_INHIBIT_IRQ (1u << 3)
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_ADDSEG (1u << 6)
#define HF_LMA (1u << 14)
#define HF_CS64 (1u << 15)
#define HF_SMAP (1u << 23)
#define INTERRUPT_VIRQ 0x100u
#define MSR_TSC 0x10u
#define MSR_GHCB 0xc0010130u
#define MSR_SEV_STATUS 0xc0010131u
#define MSR_GUEST_TSC_FREQ 0xc0010134u
#define MSR_EFER 0xc0000080u
/* Vectors that push an error code (24593, table 8-1): 8, 10-14, 17, 21, 29, 30. */
#define HAS_ERROR_CODE 0x60227d00u

/* The engine's address spaces: supervisor with and without SMAP, and user. */
enum { MMU_SMAP = 0, MMU_USER = 1, MMU_NO_SMAP = 2 };

enum { VC_RDTSC = 0x6e, VC_RDTSCP = 0x87 };

enum {
	EXIT_EXCEPTION = 0x140,
	EXIT_DB = 0x141,
	EXIT_UD = 0x146,
	EXIT_PF = 0x14e,
	EXIT_VC = 0x15d,
	EXIT_VINTR = 0x164,
	EXIT_RDTSC = 0x16e,
	EXIT_RDPMC = 0x16f,
	EXIT_CPUID = 0x172,
	EXIT_MSR = 0x17c,
	EXIT_VMMCALL = 0x181,
	EXIT_MONITOR = 0x18a,
	EXIT_MWAIT = 0x18b,
	VECTOR_DB = 1,
	VECTOR_UD = 6,
	VECTOR_GP = 13,
	VECTOR_PF = 14,
	VECTOR_VC = 29,
	PF_ID = 0x10, /* of its error code: an instruction fetch */
};

/* Shared with svsmd/snp/cpu_unicorn.py: class _Shared. Keep the order. */
struct shared {
	uint64_t ticks;         /* guest instructions retired, plus what others charged */
	uint64_t deadline;      /* absolute tick of the host's next event */
	uint64_t slice_end;     /* absolute tick after which the owner wants the machine back */
	uint64_t previous_end;  /* without `block_call`: linear address behind the last instruction, */
	uint64_t previous_page; /* and the page number of the last block */
	uintptr_t block_call;   /* return address of the current block's on_block(), 0 after settle() */
	uint8_t *env;           /* architectural state */
	uint64_t header;        /* bytes between a block record and its host code */
	uint32_t stop;          /* set by anyone: give the machine back at the next block */
	uint32_t stopped;       /* enum stop_reason */
	uint32_t first;         /* no block has run since the start: there must be progress */
	uint32_t stepping;      /* the engine's single-step flag is on */
	uint32_t eip;           /* offsets into env */
	uint32_t cs_base;
	uint32_t error_code;
	uint32_t exception_is_int;
	uint32_t io_port, io_size, io_is_in, io_value;
	uint32_t trap;
	uint32_t breakpoints;   /* addresses that have one */
	uint64_t skip_breakpoint; /* linear address whose breakpoint is passed once */
	uint64_t exits;         /* statistics */
	const uint8_t *assigned; /* one byte a RAM page: the RMP says it is a guest's */
	uint32_t regs, eflags, cc_src, cc_op, df, hflags, segs, efer;
	uint32_t star, lstar, cstar, fmask;
	uint32_t cr, gdt, idt, tr;
	uint32_t fast;          /* enum fast: events that need no decision are served here */
	uint32_t rdtsc_exits;   /* RDTSC is a #VC */
	int32_t v_irq;          /* vector that waits for the interrupt window, or -1 */
	uint32_t insn_length;   /* bytes of the instruction that the last exit names */
	uint64_t ghcb_msr;
	uint32_t delivering;    /* enum: a delivery is under way; its accesses may fault */
	uint32_t event_code;    /* what is being delivered, should Python have to do it */
	uint32_t event_error, tsc_aux;
	uint64_t event_address;
	uint32_t generated;     /* the next block was translated just now */
	uint32_t padding_2;
	uint64_t first_pc;      /* of the first block since the start: linear address, RCX */
	uint64_t first_rcx;     /* before it, and whether it lay in an interrupt shadow */
	uint32_t first_shadow;
	uint32_t shortened;     /* statistics: blocks that were shortened */
	uint64_t next_check;    /* tick of the next check(); 0 at the next block */
	uint64_t next_sweep;
	struct tlb *tlb;
	uint64_t ram_size;
	uint8_t *ram;           /* host address of RAM offset 0 */
	uint8_t *has_code;      /* one byte a RAM page: something of it is translated */
	struct code_page *code_pages; /* one a RAM page */
	void *cpu;
	void (*reset_dirty)(void *cpu, uintptr_t start, uint64_t length);
	void (*flush_tlb)(void *cpu);
	void (*invalidate)(uc_engine *uc, uint64_t start, uint64_t end);
	uint64_t drop;          /* number of a RAM page that is to lose its code, plus 1; or 0 */
	uint64_t *exit_info_2;
	uint32_t *interrupt_request;
	uint64_t (*load64)(void *env, uint64_t address, int mmu_index, uintptr_t return_address);
	uint32_t (*load8)(void *env, uint64_t address, int mmu_index, uintptr_t return_address);
	void (*store64)(void *env, uint64_t address, uint64_t value, int mmu_index,
			uintptr_t return_address);
	int (*emu_stop)(uc_engine *);
	uint64_t (*read_eflags)(void *env);
	void (*raise)(void *env, int vector, int error_code, uintptr_t return_address);
	void (*exit_handler)(uint32_t code); /* Python */
	/* The host's answers to VMGEXIT that need no Python: whether it has answered, or NULL. */
	int (*answer)(void *argument, uint64_t ghcb_msr, uint64_t ticks, int v_irq);
	void *answer_argument;
	uint32_t answered;      /* a VMGEXIT was, since Python looked */
	uint32_t translated;    /* a block was, since the last sweep */
	uint64_t tsc_scale;     /* RDTSC: ticks times this, less 32 bits, plus the offset */
	uint64_t tsc_offset;
	uint64_t passed_breakpoint; /* linear address of the one whose instruction was let through last */
	uint64_t vmsa_page;     /* number of the page that the registers belong to; they are not there */
	const uint8_t *trapped; /* one byte a RAM page: new blocks of its code are TRAP_CODE_PAGE, */
	uint64_t passed_block;  /* but for one that begins here: linear address */
	uint32_t vmpl;
	uint32_t nested_cr3;    /* offset into env */
	const struct watch *watches;
	uint32_t watch_count;
	uint32_t watch_off;     /* one instruction may access what is watched */
	uint64_t last_leaf;     /* the entry of nested tables that the engine has read last */
	uint64_t watched_access; /* with TRAP_WATCH: guest-physical address, */
	uint32_t watched_length; /* bytes, */
	uint32_t watched_kind;  /* enum access */
	uint32_t plain_steps;   /* with `stepping`: nobody but the debugger waits for the next #DB */
	uint32_t dr;            /* offset into env */
	uint64_t range_start;   /* a step does not end where it finds the next instruction in here: */
	uint64_t range_size;    /* linear address, bytes, */
	uint64_t range_cr3;     /* in this address space, */
	uint32_t range_cpl;     /* at this CPL, */
	uint32_t range_left;    /* and so many more times */
	uint64_t range_steps;   /* times that it did not end */
};

static inline void put64(const struct shared *s, uint32_t offset, uint64_t v)
{
	memcpy(s->env + offset, &v, sizeof(v));
}

static inline uint32_t get32(const struct shared *s, uint32_t offset)
{
	uint32_t v;

	memcpy(&v, s->env + offset, sizeof(v));
	return v;
}

static inline void put32(const struct shared *s, uint32_t offset, uint32_t v)
{
	memcpy(s->env + offset, &v, sizeof(v));
}

static inline uint64_t get64(const struct shared *s, uint32_t offset)
{
	uint64_t v;

	memcpy(&v, s->env + offset, sizeof(v));
	return v;
}

enum { MAX_REGIONS = 5 };

struct region {
	uint64_t start, size;
	uint8_t *host;
	void *region;    /* the engine's record, NULL for memory that no guest reaches */
	void *with_code; /* the same, for pages with code: never marked dirty */
};

struct engine {
	uc_engine *uc;
	struct shared *shared;
	void *cpu;
	unsigned count;
	struct region regions[MAX_REGIONS]; /* RAM first, in the order in which it lies there */
	struct engine *next;
};

struct engine *svsmd_engine_of_cpu(const void *cpu);

#endif
