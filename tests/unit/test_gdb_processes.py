# SPDX-License-Identifier: MIT
"""Packets of clients that know processes, with two fake worlds and a program behind them."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from svsmd.gdbstub.rsp import Decoder, Need, Packet
from svsmd.gdbstub.session import State
from svsmd.gdbstub.target import Exited, Selection, Signal, StopEvent, Stopped, Thread, ThreadId
from tests.fake_target import FakeMachine
from tests.unit.test_gdb_session import Client

HELLO = b"qSupported:multiprocess+;swbreak+"
GUEST, SVSM, PROGRAM = ThreadId(3, 1), ThreadId(1, 1), ThreadId(17, 1)


class Worlds(FakeMachine):
    """Everything executes in the guest's world; the others stand still."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = [GUEST, SVSM, PROGRAM]

    def process_threads(self) -> Sequence[Thread]:
        self._check_stopped()
        return [Thread(id_, f"t{id_.pid}", "here", 0) for id_ in self.ids]

    def name_process(self, event: Stopped) -> Stopped:
        return replace(event, pid=GUEST.pid, tid=1)

    def finish_step(self, thread: ThreadId, event: StopEvent) -> StopEvent | None:
        return event

    def abandon_step(self) -> None:
        pass

    def executable(self, pid: int) -> str | None:
        return {1: "/svsm.elf", 3: "/guest.elf"}.get(pid)

    def read_file(self, name: str) -> bytes | None:
        return {"/svsm.elf": bytes(range(256))}.get(name)


@pytest.fixture
def client() -> Client:
    return Client(Worlds(), hello=HELLO)


def worlds(client: Client) -> Worlds:
    assert isinstance(client.machine, Worlds)
    return client.machine


def test_features(client: Client) -> None:
    features = client.ask(HELLO).split(b";")
    assert {b"multiprocess+", b"qXfer:exec-file:read+"} <= set(features)
    assert b"multiprocess+" not in Client(Worlds()).ask(b"qSupported:swbreak+").split(b";")


def test_extensions_of_gdb_ask_for_features_again(client: Client) -> None:
    client.ask(b"Hgp11.1")
    assert b"multiprocess+" in client.ask(b"qSupported:swbreak+").split(b";")
    assert client.ask(b"qC") == b"QCp11.1"


def test_threads(client: Client) -> None:
    assert client.ask(b"?").endswith(b"thread:p3.1;")
    assert client.ask(b"qC") == b"QCp3.1"
    assert client.ask(b"qfThreadInfo") == b"mp3.1,p1.1,p11.1"
    xml = client.ask(b"qXfer:threads:read::0,1000")
    assert b'<thread id="p11.1" name="t17" core="0">here</thread>' in xml
    for good in (b"p1.1", b"p1.0", b"p1.-1", b"p1", b"0", b"-1", b"p0.0", b"p-1.-1"):
        assert client.ask(b"Hg" + good) == b"OK", good
    for bad in (b"p2.1", b"p1.2", b"1", b"p", b"p1.x", b"p0.1", b"p1.1.1", b"pp1.1"):
        assert client.ask(b"Hg" + bad).startswith(b"E"), bad


def test_breakpoints_belong_to_the_selected_process(client: Client) -> None:
    client.ask(b"Hgp11.1")
    assert client.ask(b"Z0,1000,1") == b"OK"
    client.ask(b"Hgp1.1")
    assert client.ask(b"Z0,1000,1") == b"OK"
    assert {pid for pid, *_ in client.machine.breakpoints} == {17, 1}
    assert client.ask(b"z0,1000,1") == b"OK"
    assert {pid for pid, *_ in client.machine.breakpoints} == {17}


