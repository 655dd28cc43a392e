# SPDX-License-Identifier: MIT
"""IPC as programs see it: channels, calls, events, shared memory, services."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from svsmd.core.gate import Effect
from svsmd.core.ipc.channel import END_PAGES, QUEUE_MESSAGES
from svsmd.core.ipc.event import EVENT_PAGES
from svsmd.core.ipc.messages import MESSAGE_MAX
from svsmd.core.ipc.objects import POLL, Ready
from svsmd.core.ipc.services import BACKLOG
from svsmd.core.tasks.errno import Errno
from svsmd.snp.types import PAGE_SIZE
from tests.python_programs import PythonProgram, PythonSystem

Steps = Generator[Effect, int, None]
SHARED, READ, WRITE, EXECUTE = 1, 1, 2, 4
PRIVATE_ZEROS = 0x22


@pytest.fixture
def system() -> PythonSystem:
    return PythonSystem()


def run(system: PythonSystem, *programs: PythonProgram) -> None:
    system.run()
    assert all(program.ended for program in programs), "somebody still waits"
    system.check_nothing_is_left()


def register(p: PythonProgram, name: bytes = b"test") -> Generator[Effect, int, int]:
    return (yield from p.call("svsm_service_register", p.put(name + b"\0")))


def connect(p: PythonProgram, deadline: int = 0) -> Generator[Effect, int, int]:
    return (yield from p.call("svsm_service_connect", p.put(b"test\0"), deadline))


def accept(p: PythonProgram) -> Generator[Effect, int, int]:
    service = yield from register(p)
    return (yield from p.call("svsm_service_accept", service, 0))


def test_a_machine_that_is_thrown_away_closes_calls_without_a_word(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        a, _ = yield from p.channel()
        yield from p.call("svsm_call", a, p.message(b"x"), p.room(), 0)

    program = system.start(code)
    system.run()
    assert not program.ended
    program.task.body.close()


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1024, 1025, MESSAGE_MAX])
def test_messages_arrive_in_order(system: PythonSystem, size: int) -> None:
    def code(p: PythonProgram) -> Steps:
        a, b = yield from p.channel()
        for n in range(3):
            assert (yield from p.call("svsm_send", a, p.message(bytes([n]) * size), 0)) == 0
        for n in range(3):
            room = p.room()
            assert (yield from p.call("svsm_receive", b, room, 0)) == size
            assert p.received(room) == (bytes([n]) * size, (), 0)

    run(system, system.start(code))


def test_the_bounds_of_a_queue(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        a, _ = yield from p.channel()
        for _ in range(QUEUE_MESSAGES):
            assert (yield from p.call("svsm_send", a, p.message(b"x"), 0)) == 0
        assert (yield from p.call("svsm_send", a, p.message(b"x"), POLL)) == -Errno.EAGAIN
        a, b = yield from p.channel()
        page = p.message(bytes(MESSAGE_MAX))
        for _ in range(4):
            assert (yield from p.call("svsm_send", a, page, 0)) == 0
        assert (yield from p.call("svsm_send", a, p.message(b"x"), POLL)) == -Errno.EAGAIN
        assert (yield from p.call("svsm_send", a, p.message(b""), POLL)) == 0
        assert (yield from p.call("svsm_receive", b, p.room(), 0)) == MESSAGE_MAX
        assert (yield from p.call("svsm_send", a, p.message(b"x"), POLL)) == 0

    run(system, system.start(code))


def test_a_channel_is_paid_for_by_its_maker(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        p.put(b"x")
        made = 0
        while (yield from p.call("svsm_channel_create", p.put(b"", 8))) == 0:
            made += 1
        assert made == (p.quota.limit - p.quota.used % (2 * END_PAGES)) // (2 * END_PAGES)
        assert (yield from p.call("svsm_channel_create", p.put(b"", 8))) == -Errno.ENOMEM
        assert (yield from p.call("close", 0)) == 0
        assert (yield from p.call("close", 1)) == 0
        assert (yield from p.call("svsm_channel_create", p.put(b"", 8))) == 0

    run(system, system.start(code, pages=65))


def test_what_it_has_made_counts_besides_what_it_touches(system: PythonSystem) -> None:
    quotas = []

    def code(p: PythonProgram) -> Steps:
        quotas.append(p.quota)
        p.put(b"x")
        before = p.quota.used
        channel = yield from p.channel()
        made = before + 2 * END_PAGES
        assert p.quota.used == made
        where = yield from p.call("mmap", 0, PAGE_SIZE, READ | WRITE, PRIVATE_ZEROS, -1, 0)
        p.space.write(p.cpu, where, b"x")
        used = p.quota.used
        assert used > made, "a page, and perhaps tables"
        for end in channel:
            yield from p.call("close", end)
        assert p.quota.used == used - 2 * END_PAGES
        yield from p.call("munmap", where, PAGE_SIZE)
        assert p.quota.used == before

    run(system, system.start(code))
    assert quotas[0].used == 0


def test_who_has_ended_pays_as_long_as_what_he_has_made_lives(system: PythonSystem) -> None:
    used = []

    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        room = p.room()
        assert (yield from p.call("svsm_receive", channel, room, 0)) == 0
        yield from p.wait([(channel, Ready.CLOSED)])
        used.append(made_by.quota.used)
        yield from p.call("close", p.received(room)[1][0])
        used.append(made_by.quota.used)
        yield from p.call("close", channel)
        used.append(made_by.quota.used)

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        event = yield from p.call("svsm_event_create", 0)
        assert (yield from p.call("svsm_send", channel, p.message(b"", (event,)), 0)) == 0

    made_by = system.client(client)
    run(system, made_by, system.server(server))
    assert used == [END_PAGES + EVENT_PAGES, END_PAGES, 0]


def test_what_does_not_fit_stays(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        a, b = yield from p.channel()
        event = yield from p.call("svsm_event_create", 0)
        assert (yield from p.call("svsm_send", a, p.message(b"12345", (event,)), 0)) == 0
        for nbytes, handles in ((4, 4), (5, 0)):
            room = p.room(nbytes, handles)
            assert (yield from p.call("svsm_receive", b, room, 0)) == -Errno.EMSGSIZE
        events = []
        while (handle := (yield from p.call("svsm_event_create", 0))) >= 0:
            events.append(handle)
        assert handle == -Errno.EMFILE
        assert (yield from p.call("svsm_receive", b, p.room(), 0)) == -Errno.EMFILE
        yield from p.call("close", events[0])
        room = p.room(5, 1)
        assert (yield from p.call("svsm_receive", b, room, 0)) == 5
        assert p.received(room) == (b"12345", (events[0],), 0)

    run(system, system.start(code))


def test_bad_arguments(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        a, b = yield from p.channel()
        event = yield from p.call("svsm_event_create", 0)
        service = yield from register(p)
        empty = p.message()
        for handle in (event, service, 60, -1, 1 << 40):
            assert (yield from p.call("svsm_send", handle, empty, 0)) == -Errno.EBADF
        for where in (0, 0x1000, 1 << 46, -8 & (1 << 64) - 1):
            assert (yield from p.call("svsm_send", a, where, 0)) == -Errno.EFAULT
            assert (yield from p.call("svsm_receive", a, where, 0)) == -Errno.EFAULT
            assert (yield from p.call("svsm_call", a, empty, where, 0)) == -Errno.EFAULT
            assert (yield from p.call("svsm_channel_create", where)) == -Errno.EFAULT
            assert (yield from p.call("svsm_wait_many", where, 1, 0)) == -Errno.EFAULT
            assert (yield from p.call("svsm_service_register", where)) == -Errno.EFAULT
        for raw, errno in (
            (b"\x2f", Errno.EINVAL),  # the size of the structure
            (b"\x30\0\0\0\1\x10", Errno.EMSGSIZE),
            (b"\x30\0\0\0\1", Errno.EFAULT),
        ):
            assert (yield from p.call("svsm_send", a, p.put(raw.ljust(48, b"\0")), 0)) == -errno
        for handles, errno in (
            ((a,), Errno.EINVAL),
            ((b,), Errno.ELOOP),
            ((service,), Errno.EINVAL),
            ((event, event), Errno.EINVAL),
            ((event, 63), Errno.EBADF),
        ):
            message = p.message(b"", handles)
            assert (yield from p.call("svsm_send", a, message, 0)) == -errno
        assert (yield from p.call("svsm_duplicate", a)) == -Errno.EINVAL
        assert (yield from p.call("svsm_event_signal", a)) == -Errno.EBADF
        assert (yield from p.wait([(event, 16)]))[0] == -Errno.EINVAL
        assert (yield from p.call("svsm_wait_many", empty, 0, 0)) == -Errno.EINVAL
        assert (yield from p.call("svsm_wait_many", empty, 17, 0)) == -Errno.EINVAL
        assert (yield from register(p)) == -Errno.EEXIST
        assert (yield from register(p, b"")) == -Errno.EINVAL
        assert (yield from register(p, b"\xff")) == -Errno.EINVAL
        assert (yield from register(p, b"x" * 32)) == -Errno.ENAMETOOLONG

    run(system, system.server(code))


def test_a_call_and_its_answer(system: PythonSystem) -> None:
    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        request = p.room()
        result = yield from p.call("svsm_receive", channel, request, 0)
        while result >= 0:
            data, handles, token = p.received(request)
            assert token
            reply = p.message(data[::-1], handles, token)
            request = p.room()
            result = yield from p.call("svsm_reply_receive", channel, reply, request, 0)
            assert (yield from p.call("svsm_reply", channel, reply)) in (
                -Errno.ECANCELED,
                -Errno.EPIPE,
                -Errno.EBADF,
            )
        assert result == -Errno.EPIPE

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        for n in range(5):
            event = yield from p.call("svsm_event_create", 0)
            reply = p.room()
            text = b"question %d" % n
            message = p.message(text, (event,))
            assert (yield from p.call("svsm_call", channel, message, reply, 0)) == len(text)
            data, handles, _ = p.received(reply)
            assert data == text[::-1]
            assert (yield from p.call("svsm_event_signal", handles[0])) == 0
        # An answer without room for it is lost, its handles with it.
        event = yield from p.call("svsm_event_create", 0)
        reply = p.room(4096, 0)
        message = p.message(b"", (event,))
        assert (yield from p.call("svsm_call", channel, message, reply, 0)) == -Errno.EMSGSIZE

    run(system, system.server(server), system.client(client))


def test_a_call_that_nobody_answers_in_time(system: PythonSystem) -> None:
    results = []

    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        request = p.room()
        assert (yield from p.call("svsm_receive", channel, request, 0)) == 1
        token = p.received(request)[2]
        second = p.room()
        assert (yield from p.call("svsm_receive", channel, second, 0)) == 1
        for old in (token, 77, 0):
            late = p.message(b"late", (), old)
            results.append((yield from p.call("svsm_reply", channel, late)))
        reply = p.message(b"yes", (), p.received(second)[2])
        assert (yield from p.call("svsm_reply", channel, reply)) == 0

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        deadline = p.cpu.port.rdtsc() + 10**6
        message, reply = p.message(b"?"), p.room()
        results.append((yield from p.call("svsm_call", channel, message, reply, deadline)))
        assert (yield from p.call("svsm_call", channel, p.message(b"!"), reply, 0)) == 3

    programs = system.server(server), system.client(client)
    system.run()
    assert results == []
    system.pass_time(10**6)
    run(system, *programs)
    assert results == [-Errno.ETIMEDOUT] + 3 * [-Errno.ECANCELED]


@pytest.mark.parametrize("receives", [False, True])
def test_a_server_that_dies_ends_the_call(system: PythonSystem, receives: bool) -> None:
    results = []

    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        if receives:
            yield from p.call("svsm_receive", channel, p.room(), 0)
        yield from p.call("svsm_receive", channel, p.room(0), p.cpu.port.rdtsc() + 1000)

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        for _ in range(2):
            message = p.message(b"?")
            results.append((yield from p.call("svsm_call", channel, message, p.room(), 0)))

    programs = system.server(server), system.client(client)
    system.run()
    system.pass_time(2000)
    run(system, *programs)
    assert results == [-Errno.ECANCELED, -Errno.EPIPE]


def test_a_full_queue_blocks_until_it_is_read(system: PythonSystem) -> None:
    got = []

    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        for _ in range(100):
            room = p.room()
            assert (yield from p.call("svsm_receive", channel, room, 0)) == 4
            got.append(int.from_bytes(p.received(room)[0], "little"))

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        for n in range(100):
            message = p.message(n.to_bytes(4, "little"))
            assert (yield from p.call("svsm_send", channel, message, 0)) == 0

    run(system, system.client(client), system.server(server))
    assert got == list(range(100))


def test_a_handle_never_waits_for_itself(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        a, b = yield from p.channel()
        c, d = yield from p.channel()
        e, f = yield from p.channel()
        assert (yield from p.call("svsm_send", c, p.message(b"", (b,)), 0)) == 0  # b waits at d
        assert (yield from p.call("svsm_send", e, p.message(b"", (d,)), 0)) == 0  # d waits at f
        # f would wait at b, which waits at d, which waits at f.
        assert (yield from p.call("svsm_send", a, p.message(b"", (f,)), 0)) == -Errno.ELOOP
        room = p.room()
        assert (yield from p.call("svsm_receive", f, room, 0)) == 0
        assert (yield from p.call("svsm_send", a, p.message(b"", (f,)), 0)) == 0

    run(system, system.start(code))


def test_a_long_chain_of_channels_ends(system: PythonSystem) -> None:
    """As long as a quota allows, and longer than Python's stack is deep."""

    def code(p: PythonProgram) -> Steps:
        a, b = yield from p.channel()
        for _ in range(1500):
            c, d = yield from p.channel()
            assert (yield from p.call("svsm_send", c, p.message(b"", (b,)), 0)) == 0
            assert (yield from p.call("close", a)) == 0
            a, b = c, d

    run(system, system.start(code, pages=20_000))


