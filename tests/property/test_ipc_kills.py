# SPDX-License-Identifier: MIT
"""Two programs that talk, one of which is killed at some point: the other goes on to its end."""

from __future__ import annotations

from collections.abc import Generator

from hypothesis import given
from hypothesis import strategies as st

from svsmd.core.gate import Effect, Reschedule
from svsmd.core.tasks.task import TaskKilled
from tests.python_programs import Code, PythonProgram, PythonSystem

Steps = Generator[Effect, int, None]
SHARED, READ, WRITE = 1, 1, 2


def server(p: PythonProgram) -> Steps:
    """Accepts one client after the other, and gives back what it gets."""
    service = yield from p.call("svsm_service_register", p.put(b"test\0"))
    for _ in range(3):
        channel = yield from p.call("svsm_service_accept", service, 0)
        request = p.room()
        result = yield from p.call("svsm_receive", channel, request, 0)
        while result >= 0:
            data, handles, token = p.received(request)
            reply, request = p.message(data, handles, token), p.room()
            if token:
                result = yield from p.call("svsm_reply_receive", channel, reply, request, 0)
            else:
                yield from p.call("svsm_send", channel, reply, 0)
                result = yield from p.call("svsm_receive", channel, request, 0)
        yield from p.call("close", channel)


def client(p: PythonProgram) -> Steps:
    """Calls and sends, with handles and shared memory, until something fails."""
    channel = yield from p.call("svsm_service_connect", p.put(b"test\0"), 0)
    for n in range(6):
        if channel < 0:
            return
        memory = yield from p.call("svsm_memory_create", 4096)
        copy = yield from p.call("svsm_duplicate", memory)
        where = yield from p.call("mmap", 0, 4096, READ | WRITE, SHARED, memory, 0)
        p.space.write(p.cpu, where, b"x")
        one, other = yield from p.channel()
        message = p.message(b"x" * 1000 * (n % 3), (copy, one))
        if n % 2:
            yield from p.call("svsm_call", channel, message, p.room(), 0)
        else:
            yield from p.call("svsm_send", channel, message, 0)
            yield from p.wait([(channel, 1), (other, 1)])
        yield from p.call("close", other)


@given(
    who=st.integers(0, 2),
    when=st.integers(0, 60),
    yields=st.lists(st.booleans(), max_size=40),
)
def test_who_is_left_ends_and_nothing_is_left(who: int, when: int, yields: list[bool]) -> None:
    system, programs = PythonSystem(), list[PythonProgram]()
    steps = iter(range(10_000))

    def disturbed(code: Code) -> Code:
        """The same, with turns that end in between, and the kill at step `when`."""

        def body(p: PythonProgram) -> Steps:
            inner = code(p)
            try:
                effect = next(inner)
                while True:
                    step, victim = next(steps), programs[who]
                    if step >= when and not victim.task.killed:
                        system.scheduler.kill(system.cpu, victim.task)
                    if step < len(yields) and yields[step]:
                        yield Reschedule()
                    try:
                        value = yield effect
                    except TaskKilled as killed:
                        inner.throw(killed)
                        raise AssertionError("it goes on") from killed
                    effect = inner.send(value)
            except StopIteration:
                return

        return body

    programs.append(system.server(disturbed(server)))
    programs.append(system.client(disturbed(client)))
    programs.append(system.client(disturbed(client), "other"))
    system.run()
    for program in programs:
        # A server waits for clients that do not come, and a client for a server that was killed
        # before it was there.
        if not program.ended:
            system.scheduler.kill(system.cpu, program.task)
            system.run()
    system.check_nothing_is_left()
