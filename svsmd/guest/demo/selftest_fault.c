/* SPDX-License-Identifier: MIT */
/* Exceptions: vector, error code, RIP, stack; and what CPL 3 may not do. */
#include "cpu.h"
#include "memory.h"
#include "paging.h"
#include "provoke.h"
#include "selftest.h"
#include "trap.h"
#include "uart.h"
#include "user.h"

#define SLOT 2 /* of the paging window */

extern const char image_start[];

static bool on_ist(const struct fault *fault, unsigned int ist)
{
	uint64_t stack = (uint64_t)this_cpu()->ist_stack[ist - 1];

	return fault->frame >= stack && fault->frame < stack + PAGE_SIZE;
}

SELFTEST(fault_de, "fault.de")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_de, 0));
	EXPECT_EQ(fault.vector, VECTOR_DE);
	EXPECT_EQ(fault.cs, KERNEL_CS);
}

SELFTEST(fault_db, "fault.db.single-step")
{
	struct fault fault;
	uint64_t dr6;

	__asm__ volatile("movq %0, %%dr6" : : "r"(0UL));
	EXPECT(fault_catch(&fault, provoke_db, 0));
	__asm__ volatile("movq %%dr6, %0" : "=r"(dr6));
	EXPECT_EQ(fault.vector, VECTOR_DB);
	EXPECT_EQ(dr6 & DR6_BS, DR6_BS);
	EXPECT_EQ(*(uint8_t *)fault.rip, 0x90);
	EXPECT_EQ(*(uint8_t *)(fault.rip - 1), 0x90); /* one instruction after POPFQ has run */
}

SELFTEST(fault_bp, "fault.bp")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_bp, 0));
	EXPECT_EQ(fault.vector, VECTOR_BP);
	EXPECT_EQ(*(uint8_t *)(fault.rip - 1), 0xcc); /* a trap: RIP is behind it */
}

SELFTEST(fault_ud, "fault.ud")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_ud, 0));
	EXPECT_EQ(fault.vector, VECTOR_UD);
	EXPECT_EQ(*(uint16_t *)fault.rip, 0x0b0f); /* a fault: RIP is at it */
}

SELFTEST(fault_nm, "fault.nm")
{
	struct fault fault;
	bool caught = fault_catch(&fault, provoke_nm, 0);

	provoke_undo();
	EXPECT(caught);
	EXPECT_EQ(fault.vector, VECTOR_NM);
}

SELFTEST(fault_np, "fault.np")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_np, 0));
	EXPECT_EQ(fault.vector, VECTOR_NP);
	EXPECT_EQ(fault.error_code, ABSENT_SELECTOR);
}

SELFTEST(fault_ss, "fault.ss")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_ss, 0));
	EXPECT_EQ(fault.vector, VECTOR_SS);
	EXPECT_EQ(fault.error_code, ABSENT_SELECTOR);
}

SELFTEST(fault_gp, "fault.gp.non-canonical")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_gp, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT_EQ(fault.error_code, 0);
}

SELFTEST(fault_gp_selector, "fault.gp.selector")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_gp_selector, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT_EQ(fault.error_code, 0xff8);
}

SELFTEST(fault_df, "fault.df.stack-switch")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_df, 0));
	EXPECT_EQ(fault.vector, VECTOR_DF);
	EXPECT_EQ(fault.error_code, 0);
	EXPECT_EQ(fault.rsp, ABSENT_ADDRESS);
	EXPECT(on_ist(&fault, IST_DF));
}

SELFTEST(fault_frame, "fault.stack-alignment")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_ud, 0));
	/* 22 words: 5 of the CPU, of which the first lies just below a multiple of 16 */
	EXPECT_EQ((fault.frame + sizeof(struct trap_frame)) % 16, 0);
	EXPECT_EQ(fault.vector, VECTOR_UD);
}

SELFTEST(pf_read, "fault.pf.read")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_read, ABSENT_ADDRESS + 0x123));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, 0);
	EXPECT_EQ(fault.cr2, ABSENT_ADDRESS + 0x123);
}

SELFTEST(pf_null, "fault.pf.null")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_read, 8));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.cr2, 8);
}

SELFTEST(pf_write, "fault.pf.write")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_write, ABSENT_ADDRESS));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, PF_WRITE);
}

SELFTEST(pf_read_only, "fault.pf.read-only")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_write, (uint64_t)image_start));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_WRITE);
	EXPECT_EQ(fault.cr2, (uint64_t)image_start);
}

SELFTEST(pf_fetch, "fault.pf.no-execute")
{
	struct fault fault;

	EXPECT(fault_catch(&fault, provoke_jump, (uint64_t)user_page));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_FETCH);
	EXPECT_EQ(fault.rip, (uint64_t)user_page);
}