def test_waiting_for_several(system: PythonSystem) -> None:
    def server(p: PythonProgram) -> Steps:
        service = yield from register(p)
        first = yield from p.call("svsm_event_create", 0)
        assert (yield from p.wait([(service, 1), (first, 4)], POLL))[0] == -Errno.EAGAIN
        assert (yield from p.wait([(service, Ready.READABLE), (first, 4)])) == (1, [1, 0])
        channel = yield from p.call("svsm_service_accept", service, POLL)
        wanted = Ready.READABLE | Ready.WRITABLE
        assert (yield from p.wait([(channel, wanted), (first, 4)])) == (1, [3, 0])
        assert (yield from p.wait([(channel, 1), (first, 4)])) == (1, [1, 0])
        yield from p.call("svsm_receive", channel, p.room(), 0)
        yield from p.call("svsm_event_signal", first)
        assert (yield from p.wait([(channel, 1), (first, 4)])) == (1, [0, 4])
        yield from p.call("svsm_event_clear", first)
        assert (yield from p.wait([(channel, 0), (first, 4)])) == (1, [8, 0])
        deadline = p.cpu.port.rdtsc() + 100
        assert (yield from p.wait([(first, 4)], deadline))[0] == -Errno.ETIMEDOUT

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        yield from p.call("svsm_send", channel, p.message(b"x"), 0)
        yield from p.call("nanosleep", p.put((0).to_bytes(8) + (100).to_bytes(8, "little")), 0)

    programs = system.server(server), system.client(client)
    system.run()
    system.pass_time(10_000)
    system.pass_time(10_000)
    run(system, *programs)


