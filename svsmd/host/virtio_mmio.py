# SPDX-License-Identifier: MIT
"""The MMIO transport of virtio: registers, feature negotiation, the queue and the interrupt.

Linux finds it in the DSDT (`LNRO0005`) and needs neither a PCI bus nor message-signalled
interrupts for it. Each access of an SNP guest is a #VC and an MMIO event of the GHCB.

Spec: VIRTIO 1.2: 4.2 (virtio over MMIO), 2.1 (device status), 2.2 (features), 3.1 (initialisation).
Deviations: modern only; one virtqueue, all that the devices here have; no shared memory regions,
no VIRTIO_F_RING_RESET; nothing in a configuration space can be written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Protocol

from svsmd.host.dma import Dma, DmaError
from svsmd.host.timers import TimerQueue
from svsmd.host.virtio_queue import MAX_QUEUE_SIZE, Chain, QueueError, QueueState, SplitQueue

log = logging.getLogger(__name__)

MAGIC: Final = int.from_bytes(b"virt", "little")
VERSION: Final = 2
NO_DEVICE: Final = 0
"""Device ID of a slot without a device: drivers pass over it (4.2.2)."""
REQUESTS_AT_ONCE: Final = 16
BYTES_AT_ONCE: Final = 4 << 20
"""So much is served before others get the machine, give or take a request; the rest of what waits
in the queue follows a tick later. A full queue may stand for a gigabyte, or for 128 flushes."""
VENDOR_ID: Final = int.from_bytes(b"SVSM", "little")


class Register(IntEnum):
    """Offsets (table 4.1); all are 32 bits wide but the configuration space."""

    MAGIC_VALUE = 0x000
    VERSION = 0x004
    DEVICE_ID = 0x008
    VENDOR_ID = 0x00C
    DEVICE_FEATURES = 0x010
    DEVICE_FEATURES_SEL = 0x014
    DRIVER_FEATURES = 0x020
    DRIVER_FEATURES_SEL = 0x024
    QUEUE_SEL = 0x030
    QUEUE_NUM_MAX = 0x034
    QUEUE_NUM = 0x038
    QUEUE_READY = 0x044
    QUEUE_NOTIFY = 0x050
    INTERRUPT_STATUS = 0x060
    INTERRUPT_ACK = 0x064
    STATUS = 0x070
    QUEUE_DESC_LOW = 0x080
    QUEUE_DESC_HIGH = 0x084
    QUEUE_DRIVER_LOW = 0x090
    QUEUE_DRIVER_HIGH = 0x094
    QUEUE_DEVICE_LOW = 0x0A0
    QUEUE_DEVICE_HIGH = 0x0A4
    SHM_LEN_LOW = 0x0B0
    SHM_LEN_HIGH = 0x0B4
    SHM_BASE_LOW = 0x0B8
    SHM_BASE_HIGH = 0x0BC
    CONFIG_GENERATION = 0x0FC
    CONFIG = 0x100


class Status(IntFlag):
    """Device status (2.1)."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


class Interrupt(IntFlag):
    """Reasons in InterruptStatus."""

    USED_BUFFER = 1 << 0
    CONFIGURATION_CHANGE = 1 << 1


VIRTIO_F_VERSION_1: Final = 1 << 32
VIRTIO_F_ACCESS_PLATFORM: Final = 1 << 33
"""Memory is reached as the platform lets a device reach it: shared pages only (6.1)."""
TRANSPORT_FEATURES: Final = VIRTIO_F_VERSION_1 | VIRTIO_F_ACCESS_PLATFORM
"""Offered by every device, and refused by no driver that is to get on with one here (6.2)."""

_LOW: Final = 0xFFFF_FFFF
_NO_REGION: Final = 0xFFFF_FFFF
"""Length and base of a shared memory region that does not exist, each half."""
_RUNNING: Final = Status.DRIVER_OK | Status.FEATURES_OK