def test_detaching_one_by_one_releases_with_the_last(client: Client) -> None:
    client.ask(b"qfThreadInfo")
    client.ask(b"Hgp11.1")
    client.ask(b"Z0,1000,1")
    assert client.ask(b"D;11") == b"OK"
    assert client.machine.breakpoints == []
    assert client.ask(b"qfThreadInfo") == b"mp3.1,p1.1"
    assert client.ask(b"D;11").startswith(b"E")
    assert client.ask(b"vAttach;11").endswith(b"thread:p11.1;")
    assert client.ask(b"D;11") == b"OK"
    assert client.ask(b"vKill;3") == b"OK"
    assert client.is_in(State.IDLE)
    assert client.ask(b"D;1") == b"OK"
    assert client.is_in(State.DISCONNECTED)


def test_a_new_process_is_in_the_second_list_after_a_stop(client: Client) -> None:
    client.ask(b"qfThreadInfo")
    client.ask(b"Z0,1008,1")
    worlds(client).ids.append(ThreadId(18, 1))
    client.go(b"vCont;c:p3.-1")
    assert client.ask(b"qfThreadInfo") == b"mp3.1,p1.1,p11.1"
    assert client.ask(b"qfThreadInfo") == b"mp3.1,p1.1,p11.1,p12.1"


def test_a_process_that_has_ended_says_so(client: Client) -> None:
    client.ask(b"qfThreadInfo")
    worlds(client).ids.remove(PROGRAM)
    assert b'name="t17">has ended<' in client.ask(b"qXfer:threads:read::0,1000")
    assert client.ask(b"Hgp11.1") == b"OK"
    assert client.ask(b"Z0,1000,1") == b"OK"


def test_a_stop_that_gdb_would_not_show_is_one_of_what_it_resumed(client: Client) -> None:
    """That of the process which it found stopped, and of a thread that has stopped before."""
    client.ask(b"qfThreadInfo")
    client.ask(b"?")
    client.ask(b"Z0,1008,1")
    stop = client.session.stopped
    replies: list[bytes] = []
    client.runner.on_stop = lambda event: replies.append(stop(event))
    assert client.raw(b"$vCont;c:p11.-1#%02x" % (sum(b"vCont;c:p11.-1") & 0xFF)) == b""
    client.runner.slice(100)
    assert b"thread:p11.1;" in replies[0]
    assert replies[0].startswith(b"$O")
    assert client.raw(b"$vCont;c:p3.-1#%02x" % (sum(b"vCont;c:p3.-1") & 0xFF)) == b""
    client.runner.slice(100)
    assert b"thread:p3.1;" in replies[1]
    assert not replies[1].startswith(b"$O")


def test_executables_and_files(client: Client) -> None:
    assert client.ask(b"qXfer:exec-file:read:1:0,100") == b"l/svsm.elf"
    assert client.ask(b"qXfer:exec-file:read:11:0,100") == b"l"
    assert client.ask(b"vFile:setfs:0") == b"F0"
    name = b"/svsm.elf".hex().encode()
    assert client.ask(b"vFile:open:%b,0,0" % name) == b"F3"
    assert client.ask(b"vFile:pread:3,10,f8") == b"F8;" + bytes(range(0xF8, 0x100))
    assert client.ask(b"vFile:pread:3,10,200") == b"F0;"
    stat = client.ask(b"vFile:fstat:3")
    assert stat.startswith(b"F40;")
    assert int.from_bytes(stat[4 + 28 : 4 + 36], "big") == 256
    assert client.ask(b"vFile:close:3") == b"F0"
    for bad, reply in (
        (b"pread:3,1,0", b"F-1,9"), (b"close:3", b"F-1,9"), (b"fstat:zz", b"F-1,16"),
        (b"open:%b,2,0" % name, b"F-1,d"), (b"open:2f,0,0", b"F-1,2"), (b"open:2f", b"F-1,16"),
        (b"pwrite:3,0,x", b""), (b"unlink:2f", b""),
    ):  # fmt: skip
        assert client.ask(b"vFile:" + bad) == reply, bad
    for number in range(16):
        assert client.ask(b"vFile:open:%b,0,0" % name) == b"F%x" % (number + 3)
    assert client.ask(b"vFile:open:%b,0,0" % name) == b"F-1,18"


