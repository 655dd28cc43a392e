/* SPDX-License-Identifier: MIT */
#include "svsm.h"

#include "boot.h"
#include "cpu.h"
#include "ghcb.h"
#include "memory.h"
#include "print.h"
#include "string.h"

struct svsm svsm;

static struct svsm_caa own_caa[MAX_CPUS] __attribute__((aligned(4096)));
static uint8_t probe_page[PAGE_SIZE] __attribute__((aligned(4096)));

/*
 * The probe that Linux uses: only VMPL0 may change what VMPL1 may do with a page. It takes VMPL1's
 * rights from the page away, which at VMPL0 harms nobody.
 */
static bool at_vmpl0(void)
{
	return rmpadjust((uint64_t)probe_page, 0, RMPADJUST_VMPL(1)) == 0;
}

void svsm_init(void)
{
	const struct secrets_page *secrets = boot_info.secrets;
	struct cpu *cpu = this_cpu();

	if (at_vmpl0())
		return;
	if (!secrets->svsm_size || !secrets->svsm_guest_vmpl || secrets->svsm_caa % PAGE_SIZE)
		ghcb_terminate(GHCB_TERM_SET_GENERAL, GHCB_TERM_SNP_UNSUPPORTED);
	svsm = (struct svsm){
		.present = true,
		.vmpl = secrets->svsm_guest_vmpl,
		.base = secrets->svsm_base,
		.size = secrets->svsm_size,
		.boot_caa = secrets->svsm_caa,
	};
	cpu->caa_gpa = svsm.boot_caa;
	cpu->caa = (volatile struct svsm_caa *)svsm.boot_caa;
}

uint64_t svsm_own_caa(unsigned int index)
{
	return (uint64_t)&own_caa[index];
}

bool svsm_use_own_caa(void)
{
	struct cpu *cpu = this_cpu();
	uint64_t gpa = svsm_own_caa(cpu->index);

	if (svsm_core(SVSM_CORE_REMAP_CA, gpa, 0, 0) != SVSM_SUCCESS)
		return false;
	cpu->caa_gpa = gpa;
	cpu->caa = (volatile struct svsm_caa *)gpa;
	return true;
}

/* VMGEXIT with the call's registers. The SVSM may change them, no others. */
static void vmgexit_call(struct svsm_regs *regs)
{
	register uint64_t r8 __asm__("r8") = regs->r8;
	register uint64_t r9 __asm__("r9") = regs->r9;

	__asm__ volatile("rep; vmmcall"
			 : "+a"(regs->rax), "+c"(regs->rcx), "+d"(regs->rdx), "+r"(r8), "+r"(r9)
			 :
			 : "memory");
	regs->r8 = r8;
	regs->r9 = r9;
}

uint64_t svsm_call_once(struct svsm_regs *regs, enum svsm_way way)
{
	struct cpu *cpu = this_cpu();
	volatile struct ghcb *ghcb = cpu->ghcb;
	uint64_t flags = irq_save();
	uint64_t before = rdmsr(MSR_GHCB);
	bool served;

	if (way == SVSM_BY_MSR) {
		wrmsr(MSR_GHCB, GHCB_MSR_RUN_VMPL_REQ); /* VMPL 0 in bits 39:32 */
	} else {
		ghcb->version = GHCB_VERSION;
		ghcb->usage = 0;
		ghcb->save[GHCB_EXIT_CODE / 8] = GHCB_EXIT_RUN_VMPL;
		ghcb->save[GHCB_EXIT_INFO1 / 8] = 0;
		ghcb->save[GHCB_EXIT_INFO2 / 8] = 0;
		ghcb->valid_bitmap[0] = 0;
		ghcb->valid_bitmap[1] = 7UL << (GHCB_EXIT_CODE / 8 - 64);
	}
	cpu->caa->call_pending = 1;
	vmgexit_call(regs);
	/* A host that answers in the SVSM's place cannot clear the byte: the page is private. */
	served = !__atomic_exchange_n(&cpu->caa->call_pending, 0, __ATOMIC_SEQ_CST);
	if (way == SVSM_BY_MSR)
		served &= rdmsr(MSR_GHCB) == GHCB_MSR_RUN_VMPL_RESP;
	else
		served &= (uint32_t)ghcb->save[GHCB_EXIT_INFO1 / 8] == GHCB_OK;
	wrmsr(MSR_GHCB, before);
	irq_restore(flags);
	if (!served)
		regs->rax = SVSM_NOT_SERVICED;
	return regs->rax;
}

uint64_t svsm_call(uint32_t protocol, uint32_t call, struct svsm_regs *regs)
{
	struct svsm_regs request = *regs;
	enum svsm_way way = this_cpu()->ghcb ? SVSM_BY_GHCB : SVSM_BY_MSR;

	do {
		*regs = request;
		regs->rax = (uint64_t)protocol << 32 | call;
		svsm_call_once(regs, way);
	} while (regs->rax == SVSM_ERR_INCOMPLETE || regs->rax == SVSM_ERR_BUSY);
	return regs->rax;
}

uint64_t svsm_core(uint32_t call, uint64_t rcx, uint64_t rdx, uint64_t r8)
{
	struct svsm_regs regs = { .rcx = rcx, .rdx = rdx, .r8 = r8 };

	return svsm_call(SVSM_CORE, call, &regs);
}

uint64_t svsm_query(uint32_t protocol, uint32_t version)
{
	struct svsm_regs regs = { .rcx = (uint64_t)protocol << 32 | version };

	return svsm_call(SVSM_CORE, SVSM_CORE_QUERY_PROTOCOL, &regs) == SVSM_SUCCESS ? regs.rcx : 0;
}

uint64_t svsm_pvalidate(uint64_t entry)
{
	struct cpu *cpu = this_cpu();
	volatile struct pvalidate_list *list = (volatile struct pvalidate_list *)cpu->caa->buffer;

	list->entries = 1;
	list->next = 0;
	list->reserved = 0;
	list->entry[0] = entry;
	return svsm_core(SVSM_CORE_PVALIDATE, cpu->caa_gpa + offsetof(struct svsm_caa, buffer), 0, 0);
}

const char *svsm_result_name(uint64_t code)
{
	switch (code) {
	case SVSM_SUCCESS:
		return "SUCCESS";
	case SVSM_ERR_INCOMPLETE:
		return "INCOMPLETE";
	case SVSM_ERR_UNSUPPORTED_PROTOCOL:
		return "UNSUPPORTED_PROTOCOL";
	case SVSM_ERR_UNSUPPORTED_CALL:
		return "UNSUPPORTED_CALL";
	case SVSM_ERR_INVALID_ADDRESS:
		return "INVALID_ADDRESS";
	case SVSM_ERR_INVALID_FORMAT:
		return "INVALID_FORMAT";
	case SVSM_ERR_INVALID_PARAMETER:
		return "INVALID_PARAMETER";
	case SVSM_ERR_INVALID_REQUEST:
		return "INVALID_REQUEST";
	case SVSM_ERR_BUSY:
		return "BUSY";
	case SVSM_ERR_PVALIDATE_FAIL_SIZEMISMATCH:
		return "FAIL_SIZEMISMATCH";
	case SVSM_ERR_PVALIDATE_NO_CHANGE:
		return "no change";
	case SVSM_NOT_SERVICED:
		return "not serviced";
	default:
		return "protocol specific";
	}
}