def test_shared_memory(system: PythonSystem) -> None:
    def server(p: PythonProgram) -> Steps:
        channel = yield from accept(p)
        room = p.room()
        yield from p.call("svsm_receive", channel, room, 0)
        (memory,) = p.received(room)[1]
        where = yield from p.call("mmap", 0, 8192, READ | WRITE, SHARED, memory, 0)
        assert p.get(where + 5000, 4) == b"seen"
        p.space.write(p.cpu, where, b"answer")
        assert (yield from p.call("close", memory)) == 0
        reply = p.message(b"", (), p.received(room)[2])
        yield from p.call("svsm_reply", channel, reply)

    def client(p: PythonProgram) -> Steps:
        channel = yield from connect(p)
        memory = yield from p.call("svsm_memory_create", 8000)
        copy = yield from p.call("svsm_duplicate", memory)
        assert (yield from p.call("mmap", 0, 8193, READ, SHARED, memory, 0)) == -Errno.EINVAL
        assert (yield from p.call("mmap", 0, 8192, READ, SHARED, memory, 4096)) == -Errno.EINVAL
        assert (yield from p.call("mmap", 0, 8192, READ, SHARED, channel, 0)) == -Errno.EBADF
        prot = READ | EXECUTE
        assert (yield from p.call("mmap", 0, 8192, prot, SHARED, memory, 0)) == -Errno.EACCES
        where = yield from p.call("mmap", 0, 4096, READ | WRITE, SHARED, memory, 4096)
        assert (yield from p.call("mprotect", where, 4096, prot)) == -Errno.EACCES
        p.space.write(p.cpu, where + 5000 - 4096, b"seen")
        whole = yield from p.call("mmap", 0, 8192, READ, SHARED, memory, 0)
        message = p.message(b"", (copy,))
        assert (yield from p.call("svsm_call", channel, message, p.room(), 0)) == 0
        assert p.get(whole, 6) == b"answer"
        assert (yield from p.call("close", memory)) == 0
        assert p.get(whole, 6) == b"answer", "a mapping keeps it"
        for nbytes in (0, (1 << 20) + 1, 1 << 63):
            assert (yield from p.call("svsm_memory_create", nbytes)) == -Errno.EINVAL
        assert (yield from p.call("svsm_memory_create", 1 << 20)) == -Errno.ENOMEM
        before = p.quota.used
        yield from p.call("munmap", where, PAGE_SIZE)
        yield from p.call("munmap", whole, 2 * PAGE_SIZE)
        assert p.quota.used == before - 2 - 2, "touched pages, and the object itself"

    run(system, system.server(server), system.client(client))


