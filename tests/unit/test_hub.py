# SPDX-License-Identifier: MIT
"""The hub of a console: history, slow clients, many clients, the end."""

from contextlib import ExitStack

import pytest
import trio
import trio.testing

from svsmd.console.hub import (
    CHUNK_SIZE,
    HISTORY_SIZE,
    MAX_CLIENTS,
    QUEUE_SIZE,
    ByteRing,
    Hub,
    HubClient,
    HubFull,
)


class Guest:
    """Gets what clients type."""

    def __init__(self) -> None:
        self.typed = b""

    async def type_in(self, data: bytes) -> None:
        self.typed += data


async def read_all(client: HubClient) -> bytes:
    """What a client gets until the line is dead."""
    received = b""
    with trio.fail_after(5):
        while data := await client.receive():
            assert len(data) <= CHUNK_SIZE
            received += data
    return received


class TestByteRing:
    def test_keeps_the_newest(self):
        ring = ByteRing(4)
        ring.append(b"abc")
        ring.append(b"def")
        assert ring.contents() == b"cdef"
        assert ring.dropped == 2

    def test_takes_more_than_it_holds(self):
        ring = ByteRing(4)
        ring.append(b"0123456789")
        assert ring.contents() == b"6789"
        assert ring.dropped == 6

    def test_take_is_not_a_loss(self):
        ring = ByteRing(4)
        ring.append(b"abcd")
        assert ring.take(3) == b"abc"
        ring.append(b"efg")
        assert ring.take(9) == b"defg"
        assert len(ring) == ring.dropped == 0


async def test_output_goes_to_all():
    hub = Hub(Guest().type_in)
    with hub.attach("a") as a, hub.attach("b") as b:
        hub.feed(b"login: ")
        assert await a.receive() == await b.receive() == b"login: "
        assert hub.clients == 2
    assert hub.clients == 0


async def test_all_may_type():
    guest = Guest()
    hub = Hub(guest.type_in)
    with hub.attach("a") as a, hub.attach("b") as b:
        await a.send(b"l")
        await b.send(b"s")
    assert guest.typed == b"ls"


async def test_a_client_waits_for_output(nursery):
    hub = Hub(Guest().type_in)
    with hub.attach("a") as client:
        received = []

        async def receive():
            received.append(await client.receive())

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        assert received == []
        hub.feed(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert received == [b"x"]


async def test_who_comes_late_gets_the_newest_history_then_what_follows():
    hub = Hub(Guest().type_in)
    hub.feed(b"old")
    hub.feed(bytes(HISTORY_SIZE - 3) + b"new")
    with hub.attach("late") as client:
        hub.feed(b"est")
        await hub_close_soon(hub)
        assert await read_all(client) == bytes(HISTORY_SIZE - 3) + b"newest"


async def hub_close_soon(hub: Hub) -> None:
    """Tell clients that the line is dead, without waiting for them."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await hub.close()


async def test_the_history_has_the_size_that_was_asked_for():
    hub = Hub(Guest().type_in, history_size=4)
    hub.feed(b"abcdef")
    assert hub.history() == b"cdef"


async def test_a_slow_client_loses_its_oldest_bytes_and_nobody_else_does():
    hub = Hub(Guest().type_in)
    with hub.attach("slow") as slow, hub.attach("quick") as quick:
        received = 0
        for _ in range(QUEUE_SIZE // CHUNK_SIZE + 3):
            hub.feed(bytes(CHUNK_SIZE - 1) + b"x")
            received += len(await quick.receive())
        assert slow.dropped == 3 * CHUNK_SIZE
        assert quick.dropped == 0
        assert received == QUEUE_SIZE + 3 * CHUNK_SIZE
        await hub_close_soon(hub)
        assert len(await read_all(slow)) == QUEUE_SIZE


async def test_close_waits_until_all_have_read_and_left(nursery):
    hub = Hub(Guest().type_in)
    received = []

    async def client():
        with hub.attach("a") as a:
            received.append(await read_all(a))

    nursery.start_soon(client)
    nursery.start_soon(client)
    await trio.testing.wait_all_tasks_blocked()
    hub.feed(b"bye")
    with trio.fail_after(5):
        await hub.close()
    assert received == [b"bye", b"bye"]


async def test_close_without_clients():
    hub = Hub(Guest().type_in)
    with trio.fail_after(5):
        await hub.close()


async def test_who_comes_after_the_end_gets_the_history():
    hub = Hub(Guest().type_in)
    hub.feed(b"panic")
    await hub.close()
    with hub.attach("late") as client:
        assert await read_all(client) == b"panic"


async def test_there_is_a_limit_but_readers_make_room():
    hub = Hub(Guest().type_in)
    with trio.fail_after(5), ExitStack() as stack:
        clients = [stack.enter_context(hub.attach(str(n))) for n in range(MAX_CLIENTS)]
        with pytest.raises(HubFull), hub.attach("one too many"):
            pass
        clients[5].input_ended = True
        with hub.attach("next"):
            assert hub.clients == MAX_CLIENTS
            assert await clients[5].receive() == b""
    assert hub.clients == 0
