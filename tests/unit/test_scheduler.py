# SPDX-License-Identifier: MIT
"""The scheduler, with tasks that say what they do and a host that may not answer."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from svsmd.core.gate import (
    Block,
    Effect,
    EnterUser,
    Handler,
    Preempt,
    Reschedule,
    SvsmPanic,
    TakeInterrupt,
    Vmgexit,
    Wait,
)
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.scheduler import TIME_SLICE, Scheduler
from svsmd.core.tasks.task import Priority, Task, TaskKilled, TaskState, WaitQueue


class Port:
    """A clock."""

    def __init__(self) -> None:
        self.now = 0

    def rdtsc(self) -> int:
        return self.now

    def charge(self, ticks: int) -> None:
        self.now += ticks


class Host:
    """Interrupts as they were asked for."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def arm_timer(self, cpu: PerCpu, ticks: int) -> Handler[None]:
        self.log.append(("timer", cpu.apic_id, ticks))
        yield Preempt()

    def end_of_interrupt(self, cpu: PerCpu) -> Handler[None]:
        self.log.append(("eoi", cpu.apic_id))
        yield Preempt()

    def kick(self, cpu: PerCpu, apic_id: int) -> Handler[None]:
        self.log.append(("kick", cpu.apic_id, apic_id))
        yield Preempt()


class Rig:
    """Some CPUs; `run` drives one of them until its handler yields what the stub would do."""

    def __init__(self, ncpus: int = 1) -> None:
        self.port = Port()
        self.host = Host()
        self.left: list[str] = []
        self.scheduler = Scheduler(range(ncpus), self.host)
        self.scheduler.on_leave = lambda cpu, task: self.left.append(task.name)
        self.cpus = [PerCpu(n, self.port) for n in range(ncpus)]  # type: ignore[arg-type]
        self.handlers = [self.scheduler.run(cpu) for cpu in self.cpus]
        self.started = [False] * ncpus

    def run(self, apic_id: int = 0, value: int = 0) -> Effect:
        """The next effect that is not the host's business."""
        handler = self.handlers[apic_id]
        effect: Effect = Preempt()
        while isinstance(effect, Preempt):
            if self.started[apic_id]:
                effect = handler.send(value)
            else:
                self.started[apic_id] = True
                effect = next(handler)
            value = 0
        return effect

    def start(self, body: Handler[int], name: str = "task", **more: object) -> Task:
        return self.scheduler.start(self.cpus[0], name, body, **more)  # type: ignore[arg-type]


def user(log: list[str], name: str, turns: int = 1) -> Generator[Effect, int, int]:
    for _ in range(turns):
        log.append(name)
        yield EnterUser(0, 0)
    return 7


def test_a_task_runs_and_ends() -> None:
    rig, log = Rig(), list[str]()
    task = rig.start(user(log, "a"))
    assert rig.run() == EnterUser(0, 0)
    assert (task.state, task.cpu) == (TaskState.RUNNING, rig.cpus[0])
    assert rig.run() == Wait()
    assert (task.state, task.exit_status, log, rig.left) == (TaskState.ENDED, 7, ["a"], ["task"])
    assert not rig.scheduler.tasks


def test_round_robin_and_classes() -> None:
    rig, log = Rig(), list[str]()

    def turns(name: str) -> Generator[Effect, int, int]:
        for _ in range(2):
            log.append(name)
            yield Reschedule()
        return 0

    for name, priority in (("low", 0), ("a", 1), ("b", 1), ("high", 2)):
        rig.start(turns(name), name, priority=Priority(priority))
    assert rig.run() == Wait()
    assert log == ["high", "high", "a", "b", "a", "b", "low", "low"]


