# SPDX-License-Identifier: MIT
"""The framing of the GDB remote serial protocol: bytes in, events out, and packets to bytes.

A packet is `$body#cc`, cc the sum of the body's bytes modulo 256 in two hex digits; in the body,
`}` escapes the next byte, which is sent XOR 0x20. Between packets there are acknowledgements (`+`
and `-`), the interrupt byte 0x03, and noise. A `$` inside a packet starts the packet anew: the
beginning of a packet whose end was lost is noise.

Spec: GDB manual, E.1 Overview (framing, escapes), E.8 Interrupts, E.9 packet acknowledgment.
Deviations: run-length encoding is never sent, and not expanded, since no client sends it.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from dataclasses import dataclass
from enum import Enum
from typing import Final
from zlib import adler32

MAX_PACKET: Final = 0x20000
"""PacketSize: bytes of the longest packet, `$` and `#cc` included, escapes counted as sent."""

MAX_BODY: Final = MAX_PACKET - len(b"$#cc")

MAX_NOISE: Final = 0x10000
"""So many bytes outside of well-formed packets, with no such packet in between, end a connection.

Acknowledgements and interrupts count as well: nobody needs 65536 of them in a row.
"""

ACK: Final = b"+"
NAK: Final = b"-"
INTERRUPT_BYTE: Final = 0x03


class RemoteProtocolError(Exception):
    """The client does not speak the protocol. The connection has to be closed."""


class Need(Enum):
    """What `Decoder.next_event` returns when there is no event."""

    DATA = "the bytes received so far hold no further event"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet whose checksum is right; `body` has its escapes resolved."""

    body: bytes


@dataclass(frozen=True, slots=True)
class BadChecksum:
    """A packet whose checksum is wrong or no hex number."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The client got our packet."""


@dataclass(frozen=True, slots=True)
class Nak:
    """The client wants our last packet again."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Ctrl-C."""


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """The client has closed its side; the last event."""


Event = Packet | BadChecksum | Ack | Nak | Interrupt | ConnectionClosed

_BAD_CHECKSUM: Final = BadChecksum()
_CONNECTION_CLOSED: Final = ConnectionClosed()
_SINGLE_BYTES: Final[dict[int, Event]] = {
    ACK[0]: Ack(),
    NAK[0]: Nak(),
    INTERRUPT_BYTE: Interrupt(),
}
_OUTSIDE = re.compile(rb"[$+\-\x03]")
_ESCAPED = re.compile(rb"\}(.)", re.DOTALL)
_UNESCAPE: Final = [bytes([byte ^ 0x20]) for byte in range(256)]

# An Adler-32 of n bytes has 1 + their sum in its low half, modulo 65521, which 256 bytes of any
# value do not reach. Its high half is a multiple of 65536 and vanishes modulo 256.
_ADLER_CHUNK: Final = 256


def checksum(data: bytes) -> int:
    """The sum of `data` modulo 256, four times as fast as `sum()` on a packet of full size."""
    if len(data) <= _ADLER_CHUNK:
        return sum(data) & 0xFF
    starts = range(0, len(data), _ADLER_CHUNK)
    sums = sum(map(adler32, [data[start : start + _ADLER_CHUNK] for start in starts]))
    return (sums - len(starts)) & 0xFF


def escape(data: bytes) -> bytes:
    """`data` as it stands in a packet: `#`, `$`, `}` and (for replies) `*` escaped."""
    return (data.replace(b"}", b"}]").replace(b"#", b"}\x03").replace(b"$", b"}\x04")).replace(
        b"*", b"}\n"
    )


def unescape(body: bytes) -> bytes:
    """The data that `body` stands for; a `}` at its very end stands for itself."""
    if b"}" not in body:
        return body
    return _ESCAPED.sub(lambda match: _UNESCAPE[match[1][0]], body)


def encode(data: bytes) -> bytes:
    """The packet whose body is `data`, ready to send."""
    body = escape(data)
    return b"$%b#%02x" % (body, checksum(body))


class Decoder:
    """Turns received bytes into events. How they were cut into chunks makes no difference.

    Call `receive_data`, then `next_event` until it returns `Need.DATA`. After a
    `RemoteProtocolError` every further call raises it again.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._in_packet = False
        # Inside a packet, `_buffer` begins after its `$`, and holds no `$` or `#` before here.
        self._scanned = 0
        self._noise = 0
        self._eof = False
        self._error: str | None = None

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take in what the client sent; b"" says that it has closed its side."""
        if data:
            self._buffer += data
        else:
            self._eof = True

    def next_event(self) -> Event | Need:
        """The next event, or `Need.DATA`. Raises `RemoteProtocolError`."""
        if self._error is not None:
            raise RemoteProtocolError(self._error)
        event = self._next_inside() if self._in_packet else self._next_outside()
        if event is Need.DATA and self._eof:
            return _CONNECTION_CLOSED
        return event

    def _next_outside(self) -> Event | Need:
        buffer = self._buffer
        start = 0
        if not buffer.startswith(b"$"):
            match = _OUTSIDE.search(buffer)
            if match is None:
                self._count_noise(len(buffer))
                buffer.clear()
                return Need.DATA
            start = match.start()
            del match  # a bytearray that a match refers to cannot be resized
        byte = buffer[start]
        self._count_noise(start if byte == ord("$") else start + 1)
        del buffer[: start + 1]
        if byte == ord("$"):
            self._in_packet = True
            return self._next_inside()
        return _SINGLE_BYTES[byte]

    def _next_inside(self) -> Event | Need:
        buffer = self._buffer
        hash_sign = buffer.find(b"#", self._scanned)
        end = len(buffer) if hash_sign < 0 else hash_sign
        start = 0
        while (dollar := buffer.find(b"$", self._scanned, end)) >= 0:
            self._check_length(dollar - start)
            self._count_noise(dollar + 1 - start)
            start = self._scanned = dollar + 1
        self._check_length(end - start)
        if start:
            del buffer[:start]
            end -= start
        self._scanned = end
        if hash_sign < 0 or len(buffer) < end + 3:
            return Need.DATA
        body = bytes(buffer[:end])
        try:
            (expected,) = unhexlify(buffer[end + 1 : end + 3])
        except ValueError:
            expected = -1
        if len(buffer) == end + 3:
            buffer.clear()
        else:
            del buffer[: end + 3]
        self._in_packet = False
        self._scanned = 0
        if checksum(body) != expected:
            self._count_noise(len(b"$#cc") + end)
            return _BAD_CHECKSUM
        self._noise = 0
        return Packet(unescape(body))

    def _check_length(self, length: int) -> None:
        if length > MAX_BODY:
            raise self._fail(f"packet longer than {MAX_PACKET} bytes")

    def _count_noise(self, count: int) -> None:
        self._noise += count
        if self._noise >= MAX_NOISE:
            raise self._fail(f"{MAX_NOISE} bytes of noise")

    def _fail(self, text: str) -> RemoteProtocolError:
        self._error = text
        self._buffer.clear()
        return RemoteProtocolError(text)
