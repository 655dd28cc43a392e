# SPDX-License-Identifier: MIT
"""A client of GDB's remote serial protocol that does no more than benchmarks and tests need.

Spec: GDB manual, appendix E (Remote Protocol).
"""

from __future__ import annotations

import re
import socket
import time
from typing import Final, Self

SECONDS: Final = 30.0
_RECEIVE: Final = 1 << 18
_DEFAULT_PACKET_SIZE: Final = 0x400
_RUN_LENGTH_BIAS: Final = 29
_RUN = re.compile(rb"(.)\*(.)", re.DOTALL)


class RspError(Exception):
    """The stub said something that nobody here has a use for."""


def checksum(body: bytes) -> bytes:
    """The two digits behind #."""
    return b"%02x" % (sum(body) & 0xFF)


def expand_runs(body: bytes) -> bytes:
    """Undo run-length encoding: X*c stands for X and (c - 29) more of it."""
    return _RUN.sub(lambda match: match[1] * (match[2][0] - _RUN_LENGTH_BIAS + 1), body)


class RspClient:
    """One connection to a stub, in no-ack mode. A context manager, which hangs up.

    Attributes:
        packet_size: bytes of the longest packet that the stub takes.
        step_body: the packet that steps the thread that stopped first.
    """

    def __init__(self, port: int) -> None:
        self._socket = _connect(port)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(SECONDS)
        self._buffer = b""
        self._acknowledging = True
        features = self.request(b"qSupported:vContSupported+").decode("ascii", "replace")
        size = re.search(r"PacketSize=([0-9a-fA-F]+)", features)
        self.packet_size: Final = int(size[1], 16) if size else _DEFAULT_PACKET_SIZE
        if "QStartNoAckMode+" in features:
            self.expect(b"QStartNoAckMode", b"OK")
            self._acknowledging = False
        stop = self.request(b"?")
        thread = re.search(rb"thread:([^;]+);", stop)
        name = thread[1] if thread else b"1"
        self.step_body: Final = b"vCont;s:" + name
        self.expect(b"Hg" + name, b"OK")

    def request(self, body: bytes) -> bytes:
        """Sends a packet and returns the body of the next one that comes."""
        self._send(body)
        return self._receive()

    def packet(self, body: bytes) -> bytes:
        """What exchange() sends for `body`; made once where it is sent a thousand times."""
        ack = b"+" if self._acknowledging else b""
        return ack + b"$" + body + b"#" + checksum(body)

    def exchange(self, packet: bytes) -> bytes:
        """Sends what packet() has made; all bytes up to the end of the packet that comes back.

        It does as little as a client can, so that what is measured is the stub: no checksum is
        looked at, and an acknowledgement goes out with the next packet.
        """
        receive = self._socket.recv
        self._socket.sendall(packet)
        data = receive(_RECEIVE)
        parts, tail = [data], data[-3:]
        while tail[-3:-2] != b"#":
            if not data:
                raise RspError("the stub hung up")
            data = receive(_RECEIVE)
            parts.append(data)
            tail = (tail + data)[-3:]
        return b"".join(parts)

    def step(self) -> None:
        """One instruction of the thread that stopped first."""
        reply = self.request(self.step_body)
        if reply[:1] not in (b"T", b"S"):
            raise RspError(f"a step ended with {reply[:40]!r}")

    def resume(self) -> None:
        """Lets the guest run."""
        self._send(b"vCont;c")

    def interrupt(self) -> bytes:
        """Stops the guest, which runs; the stop reply."""
        self._socket.sendall(b"\x03")
        return self._receive()

    def run_for(self, seconds: float) -> None:
        """Lets the guest run for a while, and stops it again."""
        self.resume()
        time.sleep(seconds)
        self.interrupt()

    def monitor(self, command: str) -> str:
        """What a command of the stub's own prints."""
        reply = self.request(b"qRcmd," + command.encode().hex().encode())
        return bytes.fromhex(expand_runs(reply).decode("ascii", "replace")).decode()

    def read_memory(self, address: int, nbytes: int) -> bytes:
        """Memory by one `m` packet."""
        reply = self.request(b"m%x,%x" % (address, nbytes))
        data = bytes.fromhex(expand_runs(reply).decode("ascii", "replace"))
        if len(data) != nbytes:
            raise RspError(f"{len(data)} bytes came instead of {nbytes}")
        return data

    def _send(self, body: bytes) -> None:
        self._socket.sendall(b"$" + body + b"#" + checksum(body))

    def expect(self, body: bytes, wanted: bytes = b"OK") -> None:
        """A packet that has one good answer."""
        reply = self.request(body)
        if reply != wanted:
            raise RspError(f"{body!r} was answered with {reply[:40]!r}")

    def _receive(self) -> bytes:
        start = -1
        while True:
            if start < 0:
                start = self._buffer.find(b"$")
            # RLE counts may be anything printable but #, so the next # ends the packet.
            end = self._buffer.find(b"#", start) if start >= 0 else -1
            if end >= 0 and len(self._buffer) >= end + 3:
                break
            data = self._socket.recv(_RECEIVE)
            if not data:
                raise RspError("the stub hung up")
            self._buffer += data
        body, digits = self._buffer[start + 1 : end], self._buffer[end + 1 : end + 3]
        if checksum(body) != digits:
            raise RspError(f"bad checksum of {body[:40]!r}")
        self._buffer = self._buffer[end + 3 :]
        if self._acknowledging:
            self._socket.sendall(b"+")
        return body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()


def _connect(port: int) -> socket.socket:
    """A connection, as soon as somebody listens."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
