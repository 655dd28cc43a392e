# SPDX-License-Identifier: MIT
"""svsm_batch beside others that want the CPU."""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import pairwise

import pytest

from svsmd.core.costs import LOG_BYTE
from svsmd.core.gate import Effect, Reschedule
from svsmd.core.ipc.event import Event
from svsmd.core.ipc.objects import Ready
from svsmd.core.syscalls.tasks import BATCH_MAX
from svsmd.core.tasks.files import File
from svsmd.core.tasks.scheduler import TIME_SLICE
from svsmd.core.tasks.task import Priority, Task
from tests.python_programs import PythonProgram, PythonSystem

Steps = Generator[Effect, int, None]
NBYTES = 4096
CALL = NBYTES * LOG_BYTE + 4096
"""About what one call of the batch costs at most, in ticks: a sixteenth of a time slice."""


class Output(File):
    """Notes what is written."""

    def __init__(self, on_write: Callable[[int], None] = lambda number: None) -> None:
        self.writes = 0
        self._on_write = on_write

    def write(self, data: bytes) -> int:
        self.writes += 1
        self._on_write(self.writes)
        return len(data)


def writer(output: Output, made: list[int]) -> Callable[[PythonProgram], Steps]:
    """A program that makes one long batch."""

    def code(p: PythonProgram) -> Steps:
        handle, data = p.handles.add(output), p.put(b"", NBYTES)
        number, results = yield from p.batch(*[("write", handle, data, NBYTES)] * BATCH_MAX)
        assert results == [NBYTES] * BATCH_MAX
        made.append(number)

    return code


@pytest.fixture
def system() -> PythonSystem:
    return PythonSystem()


def test_a_neighbour_gets_its_turn(system: PythonSystem) -> None:
    output, made, turns = Output(), list[int](), list[int]()

    def neighbour(p: PythonProgram) -> Steps:
        while not made:
            turns.append(system.memory.ticks)
            yield Reschedule()

    system.start(writer(output, made))
    system.start(neighbour)
    system.run()
    assert made == [BATCH_MAX]
    assert system.memory.ticks > BATCH_MAX * NBYTES * LOG_BYTE
    assert max(b - a for a, b in pairwise([0, *turns])) <= TIME_SLICE + CALL
    # A turn of the batch is a whole one all the same.
    assert len(turns) <= system.memory.ticks // TIME_SLICE + 2
    system.check_nothing_is_left()


def test_alone_it_keeps_the_cpu(system: PythonSystem) -> None:
    made, left = list[int](), list[str]()

    def note(_cpu: object, task: Task) -> None:
        left.append(task.name)

    system.scheduler.on_leave = note
    system.start(writer(Output(), made), "batch")
    system.run()
    assert (made, left) == ([BATCH_MAX], ["batch"])


def test_who_comes_first_does_so_before_the_next_call(system: PythonSystem) -> None:
    output, seen, events = Output(), list[int](), list[int]()

    def first(p: PythonProgram) -> Steps:
        event = yield from p.call("svsm_event_create", 0)
        events.append(event)
        yield from p.wait([(event, Ready.SIGNALED)])
        seen.append(output.writes)

    def code(p: PythonProgram) -> Steps:
        event = p.handles.add(urgent.handles.get(events[0], Event))
        handle, data = p.handles.add(output), p.put(b"", 16)
        write = ("write", handle, data, 16)
        yield from p.batch(write, write, ("svsm_event_signal", event, 0, 0), write, write)

    urgent = system.start(first)
    system.scheduler.set_priority(urgent.task, Priority.HIGH)
    system.run()
    system.start(code)
    system.run()
    assert (seen, output.writes) == ([2], 4)


@pytest.mark.parametrize("alone", [True, False])
def test_a_kill_ends_it_in_the_middle(system: PythonSystem, alone: bool) -> None:
    """Also one that comes from another CPU when nobody wants this one."""
    made, turns = list[int](), 0

    def kill(number: int) -> None:
        if alone and number == 5:
            program.task.killed = True

    def killer(p: PythonProgram) -> Steps:
        nonlocal turns
        while turns < 2:
            turns += 1
            yield Reschedule()
        system.scheduler.kill(system.cpu, program.task)

    output = Output(kill)
    program = system.start(writer(output, made))
    if not alone:
        system.start(killer)
    system.run()
    assert program.ended
    assert not made
    if alone:
        assert output.writes == 5
    else:
        assert 2 * TIME_SLICE < output.writes * CALL < 4 * TIME_SLICE
    system.check_nothing_is_left()
