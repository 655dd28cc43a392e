# SPDX-License-Identifier: MIT
"""Random tasks, wakes, kills and CPUs: no task is lost or runs twice, and runs repeat."""

from __future__ import annotations

from collections.abc import Generator

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.core.gate import Block, Effect, EnterUser, Reschedule, Vmgexit
from svsmd.core.tasks.scheduler import TIME_SLICE
from svsmd.core.tasks.task import Priority, Task, TaskKilled, TaskState, WaitQueue
from tests.unit.test_scheduler import Rig

NCPUS = 3
NQUEUES = 2

parts = st.one_of(
    st.tuples(st.just("user"), st.integers(0, 2)),
    st.tuples(st.just("host"), st.just(0)),
    st.tuples(st.just("yield"), st.just(0)),
    st.tuples(st.just("block"), st.integers(0, NQUEUES - 1)),
    st.tuples(st.just("sleep"), st.integers(1, 3 * TIME_SLICE)),
)
cpus = st.integers(0, NCPUS - 1)
affinities = st.one_of(st.none(), st.frozensets(cpus, min_size=1))
actions = st.one_of(
    st.tuples(
        st.just("start"),
        st.tuples(cpus, st.lists(parts, max_size=6), st.sampled_from(Priority), affinities),
    ),
    st.tuples(st.just("run"), st.tuples(cpus, st.integers(0, 2 * TIME_SLICE))),
    st.tuples(st.just("run"), st.tuples(cpus, st.integers(0, 2 * TIME_SLICE))),
    st.tuples(st.just("wake"), st.tuples(cpus, st.integers(0, NQUEUES - 1))),
    st.tuples(st.just("kill"), st.tuples(cpus, st.integers(0, 20))),
    st.tuples(st.just("class"), st.tuples(st.integers(0, 20), st.sampled_from(Priority))),
    st.tuples(st.just("move"), st.tuples(cpus, st.integers(0, 20), affinities)),
)


class World:
    """The rig, its tasks, and a log of who did what where."""

    def __init__(self) -> None:
        self.rig = Rig(NCPUS)
        self.queues = [WaitQueue(f"queue {n}") for n in range(NQUEUES)]
        self.tasks: list[Task] = []
        self.log: list[tuple[object, ...]] = []

    def body(self, number: int, script: list[tuple[str, int]]) -> Generator[Effect, int, int]:
        def begins() -> None:
            """A turn begins: whoever is ready here waits with reason."""
            task = self.tasks[number]
            self.log.append((number, task.cpu.apic_id, self.rig.port.now))
            assert task.may_run_on(task.cpu.apic_id)
            best = self.rig.scheduler._cpus[task.cpu.apic_id].ready.best()
            assert best is None or best <= task.priority

        try:
            begins()
            for kind, value in script:
                match kind:
                    case "user":
                        for _ in range(value):
                            yield EnterUser(number, 0)
                            yield from self.rig.scheduler.interrupted(self.tasks[number].cpu)
                    case "host":
                        yield Vmgexit(number)
                    case "yield":
                        yield Reschedule()
                        begins()
                    case "block":
                        yield Block(self.queues[value])
                        begins()
                    case "sleep":
                        yield Block(self.queues[0], self.rig.port.now + value)
                        begins()
        except TaskKilled:
            self.log.append((number, "killed"))
            yield Reschedule()  # cleaning up may take turns, too
            return -9
        return number

    def start(
        self, cpu: int, script: list[tuple[str, int]], priority: Priority,
        affinity: frozenset[int] | None,
    ) -> None:  # fmt: skip
        number = len(self.tasks)
        scheduler = self.rig.scheduler
        self.tasks.append(
            scheduler.start(
                self.rig.cpus[cpu], f"task {number}", self.body(number, script), priority, affinity
            )
        )

    def act(self, kind: str, values: tuple[object, ...]) -> None:
        scheduler = self.rig.scheduler
        alive = list(scheduler.tasks.values())
        match kind, values:
            case "start", (int(cpu), list(script), Priority() as priority, affinity):
                self.start(cpu, script, priority, affinity)  # type: ignore[arg-type]
            case "run", (int(cpu), int(ticks)):
                self.rig.port.now += ticks
                self.log.append((cpu, repr(self.rig.run(cpu, value=0))))
            case "wake", (int(cpu), int(queue)):
                scheduler.wake_one(self.rig.cpus[cpu], self.queues[queue])
            case "kill", (int(cpu), int(index)) if alive:
                scheduler.kill(self.rig.cpus[cpu], alive[index % len(alive)])
            case "class", (int(index), Priority() as priority) if alive:
                scheduler.set_priority(alive[index % len(alive)], priority)
            case "move", (int(cpu), int(index), affinity) if alive:
                task = alive[index % len(alive)]
                scheduler.set_affinity(self.rig.cpus[cpu], task, affinity)  # type: ignore[arg-type]
        self.check()

    def check(self) -> None:
        """Each task is where its state says, and nowhere else."""
        states = self.rig.scheduler._cpus
        ready = [task for state in states.values() for task in state.ready.all()]
        running = [state.current for state in states.values() if state.current is not None]
        waiting = [task for queue in self.queues for task in queue.tasks]
        places = ready + running + waiting
        assert len(places) == len({id(task) for task in places})
        alive = [task for task in self.tasks if task.state is not TaskState.ENDED]
        assert {id(task) for task in places} == {id(task) for task in alive}
        assert set(map(id, self.rig.scheduler.tasks.values())) == {id(task) for task in alive}
        for number, state in states.items():
            for task in state.ready.all():
                assert task.state is TaskState.READY
                assert task.run_on == number
        assert all(task.state is TaskState.RUNNING for task in running)
        assert all(task.state is TaskState.BLOCKED for task in waiting)

    def finish(self) -> None:
        """With all killed, all end in bounded time, wherever the host runs VMPL0."""
        for task in list(self.rig.scheduler.tasks.values()):
            self.rig.scheduler.kill(self.rig.cpus[0], task)
        for _ in range(400):
            for cpu in range(NCPUS):
                self.act("run", (cpu, TIME_SLICE))
        assert not self.rig.scheduler.tasks
        assert all(task.exit_status is not None for task in self.tasks)


def play(steps: list[tuple[str, tuple[object, ...]]]) -> list[tuple[object, ...]]:
    world = World()
    for kind, values in steps:
        world.act(kind, values)
    return world.log


@settings(max_examples=150)
@given(st.lists(actions, max_size=50))
def test_no_task_is_lost(steps: list[tuple[str, tuple[object, ...]]]) -> None:
    world = World()
    for kind, values in steps:
        world.act(kind, values)
    world.finish()


@settings(max_examples=60)
@given(st.lists(actions, max_size=50))
def test_runs_repeat(steps: list[tuple[str, tuple[object, ...]]]) -> None:
    assert play(steps) == play(steps)
