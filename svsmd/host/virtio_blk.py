# SPDX-License-Identifier: MIT
"""The virtio block device.

Requests are served at once, within the guest's notification: a disk takes no time of the machine.
A write is handed to the backend, and is safe after a flush.

Spec: VIRTIO 1.2, 5.2 (block device), 2.7.8.2 (the length that is reported).
Deviations: none; discard, write zeroes, secure erase, zones and several queues are not offered.
"""

from __future__ import annotations

import logging
import struct
from enum import IntEnum
from typing import Final, Protocol

from svsmd.host.dma import DmaError
from svsmd.host.virtio_queue import MAX_QUEUE_SIZE, Chain, QueueError

log = logging.getLogger(__name__)

DEVICE_ID: Final = 2
SECTOR_SIZE: Final = 512
"""Bytes of the unit that positions and capacity are counted in, whatever the disk's own is."""

VIRTIO_BLK_F_SIZE_MAX: Final = 1 << 1
VIRTIO_BLK_F_SEG_MAX: Final = 1 << 2
VIRTIO_BLK_F_RO: Final = 1 << 5
VIRTIO_BLK_F_FLUSH: Final = 1 << 9

SIZE_MAX: Final = 64 << 10
"""Bytes of the largest data segment."""
SEG_MAX: Final = MAX_QUEUE_SIZE - 2
"""Data segments of a request: header and status take a descriptor each."""
MAX_DATA_SIZE: Final = SIZE_MAX * SEG_MAX
"""Bytes of data that no request of a driver that keeps to both exceeds."""

HEADER: Final = struct.Struct("<I4xQ")
"""Type and first sector of a request."""
_CONFIG: Final = struct.Struct("<QII")
"""capacity, size_max and seg_max of struct virtio_blk_config."""
ID_SIZE: Final = 20
"""Bytes of the device's name, padded with zeros."""


class RequestType(IntEnum):
    """Types of requests (5.2.6)."""

    VIRTIO_BLK_T_IN = 0
    VIRTIO_BLK_T_OUT = 1
    VIRTIO_BLK_T_FLUSH = 4
    VIRTIO_BLK_T_GET_ID = 8


class RequestStatus(IntEnum):
    """The last byte of a request (5.2.6)."""

    VIRTIO_BLK_S_OK = 0
    VIRTIO_BLK_S_IOERR = 1
    VIRTIO_BLK_S_UNSUPP = 2


class BlockBackend(Protocol):
    """Where the sectors are. Whatever fails is an OSError."""

    @property
    def sectors(self) -> int:
        """Capacity in units of `SECTOR_SIZE`; it does not change."""
        ...

    @property
    def read_only(self) -> bool:
        """Nothing may be written."""
        ...

    def read(self, sector: int, count: int) -> bytes:
        """Return `count` sectors, all of them within the capacity."""
        ...

    def write(self, sector: int, data: bytes) -> None:
        """Write whole sectors, all of them within the capacity."""
        ...

    def flush(self) -> None:
        """Make all that was written survive."""
        ...


class VirtioBlk:
    """A disk; `name` is its serial number, at most `ID_SIZE` bytes."""

    device_id: Final = DEVICE_ID

    def __init__(self, backend: BlockBackend, name: bytes) -> None:
        # Fixed configuration.
        self.features: Final = (
            VIRTIO_BLK_F_SIZE_MAX
            | VIRTIO_BLK_F_SEG_MAX
            | VIRTIO_BLK_F_FLUSH
            | (VIRTIO_BLK_F_RO if backend.read_only else 0)
        )
        self.config: Final = _CONFIG.pack(backend.sectors, SIZE_MAX, SEG_MAX)
        self._id: Final = name.ljust(ID_SIZE, b"\0")
        # Runtime glue.
        self._backend: Final = backend

    def serve(self, request: Chain) -> int:
        """Serve a request, well or not; how many bytes were written, as `VirtioDevice.serve`.

        Raises:
            QueueError: there is no header, or no place for the status.
            DmaError: header or status are not in shared memory.
        """
        if request.readable_size < HEADER.size or request.writable_size < 1:
            raise QueueError("a block request without header or status")
        kind, sector = HEADER.unpack(request.read(0, HEADER.size))
        status_at = request.writable_size - 1
        try:
            status, written = self._serve(request, kind, sector)
        except (OSError, DmaError) as error:
            log.debug("block request of type %d at sector %d: %s", kind, sector, error)
            status, written = RequestStatus.VIRTIO_BLK_S_IOERR, 0
        request.write(status_at, bytes((status,)))
        # The length is that of a run without gaps, from the start.
        return status_at + 1 if written == status_at else written

    def _serve(self, request: Chain, kind: int, sector: int) -> tuple[RequestStatus, int]:
        """Do the work; the status, and how many bytes were written before it."""
        match kind:
            case RequestType.VIRTIO_BLK_T_IN:
                size = request.writable_size - 1
                self._check_range(sector, size)
                request.write(0, self._backend.read(sector, size // SECTOR_SIZE))
                return RequestStatus.VIRTIO_BLK_S_OK, size
            case RequestType.VIRTIO_BLK_T_OUT:
                size = request.readable_size - HEADER.size
                self._check_range(sector, size)
                if self._backend.read_only:
                    raise OSError("the disk is read-only")
                self._backend.write(sector, request.read(HEADER.size, size))
                return RequestStatus.VIRTIO_BLK_S_OK, 0
            case RequestType.VIRTIO_BLK_T_FLUSH:
                self._backend.flush()
                return RequestStatus.VIRTIO_BLK_S_OK, 0
            case RequestType.VIRTIO_BLK_T_GET_ID:
                if request.writable_size - 1 < ID_SIZE:
                    raise OSError("no room for the name")
                request.write(0, self._id)
                return RequestStatus.VIRTIO_BLK_S_OK, ID_SIZE
        return RequestStatus.VIRTIO_BLK_S_UNSUPP, 0

    def _check_range(self, sector: int, size: int) -> None:
        """OSError unless `size` bytes from `sector` are whole sectors of the disk, not too many."""
        if size % SECTOR_SIZE or size > MAX_DATA_SIZE:
            raise OSError(f"{size} bytes in one request")
        if sector + size // SECTOR_SIZE > self._backend.sectors:
            raise OSError("behind the end of the disk")
