# SPDX-License-Identifier: MIT
"""Processes that lie elsewhere than where they were linked, and files that take time to make."""

import struct

import pytest

from svsmd.gdbstub.rsp import encode
from svsmd.gdbstub.session import Session, State
from svsmd.gdbstub.target import Preparing, Relocation, Stopped, StopReason
from tests.unit.test_gdb_processes import GUEST, HELLO, SVSM, Worlds
from tests.unit.test_gdb_session import Client

LINKED, ACTUAL = 0xFFFF_FFFF_8100_0000, 0xFFFF_FFFF_9AE0_0000
EXEC_HELLO = HELLO + b";exec-events+"
OPEN = b"vFile:open:" + b"/guest.elf".hex().encode() + b",0,0"


class MovingWorlds(Worlds):
    """The guest's kernel may move, and its file is made when it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.place: Relocation | None = None
        self.reported: list[bool] = []
        self.file: bytes | None = None
        self.stopped = Stopped(1, pid=GUEST.pid)

    def relocation(self, pid: int) -> Relocation | None:
        self._check_stopped()
        return self.place if pid == GUEST.pid else None

    def report_moves(self, on: bool) -> None:
        self.reported.append(on)

    def name_process(self, event: Stopped) -> Stopped:
        return self.stopped

    def read_file(self, name: str) -> bytes | None:
        if name == "/guest.elf" and self.file is None:
            raise Preparing(self.prepare)
        return self.file

    async def prepare(self) -> None:
        self.file = b"made"


@pytest.fixture
def machine() -> MovingWorlds:
    return MovingWorlds()


@pytest.fixture
def client(machine: MovingWorlds) -> Client:
    return Client(machine, hello=EXEC_HELLO)


def test_features(client: Client, machine: MovingWorlds) -> None:
    assert {b"exec-events+", b"qXfer:auxv:read+"} <= set(client.ask(EXEC_HELLO).split(b";"))
    assert machine.reported == [True, True]
    other = MovingWorlds()
    for hello in (HELLO, b"qSupported:exec-events+"):
        assert b"exec-events+" not in Client(other).ask(hello).split(b";")
    assert other.reported == []
    assert b"qXfer:auxv:read+" not in Client(Worlds()).ask(EXEC_HELLO).split(b";")


def test_moves_are_not_reported_any_more_when_it_has_gone(
    client: Client, machine: MovingWorlds
) -> None:
    client.session.close()
    assert machine.reported == [True, False]


def test_exec(client: Client, machine: MovingWorlds) -> None:
    assert client.ask(b"Hgp3.1") == b"OK"
    assert client.raw(encode(b"vCont;c")) == b""
    machine.stopped = Stopped(1, reason=StopReason.EXEC, pid=GUEST.pid, file="/guest.elf")
    client.runner.interrupt()
    client.runner.slice()
    (reply,) = client.stop_replies
    assert reply.startswith(b"$T05")
    assert b"thread:p3.1;exec:" + b"/guest.elf".hex().encode() + b";" in reply


def test_offsets(client: Client, machine: MovingWorlds) -> None:
    client.ask(b"Hgp3.1")
    assert client.ask(b"qOffsets") == b""
    machine.place = Relocation(LINKED, LINKED)
    assert client.ask(b"qOffsets") == b""
    machine.place = Relocation(LINKED, ACTUAL)
    assert client.ask(b"qOffsets") == b"TextSeg=ffffffff9ae00000"
    client.ask(b"Hgp1.1")
    assert client.ask(b"qOffsets") == b""
    assert Client(machine).ask(b"qOffsets") == b""
    assert Client(Worlds(), hello=HELLO).ask(b"qOffsets") == b""


def test_auxiliary_vector(client: Client, machine: MovingWorlds) -> None:
    """It is the guest's, whatever process is selected."""
    assert client.ask(b"qXfer:auxv:read::0,1000") == b"l"
    machine.place = Relocation(LINKED, ACTUAL)
    vector = struct.pack("<4Q", 9, ACTUAL, 0, 0)
    for thread in (b"p3.1", b"p1.1"):
        client.ask(b"Hg" + thread)
        assert client.ask(b"qXfer:auxv:read::0,1000") == b"l" + vector
    assert client.ask(b"qXfer:auxv:read::8,8") == b"m" + vector[8:16]
    assert Client(machine).ask(b"qXfer:auxv:read::0,1000") == b"l"
    assert Client(Worlds(), hello=HELLO).ask(b"qXfer:auxv:read::0,1000") == b"l"


def test_who_attaches_finds_the_one_that_has_moved(client: Client, machine: MovingWorlds) -> None:
    machine.stopped = Stopped(1, pid=SVSM.pid)
    assert client.ask(b"?").endswith(b"thread:p1.1;")
    machine.place = Relocation(LINKED, LINKED)
    assert client.ask(b"?").endswith(b"thread:p1.1;")
    machine.place = Relocation(LINKED, ACTUAL)
    assert client.ask(b"?").endswith(b"thread:p3.1;")
    assert client.ask(b"qC") == b"QCp3.1"


def test_a_stop_with_a_reason_stays_where_it_was(client: Client, machine: MovingWorlds) -> None:
    machine.place = Relocation(LINKED, ACTUAL)
    breakpoint_ = Stopped(1, reason=StopReason.SWBREAK, pid=SVSM.pid)
    session = Session(machine, client.runner, breakpoint_, was_running=False)
    session.receive_data(encode(EXEC_HELLO) + encode(b"?"))
    replies = b"".join(iter(session.next_reply, None))
    assert b"thread:p1.1;swbreak:;" in replies


async def test_a_file_that_is_made(client: Client, machine: MovingWorlds) -> None:
    # Whatever follows waits for it.
    assert client.raw(encode(OPEN) + encode(b"qC")) == b""
    assert client.raw(encode(b"qAttached")) == b""
    prepare = client.session.prepare
    assert prepare is not None
    await prepare()
    client.session.prepared()
    assert client.session.prepare is None
    replies = b"".join(iter(client.session.next_reply, None))
    assert replies == encode(b"F3") + encode(b"QCp3.1") + encode(b"1")
    assert client.ask(b"vFile:pread:3,10,0") == b"F4;made"
    assert client.ask(OPEN) == b"F4"


def test_leaving_while_it_is_made(client: Client) -> None:
    assert client.raw(encode(OPEN)) == b""
    client.session.receive_data(b"")
    assert client.session.next_reply() is None
    client.session.close()
    assert client.session.state is State.DISCONNECTED
    client.session.prepared()
    assert client.session.next_reply() is None
