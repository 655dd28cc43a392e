# SPDX-License-Identifier: MIT
"""Sleeping locks on the real scheduler: hand-over, reports, deadlocks, tasks that are killed."""

from __future__ import annotations

from itertools import pairwise

import pytest

from svsmd.core.gate import Handler, Reschedule
from svsmd.core.locks import Deadlock, Lock
from svsmd.core.tasks.scheduler import KILLED_STATUS
from svsmd.core.tasks.task import Task, TaskKilled, TaskState
from tests.lock_tasks import PAUSE, Code, LockTasks


@pytest.fixture
def tasks() -> LockTasks:
    return LockTasks(4)


@pytest.fixture
def lock(tasks: LockTasks) -> Lock:
    return tasks.domain.lock("memory")


def holds(*locks: Lock, order: list[str] | None = None) -> Code:
    """Takes the locks in this order, a pause after each, and gives them back."""

    def code(task: Task) -> Handler[None]:
        taken = []
        try:
            for lock in locks:
                yield from lock.acquire(task)
                taken.append(lock)
                if order is not None:
                    order.append(task.name)
                yield PAUSE
        finally:
            for lock in reversed(taken):
                lock.release(task)

    return code


def each_on_its_cpu(tasks: LockTasks, code: Code, *names: str) -> list[Task]:
    """Tasks with the same code, which have come as far as they can before the next one starts."""
    started = []
    for cpu, name in enumerate(names):
        started.append(tasks.start(name, code, cpu))
        tasks.step(cpu)
    return started


def waiters(lock: Lock) -> list[str]:
    return [waiter.owner for waiter in lock.report().waiters]


def holder(lock: Lock) -> str | None:
    report = lock.report()
    return None if report.holder is None else report.holder.owner


def test_lock_that_is_free_does_not_block(tasks: LockTasks, lock: Lock) -> None:
    (task,) = each_on_its_cpu(tasks, holds(lock), "one")
    assert (holder(lock), waiters(lock), task.state) == ("one", [], TaskState.RUNNING)
    tasks.run()
    assert lock.report().lines() == ["lock memory: free"]
    assert task.exit_status == 0


def test_it_is_handed_over_in_turn_across_cpus(lock: Lock, tasks: LockTasks) -> None:
    order: list[str] = []

    def code(task: Task) -> Handler[None]:
        yield from lock.acquire(task)
        order.append(f"{task.name} on {task.cpu.apic_id}")
        yield PAUSE
        yield Reschedule()
        lock.release(task)

    tasks.start("a", code, 0)
    tasks.step(0)
    for name in ("b", "c"):
        tasks.start(name, code, 1)
    tasks.step(1)
    tasks.start("d", code, 0)
    tasks.start("e", code, 1)
    tasks.rig.host.log.clear()
    # a gives way to d, which waits; then it hands the lock to b, which the other CPU is told of.
    assert not tasks.step(0)
    assert ("kick", 0, 1) in tasks.rig.host.log
    assert (holder(lock), waiters(lock)) == ("b", ["c", "d"])
    # e comes before b runs again, and does not overtake.
    tasks.run()
    assert order == ["a on 0", "b on 1", "c on 1", "d on 0", "e on 1"]
    assert holder(lock) is None
    assert not tasks.rig.scheduler.tasks


def test_a_waiter_may_go_on_elsewhere(lock: Lock, tasks: LockTasks) -> None:
    """The one who waits has no CPU of its own: it runs where the lock was released."""
    (one,) = each_on_its_cpu(tasks, holds(lock), "one")
    two = tasks.start("two", holds(lock))
    tasks.step(3)
    assert (two.state, two.run_on) == (TaskState.BLOCKED, 3)
    tasks.step(0)
    assert one.exit_status == 0
    assert (two.state, two.cpu.apic_id, holder(lock)) == (TaskState.RUNNING, 0, "two")


def test_reports_say_where(tasks: LockTasks, lock: Lock) -> None:
    other = tasks.domain.lock("other")
    each_on_its_cpu(tasks, holds(lock), "one", "two")
    report, free = tasks.domain.reports()
    assert (report, free) == (lock.report(), other.report())
    assert report.holder is not None
    frames = report.holder.where.frames
    # Up to the body of the task: the scheduler is below all of them.
    assert [frame.symbol for frame in frames] == ["code", "body"]
    assert frames[0].file == "test_core_locks.py"
    assert [waiter.where.frames for waiter in report.waiters] == [frames]
    lines = report.lines()
    assert lines[0] == "lock memory: held by one, who took it at"
    assert "two waits for it since" in lines
    assert free.lines() == ["lock other: free"]
    assert not tasks.log.lines


def test_deadlock_of_two(tasks: LockTasks) -> None:
    one, two = tasks.domain.lock("one"), tasks.domain.lock("two")
    first = tasks.start("first", holds(one, two), 0)
    second = tasks.start("second", holds(two, one), 1)
    assert tasks.step(0)
    assert tasks.step(1)
    assert not tasks.step(0)
    assert first.state is TaskState.BLOCKED
    assert not tasks.step(1)
    error = tasks.errors["second"]
    assert isinstance(error, Deadlock)
    assert "second for one and first for two" in str(error)
    text = "\n".join(tasks.log.lines)
    assert text.startswith("deadlock of 2:")
    for line in (
        "second waits for lock one at", "first holds lock one, taken at",
        "first waits for lock two at", "second holds lock two, taken at",
    ):  # fmt: skip
        assert line in text
    assert text.count("[handler] code at test_core_locks.py:") == 4
    # Who got the exception has let go: the other one goes on.
    tasks.run()
    assert (first.exit_status, second.exit_status) == (0, 0)
    assert holder(one) is holder(two) is None


