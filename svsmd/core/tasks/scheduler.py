# SPDX-License-Identifier: MIT
"""The scheduler: each CPU's handler at the gate, and whoever makes tasks ready.

Theory of operation. `Scheduler.run` is the handler of a CPU. It takes the next task out of the run
queue of its CPU and drives the task's generator: effects for the stub go through to the gate, a
`Block` or a `Reschedule` ends the turn. Between two yields nothing else happens anywhere, so queues
need no locks.

A turn at CPL 3 ends when its time slice is over and somebody else of its class waits, or somebody
of a higher class does: the interrupt of VMPL0's own APIC tells. That comes from the host, who may
hold it back or send too many: then a process keeps a CPU for as long as it likes, which the host
could have arranged by not running the others either, or tasks are switched too often. A host that
cannot give VMPL0 interrupts leaves it with cooperative switching.

The task that runs the guest does not know whether the guest computes or waits. So it gives way to
all others, those of lower classes included, after each of its turns.

A task that becomes ready goes to the CPU that made it ready, if its affinity allows: it is about to
be free, since most of the time it is the caller who waits for the called. If that CPU has more than
one ready task then, one that idles is told, and takes one over.

Spec: none.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Never, Protocol

from svsmd.core.gate import Block, EnterUser, Handler, Reschedule, TakeInterrupt, Wait
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.task import Priority, RunQueue, Task, TaskKilled, TaskState, WaitQueue

TIME_SLICE: Final = 1_000_000
"""Ticks of a turn at CPL 3 when others want the CPU, and of the guest when tasks do: 1 ms."""

_STALE_SLEEPERS: Final = 16

KILLED_STATUS: Final = -1
"""Exit status of a kernel thread that was killed."""


class Interrupts(Protocol):
    """Interrupts of VMPL0's own APIC. All of it may fail silently: the host is asked."""

    def arm_timer(self, cpu: PerCpu, ticks: int, /) -> Handler[None]:
        """One interrupt in `ticks`."""
        ...

    def end_of_interrupt(self, cpu: PerCpu, /) -> Handler[None]:
        """The interrupt has been taken."""
        ...

    def kick(self, cpu: PerCpu, apic_id: int, /) -> Handler[None]:
        """Interrupt another CPU."""
        ...


class _CpuState:
    """What the scheduler keeps for one CPU."""

    def __init__(self) -> None:
        self.ready = RunQueue()
        self.sleepers: list[tuple[int, int, Task]] = []
        """Heap of deadline, number of the sleep, task; stale entries are skipped."""
        self.current: Task | None = None
        self.idle = False
        self.resumed = WaitQueue("the host runs VMPL0 on this CPU")
        self.asked = 0
        """When those were woken last."""
        self.turn_end = 0
        self.armed: int | None = None
        self.gave_way: Task | None = None
        """Not the next one, if there is another."""