def test_the_end_of_the_machine_is_one_of_a_process(client: Client) -> None:
    client.ask(b"qfThreadInfo")
    client.machine.ended = Exited(4)
    assert client.go(b"vCont;c:p3.-1") == b"W04;process:3"
    assert client.ask(b"qfThreadInfo") == b"mp1.1,p11.1"


def test_a_step_alone_is_told_to_the_machine(client: Client) -> None:
    alone: list[bool] = []
    step = client.machine.step

    def note(thread: ThreadId, **options: bool) -> StopEvent | None:
        alone.append(options["alone"])
        return replace(step(thread), pid=thread.pid)  # type: ignore[type-var]

    client.machine.step = note  # type: ignore[method-assign]
    for packet in (b"vCont;s:p3.1", b"vCont;s:p3.1;c:p3.-1", b"vCont;r1000,1008:p3.1;c"):
        assert b"thread:p3.1;" in client.ask(packet)
    assert alone == [True, False, False]


def test_a_step_that_needs_others_is_reported_when_it_is_done(client: Client) -> None:
    machine = worlds(client)
    machine.step = lambda thread, *, alone=False: None  # type: ignore[method-assign]
    finished: list[ThreadId] = []

    def finish(thread: ThreadId, event: StopEvent) -> StopEvent | None:
        finished.append(thread)
        return None if len(finished) == 1 else Stopped(1, pid=17)

    machine.finish_step = finish  # type: ignore[method-assign]
    client.ask(b"Z0,1008,1")
    assert client.raw(b"$vCont;s:p11.1;c#%02x" % (sum(b"vCont;s:p11.1;c") & 0xFF)) == b""
    client.runner.slice(100)
    assert client.stop_replies.pop() == b""
    assert client.is_in(State.RUNNING)
    client.runner.slice(100)
    assert b"thread:p11.1;" in client.stop_replies.pop()
    assert finished == [PROGRAM, PROGRAM]


def test_an_event_where_the_client_shows_no_stop_keeps_its_words(client: Client) -> None:
    """gdb 13 shows no stop in the process that it found stopped and has not resumed."""
    client.ask(b"?")
    assert client.go(b"vCont;c:p11.-1", 3) is None
    client.machine.in_slice = False
    replies = client.session.stopped(Stopped(1, Signal.SIG43, words="RMPADJUST of a page"))
    decoder = Decoder()
    decoder.receive_data(replies)
    bodies = []
    while (event := decoder.next_event()) is not Need.DATA:
        assert isinstance(event, Packet)
        bodies.append(bytes(event.body))
    *printed, reply = bodies
    said = [bytes.fromhex(body[1:].decode()).decode() for body in printed]
    assert said[0].startswith("stopped in thread 1 of process 3, which was not resumed")
    assert said[1:] == ["RMPADJUST of a page\n"]
    assert reply.startswith(b"T37")
    assert reply.endswith(b"thread:p11.1;")


def test_what_monitor_commands_are_about() -> None:
    """The thread that the user of gdb looks at, which `Hg` alone does not say."""

    class Selecting(Worlds):
        selected: ThreadId | None = GUEST

        def select(self, selection: Selection) -> None:
            self.selected = selection.thread

    machine = Selecting()
    client = Client(machine, hello=HELLO)

    def looked_at() -> ThreadId | None:
        client.ask(b"qRcmd," + b"echo".hex().encode())
        return machine.selected

    client.ask(b"?")
    assert looked_at() == GUEST
    client.ask(b"Hgp1.1")
    assert looked_at() == SVSM
    assert client.ask(b"qSymbol::") == b""
    assert looked_at() == GUEST
    client.ask(b"Hgp11.1")
    assert looked_at() == PROGRAM
    assert client.ask(b"Tp1.1") == b"OK"
    assert looked_at() == SVSM
    assert client.ask(b"Tp2.1").startswith(b"E")
    assert looked_at() == SVSM
    client.ask(b"vCont;s:p3.1")
    assert looked_at() == GUEST
