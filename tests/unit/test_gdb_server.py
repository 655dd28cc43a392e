# SPDX-License-Identifier: MIT
"""The trio shell of the gdb stub: who gets the machine, and what ends a connection."""

import pytest
import trio
import trio.testing

from svsmd.gdbstub import eager_stream, server
from svsmd.gdbstub.eager_stream import EagerSocketStream
from svsmd.gdbstub.rsp import MAX_NOISE, MAX_PACKET, Ack, Decoder, Event, Need, Packet, encode
from svsmd.gdbstub.server import MAX_DEBUGGERS, GdbServer
from svsmd.gdbstub.target import Exited, Preparing
from tests.fake_target import COUNTER, INC, FakeMachine, FakeRunner


class Client:
    """One end of a connection in no-ack mode."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = Decoder()

    async def next_event(self) -> Event:
        while isinstance(event := self._decoder.next_event(), Need):
            self._decoder.receive_data(await self.stream.receive_some(1 << 20))
        return event

    async def reply(self) -> bytes:
        while not isinstance(event := await self.next_event(), Packet):
            pass
        return event.body

    async def ask(self, body: bytes) -> bytes:
        await self.stream.send_all(encode(body))
        return await self.reply()


class Bench:
    """A machine that runs, a server for it, and any number of clients."""

    def __init__(
        self, nursery: trio.Nursery, *, running: bool = True, machine: FakeMachine | None = None
    ) -> None:
        self.nursery = nursery
        self.machine = machine or FakeMachine()
        self.runner = FakeRunner(self.machine, running=running)
        self.server = GdbServer(self.machine, self.runner)
        nursery.start_soon(self.runner.run)

    async def connect(self) -> Client:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.server.serve_client, theirs)
        return Client(ours)

    async def attach(self) -> Client:
        client = await self.connect()
        assert await client.ask(b"QStartNoAckMode") == b"OK"
        return client

    def is_running(self) -> bool:
        return self.runner.running

    async def wait_until_released(self) -> None:
        with trio.fail_after(5):
            while self.runner.on_stop is not None:
                await trio.lowlevel.checkpoint()


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


async def test_attaching_stops_the_machine_and_detaching_releases_it(bench: Bench) -> None:
    client = await bench.attach()
    assert not bench.is_running()
    assert (await client.ask(b"?")).startswith(b"T05")
    before = await client.ask(b"m%x,8" % COUNTER)
    assert before == await client.ask(b"m%x,8" % COUNTER)
    assert await client.ask(b"D") == b"OK"
    await bench.wait_until_released()
    assert bench.is_running()
    assert await client.stream.receive_some(1) == b""

    again = await bench.attach()
    assert await again.ask(b"m%x,8" % COUNTER) != before


async def test_stop_replies_and_interruption(bench: Bench) -> None:
    client = await bench.attach()
    assert await client.ask(b"Z0,1008,1") == b"OK"
    for _ in range(3):
        reply = await client.ask(b"vCont;c")
        assert b"10:%b" % INC.to_bytes(8, "little").hex().encode() in reply
    assert await client.ask(b"z0,1008,1") == b"OK"
    await client.stream.send_all(encode(b"vCont;c"))
    await client.stream.send_all(b"\x03")
    assert (await client.reply()).startswith(b"T02")


async def test_who_says_nothing_stops_nothing(bench: Bench) -> None:
    silent = await bench.connect()
    await silent.stream.send_all(b"+\x03 GET / HTTP/1.1\r\n")
    await trio.testing.wait_all_tasks_blocked()
    assert bench.is_running()
    client = await bench.attach()
    assert not bench.is_running()
    await silent.stream.aclose()
    assert await client.ask(b"qC") == b"QC1"


async def test_a_second_client_gets_the_place_of_one_that_goes(bench: Bench) -> None:
    first = await bench.attach()
    second = await bench.connect()
    await second.stream.send_all(encode(b"qC"))
    await trio.testing.wait_all_tasks_blocked()
    await first.stream.send_all(b"$D#44")
    assert await second.reply() == b"QC1"
    assert await second.ask(b"M2000,1:07") == b"OK"


async def test_a_client_too_many_is_refused(bench: Bench) -> None:
    clients = [await bench.attach() for _ in range(MAX_DEBUGGERS)]
    assert bench.runner.debuggers == MAX_DEBUGGERS
    late = await bench.connect()
    assert await late.ask(b"qSupported") == b"E.16 debuggers are attached already"
    assert await late.stream.receive_some(1) == b""
    await clients[-1].stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    await bench.attach()


async def test_connections_that_say_nothing_have_a_bound(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench(nursery, running=False)
    silent = [await bench.connect() for _ in range(server.MAX_SILENT)]
    await trio.testing.wait_all_tasks_blocked()
    late = await bench.connect()
    assert await late.ask(b"qSupported") == b"E.64 connections say nothing already"
    assert await (await bench.connect()).stream.receive_some(1) == b""  # in time
    await silent[0].stream.aclose()
    await bench.attach()


@pytest.mark.parametrize("noise", [b"\0" * MAX_NOISE, b"$" + b"m" * MAX_PACKET])
async def test_noise_ends_its_connection_and_nothing_else(bench: Bench, noise: bytes) -> None:
    client = await bench.attach()
    await client.ask(b"Z0,1008,1")
    await client.stream.send_all(noise)
    assert await client.stream.receive_some(1) == b""
    await bench.wait_until_released()
    assert bench.machine.breakpoints == []
    assert bench.is_running()
    assert await (await bench.attach()).ask(b"qC") == b"QC1"


async def test_a_client_lost_while_the_machine_runs(bench: Bench) -> None:
    client = await bench.attach()
    await client.ask(b"Z0,0,1")
    await client.stream.send_all(encode(b"vCont;c"))
    await client.stream.aclose()
    await bench.wait_until_released()
    assert bench.machine.breakpoints == []
    assert bench.is_running()


class SlowFiles(FakeMachine):
    """A file that takes three seconds."""

    made = False

    def executable(self, pid: int) -> str | None:
        return None

    def read_file(self, name: str) -> bytes | None:
        if not self.made:
            raise Preparing(self._prepare)
        return b"contents"

    async def _prepare(self) -> None:
        await trio.sleep(3.5)
        self.made = True


OPEN = b"vFile:open:2f66,0,0"


async def test_a_client_that_waits_for_a_file_hears_something_meanwhile(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench(nursery, running=False, machine=SlowFiles())
    client = await bench.attach()
    begun = trio.current_time()
    await client.stream.send_all(encode(OPEN))
    events = []
    while not isinstance(event := await client.next_event(), Packet):
        events.append((event, trio.current_time() - begun))
    assert event.body == b"F3"
    assert events == [(Ack(), second) for second in (1, 2, 3)]
    assert trio.current_time() - begun == 3.5
    assert await client.ask(b"vFile:pread:3,100,0") == b"F8;contents"


async def test_a_client_that_does_not_wait_for_its_file(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench(nursery, running=False, machine=SlowFiles())
    client = await bench.attach()
    await client.stream.send_all(encode(OPEN))
    await trio.sleep(0.5)
    await client.stream.aclose()
    await trio.sleep(0.1)
    assert bench.runner.on_stop is None
    client = await bench.attach()
    assert await client.ask(OPEN) == b"F3"


async def test_what_is_said_while_a_file_is_made_is_answered(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bench = Bench(nursery, running=False, machine=SlowFiles())
    client = await bench.attach()
    await client.stream.send_all(encode(OPEN))
    await trio.sleep(1.5)
    await client.stream.send_all(b"\x03" + encode(b"qC"))
    assert await client.reply() == b"F3"
    assert await client.reply() == b"QC1"


async def test_the_end_of_the_machine_is_reported(bench: Bench) -> None:
    client = await bench.attach()
    await client.stream.send_all(encode(b"vCont;c"))
    bench.machine.ended = Exited(4)
    assert await client.reply() == b"W04"


async def test_a_machine_that_waits_for_a_debugger_is_not_started_by_leaving(
    nursery: trio.Nursery,
) -> None:
    bench = Bench(nursery, running=False)
    client = await bench.attach()
    await client.stream.aclose()
    await bench.wait_until_released()
    assert not bench.is_running()


# The stream


@pytest.fixture
async def sockets() -> tuple[EagerSocketStream, trio.SocketStream]:
    ours, theirs = trio.socket.socketpair()
    return EagerSocketStream(trio.SocketStream(ours)), trio.SocketStream(theirs)


async def test_eager_stream(
    sockets: tuple[EagerSocketStream, trio.SocketStream], nursery: trio.Nursery
) -> None:
    ours, theirs = sockets
    data = bytes(1 << 22)  # more than the kernel takes at once
    nursery.start_soon(ours.send_all, data)
    received = bytearray()
    while len(received) < len(data):
        received += await theirs.receive_some()
    assert received == data
    await theirs.send_all(b"abc")
    assert await ours.receive_some(2) == b"ab"
    assert await ours.receive_some() == b"c"
    await theirs.aclose()
    assert await ours.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"x")
    await ours.aclose()
    await ours.aclose()


async def test_closing_an_eager_stream_wakes_its_reader(
    sockets: tuple[EagerSocketStream, trio.SocketStream], nursery: trio.Nursery
) -> None:
    ours, theirs = sockets
    ended = trio.Event()

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.receive_some()
        ended.set()

    nursery.start_soon(read)
    await trio.testing.wait_all_tasks_blocked()
    await ours.aclose()
    await ended.wait()
    await theirs.aclose()


async def test_an_eager_stream_gives_way_to_other_tasks(
    sockets: tuple[EagerSocketStream, trio.SocketStream],
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = sockets
    monkeypatch.setattr(eager_stream, "MAX_UNINTERRUPTED_SECONDS", 0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    nursery.start_soon(count)
    await theirs.send_all(b"x" * 100)
    for _ in range(100):
        await ours.receive_some(1)
    assert turns >= 100
    await ours.aclose()
    await theirs.aclose()
