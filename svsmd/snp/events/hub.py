# SPDX-License-Identifier: MIT
"""Where events are told, and who waits for them.

Whoever makes an event tests `armed`, which is 0 unless a debugger waits for something, and tells it
by `note`. An event that a catch wants is counted and queued; the machine then stops at the place
that its class has for that (`EventSpec.stop`), and is resumed as often as there are events in the
queue before anything else happens in it. Telling costs no ticks: a machine does the same with
catches and without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from svsmd.snp.events.classes import EventClass, SnpEvent
from svsmd.snp.events.condition import Condition, parse_condition

MAX_CATCHES: Final = 100


class TooManyCatches(Exception):
    """There are `MAX_CATCHES` already. The text is for the user."""


@dataclass(slots=True)
class Catch:
    """One thing that a debugger waits for.

    Attributes:
        number: from 1 on, never used twice in a debugging session.
        hits: events that it has caught, those included that were passed over.
    """

    number: int
    kind: EventClass
    condition: Condition
    hits: int = 0


@dataclass(frozen=True, slots=True)
class _Caught:
    event: SnpEvent
    by: frozenset[int]


class SnpEvents:
    """The catches of one machine, and the events that they have caught.

    Attributes:
        armed: a bit for each class that somebody waits for. What tells events tests this first.
        vcpu: index of the vCPU that runs; the host keeps it while `armed` is not 0.
        pending: events that the machine has to stop for, in their order.
        last: the event that was reported or passed over last.
        locate: RIP (linear) and VMPL of what runs; the silicon sets it.
        on_change: called when `armed` has changed.
    """

    def __init__(self) -> None:
        self.armed = 0
        self.vcpu = 0
        self.pending: Final[deque[_Caught]] = deque()
        self.last: SnpEvent | None = None
        self.locate: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.on_change: Callable[[], None] = lambda: None
        self._catches: dict[int, Catch] = {}
        self._numbered = 0
        self._passed: frozenset[EventClass] = frozenset()
        self._muted = False

    # Catches ---------------------------------------------------------------------------------

    @property
    def catches(self) -> tuple[Catch, ...]:
        """Those that there are, in the order of their numbers."""
        return tuple(self._catches.values())

    def catch(self, kind: EventClass, condition: str = "") -> Catch:
        """Wait for events of a class.

        Raises:
            ConditionError: the text is no condition for this class.
            TooManyCatches: no more of them.
        """
        if len(self._catches) >= MAX_CATCHES:
            raise TooManyCatches(f"there are {MAX_CATCHES} catches, which is the most")
        parsed = parse_condition(kind, condition)
        self._numbered += 1
        catch = self._catches[self._numbered] = Catch(self._numbered, kind, parsed)
        self._arm()
        return catch

    def uncatch(self, number: int) -> bool:
        """Wait for it no more; what it alone has caught is not reported. False: no such catch."""
        if self._catches.pop(number, None) is None:
            return False
        self._keep(lambda caught: bool(caught.by & self._catches.keys()))
        self._arm()
        return True

    def uncatch_all(self) -> None:
        """Wait for nothing."""
        self._catches.clear()
        self.pending.clear()
        self._arm()

    def pass_over(self, kinds: Iterable[EventClass]) -> None:
        """Events of these classes, and of no others, are counted and stop nothing."""
        self._passed = frozenset(kinds)
        self._keep(lambda caught: caught.event.kind not in self._passed)

    def reset(self) -> None:
        """As if nobody had ever waited for anything."""
        self.uncatch_all()
        self._passed = frozenset()
        self._numbered = 0
        self.last = None

    @contextmanager
    def muted(self) -> Iterator[None]:
        """What happens meanwhile is no event: a machine is made, or made anew."""
        self._muted = True
        self._arm()
        try:
            yield
        finally:
            self._muted = False
            self._arm()

    def _arm(self) -> None:
        armed = 0
        if not self._muted:
            for catch in self._catches.values():
                armed |= catch.kind.bit
        self.armed = armed
        self.on_change()

    def _keep(self, wanted: Callable[[_Caught], bool]) -> None:
        kept = [caught for caught in self.pending if wanted(caught)]
        self.pending.clear()
        self.pending.extend(kept)

    # Events ----------------------------------------------------------------------------------

    def note(
        self,
        kind: EventClass,
        values: Mapping[str, int],
        *,
        note: str = "",
        vmpl: int | None = None,
    ) -> None:
        """Tell of an event; `values` are the fields of its class, `note` more words for it.

        `vmpl` is for what happens when the VMPL that the event belongs to runs no more.
        """
        rip, running = self.locate()
        event = SnpEvent(kind, self.vcpu, running if vmpl is None else vmpl, rip, values, note)
        by = [c for c in self._catches.values() if c.kind is kind and c.condition.holds(event)]
        if not by:
            return
        for catch in by:
            catch.hits += 1
        if kind in self._passed:
            self.last = event
        else:
            self.pending.append(_Caught(event, frozenset(c.number for c in by)))

    def take(self) -> SnpEvent:
        """The next of the pending events, which is reported now."""
        self.last = self.pending.popleft().event
        return self.last
