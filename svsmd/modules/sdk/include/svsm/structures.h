/* SPDX-License-Identifier: MIT */
/* Structures and flags of the system calls (docs/modules.md). All fields are little-endian. */
#ifndef SVSM_STRUCTURES_H
#define SVSM_STRUCTURES_H

#include <stddef.h>
#include <stdint.h>

/* What a program may do beyond computing in its own memory. */
#define SVSM_CAP_SPAWN 1u /* start programs */
#define SVSM_CAP_REGISTER 2u /* offer services by name */
#define SVSM_CAP_SERVE_PROTOCOL 4u /* answer calls of the guest */
#define SVSM_CAP_GUEST_MEMORY 8u /* reach the guest memory that such a call names */
#define SVSM_CAP_PRIORITY 16u /* raise priorities */

struct svsm_spawn {
	uint32_t size; /* of this structure */
	uint32_t pages; /* memory that the program may use, 4 KiB each, page tables included; not more than its parent */
	uint32_t children; /* programs that it may have running */
	uint32_t capabilities; /* SVSM_CAP_*, of those that the parent has */
	uint64_t reserved; /* 0 */
};

struct svsm_task_info {
	uint32_t number;
	uint32_t state; /* 0 ready, 1 running, 2 waiting, 3 ended */
	uint32_t priority;
	uint32_t cpu; /* APIC id */
	uint64_t ticks; /* of CPU time */
	uint64_t pages;
	uint64_t page_limit;
};

struct svsm_batch_entry {
	uint64_t number; /* SVSM_SYS_* */
	uint64_t arguments[6];
	uint64_t result;
};

#define SVSM_BATCH_STOP_AT_ERROR 1u

/* Exit status that svsm_wait() gives: 0 to 0xff by exit(), SVSM_STATUS_EXCEPTION + vector, or: */
#define SVSM_STATUS_EXCEPTION 0x100
#define SVSM_STATUS_KILLED 0x200

/* Bytes and handles on their way through a channel. */
#define SVSM_MESSAGE_MAX 4096u
#define SVSM_MESSAGE_HANDLES 4

struct svsm_message {
	uint32_t size; /* of this structure */
	uint32_t length; /* bytes: to send; room, then received */
	void *data;
	uint64_t token; /* of the call that this is the request of, or the answer to; else 0 */
	uint32_t handle_count; /* as `length` */
	int32_t handles[SVSM_MESSAGE_HANDLES];
	uint32_t reserved; /* 0 */
};

#define SVSM_READY_READABLE 1u /* a message, a client or a call of the guest waits */
#define SVSM_READY_WRITABLE 2u /* a message of any size has room */
#define SVSM_READY_SIGNALED 4u
#define SVSM_READY_CLOSED 8u /* the other end is gone */

struct svsm_wait_item {
	int32_t handle;
	uint32_t wanted; /* SVSM_READY_* */
	uint32_t ready; /* those of them that are so, and SVSM_READY_CLOSED */
	uint32_t reserved; /* 0 */
};

/* A call of the guest, and the answer. */
struct svsm_request {
	uint32_t size; /* of this structure */
	uint32_t call; /* RAX[31:0] */
	uint64_t token;
	uint64_t rcx, rdx, r8, r9;
	uint32_t apic_id; /* of the vCPU that calls */
	uint32_t vmpl;
};

struct svsm_answer {
	uint32_t size; /* of this structure */
	uint32_t flags; /* SVSM_ANSWER_* */
	uint64_t token;
	uint64_t rax, rcx, rdx, r8; /* what the guest gets */
};

#define SVSM_ANSWER_DEFAULT 1u /* let the SVSM serve the call, if it has such a protocol */

/* Result codes of the SVSM's protocols (AMD 58019, section 5), for svsm_answer.rax. */
#define SVSM_SUCCESS 0ul
#define SVSM_ERR_INCOMPLETE 0x80000000ul
#define SVSM_ERR_UNSUPPORTED_CALL 0x80000002ul
#define SVSM_ERR_INVALID_ADDRESS 0x80000003ul
#define SVSM_ERR_INVALID_FORMAT 0x80000004ul
#define SVSM_ERR_INVALID_PARAMETER 0x80000005ul
#define SVSM_ERR_INVALID_REQUEST 0x80000006ul
#define SVSM_ERR_BUSY 0x80000007ul
#define SVSM_ERR_PROTOCOL_BASE 0x80001000ul /* from here on the protocol's own */

#define SVSM_NO_DEADLINE 0ul
#define SVSM_POLL 1ul

#ifndef _SYS_UIO_H /* the names of POSIX, unless a C library has them already */
#define PROT_NONE 0
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXEC 4
#define MAP_SHARED 0x01
#define MAP_PRIVATE 0x02
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
#define AT_FDCWD (-100)
#define O_RDONLY 0
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define SIGKILL 9

struct iovec {
	void *iov_base;
	size_t iov_len;
};

struct timespec {
	long tv_sec;
	long tv_nsec;
};
#endif

#endif