def test_lock_of_ones_own(tasks: LockTasks, lock: Lock) -> None:
    tasks.start("one", holds(lock, lock))
    tasks.run()
    assert isinstance(tasks.errors["one"], Deadlock)
    assert tasks.log.lines[0] == "deadlock of 1:"
    assert holder(lock) is None


def test_long_chain_is_no_deadlock() -> None:
    count = 100
    tasks = LockTasks(count)
    locks = [tasks.domain.lock(str(n)) for n in range(count)]
    for cpu, pair in enumerate(pairwise(locks)):
        tasks.start(f"task {cpu}", holds(*pair), cpu)
        assert tasks.step(cpu)
    for cpu in range(count - 2):
        assert not tasks.step(cpu)
    assert tasks.step(count - 2)
    tasks.start("last", holds(locks[-1], locks[0]), count - 1)
    assert not tasks.step(count - 1)
    tasks.run()
    assert not tasks.errors
    assert not tasks.rig.scheduler.tasks


def test_a_killed_holder_hands_over(tasks: LockTasks, lock: Lock) -> None:
    # The kill finds it at its second pause.
    one = tasks.start("one", holds(lock, tasks.domain.lock("other")), 0)
    tasks.step(0)
    two = tasks.start("two", holds(lock), 1)
    tasks.step(1)
    tasks.kill(one, cpu=1)
    tasks.run()
    assert (one.exit_status, two.exit_status) == (KILLED_STATUS, 0)
    assert holder(lock) is None


def test_a_killed_waiter_leaves_the_queue(tasks: LockTasks, lock: Lock) -> None:
    order: list[str] = []
    one, two, three = each_on_its_cpu(tasks, holds(lock, order=order), "one", "two", "three")
    tasks.kill(two)
    tasks.step(1)
    assert two.exit_status == KILLED_STATUS
    assert (holder(lock), waiters(lock)) == ("one", ["three"])
    tasks.run()
    assert order == ["one", "three"]
    assert one.exit_status == three.exit_status == 0


def test_a_waiter_that_is_killed_when_the_lock_is_its_own_already(
    tasks: LockTasks, lock: Lock
) -> None:
    order: list[str] = []
    _, two, three = each_on_its_cpu(tasks, holds(lock, order=order), "one", "two", "three")
    tasks.step(0)
    assert holder(lock) == "two"
    tasks.kill(two)
    tasks.run()
    assert (two.exit_status, three.exit_status) == (KILLED_STATUS, 0)
    assert order == ["one", "three"]


def test_a_waiter_that_was_killed_before_the_lock_became_its_own(
    tasks: LockTasks, lock: Lock
) -> None:
    order: list[str] = []
    _, two, _ = each_on_its_cpu(tasks, holds(lock, order=order), "one", "two", "three")
    tasks.kill(two)
    tasks.step(0)
    assert holder(lock) == "two"
    tasks.run()
    assert order == ["one", "three"]


def test_who_cleans_up_gets_its_turn_however_often_it_is_killed(
    tasks: LockTasks, lock: Lock
) -> None:
    """A kill wakes it early, and does not end it."""
    order: list[str] = []

    def code(task: Task) -> Handler[None]:
        try:
            while True:
                yield PAUSE
        except TaskKilled:
            yield from holds(lock, order=order)(task)

    each_on_its_cpu(tasks, holds(lock, order=order), "one")
    two = tasks.start("two", code, 1)
    tasks.step(1)
    for _ in range(3):
        tasks.kill(two)
        assert not tasks.step(1)
        assert waiters(lock) == ["two"]
    tasks.run()
    assert (order, two.exit_status) == (["one", "two"], 0)


def test_release_by_somebody_else(tasks: LockTasks, lock: Lock) -> None:
    _, two = each_on_its_cpu(tasks, holds(lock), "one", "two")
    with pytest.raises(ValueError, match="two does not hold the lock memory"):
        lock.release(two)
    tasks.run()
    with pytest.raises(ValueError, match="two does not hold the lock memory"):
        lock.release(two)


def test_a_machine_that_is_thrown_away_lets_go_without_a_word(tasks: LockTasks, lock: Lock) -> None:
    def sleeps(task: Task) -> Handler[None]:
        yield from lock.acquire(task)
        try:
            yield from tasks.domain.lock("held by nobody").acquire(task)
            yield from other.acquire(task)
        finally:
            lock.release(task)

    other = tasks.domain.lock("other")
    each_on_its_cpu(tasks, holds(other), "one")
    two = tasks.start("two", sleeps, 1)
    three = tasks.start("three", holds(lock), 2)
    tasks.step(1)
    tasks.step(2)
    assert (waiters(other), waiters(lock)) == (["two"], ["three"])
    for task in (two, three):
        task.body.close()
    for handler in tasks.rig.handlers:
        handler.close()
    assert not tasks.errors
