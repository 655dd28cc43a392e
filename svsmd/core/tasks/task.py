# SPDX-License-Identifier: MIT
"""Tasks: what a scheduler switches between, and queues of those that wait.

Spec: none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, IntEnum, auto
from typing import Final

from svsmd.core.gate import Handler
from svsmd.core.percpu import PerCpu


class TaskKilled(BaseException):
    """Thrown into the body of a task that is killed. Not an Exception: nobody swallows it."""


class TaskState(Enum):
    """Where a task is."""

    READY = auto()
    """In the run queue of `Task.run_on`."""
    RUNNING = auto()
    BLOCKED = auto()
    """In the queue `Task.waits_in`."""
    ENDED = auto()


class Priority(IntEnum):
    """Classes of tasks: a ready task of a higher class runs before all of the lower ones."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


@dataclass(eq=False)
class Task:
    """One thread of execution at VMPL0.

    `body` is a piece of a handler that may also yield `Block` and `Reschedule`; it returns the exit
    status. After each of these the task may be on another CPU: whoever needs the CPU takes `cpu`
    anew. `affinity` are the APIC ids where it may run, None for all.
    """

    number: int
    name: str
    body: Handler[int]
    priority: Priority = Priority.NORMAL
    affinity: frozenset[int] | None = None
    state: TaskState = TaskState.READY
    exit_status: int | None = None
    ended: WaitQueue = field(default_factory=lambda: WaitQueue("end of a task"))
    """Those that wait for its end."""
    run_on: int = 0
    """APIC id of the CPU whose run queue it belongs to."""
    waits_in: WaitQueue | None = None
    deadline: int | None = None
    """When the wait ends by itself, in ticks."""
    resume_value: int | None = None
    """What its next turn sends to `body`; None at its beginning."""
    ticks: int = 0
    """How long it has run."""
    killable: bool = True
    killed: bool = False
    gives_way: bool = False
    """Behind each of its turns comes one of another task, even of a lower class."""
    _cpu: PerCpu | None = None

    @property
    def cpu(self) -> PerCpu:
        """The CPU that runs it. Only good up to the next `Block` or `Reschedule`."""
        assert self._cpu is not None, f"task {self.name} does not run"
        return self._cpu

    @cpu.setter
    def cpu(self, cpu: PerCpu | None) -> None:
        self._cpu = cpu

    def may_run_on(self, apic_id: int) -> bool:
        """Whether its affinity allows that CPU."""
        return self.affinity is None or apic_id in self.affinity


class WaitQueue:
    """Tasks that wait for the same thing, first come first served."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: deque[Task] = deque()

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Who waits, first come first."""
        return tuple(self._tasks)

    def append(self, task: object) -> None:
        """One more; the scheduler does it."""
        assert isinstance(task, Task)
        self._tasks.append(task)

    def remove(self, task: Task) -> None:
        """One that does not wait any more."""
        self._tasks.remove(task)

    def first(self) -> Task | None:
        """Who has waited longest."""
        return self._tasks[0] if self._tasks else None


class RunQueue:
    """Ready tasks of one CPU: by class, and round robin in a class."""

    def __init__(self) -> None:
        self._tasks: Final = {priority: deque[Task]() for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def append(self, task: Task) -> None:
        """Behind the others of its class."""
        self._tasks[task.priority].append(task)

    def remove(self, task: Task) -> None:
        """Take one out, wherever it is."""
        for tasks in self._tasks.values():
            if task in tasks:
                tasks.remove(task)
                return

    def best(self, counts: Callable[[Task], bool] = lambda task: True) -> Priority | None:
        """The highest class that has a task, or one that counts."""
        return max((p for p, tasks in self._tasks.items() if any(map(counts, tasks))), default=None)

    def take(self, allowed: Callable[[Task], bool] = lambda task: True) -> Task | None:
        """The next task, or the next that is allowed; it is out of the queue then."""
        for priority in sorted(Priority, reverse=True):
            for task in self._tasks[priority]:
                if allowed(task):
                    self._tasks[priority].remove(task)
                    return task
        return None

    def all(self) -> Iterable[Task]:
        """All of them, in the order in which they would run."""
        for priority in sorted(Priority, reverse=True):
            yield from self._tasks[priority]