def test_who_may_register_and_connect(system: PythonSystem) -> None:
    def code(p: PythonProgram) -> Steps:
        assert (yield from register(p)) == -Errno.EPERM
        assert (yield from connect(p)) == -Errno.EPERM

    run(system, system.start(code))


def test_a_client_may_come_before_its_server(system: PythonSystem) -> None:
    results = []

    def client(p: PythonProgram) -> Steps:
        results.append((yield from connect(p, POLL)))
        results.append((yield from connect(p, p.cpu.port.rdtsc() + 1000)))
        results.append((yield from connect(p)))

    def server(p: PythonProgram) -> Steps:
        yield from accept(p)

    first = system.client(client)
    system.run()
    system.pass_time(2000)
    assert results == [-Errno.EAGAIN, -Errno.ETIMEDOUT]
    run(system, first, system.server(server))
    assert results[2] >= 0


def test_a_server_that_accepts_nobody(system: PythonSystem) -> None:
    results = []

    def server(p: PythonProgram) -> Steps:
        yield from register(p)
        yield from p.call("nanosleep", p.put((0).to_bytes(8) + (10**6).to_bytes(8, "little")), 0)

    def client(p: PythonProgram) -> Steps:
        channels = []
        for _ in range(BACKLOG):
            channels.append((yield from connect(p)))
        results.append((yield from connect(p, POLL)))
        yield from p.call("close", channels[0])
        channels[0] = yield from connect(p, POLL)
        assert channels[0] >= 0, "who has given up takes no room"
        results.append((yield from connect(p)))
        message = p.message(b"?")
        results.append((yield from p.call("svsm_call", channels[0], message, p.room(), 0)))

    programs = system.server(server), system.client(client)
    system.run()
    assert results == [-Errno.EAGAIN]
    system.pass_time(2 * 10**6)
    run(system, *programs)
    assert results == [-Errno.EAGAIN, -Errno.ECANCELED, -Errno.EPIPE]


