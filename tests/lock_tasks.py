# SPDX-License-Identifier: MIT
"""Tasks of the real scheduler that share locks, on some CPUs that the test drives."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from svsmd.core.gate import EnterUser, Handler, Wait
from svsmd.core.locks import LockDomain
from svsmd.core.log import CoreLog
from svsmd.core.tasks.task import Task, TaskState
from tests.unit.test_scheduler import Rig

Code: TypeAlias = Callable[[Task], Handler[None]]

PAUSE = EnterUser(0, 0)
"""What a task yields to give the test a turn. It keeps its CPU, and may be killed there."""


class LockTasks:
    """The scheduler's rig, and a domain of locks."""

    def __init__(self, ncpus: int) -> None:
        self.rig = Rig(ncpus)
        self.log = CoreLog()
        self.domain = LockDomain(self.rig.scheduler, self.log)
        self.errors: dict[str, Exception] = {}
        """What the code of a task has raised, by the name of the task."""

    def start(self, name: str, code: Code, cpu: int | None = None) -> Task:
        """A task, on that CPU only or on any."""
        affinity = None if cpu is None else frozenset({cpu})
        task: Task

        def body() -> Handler[int]:
            try:
                yield from code(task)
            except Exception as error:
                self.errors[name] = error
            return 0

        task = self.rig.start(body(), name, affinity=affinity)
        return task

    def step(self, cpu: int) -> bool:
        """Let a CPU run up to the next pause; False if nobody there can go on."""
        effect = self.rig.run(cpu)
        assert effect in (PAUSE, Wait())
        return effect == PAUSE

    def kill(self, task: Task, cpu: int = 0) -> None:
        """Done by somebody on CPU `cpu`."""
        self.rig.scheduler.kill(self.rig.cpus[cpu], task)

    def run(self) -> None:
        """Let all CPUs run until nobody can go on."""
        tasks = self.rig.scheduler.tasks
        while any(task.state is not TaskState.BLOCKED for task in tasks.values()):
            for cpu in range(len(self.rig.cpus)):
                self.step(cpu)
