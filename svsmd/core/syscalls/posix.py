# SPDX-License-Identifier: MIT
"""Class 0: the calls that have the numbers of Linux.

Spec: POSIX.1-2017 and Linux' manual pages, section 2, as far as `svsmd.core.syscalls.table` says.
"""

from __future__ import annotations

import posixpath
import struct
from typing import Final

from svsmd.core import costs
from svsmd.core.archive import Archive
from svsmd.core.gate import Block, Handler, Reschedule
from svsmd.core.ipc.shared_memory import SharedMemory
from svsmd.core.syscalls.dispatch import Arguments, Function, signed
from svsmd.core.tasks.address_space import (
    ANONYMOUS,
    USER_END,
    USER_START,
    Access,
    Backing,
    Contents,
)
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.files import ArchiveFile, File
from svsmd.core.tasks.process import Process
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.task import WaitQueue
from svsmd.snp.types import PAGE_MASK, PAGE_SIZE

TRANSFER_MAX: Final = 64 * 1024
"""Bytes that one read() or write() moves at most."""
RANDOM_MAX: Final = 256
NAME_MAX: Final = 255
IOVEC_MAX: Final = 16
NANOSECONDS: Final = 1_000_000_000

_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS = 0x1, 0x2, 0x10, 0x20
_MAP_FIXED_NOREPLACE: Final = 0x10_0000
_MAP_IGNORED: Final = 0x2_4000 | 0x800 | 0x100
"""MAP_STACK, MAP_NORESERVE, MAP_DENYWRITE and MAP_GROWSDOWN change nothing here."""
_O_ACCMODE, _O_RDONLY, _O_CREAT, _O_TRUNC = 3, 0, 0o100, 0o1000
_O_DIRECTORY: Final = 0o200000
_AT_FDCWD: Final = -100
_ARCH_SET_FS, _ARCH_GET_FS = 0x1002, 0x1003
_CLOCKS: Final = range(8)
_TIMESPEC: Final = struct.Struct("<qq")
_IOVEC: Final = struct.Struct("<QQ")


