# SPDX-License-Identifier: MIT
"""What packet handlers share: the state of one debugging session, and small parsers.

Spec: GDB manual, E.1 (hexadecimal numbers, thread ids, error replies).
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from svsmd.gdbstub.agent.packet import Options
from svsmd.gdbstub.target import BreakpointKind, StopEvent, Target, WatchpointKind

OK: Final = b"OK"
UNSUPPORTED: Final = b""
"""The reply to a packet that the stub does not know."""

ADDRESS_LIMIT: Final = 1 << 64

_HEX_DIGITS: Final = b"0123456789abcdefABCDEF"


class Errno(Enum):
    """Numbers of error replies for clients that take no text: Linux errno values."""

    NO_SUCH_THREAD = 3
    FAULT = 14
    BUSY = 16
    INVALID = 22
    NO_SPACE = 28


class PacketError(Exception):
    """The packet gets an error reply: `E.text` if the client takes text, else `Enn`."""

    def __init__(self, errno: Errno, text: str) -> None:
        super().__init__(text)
        self.errno = errno


class Action(Enum):
    """What the session has to do where a handler has no plain reply."""

    RESUME = "run the machine; the stop reply comes later"
    INTERRUPT = "stop the machine, as Ctrl-C does"
    START_NO_ACK_MODE = "reply OK, and use no acknowledgements from then on"
    DETACH = "reply OK and end the session"
    DETACH_SILENTLY = "end the session"


@dataclass(slots=True)
class Context:
    """The state that packets read and change."""

    target: Target
    last_stop: StopEvent
    """How the machine stands, or how it stood before it was resumed."""
    general_tid: int
    """The thread that registers and memory belong to (`Hg`)."""
    step_tid: int | None = None
    """The thread of the legacy packet `s` (`Hc`); None: the one that stopped."""
    running: bool = False
    client_features: frozenset[bytes] = frozenset()
    """What the client said in qSupported, such as b"swbreak+"."""
    breakpoints: dict[tuple[BreakpointKind, int, bool], Options] = field(default_factory=dict)
    """By kind, address, and whether that is a guest-physical one."""
    watchpoints: set[tuple[WatchpointKind, int, int]] = field(default_factory=set)
    console: list[bytes] = field(default_factory=list)
    """Console packets that go out before the reply."""
    physical: bool = False
    """Addresses are guest-physical ones (`Qqemu.PhyMemMode:1`)."""
    osdata: bytes = b""
    """The document of the qXfer:osdata:read transfer under way."""
    threads_xml: bytes = b""
    """The document of the qXfer:threads:read transfer under way."""

    def say(self, text: str) -> None:
        """Show the user a line before the reply."""
        self.console.append(b"O" + f"{text}\n".encode().hex().encode())

    def check_tid(self, tid: int) -> int:
        """`tid`, if there is such a thread. Raises `PacketError`."""
        if tid == self.general_tid:  # so for every step of a series
            return tid
        for thread in self.target.threads():
            if thread.tid == tid:
                return tid
        raise PacketError(Errno.NO_SUCH_THREAD, f"no thread {tid}")


Reply = bytes | Action
Handler = Callable[[Context, bytes], Reply]


def parse_hex(text: bytes) -> int:
    """An unsigned number of up to 64 bits, in hex digits only. Raises `PacketError`."""
    if not text or len(text) > 16 or text.translate(None, _HEX_DIGITS):
        raise PacketError(Errno.INVALID, "malformed number")
    return int(text, 16)


def parse_hex_data(text: bytes) -> bytes:
    """Bytes given as two hex digits each. Raises `PacketError`."""
    try:
        return unhexlify(text)
    except ValueError:
        raise PacketError(Errno.INVALID, "malformed hex data") from None


def parse_address_length(text: bytes) -> tuple[int, int]:
    """ADDRESS,LENGTH; the range does not wrap round the end of the address space."""
    address, comma, length = text.partition(b",")
    if not comma:
        raise PacketError(Errno.INVALID, "malformed packet")
    start, nbytes = parse_hex(address), parse_hex(length)
    if start + nbytes > ADDRESS_LIMIT:
        raise PacketError(Errno.INVALID, "range beyond the end of the address space")
    return start, nbytes


def parse_tid(text: bytes) -> int | None:
    """A thread id; None for "all" (-1) and "any" (0). Raises `PacketError`."""
    if text == b"-1":
        return None
    return parse_hex(text) or None
