/* SPDX-License-Identifier: MIT */
/*
 * Stage 2's side of the GHCB: MSR protocol, and one page for output.
 *
 * Spec: AMD 56421, 2.3 and 2.3.1, 4.1 (IOIO_PROT); 24593, 15.10.2 (its SW_EXITINFO1). The log goes to
 * I/O port 0xe9, the debug port of Bochs and QEMU. What the hypervisor answers is read once and compared;
 * nothing is indexed by it.
 */
#include "stages.h"

#define GHCB_VERSION 2
#define GHCB_FEATURE_SNP (1 << 0)
#define PSC_SHARED (2UL << 52)

#define DEBUG_PORT 0xe9UL
#define SVM_EXIT_IOIO 0x7b
#define IOIO_PORT_SHIFT 16
#define IOIO_STRING (1 << 2)
#define IOIO_REP (1 << 3)
#define IOIO_SIZE_8 (1 << 4)
#define IOIO_ADDRESS_64 (1 << 9)

/* The GHCB page (56421, table 3). Fields of the save area are valid if bit offset / 8 of the bitmap is set. */
struct ghcb {
	uint64_t save[0x3f0 / 8];
	uint64_t valid_bitmap[2];
	uint8_t reserved[0x400];
	char buffer[0x7f0]; /* shared buffer */
	uint8_t reserved2[0xa];
	uint16_t version;
	uint32_t usage;
};

_Static_assert(sizeof(struct ghcb) == PAGE_SIZE, "56421, table 3");
_Static_assert(LINE_MAX < sizeof(((struct ghcb *)0)->buffer), "a line goes out in one piece");

#define SAVE_EXIT_CODE (0x390 / 8)
#define SAVE_EXIT_INFO1 (0x398 / 8)
#define SAVE_EXIT_INFO2 (0x3a0 / 8)
#define SAVE_SCRATCH (0x3a8 / 8)

static volatile struct ghcb *ghcb_page;

void ghcb_terminate(unsigned int code)
{
	for (;;) {
		wrmsr(MSR_GHCB, GHCB_MSR_TERMINATE(code));
		vmgexit();
	}
}

static uint64_t ask(uint64_t request)
{
	wrmsr(MSR_GHCB, request);
	vmgexit();
	return rdmsr(MSR_GHCB);
}

/* There is no log before there is a GHCB: all that goes wrong until then ends with SVSM_REASON_GHCB. */
struct ghcb_agreement ghcb_negotiate(uint32_t cbit)
{
	uint64_t info = ask(GHCB_MSR_SEV_INFO_REQ);
	uint64_t features = ask(GHCB_MSR_FEATURES_REQ);

	if ((info & GHCB_MSR_INFO_MASK) != GHCB_MSR_SEV_INFO_RESP || info >> 48 < GHCB_VERSION ||
	    (info >> 32 & 0xffff) > GHCB_VERSION || (info >> 24 & 0xff) != cbit)
		ghcb_terminate(SVSM_REASON_GHCB);
	if ((features & GHCB_MSR_INFO_MASK) != GHCB_MSR_FEATURES_RESP || !(features >> 12 & GHCB_FEATURE_SNP))
		ghcb_terminate(SVSM_REASON_GHCB);
	return (struct ghcb_agreement){ .features = features >> 12, .version = GHCB_VERSION };
}

/*
 * Share the page at `gpa`, which has not been validated, and register it as this vCPU's GHCB. If the host
 * says that it is shared, and leaves it private, the first store ends in a nested page fault: the host's.
 */
void ghcb_set_up(uint64_t gpa)
{
	if (ask(GHCB_MSR_PSC_REQ | gpa | PSC_SHARED) != GHCB_MSR_PSC_RESP)
		ghcb_terminate(SVSM_REASON_GHCB);
	paging_share_page(gpa);
	memset((void *)gpa, 0, PAGE_SIZE);
	if (ask(GHCB_MSR_REGISTER_REQ | gpa) != (GHCB_MSR_REGISTER_RESP | gpa))
		ghcb_terminate(SVSM_REASON_GHCB);
	ghcb_page = (volatile struct ghcb *)gpa;
}

static void put(unsigned int field, uint64_t value)
{
	ghcb_page->save[field] = value;
	ghcb_page->valid_bitmap[field / 64] |= 1UL << (field % 64);
}

/* REP OUTSB to the debug port, once there is a GHCB. Nobody has to listen: the answer does not matter. */
void ghcb_print(const char *text, unsigned int length)
{
	if (!ghcb_page)
		return;
	ghcb_page->valid_bitmap[0] = 0;
	ghcb_page->valid_bitmap[1] = 0;
	ghcb_page->version = GHCB_VERSION;
	ghcb_page->usage = 0;
	for (unsigned int i = 0; i < length; i++)
		ghcb_page->buffer[i] = text[i];
	put(SAVE_EXIT_CODE, SVM_EXIT_IOIO);
	put(SAVE_EXIT_INFO1, DEBUG_PORT << IOIO_PORT_SHIFT | IOIO_ADDRESS_64 | IOIO_SIZE_8 | IOIO_REP | IOIO_STRING);
	put(SAVE_EXIT_INFO2, length);
	put(SAVE_SCRATCH, (uint64_t)ghcb_page->buffer);
	wrmsr(MSR_GHCB, (uint64_t)ghcb_page);
	vmgexit();
}