class PosixCalls:
    """The functions of class 0."""

    def __init__(self, archive: Archive, processes: ProcessTable) -> None:
        self._archive = archive
        self._processes = processes
        self._sleepers = WaitQueue("nanosleep()")

    @property
    def functions(self) -> dict[str, Function]:
        """By name."""
        return {
            "read": self._read, "write": self._write, "close": self._close, "lseek": self._lseek,
            "mmap": self._mmap, "mprotect": self._mprotect, "munmap": self._munmap,
            "brk": self._brk, "writev": self._writev, "sched_yield": self._yield,
            "nanosleep": self._nanosleep, "getpid": self._getpid, "gettid": self._getpid,
            "set_tid_address": self._getpid, "getppid": self._getppid, "exit": self._exit,
            "exit_group": self._exit, "kill": self._kill, "arch_prctl": self._arch_prctl,
            "clock_gettime": self._clock_gettime, "openat": self._openat, "open": self._open,
            "getrandom": self._getrandom,
        }  # fmt: skip

    # Files -----------------------------------------------------------------------------------

    def _read(self, process: Process, arguments: Arguments) -> int:
        handle, buffer, size, *_ = arguments
        data = process.handles.get(handle, File).read(min(size, TRANSFER_MAX))
        process.space.write(process.cpu, buffer, data)
        return len(data)

    def _write(self, process: Process, arguments: Arguments) -> int:
        handle, buffer, size, *_ = arguments
        file = process.handles.get(handle, File)
        data = process.space.read(process.cpu, buffer, min(size, TRANSFER_MAX))
        process.cpu.port.charge(costs.LOG_BYTE * len(data))
        return file.write(data)

    def _writev(self, process: Process, arguments: Arguments) -> int:
        handle, vector, count, *_ = arguments
        file = process.handles.get(handle, File)
        count = signed(count, 32)
        if not 0 <= count <= IOVEC_MAX:
            raise CallFailed(Errno.EINVAL)
        raw = process.space.read(process.cpu, vector, count * _IOVEC.size)
        left, data = TRANSFER_MAX, b""
        for base, size in _IOVEC.iter_unpack(raw):
            data += process.space.read(process.cpu, base, min(size, left)) if size else b""
            left -= min(size, left)
        process.cpu.port.charge(costs.LOG_BYTE * len(data))
        return file.write(data)

    def _close(self, process: Process, arguments: Arguments) -> int:
        process.handles.close(process.cpu, arguments[0])
        return 0

    def _lseek(self, process: Process, arguments: Arguments) -> int:
        handle, offset, whence, *_ = arguments
        return process.handles.get(handle, File).seek(signed(offset), signed(whence, 32))

    def _open(self, process: Process, arguments: Arguments) -> int:
        path, flags, *_ = arguments
        return self._open_path(process, path, flags)

    def _openat(self, process: Process, arguments: Arguments) -> int:
        directory, path, flags, *_ = arguments
        if signed(directory, 32) != _AT_FDCWD:
            raise CallFailed(Errno.EBADF)
        return self._open_path(process, path, flags)

    def _open_path(self, process: Process, where: int, flags: int) -> int:
        path = read_path(process, where)
        if self._archive.is_directory(path):
            raise CallFailed(Errno.EISDIR)
        if flags & _O_ACCMODE != _O_RDONLY or flags & (_O_CREAT | _O_TRUNC):
            raise CallFailed(Errno.EROFS)
        data = self._archive.read(process.cpu, path)
        if data is None or flags & _O_DIRECTORY:
            raise CallFailed(Errno.ENOENT)
        return process.handles.add(ArchiveFile(data))

    # Memory ----------------------------------------------------------------------------------

    def _mmap(self, process: Process, arguments: Arguments) -> int:
        address, size, prot, flags, handle, offset = arguments
        kind = flags & (_MAP_SHARED | _MAP_PRIVATE)
        known = kind | _MAP_FIXED | _MAP_ANONYMOUS | _MAP_FIXED_NOREPLACE | _MAP_IGNORED
        if flags & ~known or prot & ~7 or offset & PAGE_MASK:
            raise CallFailed(Errno.EINVAL)
        backing: Backing = ANONYMOUS
        if kind == _MAP_SHARED and not flags & _MAP_ANONYMOUS:
            shared = process.handles.get(signed(handle, 32), SharedMemory)
            if offset + size > shared.npages * PAGE_SIZE:
                raise CallFailed(Errno.EINVAL)
            backing = shared
        elif kind != _MAP_PRIVATE:
            raise CallFailed(Errno.EINVAL)
        elif not flags & _MAP_ANONYMOUS:
            backing = Contents(process.handles.get(signed(handle, 32), File).contents)
        fixed = bool(flags & (_MAP_FIXED | _MAP_FIXED_NOREPLACE))
        return process.space.map(
            process.cpu, address if fixed else None, size, Access(prot), backing,
            offset // PAGE_SIZE, replace_old=bool(flags & _MAP_FIXED),
        )  # fmt: skip

    def _mprotect(self, process: Process, arguments: Arguments) -> int:
        address, size, prot, *_ = arguments
        if prot & ~7:
            raise CallFailed(Errno.EINVAL)
        process.space.protect(process.cpu, address, size, Access(prot))
        return 0

    def _munmap(self, process: Process, arguments: Arguments) -> int:
        address, size, *_ = arguments
        process.space.unmap(process.cpu, address, size)
        return 0

    def _brk(self, process: Process, arguments: Arguments) -> int:
        try:
            process.set_heap_end(arguments[0])
        except CallFailed:
            pass
        return process.heap_end

    # Time, randomness ------------------------------------------------------------------------

    def _nanosleep(self, process: Process, arguments: Arguments) -> Handler[int]:
        seconds, nanoseconds = _TIMESPEC.unpack(
            process.space.read(process.cpu, arguments[0], _TIMESPEC.size)
        )
        if seconds < 0 or not 0 <= nanoseconds < NANOSECONDS:
            raise CallFailed(Errno.EINVAL)
        deadline = process.cpu.port.rdtsc() + seconds * NANOSECONDS + nanoseconds
        yield Block(self._sleepers, deadline)
        return 0

    def _clock_gettime(self, process: Process, arguments: Arguments) -> int:
        clock, where, *_ = arguments
        if clock not in _CLOCKS:
            raise CallFailed(Errno.EINVAL)
        time = _TIMESPEC.pack(*divmod(process.cpu.port.rdtsc(), NANOSECONDS))
        process.space.write(process.cpu, where, time)
        return 0

    def _getrandom(self, process: Process, arguments: Arguments) -> int:
        buffer, size, *_ = arguments
        cpu = process.cpu
        nbytes = min(size, RANDOM_MAX)
        words = [cpu.port.rdrand().to_bytes(8, "little") for _ in range(-(-nbytes // 8))]
        process.space.write(cpu, buffer, b"".join(words)[:nbytes])
        return nbytes

    # The process -----------------------------------------------------------------------------

    def _yield(self, _process: Process, _arguments: Arguments) -> Handler[int]:
        yield Reschedule()
        return 0

    def _getpid(self, process: Process, _arguments: Arguments) -> int:
        return process.task.number

    def _getppid(self, process: Process, _arguments: Arguments) -> int:
        return self._processes.parent_number(process)

    def _exit(self, process: Process, arguments: Arguments) -> int:
        process.exit(arguments[0] & 0xFF)
        return 0

    def _kill(self, process: Process, arguments: Arguments) -> int:
        number, signal, *_ = arguments
        child = self._processes.child(process, signed(number, 32))
        match signed(signal, 32):
            case 0:
                pass
            case 9:
                self._processes.kill(process.cpu, child)
            case _:
                raise CallFailed(Errno.EINVAL)
        return 0

    def _arch_prctl(self, process: Process, arguments: Arguments) -> int:
        code, address, *_ = arguments
        match code:
            case _ if code == _ARCH_SET_FS:
                # WRMSR refuses what is not canonical, and addresses of CPL 0 are nobody's business.
                if not (address == 0 or USER_START <= address < USER_END):
                    raise CallFailed(Errno.EINVAL)
                process.fs_base = address
            case _ if code == _ARCH_GET_FS:
                process.space.write(process.cpu, address, process.fs_base.to_bytes(8, "little"))
            case _:
                raise CallFailed(Errno.EINVAL)
        return 0


def read_path(process: Process, where: int) -> str:
    """A path that a program names. Fails with EFAULT, ENAMETOOLONG, ENOENT."""
    raw = process.space.read_string(process.cpu, where, NAME_MAX)
    try:
        return posixpath.normpath("/" + raw.decode()).replace("//", "/")
    except UnicodeDecodeError:
        raise CallFailed(Errno.ENOENT) from None
