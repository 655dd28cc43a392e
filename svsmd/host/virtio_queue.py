# SPDX-License-Identifier: MIT
"""The split virtqueue, seen from the device.

The guest owns the rings and may write anything into them at any time; what the device knows about
its own progress it keeps to itself. Everything is read again where it is used, and nothing that is
read decides how long the device works: one notification is at most as many requests as the queue
has entries, one request at most as many descriptors.

Spec: VIRTIO 1.2, 2.7 (split virtqueues), 2.7.4 (message framing); little-endian throughout.
Deviations: none; VIRTIO_F_INDIRECT_DESC and VIRTIO_F_EVENT_IDX are not offered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final

from svsmd.host.dma import Dma

MAX_QUEUE_SIZE: Final = 128
"""Entries that a driver may use; a power of two (2.7)."""

DESC_ALIGNMENT: Final = 16
AVAIL_ALIGNMENT: Final = 2
USED_ALIGNMENT: Final = 4

_DESC: Final = struct.Struct("<QIHH")
"""struct virtq_desc: address, length, flags, next (2.7.5)."""
_AVAIL_IDX: Final = 2
_AVAIL_RING: Final = 4
_USED_IDX: Final = 2
_USED_RING: Final = 4
_USED_ELEM: Final = struct.Struct("<II")
"""struct virtq_used_elem: head of the chain, bytes written (2.7.8)."""
_INDEX_MASK: Final = 0xFFFF


class DescFlag(IntFlag):
    """Flags of a descriptor (2.7.5)."""

    NEXT = 1 << 0
    WRITE = 1 << 1
    INDIRECT = 1 << 2


AVAIL_F_NO_INTERRUPT: Final = 1 << 0
"""The driver does not want to hear of used buffers (2.7.6)."""


class QueueError(Exception):
    """The driver broke the rules of the queue, and the device cannot go on without a reset."""


Segment = tuple[int, int]
"""Guest-physical address and size in bytes of one descriptor's buffer."""


@dataclass(frozen=True, slots=True)
class Chain:
    """The buffers of one request: those that the device reads, and those that it writes.

    How a driver cuts a request into buffers means nothing (2.7.4.1), so both are one run of bytes.
    """

    dma: Dma
    head: int
    readable: tuple[Segment, ...]
    writable: tuple[Segment, ...]

    @property
    def readable_size(self) -> int:
        """Bytes that the device may read."""
        return sum(size for _, size in self.readable)

    @property
    def writable_size(self) -> int:
        """Bytes that the device may write."""
        return sum(size for _, size in self.writable)

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return `nbytes` of the readable part, which has them; `DmaError` as `Dma.read`."""
        spans = _spans(self.readable, offset, nbytes)
        return b"".join(self.dma.read(gpa, size) for gpa, size in spans)

    def write(self, offset: int, data: bytes) -> None:
        """Write `data`, which has to fit, into the writable part; `DmaError` as `Dma.write`."""
        start = 0
        for gpa, size in _spans(self.writable, offset, len(data)):
            self.dma.write(gpa, data[start : start + size])
            start += size


def _spans(segments: tuple[Segment, ...], offset: int, nbytes: int) -> Iterator[Segment]:
    """The pieces of segments that bytes `offset` and up lie in."""
    for gpa, size in segments:
        if not nbytes:
            return
        if offset >= size:
            offset -= size
            continue
        piece = min(size - offset, nbytes)
        yield gpa + offset, piece
        offset = 0
        nbytes -= piece


@dataclass(slots=True)
class QueueState:
    """What the driver has set, and how far the device is."""

    size: int = MAX_QUEUE_SIZE
    ready: bool = False
    desc: int = 0
    """Descriptor area: the descriptor table."""
    driver: int = 0
    """Driver area: the available ring."""
    device: int = 0
    """Device area: the used ring."""
    next_avail: int = 0
    """Index of the next entry of the available ring, 16 bits."""
    next_used: int = 0
    """Index of the next entry of the used ring, 16 bits."""


@dataclass(slots=True)
class SplitQueue:
    """One virtqueue; its rings are guest memory."""

    dma: Dma
    state: QueueState = field(default_factory=QueueState)

    def enable(self) -> None:
        """Start to use the rings, from their beginning.

        Raises:
            QueueError: size or alignment is impossible.
        """
        state = self.state
        if not 0 < state.size <= MAX_QUEUE_SIZE or state.size & state.size - 1:
            raise QueueError(f"a queue of {state.size} entries")
        for address, alignment in (
            (state.desc, DESC_ALIGNMENT),
            (state.driver, AVAIL_ALIGNMENT),
            (state.device, USED_ALIGNMENT),
        ):
            if address % alignment:
                raise QueueError(f"a ring at {address:#x}")
        state.next_avail = state.next_used = 0
        state.ready = True

    def pending(self) -> Iterator[Chain]:
        """The requests that are available now, in order; each is taken as it comes out.

        Raises:
            QueueError: ring or descriptors make no sense.
            DmaError: they are not in shared memory.
        """
        state = self.state
        # Once: what comes later is notified of, and a ring that the device's own writes move on
        # must not keep it busy for ever.
        waiting = self._avail_idx() - state.next_avail & _INDEX_MASK
        if waiting > state.size:
            raise QueueError(f"{waiting} requests in a queue of {state.size} entries")
        for _ in range(waiting):
            slot = state.driver + _AVAIL_RING + 2 * (state.next_avail % state.size)
            chain = self._chain(self._u16(slot))
            state.next_avail = state.next_avail + 1 & _INDEX_MASK
            yield chain

    def complete(self, chain: Chain, written: int) -> None:
        """Give a request back; the first `written` bytes of its writable part have been written.

        Raises:
            DmaError: the used ring is not in shared memory.
        """
        state = self.state
        slot = state.device + _USED_RING + _USED_ELEM.size * (state.next_used % state.size)
        self.dma.write(slot, _USED_ELEM.pack(chain.head, written))
        state.next_used = state.next_used + 1 & _INDEX_MASK
        self.dma.write(state.device + _USED_IDX, state.next_used.to_bytes(2, "little"))

    def wants_interrupt(self) -> bool:
        """Whether the driver wants to hear of used buffers; `DmaError` as `pending`."""
        return not self._u16(self.state.driver) & AVAIL_F_NO_INTERRUPT

    def _chain(self, head: int) -> Chain:
        state = self.state
        readable: list[Segment] = []
        writable: list[Segment] = []
        index = head
        for _ in range(state.size):
            if index >= state.size:
                raise QueueError(f"descriptor {index} of {state.size}")
            gpa, size, flags, following = _DESC.unpack(
                self.dma.read(state.desc + _DESC.size * index, _DESC.size)
            )
            if flags & DescFlag.INDIRECT:
                raise QueueError("an indirect descriptor, which was not negotiated")
            if flags & DescFlag.WRITE:
                writable.append((gpa, size))
            elif writable:
                raise QueueError("a readable buffer behind a writable one")
            else:
                readable.append((gpa, size))
            if not flags & DescFlag.NEXT:
                return Chain(self.dma, head, tuple(readable), tuple(writable))
            index = following
        raise QueueError("a loop of descriptors")

    def _avail_idx(self) -> int:
        return self._u16(self.state.driver + _AVAIL_IDX)

    def _u16(self, gpa: int) -> int:
        return int.from_bytes(self.dma.read(gpa, 2), "little")
