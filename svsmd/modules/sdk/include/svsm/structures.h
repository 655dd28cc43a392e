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
	uint32_t pages; /* memory that the program may use, 4 KiB each; not more than its parent */
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

#define SVSM_NO_DEADLINE 0ul
#define SVSM_POLL 1ul

#ifndef _SYS_UIO_H /* the names of POSIX, unless a C library has them already */
#define PROT_NONE 0
#define PROT_READ 1
#define PROT_WRITE 2
#define PROT_EXEC 4
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