def sleep(p: PythonProgram, nanoseconds: int) -> Generator[Effect, int, int]:
    time = (0).to_bytes(8) + nanoseconds.to_bytes(8, "little")
    return (yield from p.call("nanosleep", p.put(time), 0))


@pytest.mark.parametrize("late", [False, True])
def test_who_gives_up_makes_room_for_who_waits(system: PythonSystem, late: bool) -> None:
    """Also who has come later than the one that waits, in the place of one that gave up."""
    connected = []

    def server(p: PythonProgram) -> Steps:
        yield from register(p)
        yield from sleep(p, 10**8)

    def patient(p: PythonProgram) -> Steps:
        connected.append((yield from connect(p)))
        yield from sleep(p, 10**8)

    def fickle(p: PythonProgram) -> Steps:
        channels = []
        for _ in range(BACKLOG):
            channels.append((yield from connect(p)))
        yield from sleep(p, 10**6)
        yield from p.call("close", channels.pop())
        if late:
            channels.append((yield from connect(p)))
            yield from sleep(p, 10**6)
            yield from p.call("close", channels.pop())
        yield from sleep(p, 10**8)

    system.server(server)
    system.client(fickle)
    system.run()
    for _ in range(2):
        system.client(patient)
    system.run()
    assert connected == []
    system.pass_time(2 * 10**6)
    assert len(connected) == (0 if late else 1)
    if late:
        system.pass_time(2 * 10**6)
        assert len(connected) == 1
