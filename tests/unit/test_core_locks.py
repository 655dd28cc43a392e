# SPDX-License-Identifier: MIT
"""Sleeping locks: hand-over, reports, deadlocks, and tasks that are killed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from svsmd.core.gate import Handler, Preempt
from svsmd.core.locks import Deadlock, Lock, LockDomain
from svsmd.core.log import CoreLog
from tests.fake_tasks import FakeTask, FakeTasks


@pytest.fixture
def tasks() -> FakeTasks:
    return FakeTasks()


@pytest.fixture
def log() -> CoreLog:
    return CoreLog()


@pytest.fixture
def domain(tasks: FakeTasks, log: CoreLog) -> LockDomain:
    return LockDomain(tasks, log)


Body = Callable[[FakeTask], Handler[None]]


def holds(*locks: Lock) -> Body:
    """Takes the locks in this order, a yield after each, and gives them back."""

    def body(task: FakeTask) -> Handler[None]:
        taken = []
        try:
            for lock in locks:
                yield from lock.acquire(task)
                taken.append(lock)
                yield Preempt()
        finally:
            for lock in reversed(taken):
                lock.release(task)

    return body


def test_lock_that_is_free_does_not_yield(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    task = tasks.spawn("one", holds(lock))
    tasks.step(task)
    report = lock.report()
    assert report.holder is not None
    assert report.holder.owner == "one"
    assert report.waiters == ()
    tasks.run()
    assert lock.report().holder is None
    assert lock.report().lines() == ["lock memory: free"]


def test_waiters_get_it_in_their_order(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    order: list[str] = []

    def body(task: FakeTask) -> Handler[None]:
        yield from lock.acquire(task)
        order.append(task.name)
        yield Preempt()
        lock.release(task)

    names = ["one", "two", "three"]
    started = [tasks.spawn(name, body) for name in names]
    for task in started:
        tasks.step(task)
    assert [waiter.owner for waiter in lock.report().waiters] == names[1:]
    # Whoever comes between the release and the next one's turn does not overtake.
    late = tasks.spawn("late", body)
    tasks.step(started[0])
    tasks.step(late)
    tasks.run()
    assert order == [*names, "late"]


def test_report_says_where(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    for name in ("one", "two"):
        tasks.step(tasks.spawn(name, holds(lock)))
    report = lock.report()
    assert report.holder is not None
    frames = report.holder.where.frames
    assert [frame.symbol for frame in frames] == ["body"]
    assert frames[0].file == "test_core_locks.py"
    assert [waiter.where.frames for waiter in report.waiters] == [frames]
    lines = report.lines()
    assert lines[0] == "lock memory: held by one, who took it at"
    assert "two waits for it since" in lines
    assert lock.report() == report


def test_deadlock_of_two(domain: LockDomain, tasks: FakeTasks, log: CoreLog) -> None:
    one, two = Lock("one", domain), Lock("two", domain)
    first, second = tasks.spawn("first", holds(one, two)), tasks.spawn("second", holds(two, one))
    for task in (first, second, first):
        tasks.step(task)
    with pytest.raises(Deadlock, match="second for one and first for two"):
        tasks.step(second)
    text = "\n".join(log.lines)
    assert text.startswith("deadlock of 2:")
    for line in (
        "second waits for lock one at", "first holds lock one, taken at",
        "first waits for lock two at", "second holds lock two, taken at",
    ):  # fmt: skip
        assert line in text
    assert text.count("[handler] body at test_core_locks.py:") == 4
    # Who got the exception has let go: the other one goes on.
    tasks.run()
    assert first.done
    assert one.report().holder is two.report().holder is None


def test_lock_of_ones_own(domain: LockDomain, tasks: FakeTasks, log: CoreLog) -> None:
    lock = Lock("memory", domain)
    task = tasks.spawn("one", holds(lock, lock))
    tasks.step(task)
    with pytest.raises(Deadlock):
        tasks.step(task)
    assert log.lines[0] == "deadlock of 1:"
    assert lock.report().holder is None


def test_long_chain_is_no_deadlock(domain: LockDomain, tasks: FakeTasks) -> None:
    locks = [Lock(str(n), domain) for n in range(200)]
    pairs = pairwise(locks)
    started = [tasks.spawn(f"task {n}", holds(*pair)) for n, pair in enumerate(pairs)]
    for _ in range(2):
        for task in started:
            tasks.step(task)
    last = tasks.spawn("last", holds(locks[-1], locks[0]))
    tasks.step(last)
    tasks.run()
    assert all(task.done for task in started)


def test_task_that_is_killed_while_it_waits(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    one, two, three = [tasks.spawn(name, holds(lock)) for name in ("one", "two", "three")]
    for task in (one, two, three):
        tasks.step(task)
    tasks.kill(two)
    assert [waiter.owner for waiter in lock.report().waiters] == ["three"]
    tasks.run()
    assert one.done
    assert three.done


def test_task_that_is_killed_when_the_lock_is_its_own_already(
    domain: LockDomain, tasks: FakeTasks
) -> None:
    lock = Lock("memory", domain)
    one, two, three = [tasks.spawn(name, holds(lock)) for name in ("one", "two", "three")]
    for task in (one, two, three):
        tasks.step(task)
    tasks.step(one)
    assert one.done
    tasks.kill(two)
    tasks.run()
    assert three.done
    assert lock.report().holder is None


def test_holder_that_is_killed(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    one, two = [tasks.spawn(name, holds(lock)) for name in ("one", "two")]
    for task in (one, two):
        tasks.step(task)
    tasks.kill(one)
    tasks.run()
    assert two.done


def test_early_return_of_the_wait(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    one, two = [tasks.spawn(name, holds(lock)) for name in ("one", "two")]
    tasks.step(one)
    for _ in range(3):
        tasks.step(two)
        tasks.wake_all()
    assert [waiter.owner for waiter in lock.report().waiters] == ["two"]
    tasks.run()
    assert two.done


def test_release_by_somebody_else(domain: LockDomain, tasks: FakeTasks) -> None:
    lock = Lock("memory", domain)
    one, two = [tasks.spawn(name, holds(lock)) for name in ("one", "two")]
    with pytest.raises(ValueError, match="two does not hold the lock memory"):
        lock.release(two)
    tasks.step(one)
    with pytest.raises(ValueError, match="two does not hold the lock memory"):
        lock.release(two)
