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
 * -ETIMEDOUT, -ENOMEM.
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

/*
 * CPUs for the caller (0) or a child: one bit for each. Fails with -ESRCH, -EINVAL, -EFAULT,
 * -ENOMEM.
 */
static inline long svsm_set_affinity(int pid, const void *mask, size_t size)
{
	return svsm_syscall3(SVSM_SYS_set_affinity, (long)(pid), (long)(mask), (long)(size));
}

/* State, ticks and memory of the caller (0) or a child. Fails with -ESRCH, -EFAULT, -ENOMEM. */
static inline long svsm_task_info(int pid, struct svsm_task_info *info)
{
	return svsm_syscall2(SVSM_SYS_task_info, (long)(pid), (long)(info));
}

/*
 * Make several calls in one entry, at most 64, none of them this one; returns how many were
 * made. Flag 1: stop behind the first that fails. Fails with -EFAULT, -EINVAL, -ENOMEM.
 */
static inline long svsm_batch(struct svsm_batch_entry *entries, size_t count, unsigned int flags)
{
	return svsm_syscall3(SVSM_SYS_batch, (long)(entries), (long)(count), (long)(flags));
}

/* Make a channel: handles of its two ends. Fails with -EMFILE, -ENOMEM, -EFAULT. */
static inline long svsm_channel_create(int *handles)
{
	return svsm_syscall1(SVSM_SYS_channel_create, (long)(handles));
}

/*
 * Send a message; its handles are gone from here then. Waits as long as the other end's
 * queue is full. Deadlines of this class are as those of svsm_wait(), but a call that must
 * not wait fails with -EAGAIN. Fails with -EBADF, -EFAULT, -EINVAL, -EMSGSIZE, -ELOOP,
 * -EPIPE, -EAGAIN, -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_send(int channel, const struct svsm_message *message, unsigned long deadline)
{
	return svsm_syscall3(SVSM_SYS_send, (long)(channel), (long)(message), (long)(deadline));
}

/*
 * Receive a message; returns its length. With -EMSGSIZE and -EMFILE it stays where it is,
 * and after -EMSGSIZE the structure says what it needs. Fails with -EBADF, -EFAULT, -EINVAL,
 * -EMSGSIZE, -EMFILE, -EPIPE, -EAGAIN, -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_receive(int channel, struct svsm_message *message, unsigned long deadline)
{
	return svsm_syscall3(SVSM_SYS_receive, (long)(channel), (long)(message), (long)(deadline));
}

/*
 * Send a message and wait for the answer; returns its length. An answer that does not fit is
 * lost. -ECANCELED: the other end was closed before it answered. Fails with -EBADF, -EFAULT,
 * -EINVAL, -EMSGSIZE, -ELOOP, -EMFILE, -EPIPE, -ECANCELED, -EAGAIN, -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_call(int channel, const struct svsm_message *request, struct svsm_message *reply, unsigned long deadline)
{
	return svsm_syscall4(SVSM_SYS_call, (long)(channel), (long)(request), (long)(reply), (long)(deadline));
}

/*
 * Answer the call with that token. -ECANCELED: nobody waits for it any more. Fails with
 * -EBADF, -EFAULT, -EINVAL, -EMSGSIZE, -ELOOP, -EPIPE, -ECANCELED, -ENOMEM.
 */
static inline long svsm_reply(int channel, const struct svsm_message *reply)
{
	return svsm_syscall2(SVSM_SYS_reply, (long)(channel), (long)(reply));
}

/*
 * svsm_reply() and svsm_receive() in one; that nobody waits for the answer is no failure.
 * Fails with -EBADF, -EFAULT, -EINVAL, -EMSGSIZE, -ELOOP, -EMFILE, -EPIPE, -EAGAIN,
 * -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_reply_receive(int channel, const struct svsm_message *reply, struct svsm_message *request, unsigned long deadline)
{
	return svsm_syscall4(SVSM_SYS_reply_receive, (long)(channel), (long)(reply), (long)(request), (long)(deadline));
}

/* Make an event, set or not. Fails with -EMFILE, -ENOMEM. */
static inline long svsm_event_create(int signaled)
{
	return svsm_syscall1(SVSM_SYS_event_create, (long)(signaled));
}

/* Set an event. Fails with -EBADF. */
static inline long svsm_event_signal(int event)
{
	return svsm_syscall1(SVSM_SYS_event_signal, (long)(event));
}

/* Clear an event. Fails with -EBADF. */
static inline long svsm_event_clear(int event)
{
	return svsm_syscall1(SVSM_SYS_event_clear, (long)(event));
}

/*
 * Wait until one of at most 16 objects is ready; returns how many are, and sets `ready` of
 * all. SVSM_READY_CLOSED is always waited for. Fails with -EBADF, -EFAULT, -EINVAL, -EAGAIN,
 * -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_wait_many(struct svsm_wait_item *items, size_t count, unsigned long deadline)
{
	return svsm_syscall3(SVSM_SYS_wait_many, (long)(items), (long)(count), (long)(deadline));
}

/*
 * Make shared memory of at most 1 MiB, for mmap() with MAP_SHARED. Fails with -EINVAL,
 * -EMFILE, -ENOMEM.
 */
