/* SPDX-License-Identifier: MIT */
/*
 * The hypervisor's side of the page is not to be trusted: whatever it answers is read once, and
 * nothing here indexes or loops by it.
 */
#include "ghcb.h"

#include "cpu.h"
#include "memory.h"
#include "paging.h"
#include "string.h"

static struct ghcb ghcb_pages[MAX_CPUS] __attribute__((aligned(4096)));

void ghcb_terminate(unsigned int set, unsigned int code)
{
	irq_disable();
	wrmsr(MSR_GHCB, GHCB_MSR_TERM_REQ | (set & 0xf) << 12 | (code & 0xff) << 16);
	vmgexit();
	for (;;)
		__asm__ volatile("cli; hlt");
}

uint64_t ghcb_msr(uint64_t request)
{
	uint64_t flags = irq_save();
	uint64_t before = rdmsr(MSR_GHCB);
	uint64_t answer;

	wrmsr(MSR_GHCB, request);
	vmgexit();
	answer = rdmsr(MSR_GHCB);
	wrmsr(MSR_GHCB, before);
	irq_restore(flags);
	return answer;
}

bool ghcb_page_state(uint64_t gpa, unsigned int operation)
{
	return ghcb_msr(GHCB_MSR_PSC_REQ | (gpa & ~(PAGE_SIZE - 1)) |
			(uint64_t)operation << PSC_OPERATION_SHIFT) == GHCB_MSR_PSC_RESP;
}

void ghcb_share(unsigned int index)
{
	uint64_t gpa = (uint64_t)&ghcb_pages[index];

	if (!page_make_shared(gpa))
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	paging_set_image(gpa, 0); /* the private alias would only fault */
	memset(shared_address(gpa), 0, PAGE_SIZE);
}

void ghcb_register(void)
{
	struct cpu *cpu = this_cpu();
	uint64_t gpa = (uint64_t)&ghcb_pages[cpu->index];

	if (ghcb_msr(GHCB_MSR_REG_GPA_REQ | gpa) != (gpa | GHCB_MSR_REG_GPA_RESP))
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	wrmsr(MSR_GHCB, gpa);
	cpu->ghcb_gpa = gpa;
	cpu->ghcb = shared_address(gpa);
}

void ghcb_init(void)
{
	uint64_t info = ghcb_msr(GHCB_MSR_SEV_INFO_REQ);
	uint64_t features = ghcb_msr(GHCB_MSR_HV_FT_REQ);

	if ((info & GHCB_MSR_INFO_MASK) != GHCB_MSR_SEV_INFO_RESP || info >> 48 < GHCB_VERSION ||
	    (info >> 32 & 0xffff) > GHCB_VERSION)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_PROTOCOL);
	if ((features & GHCB_MSR_INFO_MASK) != GHCB_MSR_HV_FT_RESP || !(features >> 12 & GHCB_HV_FT_SNP))
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
	ghcb_share(this_cpu()->index);
	ghcb_register();
}

static void put(volatile struct ghcb *ghcb, unsigned int offset, uint64_t value)
{
	ghcb->save[offset / 8] = value;
	ghcb->valid_bitmap[offset / 8 / 64] |= 1UL << (offset / 8 % 64);
}

static uint32_t get(const volatile struct ghcb *ghcb, unsigned int offset, uint64_t *value, uint32_t pass)
{
	if (!(ghcb->valid_bitmap[offset / 8 / 64] >> (offset / 8 % 64) & 1))
		return 0;
	*value = ghcb->save[offset / 8];
	return pass;
}

uint32_t ghcb_call(struct ghcb_exit *e)
{
	volatile struct ghcb *ghcb = this_cpu()->ghcb;
	uint64_t flags = irq_save();
	uint32_t result;

	if (!ghcb)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_GENERAL);
	ghcb->valid_bitmap[0] = 0;
	ghcb->valid_bitmap[1] = 0;
	ghcb->version = GHCB_VERSION;
	ghcb->usage = e->usage;
	if (e->data && !(e->pass & PASS_SCRATCH)) {
		e->scratch = this_cpu()->ghcb_gpa + offsetof(struct ghcb, buffer);
		e->pass |= PASS_SCRATCH;
	}
	if (e->data_in)
		memcpy((void *)ghcb->buffer, e->data, e->data_in);
	if (!(e->pass & OMIT_EXIT_CODE))
		put(ghcb, GHCB_EXIT_CODE, e->code);
	if (!(e->pass & OMIT_EXIT_INFO1))
		put(ghcb, GHCB_EXIT_INFO1, e->info1);
	put(ghcb, GHCB_EXIT_INFO2, e->info2);
	if (e->pass & PASS_RAX)
		put(ghcb, GHCB_RAX, e->rax);
	if (e->pass & PASS_RBX)
		put(ghcb, GHCB_RBX, e->rbx);
	if (e->pass & PASS_RCX)
		put(ghcb, GHCB_RCX, e->rcx);
	if (e->pass & PASS_RDX)
		put(ghcb, GHCB_RDX, e->rdx);
	if (e->pass & PASS_XCR0)
		put(ghcb, GHCB_XCR0, e->xcr0);
	if (e->pass & PASS_SCRATCH)
		put(ghcb, GHCB_SCRATCH, e->scratch);
	vmgexit();
	e->info1 = ghcb->save[GHCB_EXIT_INFO1 / 8];
	e->info2 = ghcb->save[GHCB_EXIT_INFO2 / 8];
	e->pass = get(ghcb, GHCB_RAX, &e->rax, PASS_RAX) | get(ghcb, GHCB_RBX, &e->rbx, PASS_RBX) |
		  get(ghcb, GHCB_RCX, &e->rcx, PASS_RCX) | get(ghcb, GHCB_RDX, &e->rdx, PASS_RDX);
	if (e->data_out)
		memcpy(e->data, (const void *)ghcb->buffer, e->data_out);
	result = (uint32_t)e->info1;
	irq_restore(flags);
	return result;
}

static uint64_t ioio_size(unsigned int bytes)
{
	return (uint64_t)bytes << IOIO_SIZE_SHIFT; /* one bit each for 1, 2 and 4 */
}

uint32_t ghcb_in(uint16_t port, unsigned int bytes)
{
	struct ghcb_exit e = {
		.code = SVM_EXIT_IOIO,
		.info1 = (uint64_t)port << IOIO_PORT_SHIFT | ioio_size(bytes) | IOIO_ADDRESS_64 | IOIO_IN,
		.pass = PASS_RAX,
	};

	ghcb_call(&e);
	return (uint32_t)(e.rax & (0xffffffff >> (32 - 8 * bytes)));
}

void ghcb_out(uint16_t port, unsigned int bytes, uint32_t value)
{
	struct ghcb_exit e = {
		.code = SVM_EXIT_IOIO,
		.info1 = (uint64_t)port << IOIO_PORT_SHIFT | ioio_size(bytes) | IOIO_ADDRESS_64,
		.rax = value,
		.pass = PASS_RAX,
	};

	ghcb_call(&e);
}

void ghcb_out_string(uint16_t port, const void *data, uint32_t count)
{
	struct ghcb_exit e = {
		.code = SVM_EXIT_IOIO,
		.info1 = (uint64_t)port << IOIO_PORT_SHIFT | ioio_size(1) | IOIO_ADDRESS_64 | IOIO_STRING | IOIO_REP,
		.info2 = count,
		.data = (void *)data,
		.data_in = count,
	};

	if (count <= GHCB_BUFFER_SIZE)
		ghcb_call(&e);
}
