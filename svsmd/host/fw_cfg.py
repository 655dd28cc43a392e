# SPDX-License-Identifier: MIT
"""fw_cfg: named pieces of data that firmware, or an SVSM, gets from its host.

Spec: QEMU, docs/specs/fw_cfg.rst. Selector at port 510h, data at 511h, DMA at 514h. What the host
offers is nothing that a guest may believe: it compares it with what was measured.

Deviations: nothing can be written; DMA reaches shared pages only, as any device does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from svsmd.host.dma import Dma, DmaError
from svsmd.host.port_bus import PortBus

SELECTOR_PORT: Final = 0x510
DATA_PORT: Final = 0x511
DMA_PORT: Final = 0x514
"""The upper half of the address; the lower one, at the next doubleword, starts the transfer."""

KEY_SIGNATURE: Final = 0x00
KEY_ID: Final = 0x01
KEY_FILE_DIR: Final = 0x19
KEY_FILE_FIRST: Final = 0x20
MAX_FILES: Final = 0x3FE0
"""The keys from `KEY_FILE_FIRST` up to the two highest bits, which have other meanings."""

SIGNATURE: Final = b"QEMU"
DMA_SIGNATURE: Final = b"QEMU CFG"
"""What reading the DMA register gives."""
ID_TRADITIONAL: Final = 1 << 0
ID_DMA: Final = 1 << 1

DMA_ERROR: Final = 1 << 0
DMA_READ: Final = 1 << 1
DMA_SKIP: Final = 1 << 2
DMA_SELECT: Final = 1 << 3
DMA_WRITE: Final = 1 << 4
_SELECT_SHIFT: Final = 16

DMA_ACCESS: Final = struct.Struct(">IIQ")
"""Control, length in bytes, guest-physical address."""
DIR_COUNT: Final = struct.Struct(">I")
DIR_ENTRY: Final = struct.Struct(">IHH56s")
"""Size in bytes, key, reserved, name."""
MAX_NAME: Final = 55

_MAX_TRANSFER: Final = 16 << 20
"""Bytes of one DMA access; a longer one is an error. It keeps a guest from stopping the machine."""


class FwCfg:
    """The device. `files` are contents by name, of up to 55 ASCII characters.

    Raises:
        ValueError: a name is too long, or there are too many files.
    """

    def __init__(self, files: Mapping[str, bytes], dma: Dma) -> None:
        if len(files) > MAX_FILES or any(len(name.encode()) > MAX_NAME for name in files):
            raise ValueError("these files do not fit into a directory of fw_cfg")
        # Fixed configuration.
        identity = struct.pack("<I", ID_TRADITIONAL | ID_DMA)
        self._items: Final = {KEY_SIGNATURE: SIGNATURE, KEY_ID: identity}
        directory = [DIR_COUNT.pack(len(files))]
        for key, (name, data) in enumerate(sorted(files.items()), KEY_FILE_FIRST):
            self._items[key] = data
            directory.append(DIR_ENTRY.pack(len(data), key, 0, name.encode()))
        self._items[KEY_FILE_DIR] = b"".join(directory)
        # Runtime glue.
        self._dma: Final = dma
        # Volatile state.
        self._key = KEY_SIGNATURE
        self._offset = 0
        self._address_high = 0

    def attach(self, bus: PortBus) -> None:
        """Put the registers at their ports."""
        bus.map_port(SELECTOR_PORT, None, self._select, 2)
        bus.map_port(DATA_PORT, lambda: self._take(1)[0], None)
        high, low = struct.unpack("<II", DMA_SIGNATURE)
        bus.map_port(DMA_PORT, lambda: high, self._write_address_high, 4)
        bus.map_port(DMA_PORT + 4, lambda: low, self._write_address_low, 4)

    def _select(self, key: int) -> None:
        self._key, self._offset = key, 0

    def _take(self, nbytes: int) -> bytes:
        """The next bytes of the item; behind its end they are 0."""
        data = self._items.get(self._key, b"")[self._offset : self._offset + nbytes]
        self._offset += nbytes
        return data.ljust(nbytes, b"\0")

    def _write_address_high(self, value: int) -> None:
        self._address_high = _swap(value)

    def _write_address_low(self, value: int) -> None:
        where, self._address_high = self._address_high << 32 | _swap(value), 0
        try:
            access = DMA_ACCESS.unpack(self._dma.read(where, DMA_ACCESS.size))
        except DmaError:
            # There is nowhere to say so.
            return
        done = self._transfer(*access)
        try:
            self._dma.write(where, struct.pack(">I", 0 if done else DMA_ERROR))
        except DmaError:
            return

    def _transfer(self, control: int, length: int, address: int) -> bool:
        if control & DMA_SELECT:
            self._select(control >> _SELECT_SHIFT)
        if control & DMA_READ:
            if length > _MAX_TRANSFER:
                return False
            try:
                self._dma.write(address, self._take(length))
            except DmaError:
                return False
        elif control & DMA_WRITE:
            return False
        elif control & DMA_SKIP:
            self._offset += length
        return True


def _swap(value: int) -> int:
    """The registers are big-endian, on a little-endian bus."""
    return int.from_bytes(value.to_bytes(4, "little"), "big")
