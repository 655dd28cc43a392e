# SPDX-License-Identifier: MIT
"""Several debuggers: what a reader may do, how it waits, and how the run control changes hands."""

from collections.abc import Collection, Sequence

import pytest
import trio
import trio.testing

from svsmd.config import MachineConfig
from svsmd.gdbstub import server
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.packets.readers import may_command, may_send
from svsmd.gdbstub.rsp import encode
from svsmd.gdbstub.session import HANDLERS
from svsmd.gdbstub.target import Exited
from svsmd.machine import build_machine
from tests.fake_target import COUNTER, FakeMachine
from tests.unit.test_gdb_server import Bench, Client

READ_COUNTER = b"m%x,8" % COUNTER
TAKEN = b"another debugger has the run control; monitor run-control"
FREE = b"no debugger has the run control; monitor run-control take"
TEXTS = b"qSupported:error-message+"


@pytest.fixture
async def bench(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(server, "REST_SECONDS", 0.02)
    return Bench(nursery)


async def pair(bench: Bench) -> tuple[Client, Client]:
    """The owner, which holds the machine, and a reader."""
    owner, reader = await bench.attach(), await bench.attach()
    assert not bench.is_running()
    return owner, reader


async def send(client: Client, body: bytes) -> None:
    await client.stream.send_all(encode(body))
    await trio.testing.wait_all_tasks_blocked()


async def monitor(client: Client, line: str) -> str:
    reply = await client.ask(b"qRcmd," + line.encode().hex().encode())
    return bytes.fromhex(reply.removeprefix(b"O").decode()).decode()


def console(reply: bytes) -> str:
    assert reply.startswith(b"O"), reply
    return bytes.fromhex(reply[1:].decode()).decode()


# What it may do


def test_every_packet_is_judged() -> None:
    """One that is new has to be put on one of the two sides."""
    changing = {b"G", b"P", b"M", b"X", b"Z", b"s", b"S"}
    arguments = {b"vCont": b"?", b"C": b"05"}
    for name in HANDLERS:
        assert may_send(name, arguments.get(name, b"")) is (name not in changing), name
    assert may_send(b"Qqemu", b".PhyMemMode:1")
    assert not may_send(b"Qqemu", b".sstep=0x1")


@pytest.mark.parametrize("args", [b";c", b";c:p1.-1", b";C05:p1.1;c", b";t"])
def test_a_reader_may_wait(args: bytes) -> None:
    assert may_send(b"vCont", args)


@pytest.mark.parametrize("args", [b";s:1", b";s:1;c", b";r1000,1010:1;c", b";S05", b";c;s:1", b""])
def test_a_reader_may_not_step(args: bytes) -> None:
    assert not may_send(b"vCont", args)
    assert not may_send(b"c", b"1000")
    assert not may_send(b"C", b"05;1000")


def test_every_command_of_the_machine_is_judged() -> None:
    target = MachineTarget(build_machine(MachineConfig(seed=bytes(32), rtc=0)))
    for name in target.monitor_commands:
        assert may_command(name, []) is (name != "uncatch"), name
    assert not may_command("catch", ["vmgexit"])
    assert not may_command("step-irq", ["on"])
    assert not may_command("nothing", [])


async def test_a_reader_looks_while_the_machine_runs(bench: Bench) -> None:
    owner, reader = await pair(bench)
    await send(owner, b"vCont;c")
    first = await reader.ask(READ_COUNTER)
    while await reader.ask(READ_COUNTER) == first:
        pass
    assert len(await reader.ask(b"g")) == 1120
    assert (await reader.ask(b"?")).startswith(b"T05")
    assert bench.is_running()
    assert await owner_hears_of_ctrl_c(owner)


async def owner_hears_of_ctrl_c(owner: Client) -> bool:
    await owner.stream.send_all(b"\x03")
    return (await owner.reply()).startswith(b"T02")


async def test_a_reader_looks_while_the_machine_stands(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert await reader.ask(READ_COUNTER) == await owner.ask(READ_COUNTER)
    assert await reader.ask(b"g") == await owner.ask(b"g")
    assert await owner.ask(b"M2000,1:ff") == b"OK"
    assert await reader.ask(b"m2000,1") == b"ff"


@pytest.mark.parametrize(
    "packet",
    [b"M2000,1:07", b"X2000,1:\x07", b"P0=0000000000000000", b"Z0,1008,1", b"G00", b"Z2,2000,8"],
)
async def test_what_would_change_the_machine_is_refused(bench: Bench, packet: bytes) -> None:
    owner, reader = await pair(bench)
    assert await reader.ask(packet) == b"E0d"
    await reader.ask(TEXTS)
    assert await reader.ask(packet) == b"E." + TAKEN
    await send(owner, b"D")
    assert await reader.ask(packet) == b"E." + FREE
    assert not bench.machine.breakpoints
    assert not bench.machine.watchpoints
    assert bench.is_running()


async def test_a_step_is_refused_in_words(bench: Bench) -> None:
    owner, reader = await pair(bench)
    before = await owner.ask(b"g")
    await send(reader, b"vCont;s:1;c")
    assert console(await reader.reply()) == TAKEN.decode() + "\n"
    assert (await reader.reply()).startswith(b"T00")
    assert await owner.ask(b"g") == before
    assert await monitor(reader, "echo x") == f"echo: {TAKEN.decode()}\n"
    assert "run-control [take [--force] | give]  who may run" in await monitor(reader, "help")


@pytest.mark.parametrize(
    ("packet", "thread"),
    [
        (b"s", 1),
        (b"S05", 1),
        (b"vCont;s:2;c", 2),
        (b"vCont;s:9", 1),
        (b"vCont;r0,9:-1", 1),
        (b"vCont", 1),
    ],
)
async def test_a_step_stops_where_it_is(bench: Bench, packet: bytes, thread: int) -> None:
    """An error would have gdb 13 step again, for ever, if its last stop was at a breakpoint."""
    _, reader = await pair(bench)
    await send(reader, packet)
    assert console(await reader.reply()) == TAKEN.decode() + "\n"
    assert b"thread:%d;" % thread in await reader.reply()


async def test_what_is_chosen_is_a_clients_own(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert await reader.ask(b"Hg2") == b"OK"
    assert await reader.ask(b"Qqemu.PhyMemMode:1") == b"OK"
    assert await owner.ask(b"qC") == b"QC1"
    assert await owner.ask(b"qqemu.PhyMemMode") == b"0"
    assert await reader.ask(b"QPassSignals:34") == b""  # this machine has no events


# How it waits


async def test_a_reader_waits_for_the_owners_next_stop(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert await owner.ask(b"Z0,1008,1") == b"OK"
    await send(reader, b"vCont;c")
    with trio.move_on_after(0.1) as limit:  # it has not moved
        await reader.reply()
    assert limit.cancelled_caught
    hit = await owner.ask(b"vCont;c")
    assert hit.startswith(b"T05")
    assert b"swbreak" not in hit  # which this client has not announced
    assert await reader.reply() == b"T00" + hit[3:]


async def test_a_stop_that_a_reader_has_not_seen_comes_at_once(bench: Bench) -> None:
    owner, reader = await pair(bench)
    stepped = await owner.ask(b"vCont;s:1")
    assert await reader.ask(b"vCont;c") == b"T00" + stepped[3:]
    await send(owner, b"vCont;c")
    await send(reader, b"vCont;c")
    await reader.stream.send_all(b"\x03")
    assert (await reader.reply()).startswith(b"T02")
    await owner.stream.send_all(b"\x03")
    stopped = await owner.reply()
    assert await reader.ask(b"vCont;c") == b"T00" + stopped[3:]


async def test_many_steps_of_the_owner_are_one_stop(bench: Bench) -> None:
    owner, reader = await pair(bench)
    await send(reader, b"c")
    for _ in range(20):
        last = await owner.ask(b"vCont;s:1")
    assert await reader.reply() == b"T00" + last[3:]
    assert await reader.ask(b"qC") == b"QC1"


@pytest.mark.parametrize("how", [b"\x03", encode(b"vCont;t")])
async def test_ctrl_c_ends_the_wait_and_not_the_run(bench: Bench, how: bytes) -> None:
    owner, reader = await pair(bench)
    await send(owner, b"vCont;c")
    for _ in range(2):
        await send(reader, b"vCont;c")
        await reader.stream.send_all(how)
        assert (await reader.reply()).startswith(b"T02")
        await reader.stream.send_all(b"\x03")  # it waits no more
        assert bench.is_running()
    assert await owner_hears_of_ctrl_c(owner)


async def test_a_reader_that_waits_hears_of_the_end(bench: Bench) -> None:
    owner, reader = await pair(bench)
    await send(owner, b"vCont;c")
    await send(reader, b"vCont;c")
    bench.machine.ended = bench.runner.last_stop = Exited(4)
    assert await owner.reply() == b"W04"
    assert await reader.reply() == b"W04"
    assert await reader.ask(b"vCont;c") == b"W04"


async def test_a_reader_that_leaves_changes_nothing(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert await owner.ask(b"Z0,1008,1") == b"OK"
    for last in (b"D", b"k", b"vCont;c"):
        await send(reader, last)
        await reader.stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not bench.is_running()
        assert bench.machine.breakpoints
        assert bench.runner.debuggers == 1
        reader = await bench.attach()
    assert (await owner.ask(b"vCont;c")).startswith(b"T05")


async def test_a_reader_that_reads_nothing_blocks_itself_only(
    bench: Bench, nursery: trio.Nursery
) -> None:
    owner, _ = await pair(bench)
    await send(owner, b"vCont;c")
    ours, theirs = trio.testing.lockstep_stream_pair()
    nursery.start_soon(bench.server.serve_client, theirs)
    await ours.send_all(encode(b"QStartNoAckMode"))

    async def ask_and_never_listen() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await ours.send_all(encode(b"g") * 100)

    nursery.start_soon(ask_and_never_listen)
    other = await bench.attach()
    before = await other.ask(READ_COUNTER)
    await trio.sleep(0.02)
    assert await other.ask(READ_COUNTER) != before
    assert await owner_hears_of_ctrl_c(owner)
    await ours.aclose()


# How the run control changes hands


async def test_who_has_the_run_control(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert await monitor(reader, "run-control") == (
        "the machine stands still\ndebugger 1 has the run control\ndebugger 2 (this one) reads\n"
    )
    await send(owner, b"D")
    assert await monitor(reader, "run-control") == (
        "the machine runs\ndebugger 2 (this one) reads\nnobody has the run control\n"
    )
    for wrong in ("who", "take all", "give 2", "take --force 1"):
        assert (await monitor(reader, f"run-control {wrong}")).startswith("run-control: usage: ")


async def test_a_reader_takes_what_nobody_has(bench: Bench) -> None:
    owner, reader = await pair(bench)
    assert (await monitor(reader, "run-control take")).startswith("run-control: debugger 1 has")
    await send(owner, b"D")
    assert bench.is_running()
    assert "the machine stands still" in await monitor(reader, "run-control take")
    assert not bench.is_running()
    assert await reader.ask(b"Z0,1008,1") == b"OK"
    assert (await reader.ask(b"vCont;c")).startswith(b"T05")
    assert await monitor(reader, "run-control take") == (
        "this debugger has the run control already\n"
    )
    await reader.stream.aclose()
    await bench.wait_until_released()
    assert bench.is_running()
    assert bench.machine.breakpoints == []


async def test_the_owner_gives_the_run_control(bench: Bench) -> None:
    owner, reader = await pair(bench)
    await owner.ask(b"Z0,1008,1")
    assert await monitor(owner, "run-control give") == "this debugger only reads from now on\n"
    assert bench.is_running()
    assert bench.machine.breakpoints == []
    assert await owner.ask(b"M2000,1:07") == b"E0d"
    assert await owner.ask(b"z0,1008,1") == b"OK"
    assert (await monitor(owner, "run-control give")).endswith("has not got it\n")
    assert await (await bench.attach()).ask(b"M2000,1:07") == b"OK"
    assert await reader.ask(b"M2000,1:07") == b"E0d"


async def test_a_machine_that_waits_for_its_start_goes_on_to_wait(nursery: trio.Nursery) -> None:
    bench = Bench(nursery, running=False)
    owner = await bench.attach()
    await monitor(owner, "run-control give")
    assert not bench.is_running()
    await monitor(owner, "run-control take")
    await send(owner, b"vCont;c")
    assert bench.is_running()


async def test_by_force_from_one_that_looks_round(bench: Bench) -> None:
    owner, reader = await pair(bench)
    await owner.ask(b"Z0,1008,1")
    stood = await owner.ask(b"vCont;c")
    await monitor(reader, "run-control take --force")
    assert bench.machine.breakpoints == []
    assert not bench.is_running()
    assert (await reader.ask(b"?")) == stood
    assert await owner.ask(b"m2000,1") != b""
    assert await owner.ask(b"M2000,1:07") == b"E0d"
    await send(owner, b"vCont;c")
    news = console(await owner.reply())
    assert news == "debugger 2 has taken the run control: this one only reads from now on\n"
    assert not bench.is_running()
    await send(reader, b"D")
    assert bench.is_running()
    await owner.stream.send_all(b"\x03")
    assert (await owner.reply()).startswith(b"T02")


@pytest.mark.parametrize("interrupted", [False, True])
async def test_by_force_from_one_that_waits(bench: Bench, interrupted: bool) -> None:
    """Of one that hangs, too: nothing is expected of it."""
    owner, reader = await pair(bench)
    await owner.ask(b"Z0,0,1")
    await send(owner, b"vCont;c")
    await reader.stream.send_all(encode(b"qRcmd,%b" % b"run-control take --force".hex().encode()))
    if interrupted:  # while the take is on its way
        await owner.stream.send_all(b"\x03")
    assert b"this debugger has" in bytes.fromhex((await reader.reply()).decode())
    assert not bench.is_running()
    assert bench.machine.breakpoints == []
    assert console(await owner.reply()).startswith("debugger 2 has taken")
    if interrupted:
        assert (await owner.reply()).startswith(b"T02")
    if not interrupted:
        assert await owner.reply() == b"T00" + (await reader.ask(b"?"))[3:]
    await owner.stream.aclose()
    assert (await reader.ask(b"vCont;s:1")).startswith(b"T05")
    await reader.stream.aclose()
    await bench.wait_until_released()
    assert bench.is_running()


async def test_filters_of_signals_are_those_of_the_owner(nursery: trio.Nursery) -> None:
    class Events(FakeMachine):
        passed: Sequence[int] = ()

        def pass_signals(self, signals: Collection[int]) -> None:
            self.passed = sorted(signals)

        def forget_events(self) -> None:
            self.passed = []

    machine = Events()
    bench = Bench(nursery, machine=machine)
    owner, reader = await bench.attach(), await bench.attach()
    assert await owner.ask(b"QPassSignals:34") == b"OK"
    assert await reader.ask(b"QPassSignals:35;36") == b"OK"
    assert machine.passed == [0x34]
    await monitor(owner, "run-control give")
    assert machine.passed == []
    await monitor(reader, "run-control take")
    assert machine.passed == [0x35, 0x36]
