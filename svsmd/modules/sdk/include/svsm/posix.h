/* SPDX-License-Identifier: MIT */
/* Made by tools/make_sdk_header.py: do not edit. */
#ifndef SVSM_POSIX_H
#define SVSM_POSIX_H

#include <stddef.h>

#include "structures.h"
#include "syscall.h"

/* Bytes of a file from its position on; 0 at its end. Fails with -EBADF, -EFAULT, -ENOMEM. */
static inline long read(int fd, void *buffer, size_t size)
{
	return svsm_syscall3(SVSM_SYS_read, (long)(fd), (long)(buffer), (long)(size));
}

/*
 * Write. 1 and 2 are the SVSM's log, line by line, with the name of the task. Fails with
 * -EBADF, -EFAULT, -ENOMEM.
 */
static inline long write(int fd, const void *buffer, size_t size)
{
	return svsm_syscall3(SVSM_SYS_write, (long)(fd), (long)(buffer), (long)(size));
}

/*
 * openat() from AT_FDCWD. Fails with -ENOENT, -EFAULT, -ENAMETOOLONG, -EROFS, -EISDIR,
 * -EMFILE, -ENOMEM.
 */
static inline long open(const char *path, int flags, int mode)
{
	return svsm_syscall3(SVSM_SYS_open, (long)(path), (long)(flags), (long)(mode));
}

/* Close a handle of any kind. Fails with -EBADF. */
static inline long close(int fd)
{
	return svsm_syscall1(SVSM_SYS_close, (long)(fd));
}

/* Set the position of a file. Fails with -EBADF, -EINVAL, -ESPIPE. */
static inline long lseek(int fd, long offset, int whence)
{
	return svsm_syscall3(SVSM_SYS_lseek, (long)(fd), (long)(offset), (long)(whence));
}

/*
 * Map zeros, a private copy of a file, or with MAP_SHARED shared memory. Never writable and
 * executable, and shared memory not executable at all. Fails with -EINVAL, -ENOMEM, -EBADF,
 * -EACCES, -EEXIST.
 */
static inline long mmap(void *address, size_t size, int prot, int flags, int fd, long offset)
{
	return svsm_syscall6(SVSM_SYS_mmap, (long)(address), (long)(size), (long)(prot), (long)(flags), (long)(fd), (long)(offset));
}

/* Change what mapped pages allow. Fails with -EINVAL, -ENOMEM, -EACCES. */
static inline long mprotect(void *address, size_t size, int prot)
{
	return svsm_syscall3(SVSM_SYS_mprotect, (long)(address), (long)(size), (long)(prot));
}

/* Unmap pages. Fails with -EINVAL, -ENOMEM. */
static inline long munmap(void *address, size_t size)
{
	return svsm_syscall2(SVSM_SYS_munmap, (long)(address), (long)(size));
}

/* Set the end of the heap; returns the end, which is the old one if it cannot be set. */
static inline long brk(void *end)
{
	return svsm_syscall1(SVSM_SYS_brk, (long)(end));
}

/* write() of several buffers. Fails with -EBADF, -EFAULT, -EINVAL, -ENOMEM. */
static inline long writev(int fd, const struct iovec *vector, int count)
{
	return svsm_syscall3(SVSM_SYS_writev, (long)(fd), (long)(vector), (long)(count));
}

/* Let others run. */
static inline long sched_yield(void)
{
	return svsm_syscall0(SVSM_SYS_sched_yield);
}

/* Do nothing for a while. Fails with -EFAULT, -EINVAL, -ENOMEM. */
static inline long nanosleep(const struct timespec *duration, struct timespec *rest)
{
	return svsm_syscall2(SVSM_SYS_nanosleep, (long)(duration), (long)(rest));
}

/* Number of the caller's task. */
static inline long getpid(void)
{
	return svsm_syscall0(SVSM_SYS_getpid);
}

/* End, with bits 7:0 of the status. */
static inline _Noreturn void exit(int status)
{
	svsm_syscall1(SVSM_SYS_exit, (long)(status));
	__builtin_unreachable();
}

/*
 * End a child. The signal is 9, or 0 to ask whether there is one. Fails with -ESRCH,
 * -EINVAL.
 */
static inline long kill(int pid, int signal)
{
	return svsm_syscall2(SVSM_SYS_kill, (long)(pid), (long)(signal));
}

/* Number of the parent's task, 0 if it has ended. */
static inline long getppid(void)
{
	return svsm_syscall0(SVSM_SYS_getppid);
}

/*
 * ARCH_SET_FS and ARCH_GET_FS: the base of FS, for TLS. Fails with -EINVAL, -EFAULT,
 * -ENOMEM.
 */
static inline long arch_prctl(int code, unsigned long address)
{
	return svsm_syscall2(SVSM_SYS_arch_prctl, (long)(code), (long)(address));
}

/* As getpid(): a process has one thread. */
static inline long gettid(void)
{
	return svsm_syscall0(SVSM_SYS_gettid);
}

/* As gettid(); nobody is told of the end. */
static inline long set_tid_address(int *address)
{
	return svsm_syscall1(SVSM_SYS_set_tid_address, (long)(address));
}

/*
 * Time since the machine was switched on, whatever the clock: the SVSM trusts no other.
 * Fails with -EFAULT, -EINVAL, -ENOMEM.
 */
static inline long clock_gettime(int clock, struct timespec *time)
{
	return svsm_syscall2(SVSM_SYS_clock_gettime, (long)(clock), (long)(time));
}

/* As exit(). */
static inline _Noreturn void exit_group(int status)
{
	svsm_syscall1(SVSM_SYS_exit_group, (long)(status));
	__builtin_unreachable();
}

/*
 * Open a file of the archive for reading. The directory is AT_FDCWD, which is /. Fails with
 * -EBADF, -ENOENT, -EFAULT, -ENAMETOOLONG, -EROFS, -EISDIR, -EMFILE, -ENOMEM.
 */
static inline long openat(int directory, const char *path, int flags, int mode)
{
	return svsm_syscall4(SVSM_SYS_openat, (long)(directory), (long)(path), (long)(flags), (long)(mode));
}

/* Random bytes, at most 256 at once. Fails with -EFAULT, -ENOMEM. */
static inline long getrandom(void *buffer, size_t size, unsigned int flags)
{
	return svsm_syscall3(SVSM_SYS_getrandom, (long)(buffer), (long)(size), (long)(flags));
}

#endif