def test_who_waits_is_woken_or_times_out() -> None:
    rig, queue, values = Rig(), WaitQueue("test"), list[int]()

    def waiter(deadline: int | None) -> Generator[Effect, int, int]:
        values.append((yield Block(queue, deadline)))
        return 0

    rig.start(waiter(None))
    rig.start(waiter(500))
    assert rig.run() == Wait()
    assert ("timer", 0, 500) in rig.host.log
    assert len(queue) == 2
    rig.port.now = 499
    assert rig.run(value=1) == Wait()
    assert not values
    rig.port.now = 500
    assert rig.run(value=1) == Wait()
    assert (values, len(queue)) == ([0], 1)
    assert rig.scheduler.wake_one(rig.cpus[0], queue)
    assert rig.run() == Wait()
    assert values == [0, 1]
    assert not rig.scheduler.wake_one(rig.cpus[0], queue)


def test_a_wake_before_the_deadline_leaves_no_alarm() -> None:
    rig, queue = Rig(), WaitQueue("test")

    def waiter() -> Generator[Effect, int, int]:
        yield Block(queue, 500)
        yield Block(queue)
        return 0

    task = rig.start(waiter())
    rig.run()
    rig.scheduler.wake(rig.cpus[0], task)
    rig.run()
    rig.port.now = 1000
    rig.run(value=1)
    assert task.state is TaskState.BLOCKED


def test_the_timer_runs_only_for_those_who_wait() -> None:
    rig, log = Rig(), list[str]()
    rig.start(user(log, "a", 2), "a")
    rig.run()
    assert not any(entry[0] == "timer" for entry in rig.host.log)
    rig.start(user(log, "b"), "b")
    rig.run()
    assert ("timer", 0, TIME_SLICE) in rig.host.log


