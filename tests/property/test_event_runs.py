# SPDX-License-Identifier: MIT
"""Whatever is armed and disarmed between runs: each event is reported once, or not, as it must.

The model is the list of all events of a run in which everything is caught. A run with other catches
has the same events; it stops at those that are wanted when they happen.
"""

from dataclasses import dataclass
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.events import EventClass, SnpEvent, parse_condition
from tests.event_machine import ROUNDS, EventMachine


@dataclass(frozen=True)
class Reference:
    """All events in order; those of one instruction or one exit have the same group."""

    events: tuple[SnpEvent, ...]
    groups: tuple[int, ...]
    clock: int


@cache
def reference() -> Reference:
    machine = EventMachine()
    hub = machine.machine.events
    for kind in EventClass:
        hub.catch(kind)
    events, groups = [], []
    group = 0
    while (event := machine.run()) is not None:
        events.append(event)
        groups.append(group)
        group += not hub.pending
    return Reference(tuple(events), tuple(groups), machine.machine.clock_now)


@cache
def clean_clock() -> int:
    machine = EventMachine()
    assert machine.run() is None
    return machine.machine.clock_now


def test_the_guest_makes_what_the_model_counts() -> None:
    ref = reference()
    counts = {kind: sum(e.kind is kind for e in ref.events) for kind in EventClass}
    assert {kind: count for kind, count in counts.items() if count} == {
        EventClass.VMGEXIT: 3 * ROUNDS + 1,
        EventClass.VC: 2 * ROUNDS,
        EventClass.PVALIDATE: 2 * ROUNDS,
        EventClass.RMPADJUST: 3 * ROUNDS,
        EventClass.RMPUPDATE: 2 * ROUNDS,
        EventClass.NPF: 1,  # a 2 MiB entry of the RMP has to be split
        EventClass.VMSA: ROUNDS,
    }
    assert ref.clock == clean_clock()


KINDS = sorted({event.kind for event in reference().events})
CONDITIONS = ("", "", "vcpu == 0", "vmpl == 1", "rip & 4", "rip & 8 or not vmpl == 0", "vcpu == 9")
_catches = st.tuples(st.just("catch"), st.sampled_from(KINDS), st.sampled_from(CONDITIONS))
_actions = st.one_of(
    _catches,
    _catches,
    st.tuples(st.just("uncatch"), st.integers(0, 5), st.just("")),
    st.tuples(st.just("uncatch all"), st.none(), st.just("")),
    st.tuples(st.just("pass"), st.sets(st.sampled_from(KINDS), max_size=2), st.just("")),
    st.tuples(st.just("run"), st.none(), st.just("")),
    st.tuples(st.just("run"), st.none(), st.just("")),
    st.tuples(st.just("step"), st.none(), st.just("")),
)


class Model:
    """Where a run is in the reference."""

    def __init__(self) -> None:
        self.next = 0
        self.group = -1
        self.queue: list[tuple[int, set[int]]] = []
        self.catches: dict[int, tuple[EventClass, str]] = {}
        self.hits: dict[int, int] = {}
        self.passed: set[EventClass] = set()

    def wanted_by(self, event: SnpEvent) -> set[int]:
        return {
            number
            for number, (kind, text) in self.catches.items()
            if kind is event.kind and parse_condition(kind, text).holds(event)
        }

    def happen(self) -> None:
        """The next group of events happens."""
        ref = reference()
        self.group = ref.groups[self.next]
        while self.next < len(ref.events) and ref.groups[self.next] == self.group:
            event = ref.events[self.next]
            by = self.wanted_by(event)
            for number in by:
                self.hits[number] += 1
            if by and event.kind not in self.passed:
                self.queue.append((self.next, by))
            self.next += 1

    def run(self) -> int | None:
        """Index of the event that stops the machine; None if it ends."""
        while not self.queue:
            if self.next == len(reference().events):
                return None
            self.happen()
        return self.queue.pop(0)[0]

    def prune(self) -> None:
        ref = reference()
        self.queue = [
            (index, by)
            for index, by in self.queue
            if by & self.catches.keys() and ref.events[index].kind not in self.passed
        ]


@settings(max_examples=60, deadline=None)
@given(st.lists(_actions, max_size=25))
def test_any_order_of_catches_and_runs(actions: list[tuple[str, object, str]]) -> None:
    machine, model, ref = EventMachine(), Model(), reference()
    hub = machine.machine.events
    ended = False
    for action, what, text in [*actions, ("uncatch all", None, ""), ("run", None, "")]:
        match action, what:
            case "catch", EventClass() as kind:
                number = hub.catch(kind, text).number
                model.catches[number] = kind, text
                model.hits[number] = 0
            case "uncatch", int(nth) if nth < len(model.catches):
                number = sorted(model.catches)[nth]
                hub.uncatch(number)
                del model.catches[number], model.hits[number]
                model.prune()
            case "uncatch all", _:
                hub.uncatch_all()
                model.catches.clear()
                model.hits.clear()
                model.queue.clear()
            case "pass", set() as kinds:
                hub.pass_over(kinds)
                model.passed = kinds
                model.prune()
            case "step", _ if model.queue and not ended:
                # What waits to be reported is reported, and no instruction executed.
                before = machine.machine.clock_now
                event = machine.machine.step_vcpu(0).event  # type: ignore[union-attr]
                assert event == ref.events[model.queue.pop(0)[0]]
                assert machine.machine.clock_now == before
            case "run", _ if not ended:
                event, index = machine.run(), model.run()
                assert event == (None if index is None else ref.events[index])
                ended = index is None
        assert {catch.number: catch.hits for catch in hub.catches} == model.hits
    assert ended
    assert machine.machine.clock_now == clean_clock()
