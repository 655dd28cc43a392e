# SPDX-License-Identifier: MIT
"""Error codes of system calls, with the numbers that Linux gives them on x86-64.

Spec: none of AMD's; Linux include/uapi/asm-generic/errno-base.h and errno.h.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Errno(IntEnum):
    """Why a system call failed; the caller finds the negative number in RAX."""

    EPERM = 1
    """The caller has no capability for that."""
    ENOENT = 2
    """No such file, service, or object."""
    ESRCH = 3
    """No such task."""
    E2BIG = 7
    """Arguments and environment are longer than `ARGUMENTS_MAX`."""
    ENOEXEC = 8
    """Not an executable that can be run here."""
    EBADF = 9
    """No such handle, or not of that kind."""
    ECHILD = 10
    """The caller has no such child."""
    EAGAIN = 11
    """A quota is used up, or the call would block."""
    ENOMEM = 12
    """No memory, or none left of the caller's quota."""
    EACCES = 13
    """The object does not allow that."""
    EFAULT = 14
    """The caller may not use the memory that it named."""
    EBUSY = 16
    """Somebody else has it."""
    EEXIST = 17
    """The name is taken."""
    ENOTDIR = 20
    """A part of the path is no directory."""
    EISDIR = 21
    """It is a directory."""
    EINVAL = 22
    """An argument has no meaning."""
    ENFILE = 23
    """The machine has no more of these objects."""
    EMFILE = 24
    """The caller has no free handle."""
    ESPIPE = 29
    """Nothing to seek in."""
    EROFS = 30
    """The archive cannot be written."""
    EPIPE = 32
    """The other end is closed."""
    ERANGE = 34
    """The buffer is too small, or the number out of range."""
    ENAMETOOLONG = 36
    """The name is longer than `NAME_MAX`."""
    ENOSYS = 38
    """No such system call."""
    ELOOP = 40
    """The handle would lie in a message that only its own holder could receive."""
    EMSGSIZE = 90
    """The message is longer than the channel or the buffer takes."""
    ETIMEDOUT = 110
    """The deadline came first."""
    ECANCELED = 125
    """The server died, or gave the request up."""


class CallFailed(Exception):
    """A system call fails; the caller finds -`errno` in RAX."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno: Final = errno
