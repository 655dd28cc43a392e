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


def _posix(index: int, name: str, arguments: str, doc: str, *errors: Errno) -> SystemCallInfo:
    return SystemCallInfo(SyscallClass.POSIX, index, name, _split(arguments), doc, errors)


def _task(index: int, name: str, arguments: str, doc: str, *errors: Errno) -> SystemCallInfo:
    return SystemCallInfo(SyscallClass.TASK, index, name, _split(arguments), doc, errors)


def _split(arguments: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in arguments.split(",") if part.strip())


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
           "Map zeros, or a private copy of a file. Never writable and executable.",
           E.EINVAL, E.ENOMEM, E.EBADF, E.EACCES, E.EEXIST),
    _posix(10, "mprotect", "void *address, size_t size, int prot",
           "Change what mapped pages allow.", E.EINVAL, E.ENOMEM),
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
           E.ENOENT, E.EFAULT, E.ENAMETOOLONG, E.EROFS, E.EISDIR, E.EMFILE),
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
)  # fmt: skip