class Scheduler:
    """All CPUs' run queues, and all tasks by their numbers."""

    def __init__(
        self,
        apic_ids: Iterable[int],
        interrupts: Interrupts,
    ) -> None:
        self._cpus: Final = {apic_id: _CpuState() for apic_id in apic_ids}
        self._interrupts = interrupts
        self.on_leave: Callable[[PerCpu, Task], None] = lambda cpu, task: None
        """Called when a task gives up its CPU, before another one can run anywhere."""
        self._tasks: dict[int, Task] = {}
        self._next_number = 1
        self._sleeps = 0
        self._kicks: set[int] = set()

    @property
    def tasks(self) -> Mapping[int, Task]:
        """All tasks that have not ended, by number."""
        return self._tasks

    def current(self, apic_id: int) -> Task | None:
        """The task whose turn it is on a CPU."""
        return self._cpus[apic_id].current

    def body_of(self, apic_id: int) -> Handler[int] | None:
        """What that task executes."""
        task = self.current(apic_id)
        return None if task is None else task.body

    def resumed(self, apic_id: int) -> WaitQueue:
        """Woken whenever the host runs VMPL0 of an idle CPU again, and on a busy one sometimes."""
        return self._cpus[apic_id].resumed

    # Tasks -----------------------------------------------------------------------------------

    def start(
        self,
        cpu: PerCpu,
        name: str,
        body: Handler[int],
        priority: Priority = Priority.NORMAL,
        affinity: frozenset[int] | None = None,
    ) -> Task:
        """A new task, ready to run; `cpu` is the one that starts it.

        Raises:
            ValueError: the affinity allows no CPU of this machine.
        """
        if affinity is not None and not affinity & self._cpus.keys():
            raise ValueError("no such CPU")
        task = Task(self._next_number, name, body, priority, affinity)
        self._next_number += 1
        self._tasks[task.number] = task
        self._make_ready(cpu, task)
        return task

    def wake(self, cpu: PerCpu, task: Task) -> bool:
        """End the wait of a task; whether it waited."""
        return self._wake(cpu, task, 1)

    def wake_one(self, cpu: PerCpu, queue: WaitQueue) -> bool:
        """Wake who has waited longest; whether there was somebody."""
        task = queue.first()
        return task is not None and self.wake(cpu, task)

    def wake_all(self, cpu: PerCpu, queue: WaitQueue) -> None:
        """Wake everybody in a queue."""
        for task in queue.tasks:
            self.wake(cpu, task)

    def kill(self, cpu: PerCpu, task: Task) -> None:
        """End a task: `TaskKilled` comes up in its body where it blocks or gives its CPU away.

        Instead of going to CPL 3 as well, but nowhere else: what it asks of the host, and takes of
        it when it leaves CPL 3, is not done by halves.
        """
        task.killed = True
        if task.killable:
            # Whatever it holds is somebody else's soon: that does not wait for an idle CPU.
            self.set_priority(task, Priority.HIGH)
        if task.state is TaskState.BLOCKED:
            self._wake(cpu, task, 0)
        elif task.state is TaskState.RUNNING and task is not self.current(cpu.apic_id):
            self._kicks.add(task.run_on)

    def set_priority(self, task: Task, priority: Priority) -> None:
        """Put a task into another class."""
        if task.state is not TaskState.READY:
            task.priority = priority
            return
        queue = self._cpus[task.run_on].ready
        queue.remove(task)
        task.priority = priority
        queue.append(task)

    def set_affinity(self, cpu: PerCpu, task: Task, affinity: frozenset[int] | None) -> None:
        """Let a task run on these CPUs only, from its next turn on; ValueError as `start`."""
        if affinity is not None and not affinity & self._cpus.keys():
            raise ValueError("no such CPU")
        task.affinity = affinity
        if task.state is TaskState.READY and not task.may_run_on(task.run_on):
            self._cpus[task.run_on].ready.remove(task)
            self._make_ready(cpu, task)

    def _wake(self, cpu: PerCpu, task: Task, value: int) -> bool:
        if task.state is not TaskState.BLOCKED:
            return False
        assert task.waits_in is not None
        task.waits_in.remove(task)
        task.waits_in = task.deadline = None
        task.resume_value = value
        self._make_ready(cpu, task)
        return True

    def _make_ready(self, cpu: PerCpu, task: Task) -> None:
        task.state = TaskState.READY
        here = cpu.apic_id
        if not task.may_run_on(here):
            idle = [n for n, state in self._cpus.items() if state.idle and task.may_run_on(n)]
            allowed = idle or [n for n in self._cpus if task.may_run_on(n)]
            task.run_on = min(allowed, key=lambda n: (len(self._cpus[n].ready), n))
            self._cpus[task.run_on].ready.append(task)
            self._kicks.add(task.run_on)
            return
        task.run_on = here
        queue = self._cpus[here].ready
        queue.append(task)
        if len(queue) > 1:
            self._kicks.update([n for n, state in self._cpus.items() if state.idle][:1])

    # CPUs ------------------------------------------------------------------------------------

    def run(self, cpu: PerCpu) -> Handler[Never]:
        """The life of a CPU."""
        state = self._cpus[cpu.apic_id]
        while True:
            self._wake_due(cpu, state)
            yield from self._send_kicks(cpu)
            task = self._take(cpu, state)
            if task is not None:
                yield from self._turn(cpu, state, task)
                self._wake_resumed(cpu, state)
                continue
            state.idle = True
            yield from self._arm(cpu, state, None)
            # Setting the timer may have taken long: who has become ready kicks nobody twice.
            interrupted = 0 if len(state.ready) else (yield Wait())
            state.idle = False
            if interrupted:
                state.armed = None
                yield from self._interrupts.end_of_interrupt(cpu)
            state.asked = cpu.port.rdtsc()
            self.wake_all(cpu, state.resumed)

    def _wake_resumed(self, cpu: PerCpu, state: _CpuState) -> None:
        """A CPU that is never idle lets those look now and then who wait for the host."""
        if not len(state.ready):
            return  # it is about to be idle
        now = cpu.port.rdtsc()
        if now - state.asked >= TIME_SLICE:
            state.asked = now
            self.wake_all(cpu, state.resumed)

    def wants_cpu(self, cpu: PerCpu) -> bool:
        """Whether the task that runs should let another one run now.

        One of a higher class is ready, or its turn is over and somebody waits for that. Who gives
        way himself takes no turn away. Or it is killed: all that it has to do is to end.
        """
        state = self._cpus[cpu.apic_id]
        self._wake_due(cpu, state)
        task, best = state.current, state.ready.best(lambda task: not task.gives_way)
        assert task is not None
        if task.killed and task.killable:
            return True
        if best is not None and best > task.priority:
            return True
        return self._is_waited_for(state, task) and cpu.port.rdtsc() >= state.turn_end

    @staticmethod
    def _is_waited_for(state: _CpuState, task: Task) -> bool:
        """Whether somebody is ready who gets the CPU when the task's turn is over, or may be."""
        if len(state.resumed):
            return True
        best = state.ready.best()
        return best is not None and (task.gives_way or best >= task.priority)

    def before_guest(self, cpu: PerCpu) -> Handler[None]:
        """The task is about to leave the CPU to the guest: see to it that it comes back in time."""
        state = self._cpus[cpu.apic_id]
        yield from self._send_kicks(cpu)
        yield from self._arm(cpu, state, None)

    def after_guest(self, cpu: PerCpu) -> Handler[None]:
        """The host came back from the guest on its own: an interrupt may be the reason."""
        if (yield TakeInterrupt()):
            self._cpus[cpu.apic_id].armed = None
            yield from self._interrupts.end_of_interrupt(cpu)

    def interrupted(self, cpu: PerCpu) -> Handler[None]:
        """An interrupt came at CPL 3: take it, and give the CPU away if the turn is over."""
        state = self._cpus[cpu.apic_id]
        state.armed = None
        yield from self._interrupts.end_of_interrupt(cpu)
        if self.wants_cpu(cpu):
            yield Reschedule()

    def _take(self, cpu: PerCpu, state: _CpuState) -> Task | None:
        gave_way, state.gave_way = state.gave_way, None
        task = state.ready.take(lambda task: task is not gave_way) or state.ready.take()
        if task is not None:
            return task
        here = cpu.apic_id
        for other in self._cpus.values():
            if other is not state and (other.current is not None or len(other.ready) > 1):
                task = other.ready.take(lambda task: task.may_run_on(here))
                if task is not None:
                    return task
        return None

    def _turn(self, cpu: PerCpu, state: _CpuState, task: Task) -> Handler[None]:
        """Run a task until it gives the CPU away."""
        task.cpu, task.state, task.run_on = cpu, TaskState.RUNNING, cpu.apic_id
        state.current = task
        began = cpu.port.rdtsc()
        state.turn_end = began + TIME_SLICE
        value, task.resume_value = task.resume_value, 0
        # A body that has not begun would know nothing of its end.
        may_end = value is not None
        try:
            while True:
                if may_end and task.killed and task.killable:
                    task.killable = False  # what its body does to clean up is not disturbed
                    effect = task.body.throw(TaskKilled())
                else:
                    effect = task.body.send(value)  # type: ignore[arg-type]
                may_end = isinstance(effect, Block | Reschedule | EnterUser)
                if may_end and task.killed and task.killable:
                    continue
                may_end = False
                match effect:
                    case Block(queue, deadline):
                        self._leave(cpu, task)
                        self._sleep(state, task, queue, deadline)
                        break
                    case Reschedule():
                        self._leave(cpu, task)
                        state.gave_way = task if task.gives_way else None
                        if task.may_run_on(cpu.apic_id):
                            task.state = TaskState.READY
                            state.ready.append(task)
                        else:
                            self._make_ready(cpu, task)
                        break
                    case EnterUser():
                        yield from self._send_kicks(cpu)
                        yield from self._arm(cpu, state, state.turn_end)
                        value = yield effect
                    case _:
                        value = yield effect
        except StopIteration as end:
            self._leave(cpu, task)
            self._end(cpu, task, end.value)
        except TaskKilled:
            self._leave(cpu, task)
            self._end(cpu, task, KILLED_STATUS)
        state.current = None
        task.ticks += max(0, cpu.port.rdtsc() - began)

    def _leave(self, cpu: PerCpu, task: Task) -> None:
        self.on_leave(cpu, task)
        task.cpu = None

    def _sleep(self, state: _CpuState, task: Task, queue: object, deadline: int | None) -> None:
        assert isinstance(queue, WaitQueue)
        task.state, task.waits_in, task.deadline = TaskState.BLOCKED, queue, deadline
        queue.append(task)
        if deadline is not None:
            # Who is woken early leaves its entry behind, which may be a long time in coming up.
            if len(state.sleepers) > 2 * len(self._tasks) + _STALE_SLEEPERS:
                state.sleepers = [
                    entry for entry in state.sleepers if entry[2].deadline == entry[0]
                ]
                heapq.heapify(state.sleepers)
            self._sleeps += 1
            heapq.heappush(state.sleepers, (deadline, self._sleeps, task))

    def _end(self, cpu: PerCpu, task: Task, status: int) -> None:
        task.state, task.exit_status = TaskState.ENDED, status
        del self._tasks[task.number]
        self.wake_all(cpu, task.ended)

    def _wake_due(self, cpu: PerCpu, state: _CpuState) -> None:
        sleepers = state.sleepers
        if not sleepers:
            return
        now = cpu.port.rdtsc()
        while sleepers and (sleepers[0][0] <= now or sleepers[0][2].deadline != sleepers[0][0]):
            deadline, _, task = heapq.heappop(sleepers)
            if task.deadline == deadline:
                self._wake(cpu, task, 0)

    def _send_kicks(self, cpu: PerCpu) -> Handler[None]:
        while self._kicks:
            apic_id = self._kicks.pop()
            if apic_id != cpu.apic_id:
                yield from self._interrupts.kick(cpu, apic_id)

    def _arm(self, cpu: PerCpu, state: _CpuState, turn_end: int | None) -> Handler[None]:
        """One timer for what comes first: the end of this turn if somebody waits, or a deadline.

        Each change is an exit to the host. So a timer that is set already, and will go off before
        that, stays as it is: its interrupt finds nothing to do, and sets the next one.
        """
        due = state.sleepers[0][0] if state.sleepers else None
        if state.current is not None and self._is_waited_for(state, state.current):
            end = state.turn_end if turn_end is None else turn_end
            due = end if due is None else min(due, end)
        if due is None:
            return
        now = cpu.port.rdtsc()
        if state.armed is None or not now < state.armed <= due:
            state.armed = due
            yield from self._interrupts.arm_timer(cpu, max(1, due - now))


def sleep(queue: WaitQueue, deadline: int | None = None) -> Handler[bool]:
    """Wait in a queue; whether somebody woke the task before `deadline`, in ticks of the TSC."""
    return bool((yield Block(queue, deadline)))