def test_a_timer_that_goes_off_earlier_is_left_alone_and_set_again_then() -> None:
    """Tasks that give way to each other do not ask the host for anything."""
    rig = Rig()

    def polite() -> Generator[Effect, int, int]:
        while True:
            yield EnterUser(0, 0)
            yield Reschedule()

    rig.start(polite(), "a")
    rig.start(polite(), "b")
    for now in range(0, TIME_SLICE, TIME_SLICE // 8):
        rig.port.now = now
        rig.run()
    assert rig.host.log == [("timer", 0, TIME_SLICE)]
    rig.port.now = TIME_SLICE  # it has gone off, though nobody has said so
    rig.run()
    assert rig.host.log == [("timer", 0, TIME_SLICE)] * 2


def test_an_earlier_deadline_sets_the_timer_again() -> None:
    rig, queue = Rig(), WaitQueue("test")

    def waiter(deadline: int) -> Generator[Effect, int, int]:
        yield Block(queue, deadline)
        return 0

    for deadline in (1000, 500, 2000):
        rig.start(waiter(deadline))
        rig.run()
    assert rig.host.log == [("timer", 0, 1000), ("timer", 0, 500)]


def test_preemption() -> None:
    """The interrupt comes early, then in time."""
    rig, log = Rig(), list[str]()

    def hog(name: str) -> Generator[Effect, int, int]:
        while True:
            log.append(name)
            yield EnterUser(0, 0)
            task = rig.scheduler.current(0)
            assert task is not None
            yield from rig.scheduler.interrupted(task.cpu)

    rig.start(hog("a"), "a")
    rig.start(hog("b"), "b")
    rig.run()
    rig.port.now = TIME_SLICE - 1
    rig.run()
    rig.port.now = TIME_SLICE
    rig.run()
    assert log == ["a", "a", "b"]
    rig.port.now = 2 * TIME_SLICE
    rig.run()
    assert log == ["a", "a", "b", "a"]
    assert rig.host.log.count(("eoi", 0)) == 3


def test_affinity_sends_a_task_to_its_cpu_and_tells_it() -> None:
    rig, log = Rig(2), list[str]()
    task = rig.start(user(log, "a"), affinity=frozenset({1}))
    assert rig.run(0) == Wait()
    assert ("kick", 0, 1) in rig.host.log
    assert rig.run(1) == EnterUser(0, 0)
    assert task.cpu is rig.cpus[1]
    with pytest.raises(ValueError, match="no such CPU"):
        rig.scheduler.set_affinity(rig.cpus[0], task, frozenset({2}))
    with pytest.raises(ValueError, match="no such CPU"):
        rig.start(user(log, "a"), affinity=frozenset())


def test_a_changed_affinity_moves_a_task() -> None:
    rig, log = Rig(2), list[str]()
    ready = rig.start(user(log, "a"))
    rig.scheduler.set_affinity(rig.cpus[0], ready, frozenset({1}))
    assert rig.run(0) == Wait()
    assert rig.run(1) == EnterUser(0, 0)
    rig.scheduler.set_affinity(rig.cpus[0], ready, frozenset({0}))
    assert rig.run(1) == Wait()
    assert ready.state is TaskState.ENDED


def test_an_idle_cpu_takes_work_over() -> None:
    rig, log = Rig(2), list[str]()
    assert rig.run(1) == Wait()
    rig.start(user(log, "a"), "a")
    rig.start(user(log, "b"), "b")
    assert rig.run(0) == EnterUser(0, 0)
    assert ("kick", 0, 1) in rig.host.log
    assert rig.run(1, value=1) == EnterUser(0, 0)
    assert log == ["a", "b"]


@pytest.mark.parametrize("state", ["ready", "blocked", "user"])
def test_kill(state: str) -> None:
    rig, queue, log = Rig(), WaitQueue("test"), list[str]()

    def body() -> Generator[Effect, int, int]:
        try:
            while True:
                yield Block(queue) if state == "blocked" else EnterUser(0, 0)
        except TaskKilled:
            log.append("cleaned up")
            yield Preempt()
            return 99

    task = rig.start(body())
    if state != "ready":
        rig.run()
    rig.scheduler.kill(rig.cpus[0], task)
    assert rig.run() == Wait()
    # Also if it had not begun: there may be something that only the body knows to give back.
    assert (task.exit_status, log) == (99, ["cleaned up"])
    assert not len(queue)


def test_killing_a_task_of_another_cpu_interrupts_it() -> None:
    rig, log = Rig(2), list[str]()
    task = rig.start(user(log, "a", 10), affinity=frozenset({1}))
    rig.run(0)
    rig.run(1)
    rig.host.log.clear()
    rig.scheduler.kill(rig.cpus[0], task)
    rig.run(0)
    assert ("kick", 0, 1) in rig.host.log
    assert rig.run(1) == Wait()
    assert task.state is TaskState.ENDED


def test_who_may_not_be_killed_is_not() -> None:
    rig, log = Rig(), list[str]()
    task = rig.start(user(log, "a", 2))
    task.killable = False
    rig.run()
    rig.scheduler.kill(rig.cpus[0], task)
    assert rig.run() == EnterUser(0, 0)
    assert rig.run() == Wait()
    assert task.exit_status == 7


@pytest.mark.parametrize("priority", [Priority.LOW, Priority.NORMAL, Priority.HIGH])
def test_the_guest_and_a_program_take_turns(priority: Priority) -> None:
    rig, log = Rig(), list[str]()
    scheduler, cpu = rig.scheduler, rig.cpus[0]

    def guest() -> Generator[Effect, int, int]:
        while True:
            if scheduler.wants_cpu(cpu):
                yield Reschedule()
                continue
            yield from scheduler.before_guest(cpu)
            log.append("guest")
            yield EnterUser(1, 1)  # stands for RUN_VMPL
            yield from scheduler.after_guest(cpu)

    def spin() -> Generator[Effect, int, int]:
        while True:
            log.append("spin")
            yield EnterUser(0, 0)
            yield from scheduler.interrupted(cpu)

    rig.start(guest(), "guest").gives_way = True
    rig.start(spin(), "spin", priority=priority)
    for _ in range(12):
        effect = rig.run()
        rig.port.now += TIME_SLICE
        if effect == TakeInterrupt():
            rig.run(value=1)
            rig.port.now += TIME_SLICE
    if priority is Priority.HIGH:
        assert "guest" not in log
    else:
        assert log[:6] == ["guest", "spin"] * 3
    assert ("eoi", 0) in rig.host.log
    assert ("timer", 0, TIME_SLICE) in rig.host.log or priority is Priority.HIGH


def test_the_guest_goes_on_until_its_turn_is_over() -> None:
    rig, log = Rig(), list[str]()
    task = rig.start(user(log, "a", 2))
    rig.run()
    rig.start(user(log, "b"))
    assert not rig.scheduler.wants_cpu(rig.cpus[0])
    rig.port.now = TIME_SLICE
    assert rig.scheduler.wants_cpu(rig.cpus[0])
    rig.port.now = 0
    rig.start(user(log, "c"), priority=Priority.HIGH)
    assert rig.scheduler.wants_cpu(rig.cpus[0])
    assert task.state is TaskState.RUNNING


def test_what_is_asked_of_the_host_is_not_left_by_a_kill() -> None:
    """The end of the interrupt that has interrupted it, for one."""
    rig, log = Rig(), list[str]()

    def body() -> Generator[Effect, int, int]:
        while True:
            yield EnterUser(0, 0)
            yield Vmgexit(1)
            log.append("told the host")
            yield Vmgexit(2)
            log.append("told the host all")

    task = rig.start(body())
    assert rig.run() == EnterUser(0, 0)
    rig.scheduler.kill(rig.cpus[0], task)
    assert rig.run() == Vmgexit(1)
    assert rig.run() == Vmgexit(2)
    assert rig.run() == Wait()
    assert log == ["told the host", "told the host all"]
    assert task.exit_status == -1


def test_a_killed_task_does_not_wait_for_an_idle_cpu() -> None:
    rig, log = Rig(), list[str]()
    rig.start(user(log, "spin", 1000))
    low = rig.start(user(log, "low"), priority=Priority.LOW)
    assert rig.run() == EnterUser(0, 0)
    rig.scheduler.kill(rig.cpus[0], low)
    assert rig.scheduler.wants_cpu(rig.cpus[0])


def test_sleeps_that_end_early_pile_up_nowhere() -> None:
    rig, queue = Rig(), WaitQueue("test")

    def sleeper() -> Generator[Effect, int, int]:
        while True:
            yield Block(queue, 1 << 60)

    rig.start(sleeper())
    rig.run()
    for _ in range(1000):
        rig.scheduler.wake_all(rig.cpus[0], queue)
        assert rig.run(value=1) == Wait()
    assert len(rig.scheduler._cpus[0].sleepers) < 100


def test_a_closed_handler_asks_nothing_of_the_machine() -> None:
    rig, log = Rig(), list[str]()
    rig.start(user(log, "a"))
    rig.run()

    def gone() -> int:
        raise AssertionError("the machine is gone")

    rig.port.rdtsc = gone  # type: ignore[method-assign]
    rig.handlers[0].close()


def test_the_host_wakes_who_waits_for_it() -> None:
    rig = Rig()
    runs = []

    def guest() -> Generator[Effect, int, int]:
        while True:
            yield Block(rig.scheduler.resumed(0))
            runs.append(1)

    rig.start(guest())
    rig.run()
    rig.run()
    rig.run(value=1)
    assert len(runs) == 2


def test_a_busy_cpu_looks_after_those_who_wait_for_the_host() -> None:
    """A vCPU of the guest that another one has created, for one."""
    rig, log, runs = Rig(), list[str](), list[int]()

    def guest() -> Generator[Effect, int, int]:
        while True:
            yield Block(rig.scheduler.resumed(0))
            runs.append(rig.port.now)

    def spin() -> Generator[Effect, int, int]:
        while True:
            log.append("spin")
            yield EnterUser(0, 0)
            yield from rig.scheduler.interrupted(rig.cpus[0])

    rig.start(guest()).gives_way = True
    rig.start(spin())
    assert rig.run() == EnterUser(0, 0)
    assert ("timer", 0, TIME_SLICE) in rig.host.log
    assert not runs
    for turn in range(1, 6):
        rig.port.now = turn * TIME_SLICE
        assert rig.run() == EnterUser(0, 0)
    assert len(runs) >= 2


def test_an_error_of_a_task_is_a_panic() -> None:
    rig = Rig()

    def body() -> Generator[Effect, int, int]:
        yield Preempt()
        raise SvsmPanic("no")

    rig.start(body())
    with pytest.raises(SvsmPanic):
        rig.run()
