# SPDX-License-Identifier: MIT
"""A file, or a block device of this computer, as the medium of a disk.

The file is the disk, sector by sector; there is no format. What the guest writes is in the file at
once, for this computer to see, and on its medium after a flush. The file stays locked as long as
the disk lives: for itself alone, or with other readers if it is read-only.

Spec: flock(2); `svsmd.host.virtio_blk.BlockBackend`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import weakref
from pathlib import Path
from typing import Final

from svsmd.errors import UserError

SECTOR_SIZE: Final = 512


class DiskFile:
    """A disk on the file `path`.

    Raises:
        UserError: it cannot be opened, is no file, is locked, or has no size of a disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.read_only: Final = read_only
        try:
            kind = path.stat().st_mode
            if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
                raise UserError(f"the disk {path} is neither a file nor a block device")
            self._fd: Final = os.open(
                path, os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
            )
        except OSError as error:
            hint = None
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not read_only:
                hint = f"--disk {path},ro if it is only to be read"
            raise UserError(f"cannot open the disk {path}: {error.strerror}", hint=hint) from None
        self.close: Final = weakref.finalize(self, os.close, self._fd)
        """Closes and unlocks the file; done at the latest when the disk is garbage."""
        try:
            # Unlike those of fcntl(2), these locks also keep two disks of one process apart.
            fcntl.flock(self._fd, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            size = os.lseek(self._fd, 0, os.SEEK_END)
        except BlockingIOError:
            raise UserError(
                f"the disk {path} is in use: by another svsmd, or by another --disk"
            ) from None
        except OSError as error:
            raise UserError(f"cannot lock the disk {path}: {error.strerror}") from None
        if size == 0 or size % SECTOR_SIZE:
            raise UserError(
                f"the disk {path} has {size} bytes, which is no multiple of {SECTOR_SIZE} above 0"
            )
        self.sectors: Final = size // SECTOR_SIZE

    def read(self, sector: int, count: int) -> bytes:
        """Return `count` sectors; OSError if the file does not have all of them (any more)."""
        size = count * SECTOR_SIZE
        parts = []
        position = sector * SECTOR_SIZE
        while size:
            data = os.pread(self._fd, size, position)
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            parts.append(data)
            position += len(data)
            size -= len(data)
        return b"".join(parts)

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors; OSError if the medium is full or fails."""
        left = memoryview(data)
        position = sector * SECTOR_SIZE
        while left:
            written = os.pwrite(self._fd, left, position)
            position += written
            left = left[written:]

    def flush(self) -> None:
        """Wait until all that was written is on the medium; OSError if it fails."""
        os.fdatasync(self._fd)
