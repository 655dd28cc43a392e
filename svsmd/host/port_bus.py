# SPDX-License-Identifier: MIT
"""The I/O port space: routes IN and OUT to the devices' registers.

Spec: GHCB 56421, section 4.1 (IOIO_PROT names port and operand size). An access that no device
takes in one piece is cut into smaller ones at ascending ports, as the PC's bus controllers do; a
port without a device reads as all ones and ignores writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

PortRead = Callable[[], int]
PortWrite = Callable[[int], None]

PORT_COUNT: Final = 0x1_0000
ACCESS_SIZES: Final = (1, 2, 4)
_SIZE_SHIFT: Final = 16


class PortBus:
    """Port and size to bound method, in one dictionary lookup."""

    def __init__(self) -> None:
        self._reads: dict[int, PortRead] = {}
        self._writes: dict[int, PortWrite] = {}

    def map_port(
        self, port: int, read: PortRead | None, write: PortWrite | None, size: int = 1
    ) -> None:
        """Gives accesses of *size* bytes (1, 2, 4) at *port* to a device.

        :raises ValueError: the port is taken or does not exist (a mistake in the wiring).
        """
        if size not in ACCESS_SIZES or not 0 <= port <= PORT_COUNT - size:
            raise ValueError(f"no port {port:#x} of {size} bytes")
        key = size << _SIZE_SHIFT | port
        if key in self._reads or key in self._writes:
            raise ValueError(f"port {port:#x} has two devices")
        if read is not None:
            self._reads[key] = read
        if write is not None:
            self._writes[key] = write

    def read(self, port: int, size: int) -> int:
        """IN of *size* bytes (1, 2, 4)."""
        handler = self._reads.get(size << _SIZE_SHIFT | port)
        if handler is not None:
            return handler()
        if size == 1:
            return 0xFF
        half = size >> 1
        low = self.read(port, half)
        return low | self.read(port + half & 0xFFFF, half) << (8 * half)

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of *size* bytes (1, 2, 4); *value* fits into them."""
        handler = self._writes.get(size << _SIZE_SHIFT | port)
        if handler is not None:
            handler(value)
        elif size > 1:
            half = size >> 1
            self.write(port, half, value & ((1 << (8 * half)) - 1))
            self.write(port + half & 0xFFFF, half, value >> (8 * half))
