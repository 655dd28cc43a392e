/* SPDX-License-Identifier: MIT */
/* Made by tools/make_sdk_header.py: do not edit. */
#ifndef SVSM_CALLS_H
#define SVSM_CALLS_H

#include <stddef.h>

#include "structures.h"
#include "syscall.h"

/*
 * Start a program of the archive; returns the number of its task. `how` may be null: then it
 * gets the limits of its parent, and none of its capabilities. Fails with -EPERM, -ENOENT,
 * -ENOEXEC, -EFAULT, -E2BIG, -ENOMEM, -EAGAIN, -EINVAL, -ENAMETOOLONG.
 */
static inline long svsm_spawn(const char *path, const char *const *argv, const char *const *envp, const struct svsm_spawn *how)
{
	return svsm_syscall4(SVSM_SYS_spawn, (long)(path), (long)(argv), (long)(envp), (long)(how));
}

/*
 * Wait for the end of a child, -1 for any; returns its number. The deadline is a time of
 * clock_gettime() in ns, 0 for none, 1 not to wait at all. Fails with -ECHILD, -EFAULT,
 * -ETIMEDOUT.
 */
static inline long svsm_wait(int pid, int *status, unsigned long deadline)
{
	return svsm_syscall3(SVSM_SYS_wait, (long)(pid), (long)(status), (long)(deadline));
}

/*
 * Priority of the caller (0) or a child: 0 low, 1 normal, 2 high. To raise one takes a
 * capability. Fails with -ESRCH, -EINVAL, -EPERM.
 */
static inline long svsm_set_priority(int pid, int priority)
{
	return svsm_syscall2(SVSM_SYS_set_priority, (long)(pid), (long)(priority));
}

/* CPUs for the caller (0) or a child: one bit for each. Fails with -ESRCH, -EINVAL, -EFAULT. */
static inline long svsm_set_affinity(int pid, const void *mask, size_t size)
{
	return svsm_syscall3(SVSM_SYS_set_affinity, (long)(pid), (long)(mask), (long)(size));
}

/* State, ticks and memory of the caller (0) or a child. Fails with -ESRCH, -EFAULT. */
static inline long svsm_task_info(int pid, struct svsm_task_info *info)
{
	return svsm_syscall2(SVSM_SYS_task_info, (long)(pid), (long)(info));
}

/*
 * Make several calls in one entry, at most 64, none of them this one; returns how many were
 * made. Flag 1: stop behind the first that fails. Fails with -EFAULT, -EINVAL.
 */
static inline long svsm_batch(struct svsm_batch_entry *entries, size_t count, unsigned int flags)
{
	return svsm_syscall3(SVSM_SYS_batch, (long)(entries), (long)(count), (long)(flags));
}

#endif
