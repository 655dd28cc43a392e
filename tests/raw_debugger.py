# SPDX-License-Identifier: MIT
"""A debugger without manners: the packets of a test over a socket of its own."""

import contextlib
import socket
from pathlib import Path
from typing import Final, Self

from svsmd.gdbstub.rsp import Decoder, Need, Packet, encode

SECONDS: Final = 30.0


class RawDebugger:
    """A connection to a debugger's port, or path, in no-ack mode.

    Args:
        where: port on the loopback interface, or path of a socket.
        silent: say nothing at first.
    """

    def __init__(self, where: int | Path, *, silent: bool = False) -> None:
        if isinstance(where, int):
            self.socket = socket.create_connection(("127.0.0.1", where), timeout=SECONDS)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(SECONDS)
            self.socket.connect(str(where))
        self._decoder = Decoder()
        if not silent:
            assert self.ask(b"QStartNoAckMode") == b"OK"

    def send(self, *bodies: bytes) -> None:
        """Send packets, and wait for nothing."""
        self.socket.sendall(b"".join(map(encode, bodies)))

    def reply(self) -> bytes:
        """Body of the next packet; empty if the other side has closed."""
        while not isinstance(event := self._decoder.next_event(), Packet):
            if event is Need.DATA:
                data = self.socket.recv(1 << 17)
                if not data:
                    return b""
                self._decoder.receive_data(data)
        return event.body

    def ask(self, body: bytes) -> bytes:
        """Send a packet; the body of its answer."""
        self.send(body)
        return self.reply()

    def monitor(self, line: str) -> str:
        """What a `monitor` command prints."""
        return bytes.fromhex(self.ask(b"qRcmd," + line.encode().hex().encode()).decode()).decode()

    def close(self) -> None:
        """Hang up, with no word."""
        with contextlib.suppress(OSError):
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
