# SPDX-License-Identifier: MIT
"""The table of system calls: numbers, classes, arguments, errors.

One table for the dispatcher, for the header of the module SDK (`tools/make_sdk_header.py`) and for
docs/modules.md. A call is made by SYSCALL: RAX = class << 32 | number, arguments in RDI, RSI, RDX,
R10, R8, R9; RAX = result, or -errno. RCX and R11 are lost, all other registers are kept.

Class 0 has the numbers and the meaning of Linux, so that static executables of a Linux tool chain
run: what their start-up code calls beyond it gets ENOSYS. The other classes are ours.

Spec: System V ABI, AMD64 supplement, A.2.1 (Linux conventions); Linux
arch/x86/entry/syscalls/syscall_64.tbl for class 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Final

from svsmd.core.tasks.errno import Errno


class SyscallClass(IntEnum):
    """Bits 63:32 of the number."""

    POSIX = 0
    TASK = 1
    IPC = 2
    PROTOCOL = 3


CLASS_SHIFT: Final = 32


@dataclass(frozen=True, slots=True)
class SystemCallInfo:
    """One call. `arguments` are C parameters, for the header."""

    cls: SyscallClass
    index: int
    name: str
    arguments: tuple[str, ...]
    doc: str
    errors: tuple[Errno, ...] = ()

    @property
    def number(self) -> int:
        """What is in RAX."""
        return self.cls << CLASS_SHIFT | self.index


def _call(
    cls: SyscallClass, index: int, name: str, arguments: str, doc: str, *errors: Errno
) -> SystemCallInfo:
    parts = tuple(part.strip() for part in arguments.split(",") if part.strip())
    if Errno.EFAULT in errors and Errno.ENOMEM not in errors:
        # Memory that is named may be touched here for the first time, and so take a page.
        errors += (Errno.ENOMEM,)
    return SystemCallInfo(cls, index, name, parts, doc, errors)


_posix = partial(_call, SyscallClass.POSIX)
_task = partial(_call, SyscallClass.TASK)
_ipc = partial(_call, SyscallClass.IPC)
_protocol = partial(_call, SyscallClass.PROTOCOL)

E = Errno

SYSTEM_CALLS: Final = (
    _posix(0, "read", "int fd, void *buffer, size_t size",
           "Bytes of a file from its position on; 0 at its end.", E.EBADF, E.EFAULT),
    _posix(1, "write", "int fd, const void *buffer, size_t size",
           "Write. 1 and 2 are the SVSM's log, line by line, with the name of the task.",
           E.EBADF, E.EFAULT),
    _posix(3, "close", "int fd", "Close a handle of any kind.", E.EBADF),
    _posix(8, "lseek", "int fd, long offset, int whence", "Set the position of a file.",
           E.EBADF, E.EINVAL, E.ESPIPE),
    _posix(9, "mmap", "void *address, size_t size, int prot, int flags, int fd, long offset",
           "Map zeros, a private copy of a file, or with MAP_SHARED shared memory. Never writable "
           "and executable, and shared memory not executable at all.",
           E.EINVAL, E.ENOMEM, E.EBADF, E.EACCES, E.EEXIST),
    _posix(10, "mprotect", "void *address, size_t size, int prot",
           "Change what mapped pages allow.", E.EINVAL, E.ENOMEM, E.EACCES),
    _posix(11, "munmap", "void *address, size_t size", "Unmap pages.", E.EINVAL, E.ENOMEM),
    _posix(12, "brk", "void *end",
           "Set the end of the heap; returns the end, which is the old one if it cannot be set."),
    _posix(20, "writev", "int fd, const struct iovec *vector, int count",
           "write() of several buffers.", E.EBADF, E.EFAULT, E.EINVAL),
    _posix(24, "sched_yield", "", "Let others run."),
    _posix(35, "nanosleep", "const struct timespec *duration, struct timespec *rest",
           "Do nothing for a while.", E.EFAULT, E.EINVAL),
    _posix(39, "getpid", "", "Number of the caller's task."),
    _posix(60, "exit", "int status", "End, with bits 7:0 of the status."),
    _posix(62, "kill", "int pid, int signal",
           "End a child. The signal is 9, or 0 to ask whether there is one.",
           E.ESRCH, E.EINVAL),
    _posix(110, "getppid", "", "Number of the parent's task, 0 if it has ended."),
    _posix(158, "arch_prctl", "int code, unsigned long address",
           "ARCH_SET_FS and ARCH_GET_FS: the base of FS, for TLS.", E.EINVAL, E.EFAULT),
    _posix(186, "gettid", "", "As getpid(): a process has one thread."),
    _posix(218, "set_tid_address", "int *address", "As gettid(); nobody is told of the end."),
    _posix(228, "clock_gettime", "int clock, struct timespec *time",
           "Time since the machine was switched on, whatever the clock: the SVSM trusts no other.",
           E.EFAULT, E.EINVAL),
    _posix(231, "exit_group", "int status", "As exit()."),
    _posix(257, "openat", "int directory, const char *path, int flags, int mode",
           "Open a file of the archive for reading. The directory is AT_FDCWD, which is /.",
           E.EBADF, E.ENOENT, E.EFAULT, E.ENAMETOOLONG, E.EROFS, E.EISDIR, E.EMFILE),
    _posix(2, "open", "const char *path, int flags, int mode", "openat() from AT_FDCWD.",
           E.ENOENT, E.EFAULT, E.ENAMETOOLONG, E.EROFS, E.EISDIR, E.EMFILE),
    _posix(318, "getrandom", "void *buffer, size_t size, unsigned int flags",
           "Random bytes, at most 256 at once.", E.EFAULT),
    _task(0, "svsm_spawn",
          "const char *path, const char *const *argv, const char *const *envp, "
          "const struct svsm_spawn *how",
          "Start a program of the archive; returns the number of its task. `how` may be null: "
          "then it gets the limits of its parent, and none of its capabilities.",
          E.EPERM, E.ENOENT, E.ENOEXEC, E.EFAULT, E.E2BIG, E.ENOMEM, E.EAGAIN, E.EINVAL,
          E.ENAMETOOLONG),
    _task(1, "svsm_wait", "int pid, int *status, unsigned long deadline",
          "Wait for the end of a child, -1 for any; returns its number. The deadline is a time of "
          "clock_gettime() in ns, 0 for none, 1 not to wait at all.",
          E.ECHILD, E.EFAULT, E.ETIMEDOUT),
    _task(2, "svsm_set_priority", "int pid, int priority",
          "Priority of the caller (0) or a child: 0 low, 1 normal, 2 high. To raise one takes a "
          "capability.", E.ESRCH, E.EINVAL, E.EPERM),
    _task(3, "svsm_set_affinity", "int pid, const void *mask, size_t size",
          "CPUs for the caller (0) or a child: one bit for each.", E.ESRCH, E.EINVAL, E.EFAULT),
    _task(4, "svsm_task_info", "int pid, struct svsm_task_info *info",
          "State, ticks and memory of the caller (0) or a child.", E.ESRCH, E.EFAULT),
    _task(5, "svsm_batch", "struct svsm_batch_entry *entries, size_t count, unsigned int flags",
          "Make several calls in one entry, at most 64, none of them this one; returns how many "
          "were made. Flag 1: stop behind the first that fails.", E.EFAULT, E.EINVAL),
    _ipc(0, "svsm_channel_create", "int *handles", "Make a channel: handles of its two ends.",
         E.EMFILE, E.ENOMEM, E.EFAULT),
    _ipc(1, "svsm_send", "int channel, const struct svsm_message *message, unsigned long deadline",
         "Send a message; its handles are gone from here then. Waits as long as the other end's "
         "queue is full. Deadlines of this class are as those of svsm_wait(), but a call that must "
         "not wait fails with -EAGAIN.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EMSGSIZE, E.ELOOP, E.EPIPE, E.EAGAIN, E.ETIMEDOUT,
         E.ENOMEM),
    _ipc(2, "svsm_receive", "int channel, struct svsm_message *message, unsigned long deadline",
         "Receive a message; returns its length. With -EMSGSIZE and -EMFILE it stays where it is, "
         "and after -EMSGSIZE the structure says what it needs.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EMSGSIZE, E.EMFILE, E.EPIPE, E.EAGAIN, E.ETIMEDOUT),
    _ipc(3, "svsm_call",
         "int channel, const struct svsm_message *request, struct svsm_message *reply, "
         "unsigned long deadline",
         "Send a message and wait for the answer; returns its length. An answer that does not fit "
         "is lost. -ECANCELED: the other end was closed before it answered.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EMSGSIZE, E.ELOOP, E.EMFILE, E.EPIPE, E.ECANCELED,
         E.EAGAIN, E.ETIMEDOUT, E.ENOMEM),
    _ipc(4, "svsm_reply", "int channel, const struct svsm_message *reply",
         "Answer the call with that token. -ECANCELED: nobody waits for it any more.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EMSGSIZE, E.ELOOP, E.EPIPE, E.ECANCELED, E.ENOMEM),
    _ipc(5, "svsm_reply_receive",
         "int channel, const struct svsm_message *reply, struct svsm_message *request, "
         "unsigned long deadline",
         "svsm_reply() and svsm_receive() in one; that nobody waits for the answer is no failure.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EMSGSIZE, E.ELOOP, E.EMFILE, E.EPIPE, E.EAGAIN,
         E.ETIMEDOUT, E.ENOMEM),
    _ipc(6, "svsm_event_create", "int signaled", "Make an event, set or not.", E.EMFILE, E.ENOMEM),
    _ipc(7, "svsm_event_signal", "int event", "Set an event.", E.EBADF),
    _ipc(8, "svsm_event_clear", "int event", "Clear an event.", E.EBADF),
    _ipc(9, "svsm_wait_many",
         "struct svsm_wait_item *items, size_t count, unsigned long deadline",
         "Wait until one of at most 16 objects is ready; returns how many are, and sets `ready` of "
         "all. SVSM_READY_CLOSED is always waited for.",
         E.EBADF, E.EFAULT, E.EINVAL, E.EAGAIN, E.ETIMEDOUT),
    _ipc(10, "svsm_memory_create", "size_t size",
         "Make shared memory of at most 1 MiB, for mmap() with MAP_SHARED.",
         E.EINVAL, E.EMFILE, E.ENOMEM),
    _ipc(11, "svsm_duplicate", "int handle",
         "Another handle for an event or shared memory; other objects have one.",
         E.EBADF, E.EINVAL, E.EMFILE),
    _ipc(12, "svsm_service_register", "const char *name",
         "Offer a service as long as the handle is open. The name has 1 to 31 characters. Takes "
         "the capability to register.",
         E.EPERM, E.EFAULT, E.ENAMETOOLONG, E.EINVAL, E.EEXIST, E.EMFILE, E.ENOMEM),
    _ipc(13, "svsm_service_accept", "int service, unsigned long deadline",
         "Wait for a client; returns an end of a channel to it.",
         E.EBADF, E.EMFILE, E.EAGAIN, E.ETIMEDOUT),
    _ipc(14, "svsm_service_connect", "const char *name, unsigned long deadline",
         "Connect to a service that the caller may use; returns an end of a channel. Waits until "
         "there is such a service, and room among those that wait for it. -ECANCELED: it is gone.",
         E.EPERM, E.EFAULT, E.ENAMETOOLONG, E.EINVAL, E.ECANCELED, E.EMFILE, E.ENOMEM, E.EAGAIN,
         E.ETIMEDOUT),
    _protocol(0, "svsm_protocol_register",
              "unsigned int number, unsigned int lowest, unsigned int highest",
              "Serve a protocol of the guest, with these versions, as long as the handle is open. "
              "Takes the capability, and the number among those of the program.",
              E.EPERM, E.EINVAL, E.EEXIST, E.EMFILE, E.ENOMEM),
    _protocol(1, "svsm_protocol_receive",
              "int protocol, struct svsm_request *request, unsigned long deadline",
              "Wait for a call of the guest.", E.EBADF, E.EFAULT, E.EAGAIN, E.ETIMEDOUT),
    _protocol(2, "svsm_protocol_answer", "int protocol, const struct svsm_answer *answer",
              "Answer a call of the guest. -ECANCELED: it has given the call up.",
              E.EBADF, E.EFAULT, E.EINVAL, E.ECANCELED),
    _protocol(3, "svsm_protocol_answer_receive",
              "int protocol, const struct svsm_answer *answer, struct svsm_request *request, "
              "unsigned long deadline",
              "Both in one; that the guest has given the call up is no failure.",
              E.EBADF, E.EFAULT, E.EINVAL, E.EAGAIN, E.ETIMEDOUT),
    _protocol(4, "svsm_guest_read",
              "int protocol, unsigned long token, unsigned long gpa, void *buffer, size_t size",
              "Read at most 16 KiB of the guest's memory while serving that call. Takes a "
              "capability. -EACCES: not memory that the guest may name in a call. -EBUSY: another "
              "vCPU is changing the state of that page.",
              E.EPERM, E.EBADF, E.EFAULT, E.EINVAL, E.ECANCELED, E.EACCES, E.EBUSY),
    _protocol(5, "svsm_guest_write",
              "int protocol, unsigned long token, unsigned long gpa, const void *buffer, "
              "size_t size",
              "Write it. If a page cannot be written, those before it are.",
              E.EPERM, E.EBADF, E.EFAULT, E.EINVAL, E.ECANCELED, E.EACCES, E.EBUSY),
)  # fmt: skip
