# SPDX-License-Identifier: MIT
"""Tasks without a scheduler: the test says which one runs next, up to its next yield."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from svsmd.core.gate import Handler, Wait


@dataclass(eq=False)
class FakeTask:
    """A handler with a name."""

    name: str
    handler: Handler[None] = field(init=False, repr=False)
    done: bool = False
    sleeps: bool = False


class FakeTasks:
    """The tasks, and the primitive that locks need (`svsmd.core.locks.Blocking`)."""

    def __init__(self) -> None:
        self.tasks: list[FakeTask] = []
        self._queues: dict[Hashable, FakeTask] = {}
        self._current: FakeTask | None = None

    def spawn(self, name: str, body: Callable[[FakeTask], Handler[None]]) -> FakeTask:
        """A task that has not run yet."""
        task = FakeTask(name)
        task.handler = body(task)
        self.tasks.append(task)
        return task

    def step(self, task: FakeTask) -> None:
        """Run a task up to its next yield; what it raises ends it and comes out."""
        assert not task.done
        assert not task.sleeps, f"{task.name} sleeps"
        self._current = task
        task.done = True
        try:
            next(task.handler)
            task.done = False
        except StopIteration:
            pass
        finally:
            self._current = None

    def kill(self, task: FakeTask) -> None:
        """As a scheduler does it: the handler never runs again."""
        task.handler.close()
        task.done = True

    @property
    def ready(self) -> list[FakeTask]:
        """Tasks that can run."""
        return [task for task in self.tasks if not task.done and not task.sleeps]

    def run(self) -> None:
        """Run all tasks in turn, until they are done or asleep."""
        while self.ready:
            for task in self.ready:
                if not task.sleeps and not task.done:
                    self.step(task)

    def wake_all(self) -> None:
        """A wake-up that nobody has asked for."""
        for task in self.tasks:
            task.sleeps = False

    # Blocking --------------------------------------------------------------------------------

    def wait(self, queue: Hashable, /) -> Handler[None]:
        task = self._current
        assert task is not None
        assert self._queues.setdefault(queue, task) is task, "a queue of two tasks"
        task.sleeps = True
        yield Wait()

    def wake(self, queue: Hashable, /) -> None:
        task = self._queues.pop(queue, None)
        if task is not None:
            task.sleeps = False
