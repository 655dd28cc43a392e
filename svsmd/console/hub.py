# SPDX-License-Identifier: MIT
"""A serial line with many ends: what the guest prints goes to all, all may type.

A client that comes late gets the newest output first. One that reads too slowly loses the oldest
bytes of its own queue; neither the guest nor the others wait for it. A client that types faster
than the guest reads waits.

Spec: docs/consoles.md, "Many clients".
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

log = logging.getLogger(__name__)

HISTORY_SIZE: Final = 64 << 10
"""Bytes of output that a client gets that comes late."""
QUEUE_SIZE: Final = 1 << 20
"""Bytes of output that may wait for one client."""
CHUNK_SIZE: Final = 16 << 10
"""Bytes that a client gets at once, so that its queue moves while it writes them."""
MAX_CLIENTS: Final = 64


class HubFull(Exception):
    """`MAX_CLIENTS` are there already."""


class ByteRing:
    """The newest bytes of a stream.

    Args:
        size: how many, 1 or more.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()
        self.dropped = 0
        """Bytes that were pushed out since the beginning."""

    def __len__(self) -> int:
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Add bytes at the end; the oldest make room."""
        self._data += data
        excess = len(self._data) - self._size
        if excess > 0:
            del self._data[:excess]
            self.dropped += excess

    def take(self, count: int) -> bytes:
        """Remove the `count` oldest bytes (fewer, if there are not so many) and return them."""
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    def contents(self) -> bytes:
        """All bytes, oldest first."""
        return bytes(self._data)


class HubClient:
    """One end of the line; made by `Hub.attach`.

    Attributes:
        input_ended: the client types no more, it only reads.
    """

    def __init__(self, hub: "Hub", queue: ByteRing) -> None:
        self._hub = hub
        self._queue = queue
        self._changed = trio.Event()
        self._closed = False
        self.input_ended = False

    @property
    def dropped(self) -> int:
        """Bytes that it lost because it read too slowly."""
        return self._queue.dropped

    async def receive(self) -> bytes:
        """The next output, 1 to `CHUNK_SIZE` bytes; b"" when there will be no more."""
        while not self._queue:
            if self._closed:
                return b""
            await self._changed.wait()
            self._changed = trio.Event()
        return self._queue.take(CHUNK_SIZE)

    async def send(self, data: bytes) -> None:
        """Type `data`; waits while the guest is behind."""
        await self._hub.on_input(data)

    def feed(self, data: bytes) -> None:
        """Queue output for this client."""
        self._queue.append(data)
        self._changed.set()

    def close(self) -> None:
        """No more output comes; `receive` still gives what is queued."""
        self._closed = True
        self._changed.set()


class Hub:
    """One serial line. All of it happens in the trio thread.

    Args:
        on_input: gets what clients type; may wait.
        history_size: bytes that late clients get.
    """

    def __init__(
        self,
        on_input: Callable[[bytes], Awaitable[None]],
        *,
        history_size: int = HISTORY_SIZE,
    ) -> None:
        self.on_input = on_input
        self._history = ByteRing(history_size)
        self._clients: list[HubClient] = []
        self._closed = False
        self._idle = trio.Event()
        self._idle.set()

    @property
    def clients(self) -> int:
        """How many are there."""
        return len(self._clients)

    def history(self) -> bytes:
        """The newest output."""
        return self._history.contents()

    def feed(self, data: bytes) -> None:
        """The guest printed `data`. Never waits."""
        self._history.append(data)
        for client in self._clients:
            client.feed(data)

    @contextmanager
    def attach(self, name: str) -> Iterator[HubClient]:
        """Be a client of the line, for a while; begins with the history.

        Args:
            name: of the client, for the log.

        Raises:
            HubFull: too many are there. One that only reads, and may be long dead, makes room.
        """
        if len(self._clients) >= MAX_CLIENTS:
            reader = next((client for client in self._clients if client.input_ended), None)
            if reader is None:
                raise HubFull
            self._remove(reader)
            reader.close()
        client = HubClient(self, ByteRing(QUEUE_SIZE))
        if self._history:
            client.feed(self._history.contents())
        if self._closed:
            client.close()
        self._clients.append(client)
        self._idle = trio.Event() if self._idle.is_set() else self._idle
        log.info("%s: connected", name)
        try:
            yield client
        finally:
            self._remove(client)
            log.info("%s: disconnected, %d bytes dropped", name, client.dropped)

    async def close(self) -> None:
        """The line is dead: wait until every client has read what is queued for it, and left.

        Waits as long as they take; the caller limits the time.
        """
        self._closed = True
        for client in self._clients:
            client.close()
        await self._idle.wait()

    def _remove(self, client: HubClient) -> None:
        if client in self._clients:
            self._clients.remove(client)
        if not self._clients:
            self._idle.set()
