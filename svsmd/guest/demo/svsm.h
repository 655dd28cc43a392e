/* SPDX-License-Identifier: MIT */
/* Calls to the SVSM. Spec: AMD 58019. */
#ifndef DEMO_SVSM_H
#define DEMO_SVSM_H

#include <stdbool.h>
#include <stdint.h>

#define SVSM_CORE 0
#define SVSM_ATTEST 1
#define SVSM_VTPM 2
#define SVSM_APIC 3
#define SVSM_UEFI_MM 4

#define SVSMD_PAGE_STATE 0xc0000000 /* svsmd's own: docs/protocols/svsmd.md */

#define SVSMD_PAGE_STATE_QUERY 0
#define SVSMD_PAGE_STATE_BITS 1
#define SVSMD_PAGE_STATE_RUNS 2
/* A private protocol that a module serves (svsmd/modules/echo). */
#define SVSM_ECHO 0xc0010001

#define SVSM_ECHO_ROTATE 0 /* RCX = RDX, RDX = R8, R8 = R9 */
#define SVSM_ECHO_REVERSE 1 /* RDX bytes at GPA RCX */
#define SVSM_ECHO_DELAY 2 /* RCX ns */

#define SVSM_CORE_REMAP_CA 0
#define SVSM_CORE_PVALIDATE 1
#define SVSM_CORE_CREATE_VCPU 2
#define SVSM_CORE_DELETE_VCPU 3
#define SVSM_CORE_DEPOSIT_MEM 4
#define SVSM_CORE_WITHDRAW_MEM 5
#define SVSM_CORE_QUERY_PROTOCOL 6
#define SVSM_CORE_CONFIGURE_VTOM 7

#define SVSM_SUCCESS 0x00000000
#define SVSM_ERR_INCOMPLETE 0x80000000
#define SVSM_ERR_UNSUPPORTED_PROTOCOL 0x80000001
#define SVSM_ERR_UNSUPPORTED_CALL 0x80000002
#define SVSM_ERR_INVALID_ADDRESS 0x80000003
#define SVSM_ERR_INVALID_FORMAT 0x80000004
#define SVSM_ERR_INVALID_PARAMETER 0x80000005
#define SVSM_ERR_INVALID_REQUEST 0x80000006
#define SVSM_ERR_BUSY 0x80000007
#define SVSM_ERR_PROTOCOL_BASE 0x80001000
#define SVSM_ERR_PVALIDATE_FAIL_SIZEMISMATCH 0x80001006
#define SVSM_ERR_PVALIDATE_NO_CHANGE 0x80001010
#define SVSM_ERR_DELETE_VCPU_IN_USE 0x80001003

/* Not an SVSM code: the call came back with call_pending still set. */
#define SVSM_NOT_SERVICED 0xffffffffffffffff

/* Calling area (58019, table 2). */
struct svsm_caa {
	uint8_t call_pending;
	uint8_t mem_available;
	uint8_t no_eoi_required;
	uint8_t reserved[5];
	uint8_t buffer[4096 - 8];
};

/* SVSM_CORE_PVALIDATE (58019, table 5). */
struct pvalidate_list {
	uint16_t entries;
	uint16_t next;
	uint32_t reserved;
	uint64_t entry[511];
};

/* SVSM_CORE_WITHDRAW_MEM writes one (58019, table 8). */
struct withdraw_list {
	uint16_t entries;
	uint8_t unused[6];
	uint64_t page[511];
};

/* Request of SVSMD_PAGE_STATE_BITS and _RUNS. */
struct page_state_request {
	uint64_t first; /* frame number */
	uint64_t pages;
	uint64_t next; /* pages done */
	uint64_t buffer;
	uint64_t size; /* bytes of the buffer */
	uint64_t filled; /* bytes of it that are written */
};

/* What _RUNS writes: validated pages that adjoin. */
struct page_state_run {
	uint64_t gpa;
	uint64_t pages;
};

#define PVALIDATE_2M (1 << 0)
#define PVALIDATE_VALIDATE (1 << 2)
#define PVALIDATE_IGNORE_CF (1 << 3)

_Static_assert(sizeof(struct svsm_caa) == 4096 && sizeof(struct pvalidate_list) == 4096, "one page each");

struct svsm_regs {
	uint64_t rax, rcx, rdx, r8, r9;
};

enum svsm_way { SVSM_BY_MSR, SVSM_BY_GHCB };

struct svsm {
	bool present; /* false: we are VMPL0 ourselves */
	unsigned int vmpl; /* ours */
	uint64_t base; /* GPA of the SVSM's memory */
	uint64_t size; /* bytes */
	uint64_t boot_caa; /* GPA of the calling area that the SVSM chose */
};

extern struct svsm svsm;

/* Which VMPL is this, and is there an SVSM? Sets up the boot CPU's calling area. */
void svsm_init(void);

/* Move this CPU's calling area to a page of ours. False: refused. */
bool svsm_use_own_caa(void);

/* GPA of the page that CPU `index` uses as calling area once it has its own. */
uint64_t svsm_own_caa(unsigned int index);

/* One call, no retries: regs->rax = protocol << 32 | call in, result code out (returned too). */
uint64_t svsm_call_once(struct svsm_regs *regs, enum svsm_way way);

/* One call, repeated while INCOMPLETE or BUSY; by the GHCB page where there is one. */
uint64_t svsm_call(uint32_t protocol, uint32_t call, struct svsm_regs *regs);

/* svsm_call for a core call with up to three arguments. */
uint64_t svsm_core(uint32_t call, uint64_t rcx, uint64_t rdx, uint64_t r8);

/* RCX of QUERY_PROTOCOL: highest version << 32 | lowest, 0 = not offered. */
uint64_t svsm_query(uint32_t protocol, uint32_t version);

/* SVSM_CORE_PVALIDATE with one entry: a GPA with PVALIDATE_* bits. */
uint64_t svsm_pvalidate(uint64_t entry);

const char *svsm_result_name(uint64_t code);

#endif
