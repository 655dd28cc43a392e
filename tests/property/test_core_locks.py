# SPDX-License-Identifier: MIT
"""Locks in any order, taken by tasks in any order, against the graph of who waits for whom.

The oracle keeps sets of its own, and looks for a way from each task back to itself.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from svsmd.core.gate import Handler, Preempt
from svsmd.core.locks import Deadlock, Lock, LockDomain
from svsmd.core.log import CoreLog
from tests.fake_tasks import FakeTask, FakeTasks

NTASKS, NLOCKS = 5, 4


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

    def forget(self, task: int) -> None:
        """It is dead: it waits for nothing, and what it holds goes to the next one."""
        for queue in self.queues:
            if task in queue:
                queue.remove(task)
        for lock, holder in enumerate(self.holder):
            if holder == task:
                self.release(task, lock)


actions = st.lists(
    st.tuples(st.booleans(), st.integers(0, NLOCKS - 1)), max_size=8
)  # whether to take it


@given(
    scripts=st.lists(actions, min_size=NTASKS, max_size=NTASKS),
    turns=st.lists(st.tuples(st.integers(0, NTASKS - 1), st.sampled_from("rrrrrrrk")), max_size=60),
)
def test_any_order(scripts: list[list[tuple[bool, int]]], turns: list[tuple[int, str]]) -> None:
    tasks, log, oracle = FakeTasks(), CoreLog(), Oracle()
    domain = LockDomain(tasks, log)
    locks = [Lock(str(n), domain) for n in range(NLOCKS)]
    deadlocks = 0

    def body(task: FakeTask) -> Handler[None]:
        nonlocal deadlocks
        number = int(task.name)
        taken: list[int] = []
        try:
            for take, lock in scripts[number]:
                if take:
                    expected = oracle.would_deadlock(number, lock)
                    if not expected:
                        oracle.acquire(number, lock)
                    try:
                        yield from locks[lock].acquire(task)
                    except Deadlock:
                        assert expected
                        deadlocks += 1
                        continue
                    assert not expected
                    assert oracle.holder[lock] == number
                    taken.append(lock)
                elif lock in taken:
                    taken.remove(lock)
                    oracle.release(number, lock)
                    locks[lock].release(task)
                yield Preempt()
        finally:
            while taken:
                lock = taken.pop()
                if oracle.holder[lock] == number:
                    oracle.release(number, lock)
                locks[lock].release(task)

    started = [tasks.spawn(str(n), body) for n in range(NTASKS)]

    def check() -> None:
        for number, lock in enumerate(locks):
            report = lock.report()
            holder = oracle.holder[number]
            assert (report.holder and report.holder.owner) == (
                None if holder is None else str(holder)
            )
            assert [int(w.owner) for w in report.waiters] == list(oracle.queues[number])

    for number, what in turns:
        task = started[number]
        if task.done:
            continue
        if what == "k":
            # First the oracle: what the task then gives back itself, it does not hold any more.
            oracle.forget(number)
            tasks.kill(task)
        elif not task.sleeps:
            tasks.step(task)
        check()
    tasks.run()
    check()
    # Nobody is left asleep: every ring was refused before it was closed.
    assert all(task.done for task in started)
    assert all(lock.report().holder is None for lock in locks)
    assert sum(line.startswith("deadlock of") for line in log.lines) == deadlocks
