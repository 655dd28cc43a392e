# SPDX-License-Identifier: MIT
"""What the objects of IPC have in common: counted handles, readiness, and who pays for them.

Theory of operation. An object lives as long as a handle refers to it, in the table of a process or
in a message. Whoever makes one pays its memory out of the quota of his process, at once and for as
long as it lives, whoever has it then: nobody can make others pay, and a queue that is full was paid
for when it was empty.

Whoever waits puts a queue of his own into each object that he waits for (`wait_for`); an object
that changes wakes all of them, and they look again.

Spec: none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntFlag
from typing import Final, Protocol

from svsmd.core.gate import Block, Handler
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import Quota
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.task import WaitQueue

NO_DEADLINE: Final = 0
POLL: Final = 1
"""Deadlines that are none: wait for ever, and not at all. All others are times in ticks."""


class Ready(IntFlag):
    """What an object has, for `svsm_wait_many`."""

    NONE = 0
    READABLE = 1
    """A message, a connection or a request waits."""
    WRITABLE = 2
    """A message of any size would find room."""
    SIGNALED = 4
    CLOSED = 8
    """The other end is gone."""


class Waker(Protocol):
    """The part of the scheduler that makes tasks ready."""

    def wake_all(self, cpu: PerCpu, queue: WaitQueue, /) -> None:
        """Wake everybody in a queue."""
        ...


class Watched:
    """Something that tasks wait for."""

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self._watchers: list[WaitQueue] = []

    def watch(self, queue: WaitQueue) -> None:
        """Wake this queue too when something changes."""
        self._watchers.append(queue)

    def unwatch(self, queue: WaitQueue) -> None:
        """Not any more."""
        self._watchers.remove(queue)

    def changed(self, cpu: PerCpu) -> None:
        """Something is not as it was."""
        for queue in tuple(self._watchers):
            self._waker.wake_all(cpu, queue)


class Undertaker:
    """Ends objects without a handle, one after the other.

    To end a channel closes the handles in its messages, which may be the last ones of other
    channels, and so on: a chain as long as a hostile program likes, so it is not done by recursion.
    """

    def __init__(self) -> None:
        self._doomed: list[IpcObject] = []
        self._busy = False

    def bury(self, cpu: PerCpu, target: IpcObject) -> None:
        """End `target`, now or behind those that come first."""
        self._doomed.append(target)
        if self._busy:
            return
        self._busy = True
        try:
            while self._doomed:
                self._doomed.pop().destroy(cpu)
        finally:
            self._busy = False


class IpcObject(Watched):
    """An object that handles refer to.

    It costs its maker `npages` of `quota`; fails with ENOMEM.
    """

    movable = False
    """Whether its handles may lie in messages."""
    duplicable = False
    """Whether it may have several handles."""

    def __init__(self, waker: Waker, undertaker: Undertaker, quota: Quota, npages: int) -> None:
        super().__init__(waker)
        quota.charge(npages)
        self._undertaker = undertaker
        self._quota = quota
        self._npages = npages
        self._handles = 0

    def opened(self) -> None:
        """One handle more."""
        self._handles += 1

    def closed(self, cpu: PerCpu, /) -> None:
        """One handle less."""
        self._handles -= 1
        if self.unused:
            self._undertaker.bury(cpu, self)

    @property
    def unused(self) -> bool:
        """Whether nobody can reach it any more."""
        return not self._handles

    @property
    def ready(self) -> Ready:
        """What it has now."""
        return Ready.NONE

    def destroy(self, cpu: PerCpu, /) -> None:
        """Give everything back."""
        self._quota.refund(self._npages)


def wait_for(
    objects: Iterable[Watched], done: Callable[[], bool], deadline: int = NO_DEADLINE
) -> Handler[None]:
    """Wait until `done`, which can only become so when one of `objects` changes.

    Fails with EAGAIN if it is not so and `deadline` is `POLL`, with ETIMEDOUT at the deadline.
    """
    if done():
        return
    if deadline == POLL:
        raise CallFailed(Errno.EAGAIN)
    watched, queue = tuple(objects), WaitQueue("IPC")
    for each in watched:
        each.watch(queue)
    try:
        while not done():
            if not (yield Block(queue, deadline or None)) and not done():
                raise CallFailed(Errno.ETIMEDOUT)
    finally:
        for each in watched:
            each.unwatch(queue)
