# SPDX-License-Identifier: MIT
"""The archive: a read-only file system that is part of the SVSM's image, and measured with it.

A POSIX tar file, uncompressed, in memory of the SVSM. Its index is read once; contents come from
memory whenever somebody asks, so that what a module gets is what lies there.

Spec: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import io
import posixpath
import tarfile
from typing import NamedTuple

from svsmd.core.access import load_own
from svsmd.core.gate import SvsmPanic
from svsmd.core.percpu import PerCpu


class _Entry(NamedTuple):
    offset: int
    size: int


class Archive:
    """Files by absolute path.

    Args:
        gpa: where the tar file lies; `nbytes` its size, 0 for an archive without files.

    Raises:
        SvsmPanic: that is no tar file. Whoever made the image is to blame.
    """

    def __init__(self, cpu: PerCpu, gpa: int, nbytes: int) -> None:
        self._gpa = gpa
        self._files: dict[str, _Entry] = {}
        self._directories = {"/"}
        if not nbytes:
            return
        try:
            self._read_index(load_own(cpu, gpa, nbytes))
        except (tarfile.TarError, ValueError, OverflowError) as error:
            raise SvsmPanic(f"the archive is damaged: {error}") from error

    def _read_index(self, data: bytes) -> None:
        end = 0
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                path = posixpath.normpath("/" + member.name)
                stop = member.offset_data
                if member.isdir():
                    self._directories.add(path)
                elif member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    stop += member.size
                    if not 0 <= member.size <= stop <= len(data):
                        raise ValueError(f"{path} has {member.size} bytes")
                    self._files[path] = _Entry(member.offset_data, member.size)
                end = max(end, stop)
        # A header that is none ends the reading without a word; behind the last one are zeros.
        if any(data[-(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE :]):
            raise ValueError(f"no header behind {end} bytes")

    @property
    def paths(self) -> tuple[str, ...]:
        """All files, by name."""
        return tuple(sorted(self._files))

    def is_directory(self, path: str) -> bool:
        """Whether there is a directory of that name."""
        return posixpath.normpath(path) in self._directories

    def read(self, cpu: PerCpu, path: str) -> bytes | None:
        """The contents of a file, None if there is none."""
        entry = self._files.get(posixpath.normpath(path))
        if entry is None:
            return None
        return load_own(cpu, self._gpa + entry.offset, entry.size) if entry.size else b""
