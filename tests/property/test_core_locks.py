# SPDX-License-Identifier: MIT
"""Locks in any order, by tasks of two CPUs that are killed at any time, on the real scheduler.

The oracle keeps queues of its own, and looks for a way from each task back to itself.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.core.gate import Block, Handler, Reschedule
from svsmd.core.locks import Deadlock
from svsmd.core.tasks.scheduler import KILLED_STATUS
from svsmd.core.tasks.task import Task, TaskState, WaitQueue
from tests.lock_tasks import PAUSE, Code, LockTasks

NCPUS, NTASKS, NLOCKS = 2, 5, 3
ENOUGH = 2 * NTASKS * 10
"""Turns of each CPU in which all scripts end."""


class Oracle:
    """Who holds which lock, and who waits for which, by numbers."""

    def __init__(self) -> None:
        self.holder: list[int | None] = [None] * NLOCKS
        self.queues: list[deque[int]] = [deque() for _ in range(NLOCKS)]

    def would_deadlock(self, task: int, lock: int) -> bool:
        edges = {
            waiter: self.holder[n] for n, queue in enumerate(self.queues) for waiter in queue
        } | {task: self.holder[lock]}
        reached: set[int] = set()
        at: int | None = task
        while at is not None and (at := edges.get(at)) is not None and at not in reached:
            reached.add(at)
        return task in reached

    def acquire(self, task: int, lock: int) -> None:
        if self.holder[lock] is None:
            self.holder[lock] = task
        else:
            self.queues[lock].append(task)

    def release(self, task: int, lock: int) -> None:
        assert self.holder[lock] == task
        queue = self.queues[lock]
        self.holder[lock] = queue.popleft() if queue else None

    def give_up(self, task: int, lock: int) -> None:
        """It is killed while it waits, or before it knows that it waits no more."""
        if self.holder[lock] == task:
            self.release(task, lock)
        else:
            self.queues[lock].remove(task)


class World:
    """Tasks with scripts, real locks, and the oracle."""

    def __init__(self) -> None:
        self.tasks = LockTasks(NCPUS)
        self.oracle = Oracle()
        self.locks = [self.tasks.domain.lock(str(n)) for n in range(NLOCKS)]
        self.inside: list[int | None] = [None] * NLOCKS
        self.deadlocks = 0
        self.clock = WaitQueue("time")

    def acquire(self, task: Task, number: int, lock: int) -> Handler[bool]:
        oracle = self.oracle
        if oracle.would_deadlock(number, lock):
            try:
                yield from self.locks[lock].acquire(task)
            except Deadlock:
                self.deadlocks += 1
                return False
            raise AssertionError("a wait that would never end")
        oracle.acquire(number, lock)
        try:
            yield from self.locks[lock].acquire(task)
        except BaseException:
            oracle.give_up(number, lock)
            raise
        assert oracle.holder[lock] == number
        assert self.inside[lock] is None, "two at once"
        self.inside[lock] = number
        return True

    def release(self, task: Task, number: int, lock: int) -> None:
        assert self.inside[lock] == number
        self.inside[lock] = None
        self.oracle.release(number, lock)
        self.locks[lock].release(task)

    def code(self, number: int, script: list[tuple[str, int]]) -> Code:
        def code(task: Task) -> Handler[None]:
            taken: list[int] = []
            try:
                for what, lock in script:
                    match what:
                        case "acquire":
                            if (yield from self.acquire(task, number, lock)):
                                taken.append(lock)
                        case "release":
                            if lock in taken:
                                taken.remove(lock)
                                self.release(task, number, lock)
                        case "pause":
                            yield PAUSE
                        case "yield":
                            yield Reschedule()
                        case "sleep":
                            yield Block(self.clock, self.tasks.rig.port.now + lock + 1)
            finally:
                while taken:
                    self.release(task, number, taken.pop())

        return code

    def run(self, cpu: int) -> None:
        self.tasks.rig.port.now += 1
        self.tasks.step(cpu)
        self.check()

    def check(self) -> None:
        for number, report in enumerate(self.tasks.domain.reports()):
            holder = self.oracle.holder[number]
            assert (report.holder and report.holder.owner) == (
                None if holder is None else str(holder)
            )
            assert [int(w.owner) for w in report.waiters] == list(self.oracle.queues[number])


scripts = st.lists(
    st.tuples(
        st.sampled_from(("acquire", "acquire", "release", "pause", "yield", "sleep")),
        st.integers(0, NLOCKS - 1),
    ),
    max_size=10,
)
cpus = st.integers(0, NCPUS - 1)


@settings(max_examples=200)
@given(
    started=st.lists(st.tuples(scripts, st.none() | cpus), min_size=NTASKS, max_size=NTASKS),
    steps=st.lists(
        st.tuples(st.sampled_from(("run",) * 7 + ("kill",)), cpus, st.integers(0, NTASKS - 1)),
        max_size=60,
    ),
)
def test_any_order(
    started: list[tuple[list[tuple[str, int]], int | None]], steps: list[tuple[str, int, int]]
) -> None:
    world = World()
    everybody = [
        world.tasks.start(str(number), world.code(number, script), cpu)
        for number, (script, cpu) in enumerate(started)
    ]
    for what, cpu, number in steps:
        if what == "run":
            world.run(cpu)
        elif everybody[number].state is not TaskState.ENDED:
            world.tasks.kill(everybody[number], cpu)
            world.check()
    for _ in range(ENOUGH):
        for cpu in range(NCPUS):
            world.run(cpu)
    # Nobody is left asleep: each release wakes the next one, and every ring was refused.
    assert not world.tasks.rig.scheduler.tasks
    assert not world.tasks.errors
    for task in everybody:
        assert task.exit_status == 0 or (task.killed and task.exit_status == KILLED_STATUS)
    assert all(report.holder is None for report in world.tasks.domain.reports())
    lines = world.tasks.log.lines
    assert sum(line.startswith("deadlock of") for line in lines) == world.deadlocks