SELFTEST(pf_reserved, "fault.pf.reserved-bit")
{
	struct fault fault;
	void *address = paging_set_window(SLOT, (uint64_t)user_page | PTE_DATA | PTE_RESERVED | c_bit);
	bool caught = fault_catch(&fault, provoke_read, (uint64_t)address);

	paging_set_window(SLOT, 0);
	EXPECT(caught);
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_RESERVED);
}

SELFTEST(pf_invlpg, "fault.pf.after-invlpg")
{
	struct fault fault;
	void *address = paging_set_window(SLOT, (uint64_t)user_page | PTE_DATA | c_bit);

	EXPECT(!fault_catch(&fault, provoke_write, (uint64_t)address));
	paging_set_window(SLOT, 0);
	EXPECT(fault_catch(&fault, provoke_write, (uint64_t)address));
	EXPECT_EQ(fault.error_code, PF_WRITE);
}

struct user_call {
	const char *entry;
	uint64_t argument;
	uint64_t result;
};

static void run_user(uint64_t argument)
{
	struct user_call *call = (struct user_call *)argument;

	call->result = user_run(call->entry, call->argument);
}

static bool user_fault(struct fault *fault, const char *entry, uint64_t argument)
{
	struct user_call call = { entry, argument, 0 };

	return fault_catch(fault, run_user, (uint64_t)&call) && fault->cs == (USER_CS | RPL_USER);
}

SELFTEST(user_syscall, "user.syscall")
{
	EXPECT_EQ(user_run(user_exit, 0x1234), 0x1234);
	EXPECT_EQ(user_run(user_cs, 0), USER_CS | RPL_USER);
}

SELFTEST(user_sysret, "user.sysret")
{
	syscall_sum = 0;
	EXPECT_EQ(user_run(user_count, 1000), 1000);
}

SELFTEST(user_memory, "user.memory")
{
	user_page[0] = 0xfeed;
	EXPECT_EQ(user_run(user_read, (uint64_t)user_page), 0xfeed);
	user_run(user_write, (uint64_t)(user_page + 1));
	EXPECT_EQ(user_page[1], (uint64_t)(user_page + 1));
}

SELFTEST(user_pf, "user.pf")
{
	struct fault fault;

	EXPECT(user_fault(&fault, user_read, (uint64_t)&syscall_sum));
	EXPECT_EQ(fault.vector, VECTOR_PF);
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_USER);
	EXPECT(user_fault(&fault, user_write, (uint64_t)&syscall_sum));
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_USER | PF_WRITE);
	EXPECT(user_fault(&fault, user_jump, (uint64_t)image_start));
	EXPECT_EQ(fault.error_code, PF_PRESENT | PF_USER | PF_FETCH);
	EXPECT(user_fault(&fault, user_read, ABSENT_ADDRESS));
	EXPECT_EQ(fault.error_code, PF_USER);
}

SELFTEST(user_stack, "user.stack-switch")
{
	struct fault fault;
	uint64_t stack = (uint64_t)this_cpu()->trap_stack;

	EXPECT(user_fault(&fault, user_read, ABSENT_ADDRESS));
	EXPECT(fault.frame >= stack && fault.frame < stack + sizeof(this_cpu()->trap_stack));
	EXPECT_EQ(fault.rsp, (uint64_t)user_page + sizeof(user_page));
}

SELFTEST(user_io, "user.in")
{
	struct fault fault;

	EXPECT(user_fault(&fault, user_in, UART_PORT + UART_SCRATCH));
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT_EQ(fault.error_code, 0);
	EXPECT_EQ(fault.rip, (uint64_t)user_in + 2);
	EXPECT(user_fault(&fault, user_outs, UART_PORT + UART_SCRATCH));
	EXPECT_EQ(fault.vector, VECTOR_GP);
}

SELFTEST(user_privileged, "user.privileged")
{
	struct fault fault;

	EXPECT(user_fault(&fault, user_hlt, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT(user_fault(&fault, user_cli, 0));
	EXPECT_EQ(fault.vector, VECTOR_GP);
}

SELFTEST(user_int, "user.int")
{
	struct fault fault;

	EXPECT(user_fault(&fault, user_int3, 0));
	EXPECT_EQ(fault.vector, VECTOR_BP);
	EXPECT_EQ(fault.rip, (uint64_t)user_int3 + 1);
	EXPECT(user_fault(&fault, user_int_gp, 0)); /* gate with DPL 0 */
	EXPECT_EQ(fault.vector, VECTOR_GP);
	EXPECT_EQ(fault.error_code, 0x50 << 3 | 2);
	EXPECT_EQ(fault.rip, (uint64_t)user_int_gp);
}

SELFTEST(vc_not_validated, "fault.vc.not-validated")
{
	struct fault fault;
	bool caught;

	NEED(arena_present(), "too little memory");
	caught = fault_catch(&fault, provoke_vc, 0);
	provoke_undo();
	EXPECT(caught);
	EXPECT_EQ(fault.vector, VECTOR_VC);
	EXPECT_EQ(fault.error_code, 0x404);
	EXPECT(on_ist(&fault, IST_VC));
}
