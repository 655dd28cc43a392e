# SPDX-License-Identifier: MIT
"""Packets that only lldb sends."""

import pytest

from svsmd.gdbstub.target import ANY_WORLD, ThreadId
from tests.fake_target import BASE, LOOP
from tests.unit.test_gdb_processes import Worlds
from tests.unit.test_gdb_session import Client

HELLO = b"qSupported:xmlRegisters=i386,arm,mips,arc;multiprocess+;fork-events+;vfork-events+"


@pytest.fixture
def client() -> Client:
    return Client(Worlds(), hello=HELLO)


def test_it_knows_no_processes_after_all(client: Client) -> None:
    assert client.ask(b"qC") == b"QCp3.1"
    assert client.ask(b"QThreadSuffixSupported") == b""
    assert client.ask(b"qC") == b"QC1"
    assert client.ask(b"qfThreadInfo") == b"m1,2"
    assert client.ask(b"Hg2") == b"OK"
    assert b"thread:1;" in client.ask(b"?")


def test_what_it_is(client: Client) -> None:
    for packet in (b"qHostInfo", b"qProcessInfo"):
        fields = dict(part.split(b":") for part in client.ask(packet).split(b";") if part)
        assert bytes.fromhex(fields[b"triple"].decode()).startswith(b"x86_64-")
        assert (fields[b"endian"], fields[b"ptrsize"]) == (b"little", b"8")


def test_why_each_thread_stands_still(client: Client) -> None:
    client.ask(b"QThreadSuffixSupported")
    assert client.ask(b"qThreadStopInfo1").startswith(b"T05")
    assert client.ask(b"qThreadStopInfo2") == b"T00thread:2;"
    for packet in (
        b"qThreadStopInfo3",
        b"qThreadStopInfo0",
        b"qThreadStopInfo",
        b"qThreadStopInfo-1",
    ):
        assert client.ask(packet).startswith(b"E")


def test_memory_is_that_of_the_thread_that_stopped(client: Client) -> None:
    read: list[ThreadId] = []
    memory = client.machine.read_memory

    def read_memory(thread: ThreadId, gva: int, length: int) -> bytes:
        read.append(thread)
        return memory(thread, gva, length)

    client.machine.read_memory = read_memory  # type: ignore[method-assign]
    client.ask(b"QThreadSuffixSupported")
    assert client.ask(b"Hg2") == b"OK"
    assert client.ask(b"p10") == LOOP.to_bytes(8, "little").hex().encode()
    assert len(client.ask(b"m%x,2" % BASE)) == 4
    assert read == [ThreadId(ANY_WORLD, 1)]
