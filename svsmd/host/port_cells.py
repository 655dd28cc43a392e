# SPDX-License-Identifier: MIT
"""The ports that native/port_cells.c answers: COM1's THR and LSR, and counter 2 of the PIT.

A kernel polls them by the ten thousand while it boots, and each answer from here takes thirty times
as long. What an answer depends on is lent to the native code for the time of a VMRUN and taken back
after it. Where the library is missing the devices answer everything; nobody can tell but by the
time it takes.

Spec: 56421, 4.1 (IOIO_PROT).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

from svsmd.host.pit8254 import PIT_HZ, PIT_PORT, Channel
from svsmd.host.timers import TICKS_PER_SECOND
from svsmd.host.uart16550 import COM1_PORT, Uart16550
from svsmd.host.vcpu import World
from svsmd.snp.ghcb import GHCB_VERSION_MAX, Ghcb, IoioInfo
from svsmd.snp.rmp import Rmp
from svsmd.snp.types import PAGE_SHIFT

_SENT_SIZE: Final = 4096
_NO_GHCB: Final = (1 << 64) - 1
_THR: Final = COM1_PORT
_LSR: Final = COM1_PORT + 5
_COUNTER_2: Final = PIT_PORT + 2


class _Cells(ctypes.Structure):
    """struct cells of native/port_cells.c."""

    _fields_ = (
        ("ghcb", ctypes.c_void_p), ("ghcb_gpa", ctypes.c_uint64),
        ("vector_given", ctypes.c_uint32), ("version", ctypes.c_uint32),
        ("transmit", ctypes.c_uint32), ("line_status", ctypes.c_uint32),
        ("timer", ctypes.c_uint32), ("status", ctypes.c_uint32),
        ("polls", ctypes.c_uint32), ("count", ctypes.c_uint32),
        ("high_next", ctypes.c_uint32), ("pit_hz", ctypes.c_uint32),
        ("start", ctypes.c_uint64), ("reload", ctypes.c_uint64),
        ("ticks_per_second", ctypes.c_uint64), ("served", ctypes.c_uint64),
        ("sent", ctypes.c_uint8 * _SENT_SIZE),
    )  # fmt: skip


def native_library() -> Path:
    """Where the compiled cells are looked for."""
    return Path(__file__).with_name("native") / "port_cells.so"


def _info(port: int, *, is_in: bool) -> int:
    return IoioInfo(
        port=port, is_in=is_in, string=False, rep=False, size=1, address_size=0, segment=0
    ).encode()


class PortCells:
    """Lends registers of devices to the native code.

    Raises:
        OSError: the library is missing.
    """

    def __init__(self, rmp: Rmp, uart: Uart16550, counter: Channel) -> None:
        # Fixed configuration.
        self._transmit: Final = _info(_THR, is_in=False)
        self._line_status: Final = _info(_LSR, is_in=True)
        self._timer: Final = _info(_COUNTER_2, is_in=True)
        # Runtime glue.
        self._library: Final = ctypes.CDLL(str(native_library()))
        self._rmp: Final = rmp
        self._uart: Final = uart
        self._counter: Final = counter
        self._ghcb: Ghcb | None = None
        self._cells: Final = _Cells(
            version=GHCB_VERSION_MAX, pit_hz=PIT_HZ, ticks_per_second=TICKS_PER_SECOND
        )
        self.function: Final = self._address(self._library.svsmd_serve_ports)
        """Host address of the C function that serves a VMGEXIT."""
        self.argument: Final = ctypes.addressof(self._cells)
        """Its first argument."""

    @staticmethod
    def _address(function: object) -> int:
        return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    @property
    def served(self) -> int:
        """Accesses that were answered natively."""
        served: int = self._cells.served
        return served

    def lend(self, world: World) -> None:
        """VMRUN of `world` comes next."""
        cells = self._cells
        ghcb, gpa = world.ghcb, world.ghcb_gpa
        if ghcb is None or gpa is None or self._rmp.assigned(gpa >> PAGE_SHIFT):
            cells.ghcb_gpa = _NO_GHCB
            return
        if ghcb is not self._ghcb:
            self._ghcb = ghcb
            cells.ghcb = ctypes.addressof(ctypes.c_char.from_buffer(ghcb.memory))
        cells.ghcb_gpa = gpa
        cells.vector_given = world.vmcb.v_irq is not None
        line = self._uart.quiet_line()
        if line is None:
            cells.transmit = cells.line_status = 0
        else:
            cells.status, cells.polls = line
            cells.transmit, cells.line_status = self._transmit, self._line_status
        counting = self._counter.counting_down()
        if counting is None:
            cells.timer = 0
        else:
            cells.start, cells.reload, cells.high_next = counting
            cells.timer = self._timer

    def withhold(self) -> None:
        """VMRUN comes next, and the host wants to see every VMGEXIT."""
        self._cells.ghcb_gpa = _NO_GHCB

    def take_back(self) -> None:
        """VMRUN is over: the devices go on from where the native code left them."""
        cells = self._cells
        if cells.ghcb_gpa == _NO_GHCB:
            return
        if cells.line_status:
            self._uart.line_was_used(bytes(cells.sent[: cells.count]), cells.polls)
            cells.count = 0
        if cells.timer:
            self._counter.state.read_high_next = bool(cells.high_next)