_CONSTANTS: Final[dict[int, int]] = {
    Register.MAGIC_VALUE: MAGIC,
    Register.VERSION: VERSION,
    Register.VENDOR_ID: VENDOR_ID,
    Register.SHM_LEN_LOW: _NO_REGION,
    Register.SHM_LEN_HIGH: _NO_REGION,
    Register.SHM_BASE_LOW: _NO_REGION,
    Register.SHM_BASE_HIGH: _NO_REGION,
}


class VirtioDevice(Protocol):
    """What is behind the transport."""

    @property
    def device_id(self) -> int:
        """Type of the device (chapter 5)."""
        ...

    @property
    def features(self) -> int:
        """Feature bits of the device type that are offered."""
        ...

    @property
    def config(self) -> bytes:
        """The configuration space; beyond its end zeros are read."""
        ...

    def serve(self, request: Chain) -> int:
        """Serve one request and return how many bytes of its writable part are written now.

        Raises:
            QueueError: the request cannot even be failed.
            DmaError: the same, because of where it lies.
        """
        ...


@dataclass(slots=True)
class MmioState:
    """Registers that a reset clears; the queue has its own."""

    status: int = 0
    device_features_sel: int = 0
    driver_features_sel: int = 0
    driver_features: int = 0
    queue_sel: int = 0
    interrupt_status: int = 0


