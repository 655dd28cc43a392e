/* SPDX-License-Identifier: MIT */
/* Talking to the hypervisor: GHCB MSR protocol and GHCB page. Spec: AMD 56421. */
#ifndef DEMO_GHCB_H
#define DEMO_GHCB_H

#include <stdbool.h>
#include <stdint.h>

/* MSR protocol: GHCBInfo values, bits 11:0 (56421, 2.3.1). */
#define GHCB_MSR_INFO_MASK 0xfff
#define GHCB_MSR_SEV_INFO_RESP 0x001
#define GHCB_MSR_SEV_INFO_REQ 0x002
#define GHCB_MSR_CPUID_REQ 0x004
#define GHCB_MSR_CPUID_RESP 0x005
#define GHCB_MSR_PREF_GPA_REQ 0x010
#define GHCB_MSR_PREF_GPA_RESP 0x011
#define GHCB_MSR_REG_GPA_REQ 0x012
#define GHCB_MSR_REG_GPA_RESP 0x013
#define GHCB_MSR_PSC_REQ 0x014
#define GHCB_MSR_PSC_RESP 0x015
#define GHCB_MSR_RUN_VMPL_REQ 0x016
#define GHCB_MSR_RUN_VMPL_RESP 0x017
#define GHCB_MSR_HV_FT_REQ 0x080
#define GHCB_MSR_HV_FT_RESP 0x081
#define GHCB_MSR_TERM_REQ 0x100

#define GHCB_TERM_SET_GENERAL 0
#define GHCB_TERM_GENERAL 0
#define GHCB_TERM_PROTOCOL 1
#define GHCB_TERM_SNP_UNSUPPORTED 2

#define GHCB_HV_FT_SNP (1 << 0)
#define GHCB_HV_FT_AP_CREATION (1 << 1)
#define GHCB_HV_FT_MULTI_VMPL (1 << 5)

#define PSC_PRIVATE 1
#define PSC_SHARED 2
#define PSC_PSMASH 3
#define PSC_UNSMASH 4
#define PSC_GFN_SHIFT 12
#define PSC_OPERATION_SHIFT 52
#define PSC_ENTRY_2M (1UL << 56)
#define PSC_MAX_ENTRIES 253

/* NAE events (56421, table 5): SVM exit codes, and the GHCB's own. */
#define SVM_EXIT_READ_DR7 0x27
#define SVM_EXIT_WRITE_DR7 0x37
#define SVM_EXIT_RDTSC 0x6e
#define SVM_EXIT_RDPMC 0x6f
#define SVM_EXIT_CPUID 0x72
#define SVM_EXIT_INVD 0x76
#define SVM_EXIT_IOIO 0x7b
#define SVM_EXIT_MSR 0x7c
#define SVM_EXIT_VMMCALL 0x81
#define SVM_EXIT_RDTSCP 0x87
#define SVM_EXIT_WBINVD 0x89
#define SVM_EXIT_MONITOR 0x8a
#define SVM_EXIT_MWAIT 0x8b
#define SVM_EXIT_NPF 0x400
#define SVM_EXIT_PAGE_NOT_VALIDATED 0x404
#define GHCB_EXIT_MMIO_READ 0x80000001
#define GHCB_EXIT_MMIO_WRITE 0x80000002
#define GHCB_EXIT_PSC 0x80000010
#define GHCB_EXIT_GUEST_REQUEST 0x80000011
#define GHCB_EXIT_AP_CREATION 0x80000013
#define GHCB_EXIT_RUN_VMPL 0x80000018
#define GHCB_EXIT_HV_FEATURES 0x8000fffd
#define GHCB_EXIT_UNSUPPORTED 0x8000ffff

#define AP_CREATE 1
#define AP_DESTROY 2

/* SW_EXITINFO1[31:0] of an answer, and SW_EXITINFO2 for GHCB_MALFORMED (56421, 4.1). */
#define GHCB_OK 0
#define GHCB_EXCEPTION 1
#define GHCB_MALFORMED 2
#define GHCB_ERR_NOT_REGISTERED 1
#define GHCB_ERR_INVALID_USAGE 2
#define GHCB_ERR_INVALID_SCRATCH 3
#define GHCB_ERR_MISSING_INPUT 4
#define GHCB_ERR_INVALID_INPUT 5
#define GHCB_ERR_INVALID_EVENT 6

