# SPDX-License-Identifier: MIT
"""What read() and write() work on: the SVSM's log, and files of the archive.

Spec: none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.errno import CallFailed, Errno

LINE_MAX: Final = 200
"""Bytes after which output becomes a line of the log without an end of line."""


class File:
    """An object that bytes come from or go to; this one allows nothing."""

    def opened(self) -> None:
        """One handle more."""

    def closed(self, cpu: PerCpu, /) -> None:
        """One handle less."""

    def read(self, nbytes: int, /) -> bytes:
        """Up to so many bytes from the current position on; none at the end. Or EBADF."""
        raise CallFailed(Errno.EBADF)

    def write(self, data: bytes, /) -> int:
        """How many bytes were taken. Or EBADF."""
        raise CallFailed(Errno.EBADF)

    def seek(self, offset: int, whence: int, /) -> int:
        """The new position. Or ESPIPE, EINVAL."""
        raise CallFailed(Errno.ESPIPE)

    @property
    def contents(self) -> bytes:
        """All of it, for mmap(). Or EACCES."""
        raise CallFailed(Errno.EACCES)


class LogOutput(File):
    """Standard output and error of a process: whole lines in the SVSM's log, with its name."""

    def __init__(self, name: str, write_line: Callable[[str], None]) -> None:
        self._name = name
        self._write_line = write_line
        self._pending = b""
        self._handles = 0

    def opened(self) -> None:
        """One handle more."""
        self._handles += 1

    def closed(self, cpu: PerCpu, /) -> None:
        """What waits for its end of line is written with the last handle."""
        self._handles -= 1
        if not self._handles and self._pending:
            self._flush(self._pending)
            self._pending = b""

    def read(self, nbytes: int, /) -> bytes:
        """Nobody types there."""
        return b""

    def write(self, data: bytes) -> int:
        """Log the lines that are complete."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._flush(line)
        while len(self._pending) >= LINE_MAX:
            self._flush(self._pending[:LINE_MAX])
            self._pending = self._pending[LINE_MAX:]
        return len(data)

    def _flush(self, line: bytes) -> None:
        # Printable characters only: a module must not draw on the terminal of who reads the log.
        text = "".join(
            c if c.isprintable() else "\N{REPLACEMENT CHARACTER}"
            for c in line.decode("utf-8", "replace")
        )
        self._write_line(f"{self._name}: {text}")


class ArchiveFile(File):
    """A file of the archive, opened for reading."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def read(self, nbytes: int) -> bytes:
        """Bytes from the position on."""
        piece = self._data[self._position : self._position + nbytes]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int) -> int:
        """SEEK_SET, SEEK_CUR, SEEK_END."""
        origin = {0: 0, 1: self._position, 2: len(self._data)}.get(whence)
        if origin is None or not 0 <= origin + offset < 1 << 63:
            raise CallFailed(Errno.EINVAL)
        self._position = origin + offset
        return self._position

    @property
    def contents(self) -> bytes:
        """All of it."""
        return self._data
