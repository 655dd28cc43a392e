# SPDX-License-Identifier: MIT
"""Sleeping locks for tasks: held across yields, with an account of who holds and who waits.

Theory of operation. A handler is atomic between its yields and needs no lock there. What must stay
as it is across a yield needs one. Whoever finds it taken sleeps in the lock's queue; the lock is
handed to the first of the queue when it is released, so nobody overtakes and a task that is woken
holds it, on whatever CPU it goes on then.

Each task waits for one lock at most, and each lock has one holder. So tasks and locks form chains:
task, the lock it waits for, its holder, the lock that one waits for ... A new wait that would close
such a chain to a ring would never end: it raises `Deadlock` instead, and the log gets the stacks of
all that are in it: where each took the lock that the one before waits for, and where it waits.

Spec: none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from svsmd.core.backtrace import handler_frames
from svsmd.core.backtrace.frames import Backtrace
from svsmd.core.gate import Block, Handler
from svsmd.core.log import CoreLog
from svsmd.core.tasks.scheduler import Scheduler
from svsmd.core.tasks.task import Task, TaskState, WaitQueue


class Deadlock(Exception):
    """The wait would never end. The log has the stacks; the lock was not taken."""


@dataclass(frozen=True, slots=True)
class Party:
    """A task and its stack: where it took a lock, or since where it waits for one."""

    owner: str
    where: Backtrace


@dataclass(frozen=True, slots=True)
class LockReport:
    """A lock at one moment; `waiters` in the order in which they will get it."""

    name: str
    holder: Party | None
    waiters: tuple[Party, ...]

    def lines(self) -> list[str]:
        """As it is printed."""
        if self.holder is None:
            return [f"lock {self.name}: free"]
        lines = [f"lock {self.name}: held by {self.holder.owner}, who took it at"]
        lines += [f"  {line}" for line in self.holder.where.lines()]
        for waiter in self.waiters:
            lines.append(f"{waiter.owner} waits for it since")
            lines += [f"  {line}" for line in waiter.where.lines()]
        return lines


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """A task that holds a lock or waits for it."""

    owner: Task
    lock: Lock
    where: Backtrace

    def party(self) -> Party:
        return Party(self.owner.name, self.where)


class LockDomain:
    """The locks that the tasks of one scheduler share, and who waits for which of them."""

    def __init__(self, scheduler: Scheduler, log: CoreLog) -> None:
        self.scheduler: Final = scheduler
        self._log = log
        self._locks: list[Lock] = []
        self._waits: dict[Task, _Claim] = {}

    def lock(self, name: str) -> Lock:
        """A new lock, which lives as long as the domain."""
        lock = Lock(name, self)
        self._locks.append(lock)
        return lock

    def reports(self) -> tuple[LockReport, ...]:
        """All locks, the oldest first; prints nothing."""
        return tuple(lock.report() for lock in self._locks)

    def begin_wait(self, claim: _Claim) -> None:
        """`claim` is about to wait. Raises Deadlock if that would never end."""
        ring = [(claim, held) for claim, held in self._chain(claim)]
        if ring and ring[-1][1].owner is claim.owner:
            self._report(ring)
            names = " and ".join(f"{c.owner.name} for {c.lock.name}" for c, _ in ring)
            raise Deadlock(f"would wait for each other: {names}")
        self._waits[claim.owner] = claim

    def end_wait(self, claim: _Claim) -> None:
        """`claim` waits no more."""
        self._waits.pop(claim.owner, None)

    def _chain(self, claim: _Claim) -> Iterator[tuple[_Claim, _Claim]]:
        """Who waits, and the claim of the one who holds what it waits for; and so on.

        Ends with somebody who does not wait, or with the owner that it began with: no ring is ever
        closed, so there is no other end.
        """
        waits: _Claim | None = claim
        while waits is not None and (held := waits.lock.held) is not None:
            yield waits, held
            if held.owner is claim.owner:
                return
            waits = self._waits.get(held.owner)

    def _report(self, ring: list[tuple[_Claim, _Claim]]) -> None:
        write = self._log.write
        write(f"deadlock of {len(ring)}:")
        for waits, held in ring:
            write(f"  {waits.owner.name} waits for lock {waits.lock.name} at")
            for line in waits.where.lines():
                write(f"    {line}")
            write(f"  {held.owner.name} holds lock {held.lock.name}, taken at")
            for line in held.where.lines():
                write(f"    {line}")


class Lock:
    """One lock, made by `LockDomain.lock`. Who acquires it releases it, also when it is killed:

    yield from lock.acquire(task)
    try: ...
    finally: lock.release(task)
    """

    def __init__(self, name: str, domain: LockDomain) -> None:
        self.name: Final = name
        self._domain = domain
        self.held: _Claim | None = None
        self._claims: deque[_Claim] = deque()
        self._sleepers = WaitQueue(f"lock {name}")

    def acquire(self, owner: Task) -> Handler[None]:
        """Take the lock, and wait for it if somebody has it; called by `owner` itself.

        After a wait it may be on another CPU, as after any `Block`.

        Raises:
            Deadlock: `owner` has it already, or whoever has it waits for `owner`.
        """
        claim = _Claim(owner, self, handler_frames.of_caller(owner.body))
        if self.held is None:
            self.held = claim
            return
        self._domain.begin_wait(claim)
        self._claims.append(claim)
        try:
            # A kill wakes tasks too that it does not end: those that clean up, for one.
            while self.held is not claim:
                yield Block(self._sleepers)
        except BaseException:
            # The task is killed while it waits; it may have been given the lock meanwhile.
            self._give_up(claim)
            raise

    def release(self, owner: Task) -> None:
        """Hand the lock to who waits longest, or leave it free; never yields.

        Raises:
            ValueError: `owner` does not hold it.
        """
        if self.held is None or self.held.owner is not owner:
            raise ValueError(f"{owner.name} does not hold the lock {self.name}")
        self._hand_over(owner)

    def report(self) -> LockReport:
        """Who holds it and who waits; prints nothing."""
        return LockReport(
            self.name,
            self.held.party() if self.held is not None else None,
            tuple(claim.party() for claim in self._claims),
        )

    def _hand_over(self, owner: Task) -> None:
        self.held = self._claims.popleft() if self._claims else None
        if self.held is None:
            return
        # From here on it waits for nobody, whenever it runs again.
        self._domain.end_wait(self.held)
        # Who lets go without running is thrown away, with the whole machine: nobody wakes up.
        if owner.state is TaskState.RUNNING:
            self._domain.scheduler.wake(owner.cpu, self.held.owner)

    def _give_up(self, claim: _Claim) -> None:
        if self.held is claim:
            self._hand_over(claim.owner)
        else:
            self._claims.remove(claim)
            self._domain.end_wait(claim)