/* SW_EXITINFO1 of IOIO (24593, 15.10.2). */
#define IOIO_IN (1 << 0)
#define IOIO_STRING (1 << 2)
#define IOIO_REP (1 << 3)
#define IOIO_SIZE_SHIFT 4 /* + log2 of the bytes: 1, 2, 4 */
#define IOIO_ADDRESS_64 (1 << 9)
#define IOIO_PORT_SHIFT 16

#define GHCB_BUFFER_SIZE 0x7f0
#define GHCB_VERSION 2

/* Offsets in the page of fields that are passed by the valid bitmap. */
#define GHCB_CPL 0x0cb
#define GHCB_RAX 0x1f8
#define GHCB_RCX 0x308
#define GHCB_RDX 0x310
#define GHCB_RBX 0x318
#define GHCB_EXIT_CODE 0x390
#define GHCB_EXIT_INFO1 0x398
#define GHCB_EXIT_INFO2 0x3a0
#define GHCB_SCRATCH 0x3a8
#define GHCB_XCR0 0x3e8

struct ghcb {
	uint64_t save[0x3f0 / 8];
	uint64_t valid_bitmap[2];
	uint8_t reserved0[0x400];
	uint8_t buffer[GHCB_BUFFER_SIZE];
	uint8_t reserved1[0xa];
	uint16_t version;
	uint32_t usage;
};

_Static_assert(sizeof(struct ghcb) == 4096, "56421, table 2");

/* Registers of an exit, and which of them are passed. */
enum {
	PASS_RAX = 1 << 0,
	PASS_RBX = 1 << 1,
	PASS_RCX = 1 << 2,
	PASS_RDX = 1 << 3,
	PASS_XCR0 = 1 << 4,
	PASS_SCRATCH = 1 << 5,
	OMIT_EXIT_CODE = 1 << 6, /* for tests of what the host does then */
	OMIT_EXIT_INFO1 = 1 << 7,
};

struct ghcb_exit {
	uint64_t code;
	uint64_t info1, info2; /* in: of the event; out: the answer's */
	uint64_t rax, rbx, rcx, rdx, xcr0;
	uint64_t scratch; /* with PASS_SCRATCH; set by itself where there is data */
	uint32_t pass; /* in: PASS_*, OMIT_*; out: PASS_* of what the host answered */
	uint32_t usage; /* of the page; 0 is the only one that exists */
	void *data; /* through the shared buffer */
	uint32_t data_in; /* bytes to put there before the exit */
	uint32_t data_out; /* bytes to take from there after it */
};

/* Negotiate, make the boot CPU's GHCB page shared, register it. Before that only the MSR protocol works. */
void ghcb_init(void);

/* Register the shared page of this CPU and use it from now on. */
void ghcb_register(void);

/* Make the GHCB page of a CPU shared. For another CPU than the boot CPU: before that CPU starts. */
void ghcb_share(unsigned int cpu_index);

/* One request of the MSR protocol; returns the answer as the MSR holds it. */
uint64_t ghcb_msr(uint64_t request);

/* One NAE event through the page. Returns SW_EXITINFO1[31:0] of the answer. */
uint32_t ghcb_call(struct ghcb_exit *exit);

/* Page state change of one 4 KiB page by the MSR protocol; true if the host did it. */
bool ghcb_page_state(uint64_t gpa, unsigned int operation);

uint32_t ghcb_in(uint16_t port, unsigned int bytes);
void ghcb_out(uint16_t port, unsigned int bytes, uint32_t value);
void ghcb_out_string(uint16_t port, const void *data, uint32_t count);

/* End the guest. `set` and `code` as in 56421, 2.3.1 (termination request). */
void ghcb_terminate(unsigned int set, unsigned int code) __attribute__((noreturn));

static inline void vmgexit(void)
{
	__asm__ volatile("rep; vmmcall" : : : "memory");
}

#endif
