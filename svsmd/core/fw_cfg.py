# SPDX-License-Identifier: MIT
"""The SVSM's side of fw_cfg: what the host offers, by DMA into shared pages.

Every byte of it is the host's, and may change while it is looked at: what is read here is a copy.

Spec: QEMU, docs/specs/fw_cfg.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from svsmd.core.access import load_shared, store_shared
from svsmd.core.gate import Handler
from svsmd.core.hypervisor import make_shared, port_out
from svsmd.core.memory import OutOfMemory, PageKind
from svsmd.core.paging.kernel_maps import KernelMaps
from svsmd.core.percpu import PerCpu
from svsmd.snp.types import PAGE_SIZE, Gpa

_SELECTOR_SIGNATURE: Final = 0x00
_SELECTOR_DIRECTORY: Final = 0x19
_SIGNATURE: Final = b"QEMU"

_DMA_HIGH: Final = 0x514
_DMA_LOW: Final = 0x518
_DMA_READ: Final = 1 << 1
_DMA_SELECT: Final = 1 << 3

_ACCESS: Final = struct.Struct(">IIQ")
_COUNT: Final = struct.Struct(">I")
_ENTRY: Final = struct.Struct(">IHH56s")
MAX_ENTRIES: Final = 1024
"""Of a directory that is looked at; a host has some dozens."""

_BUFFER_ORDER: Final = 4
_BUFFER_PAGES: Final = 1 << _BUFFER_ORDER


class FwCfgFile(NamedTuple):
    """A file of the directory: its key, and its size in bytes."""

    key: int
    size: int


class FwCfgError(Exception):
    """The host has no fw_cfg, or does not answer as one."""


class FwCfg:
    """The device, and pages of the SVSM that are shared with the host for it."""

    def __init__(self, access: int, buffer: int) -> None:
        self._access = access
        self._buffer = buffer

    @classmethod
    def open(cls, cpu: PerCpu, maps: KernelMaps) -> Handler[FwCfg]:
        """Share pages for good; the signature is looked at by `directory`. Raises FwCfgError."""
        try:
            access = maps.allocate_apart(cpu, PageKind.SHARED)
        except OutOfMemory as error:
            raise FwCfgError("the SVSM has no memory for fw_cfg") from error
        try:
            buffer = maps.allocate_apart(cpu, PageKind.SHARED, _BUFFER_ORDER)
        except OutOfMemory as error:
            maps.free_apart(cpu, access)
            raise FwCfgError("the SVSM has no memory for fw_cfg") from error
        yield from make_shared(cpu, access)
        for gpa in range(buffer, buffer + _BUFFER_PAGES * PAGE_SIZE, PAGE_SIZE):
            yield from make_shared(cpu, Gpa(gpa))
        return cls(access, buffer)

    def directory(self, cpu: PerCpu) -> Handler[dict[str, FwCfgFile]]:
        """The files by name. Raises FwCfgError."""
        signature = yield from self.piece(cpu, _SELECTOR_SIGNATURE, len(_SIGNATURE))
        if signature != _SIGNATURE:
            raise FwCfgError("the host has something else where fw_cfg is")
        raw = yield from self.piece(cpu, _SELECTOR_DIRECTORY, _COUNT.size)
        (count,) = _COUNT.unpack(raw)
        if count > MAX_ENTRIES:
            raise FwCfgError(f"fw_cfg has {count} files")
        raw = yield from self.read(
            cpu, FwCfgFile(_SELECTOR_DIRECTORY, _COUNT.size + count * _ENTRY.size)
        )
        return {
            name.rstrip(b"\0").decode("ascii", "replace"): FwCfgFile(key, size)
            for size, key, _reserved, name in _ENTRY.iter_unpack(raw[_COUNT.size :])
        }

    def read(self, cpu: PerCpu, file: FwCfgFile) -> Handler[bytes]:
        """All of a file. Raises FwCfgError."""
        parts: list[bytes] = []
        for key, nbytes in self.pieces(file):
            parts.append((yield from self.piece(cpu, key, nbytes)))
        return b"".join(parts)

    @staticmethod
    def pieces(file: FwCfgFile) -> Iterator[tuple[int | None, int]]:
        """What `piece` is to be asked for, one after the other, to get all of a file."""
        key: int | None = file.key
        left = file.size
        while left:
            nbytes = min(left, _BUFFER_PAGES * PAGE_SIZE)
            yield key, nbytes
            key, left = None, left - nbytes

    def piece(self, cpu: PerCpu, key: int | None, nbytes: int) -> Handler[bytes]:
        """The first bytes of the item `key`, or (None) those behind the last piece.

        Raises FwCfgError.
        """
        control = _DMA_READ if key is None else key << 16 | _DMA_SELECT | _DMA_READ
        access = _ACCESS.pack(control, nbytes, self._buffer)
        yield from store_shared(cpu, self._access, access)
        for port, half in ((_DMA_HIGH, self._access >> 32), (_DMA_LOW, self._access)):
            value = int.from_bytes((half & 0xFFFF_FFFF).to_bytes(4, "big"), "little")
            if not (yield from port_out(cpu, port, value)):
                raise FwCfgError("the host refuses an access to a port")
        # It is done when the control field is clear; a host without the device leaves it alone.
        if any((yield from load_shared(cpu, self._access, _COUNT.size))):
            raise FwCfgError("the host has no fw_cfg, or it refuses its data")
        return (yield from load_shared(cpu, self._buffer, nbytes))