class VirtioMmio:
    """One device in its slot; `set_irq` is its level-triggered interrupt line."""

    def __init__(
        self,
        device: VirtioDevice,
        dma: Dma,
        set_irq: Callable[[bool], None],
        timers: TimerQueue,
        now: Callable[[], int],
    ) -> None:
        # Fixed configuration.
        self._features: Final = device.features | TRANSPORT_FEATURES
        # Runtime glue.
        self._device: Final = device
        self._set_irq: Final = set_irq
        self._queue: Final = SplitQueue(dma)
        self._now: Final = now
        self._rest: Final = timers.timer(self._serve)
        # Volatile state.
        self.state = MmioState()

    @property
    def queue(self) -> QueueState:
        """The state of the queue."""
        return self._queue.state

    def read(self, offset: int, size: int) -> int:
        """MMIO read; a register that is not read as a whole reads as zero."""
        if offset >= Register.CONFIG:
            start = offset - Register.CONFIG
            return int.from_bytes(self._device.config[start : start + size], "little")
        return self._read_register(offset) if size == 4 else 0

    def _read_register(self, offset: int) -> int:
        state = self.state
        match offset:
            case Register.DEVICE_ID:
                return self._device.device_id
            case Register.DEVICE_FEATURES:
                return _word(self._features, state.device_features_sel)
            case Register.QUEUE_NUM_MAX:
                return 0 if state.queue_sel else MAX_QUEUE_SIZE
            case Register.QUEUE_READY:
                return 0 if state.queue_sel else int(self.queue.ready)
            case Register.INTERRUPT_STATUS:
                return state.interrupt_status
            case Register.STATUS:
                return state.status
        return _CONSTANTS.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """MMIO write; what is no register, or not all of one, takes nothing."""
        if size != 4:
            return
        state = self.state
        match offset:
            case Register.DEVICE_FEATURES_SEL:
                state.device_features_sel = value
            case Register.DRIVER_FEATURES_SEL:
                state.driver_features_sel = value
            case Register.DRIVER_FEATURES:
                self._write_features(value)
            case Register.QUEUE_SEL:
                state.queue_sel = value
            case Register.QUEUE_NOTIFY:
                self._notify(value)
            case Register.INTERRUPT_ACK:
                state.interrupt_status &= ~value
                self._set_irq(bool(state.interrupt_status))
            case Register.STATUS:
                self._write_status(value)
            case _:
                self._write_queue(offset, value)

    def _write_features(self, value: int) -> None:
        state = self.state
        if state.driver_features_sel > 1 or state.status & Status.FEATURES_OK:
            return
        replace = _with_high if state.driver_features_sel else _with_low
        state.driver_features = replace(state.driver_features, value)

    def _write_status(self, value: int) -> None:
        state = self.state
        if value == 0:
            self.state = MmioState()
            self._queue.state = QueueState()
            self._rest.cancel()
            self._set_irq(False)
            return
        if value & Status.FEATURES_OK & ~state.status and not self._features_fit():
            value &= ~Status.FEATURES_OK
        # Only a reset takes this one back.
        state.status = value & 0xFF | state.status & Status.DEVICE_NEEDS_RESET

    def _features_fit(self) -> bool:
        chosen = self.state.driver_features
        return not chosen & ~self._features and chosen & TRANSPORT_FEATURES == TRANSPORT_FEATURES

    def _write_queue(self, offset: int, value: int) -> None:
        """Registers of the selected queue; its layout stays as it is while it is in use."""
        queue = self.queue
        if self.state.queue_sel:
            return
        if offset == Register.QUEUE_READY:
            self._set_ready(bool(value & 1))
        elif not queue.ready:
            match offset:
                case Register.QUEUE_NUM:
                    queue.size = value
                case Register.QUEUE_DESC_LOW:
                    queue.desc = _with_low(queue.desc, value)
                case Register.QUEUE_DESC_HIGH:
                    queue.desc = _with_high(queue.desc, value)
                case Register.QUEUE_DRIVER_LOW:
                    queue.driver = _with_low(queue.driver, value)
                case Register.QUEUE_DRIVER_HIGH:
                    queue.driver = _with_high(queue.driver, value)
                case Register.QUEUE_DEVICE_LOW:
                    queue.device = _with_low(queue.device, value)
                case Register.QUEUE_DEVICE_HIGH:
                    queue.device = _with_high(queue.device, value)

    def _set_ready(self, ready: bool) -> None:
        if not ready:
            self.queue.ready = False
        elif not self.queue.ready:
            try:
                self._queue.enable()
            except QueueError as error:
                self._need_reset(error)

    def _notify(self, queue: int) -> None:
        """The driver says that there are requests."""
        if queue == 0:
            self._serve()

    def _serve(self) -> None:
        """Serve what waits, or the first part of it."""
        running = self.state.status & (_RUNNING | Status.DEVICE_NEEDS_RESET) == _RUNNING
        if not self.queue.ready or not running:
            return
        requests = nbytes = 0
        try:
            for request in self._queue.pending():
                self._queue.complete(request, self._device.serve(request))
                requests += 1
                nbytes += request.readable_size + request.writable_size
                if requests == REQUESTS_AT_ONCE or nbytes >= BYTES_AT_ONCE:
                    self._rest.arm(self._now() + 1)
                    break
            if requests and self._queue.wants_interrupt():
                self._interrupt(Interrupt.USED_BUFFER)
        except (QueueError, DmaError) as error:
            self._need_reset(error)

    def _need_reset(self, error: Exception) -> None:
        """Give up until the driver resets the device (2.1.2)."""
        log.debug("virtio device %d needs a reset: %s", self._device.device_id, error)
        state = self.state
        state.status |= Status.DEVICE_NEEDS_RESET
        if state.status & Status.DRIVER_OK:
            self._interrupt(Interrupt.CONFIGURATION_CHANGE)

    def _interrupt(self, reason: Interrupt) -> None:
        self.state.interrupt_status |= reason
        self._set_irq(True)


def read_empty_slot(offset: int, size: int) -> int:
    """MMIO read of a slot without a device: its device ID is `NO_DEVICE`."""
    return _CONSTANTS.get(offset, NO_DEVICE) if size == 4 else 0


def _word(features: int, select: int) -> int:
    """32 bits of a feature bitmap; there are no more than 64."""
    return features >> 32 * select & _LOW if select < 2 else 0


def _with_low(number: int, low: int) -> int:
    return number & ~_LOW | low


def _with_high(number: int, high: int) -> int:
    return number & _LOW | high << 32