static inline long svsm_memory_create(size_t size)
{
	return svsm_syscall1(SVSM_SYS_memory_create, (long)(size));
}

/*
 * Another handle for an event or shared memory; other objects have one. Fails with -EBADF,
 * -EINVAL, -EMFILE.
 */
static inline long svsm_duplicate(int handle)
{
	return svsm_syscall1(SVSM_SYS_duplicate, (long)(handle));
}

/*
 * Offer a service as long as the handle is open. The name has 1 to 31 characters. Takes the
 * capability to register. Fails with -EPERM, -EFAULT, -ENAMETOOLONG, -EINVAL, -EEXIST,
 * -EMFILE, -ENOMEM.
 */
static inline long svsm_service_register(const char *name)
{
	return svsm_syscall1(SVSM_SYS_service_register, (long)(name));
}

/*
 * Wait for a client; returns an end of a channel to it. Fails with -EBADF, -EMFILE, -EAGAIN,
 * -ETIMEDOUT.
 */
static inline long svsm_service_accept(int service, unsigned long deadline)
{
	return svsm_syscall2(SVSM_SYS_service_accept, (long)(service), (long)(deadline));
}

/*
 * Connect to a service that the caller may use; returns an end of a channel. Waits until
 * there is such a service, and room among those that wait for it. -ECANCELED: it is gone.
 * Fails with -EPERM, -EFAULT, -ENAMETOOLONG, -EINVAL, -ECANCELED, -EMFILE, -ENOMEM, -EAGAIN,
 * -ETIMEDOUT.
 */
static inline long svsm_service_connect(const char *name, unsigned long deadline)
{
	return svsm_syscall2(SVSM_SYS_service_connect, (long)(name), (long)(deadline));
}

/*
 * Serve a protocol of the guest, with these versions, as long as the handle is open. Takes
 * the capability, and the number among those of the program. Fails with -EPERM, -EINVAL,
 * -EEXIST, -EMFILE, -ENOMEM.
 */
static inline long svsm_protocol_register(unsigned int number, unsigned int lowest, unsigned int highest)
{
	return svsm_syscall3(SVSM_SYS_protocol_register, (long)(number), (long)(lowest), (long)(highest));
}

/* Wait for a call of the guest. Fails with -EBADF, -EFAULT, -EAGAIN, -ETIMEDOUT, -ENOMEM. */
static inline long svsm_protocol_receive(int protocol, struct svsm_request *request, unsigned long deadline)
{
	return svsm_syscall3(SVSM_SYS_protocol_receive, (long)(protocol), (long)(request), (long)(deadline));
}

/*
 * Answer a call of the guest. -ECANCELED: it has given the call up. Fails with -EBADF,
 * -EFAULT, -EINVAL, -ECANCELED, -ENOMEM.
 */
static inline long svsm_protocol_answer(int protocol, const struct svsm_answer *answer)
{
	return svsm_syscall2(SVSM_SYS_protocol_answer, (long)(protocol), (long)(answer));
}

/*
 * Both in one; that the guest has given the call up is no failure. Fails with -EBADF,
 * -EFAULT, -EINVAL, -EAGAIN, -ETIMEDOUT, -ENOMEM.
 */
static inline long svsm_protocol_answer_receive(int protocol, const struct svsm_answer *answer, struct svsm_request *request, unsigned long deadline)
{
	return svsm_syscall4(SVSM_SYS_protocol_answer_receive, (long)(protocol), (long)(answer), (long)(request), (long)(deadline));
}

/*
 * Read at most 16 KiB of the guest's memory while serving that call. Takes a capability.
 * -EACCES: not memory that the guest may name in a call. -EBUSY: another vCPU is changing
 * the state of that page. Fails with -EPERM, -EBADF, -EFAULT, -EINVAL, -ECANCELED, -EACCES,
 * -EBUSY, -ENOMEM.
 */
static inline long svsm_guest_read(int protocol, unsigned long token, unsigned long gpa, void *buffer, size_t size)
{
	return svsm_syscall5(SVSM_SYS_guest_read, (long)(protocol), (long)(token), (long)(gpa), (long)(buffer), (long)(size));
}

/*
 * Write it. If a page cannot be written, those before it are. Fails with -EPERM, -EBADF,
 * -EFAULT, -EINVAL, -ECANCELED, -EACCES, -EBUSY, -ENOMEM.
 */
static inline long svsm_guest_write(int protocol, unsigned long token, unsigned long gpa, const void *buffer, size_t size)
{
	return svsm_syscall5(SVSM_SYS_guest_write, (long)(protocol), (long)(token), (long)(gpa), (long)(buffer), (long)(size));
}

#endif
