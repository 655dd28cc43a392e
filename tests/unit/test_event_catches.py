# SPDX-License-Identifier: MIT
"""Catches: conditions, counting, the queue, and what is passed over."""

import pytest

from svsmd.snp.events import (
    CLASSES,
    ConditionError,
    EventClass,
    SnpEvent,
    SnpEvents,
    TooManyCatches,
    parse_condition,
)
from svsmd.snp.events.condition import MAX_CONDITION, MAX_DEPTH
from svsmd.snp.events.hub import MAX_CATCHES

PVALIDATE, NPF, VMGEXIT = EventClass.PVALIDATE, EventClass.NPF, EventClass.VMGEXIT


def event(kind: EventClass = PVALIDATE, **values: int) -> SnpEvent:
    return SnpEvent(kind, 1, 2, 0x1000, values)


def holds(text: str, kind: EventClass = PVALIDATE, **values: int) -> bool:
    return bool(parse_condition(kind, text).holds(event(kind, **values)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   ", True),
        ("gpa == 0x8000", True),
        ("gpa==32768", True),
        ("gpa != 0x8000", False),
        ("0x8000 <= gpa and gpa < 0x9000", True),
        ("gpa < 0x8000 or gpa >= 0x9000", False),
        ("not gpa == 0x8000", False),
        ("not not gpa == 0x8000", True),
        ("vmpl == 2 and vcpu == 1 and rip == 0x1000", True),
        ("result", False),
        ("validate", True),
        ("not result and validate", True),
        ("result or validate and result", False),
        ("(result or validate) and validate", True),
        ("gpa & 0xf000 == 0x8000", True),
        ("gpa & 0xff & 0xf", False),
        ("0xFFFFFFFFFFFFFFFF > 0XFFFFFFFFFFFFFFFE", True),
        ("(gpa == 0x8000) == 1", True),
        ("carry == 0", True),
    ],
)
def test_conditions(text: str, expected: bool) -> None:
    assert holds(text, gpa=0x8000, validate=1, result=0) is expected


def test_names_of_values() -> None:
    assert holds("code == SNP_AP_CREATION", VMGEXIT, code=0x8000_0013)
    assert holds("code == RUN_VMPL_REQUEST and not ghcb", VMGEXIT, code=0x16)
    assert holds("code == PAGE_NOT_VALIDATED", EventClass.VC, code=0x404)
    assert holds("type == REPORT_REQ", EventClass.MESSAGE, type=5)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("gpb == 1", "there is no field 'gpb'"),
        ("code == 1", "there is no field 'code'"),
        ("gpa ==", "ends too early"),
        ("gpa == 1 and", "ends too early"),
        ("gpa = 1", "'= 1' is not understood"),
        ("gpa == 1 gva", "'gva' is too much"),
        ("(gpa == 1", "a `)` is missing"),
        ("gpa == 1)", "')' is too much"),
        ("1 < gpa < 2", "join comparisons by `and`"),
        ("gpa == 0x", "'0x' is no number"),
        ("gpa == 12ab", "'12ab' is no number"),
        ("gpa == 1_0", "'1_0' is no number"),
        ("gpa == 0x10000000000000000", "more than 64 bits"),
        ("and", "'and' where a field or a number has to be"),
        ("== 1", "'==' where a field or a number has to be"),
        ("()", "')' where a field or a number has to be"),
        ("gpa == __import__", "there is no field '__import__'"),
        ("gpa == 'os'", "is not understood"),
        ("gpa == ٣", "is not understood"),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "levels of parentheses"),
        ("not " * (MAX_DEPTH + 1) + "1", "levels of parentheses"),
    ],
)
def test_what_is_no_condition(text: str, complaint: str) -> None:
    with pytest.raises(ConditionError) as caught:
        parse_condition(PVALIDATE, text)
    assert complaint in str(caught.value)
    fields = "gpa, gva, size, validate, result, carry, vcpu, vmpl, rip"
    assert str(caught.value).endswith(f"fields of pvalidate: {fields}")


def test_a_condition_has_an_end() -> None:
    assert holds("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH)
    with pytest.raises(ConditionError, match="more than 1000 characters"):
        parse_condition(PVALIDATE, "1 or " * MAX_CONDITION + "1")


def test_nothing_is_armed_before_somebody_asks() -> None:
    events = SnpEvents()
    assert events.armed == 0
    events.note(NPF, {"gpa": 0})
    assert not events.pending
    assert events.last is None


def test_catches_count_and_queue() -> None:
    events = SnpEvents()
    changes = []
    events.on_change = lambda: changes.append(events.armed)
    events.locate = lambda: (0x1234, 3)
    events.vcpu = 2
    low = events.catch(NPF, "gpa < 0x1000")
    every = events.catch(NPF)
    assert (low.number, every.number, events.armed) == (1, 2, NPF.bit)
    events.note(NPF, {"gpa": 0x10, "code": 4}, note="HR-1")
    events.note(NPF, {"gpa": 0x2000, "code": 4})
    assert (low.hits, every.hits, len(events.pending)) == (1, 2, 2)
    first = events.take()
    assert first is events.last
    assert (first.vcpu, first.vmpl, first.rip, first.field("gpa")) == (2, 3, 0x1234, 0x10)
    words = "NPF gpa 0x10 EXITINFO1 0x4 [U] (HR-1) by vCPU 2 at VMPL3, rip 0x1234"
    assert first.describe() == words
    assert events.take().field("gpa") == 0x2000
    assert not events.pending
    assert events.uncatch(1)
    assert not events.uncatch(1)
    assert events.armed == NPF.bit
    assert events.uncatch(2)
    assert events.armed == 0
    assert changes == [NPF.bit, NPF.bit, NPF.bit, 0]
    assert events.catch(VMGEXIT).number == 3


def test_what_only_a_removed_catch_wanted_is_not_reported() -> None:
    events = SnpEvents()
    low = events.catch(NPF, "gpa < 0x1000")
    events.catch(NPF, "gpa < 0x2000")
    for gpa in (0x800, 0x1800):
        events.note(NPF, {"gpa": gpa})
    other = events.catch(PVALIDATE)
    events.note(PVALIDATE, {"gpa": 7})
    events.uncatch(other.number)
    events.uncatch(low.number)
    assert [caught.event.field("gpa") for caught in events.pending] == [0x800, 0x1800]
    events.uncatch_all()
    assert not events.pending


def test_what_is_passed_over_is_counted_and_stops_nothing() -> None:
    events = SnpEvents()
    npf, vmgexit = events.catch(NPF), events.catch(VMGEXIT)
    events.note(NPF, {"gpa": 1})
    events.note(VMGEXIT, {"code": 2})
    events.pass_over([NPF])
    assert [caught.event.kind for caught in events.pending] == [VMGEXIT]
    events.note(NPF, {"gpa": 3})
    assert (npf.hits, vmgexit.hits, len(events.pending)) == (2, 1, 1)
    assert events.last is not None
    assert events.last.field("gpa") == 3
    events.pass_over([])
    events.note(NPF, {"gpa": 4})
    assert len(events.pending) == 2


def test_reset_leaves_nothing() -> None:
    events = SnpEvents()
    events.catch(NPF)
    events.pass_over([VMGEXIT])
    events.note(NPF, {"gpa": 1})
    events.take()
    events.note(NPF, {"gpa": 1})
    events.reset()
    assert (events.armed, events.catches, events.last, len(events.pending)) == (0, (), None, 0)
    assert events.catch(VMGEXIT).number == 1
    events.note(VMGEXIT, {"code": 1})
    assert events.pending


def test_muted_events_are_none() -> None:
    events = SnpEvents()
    events.catch(NPF)
    with events.muted():
        assert events.armed == 0
    assert events.armed == NPF.bit


def test_there_is_a_most() -> None:
    events = SnpEvents()
    for _ in range(MAX_CATCHES):
        events.catch(NPF)
    with pytest.raises(TooManyCatches):
        events.catch(NPF)
    events.uncatch(5)
    assert events.catch(NPF).number == MAX_CATCHES + 1


@pytest.mark.parametrize("kind", EventClass)
def test_each_class_has_words_whatever_its_fields_hold(kind: EventClass) -> None:
    spec = CLASSES[kind]
    for value in (0, 1, 2, 0x72, 0x404, 0x8000_0013, (1 << 64) - 1):
        values = dict.fromkeys((field.name for field in spec.fields), value)
        words = SnpEvent(kind, 0, 1, 0x42, values).describe()
        assert words.startswith(spec.title)
        assert words.endswith("by vCPU 0 at VMPL1, rip 0x42")
        assert "\n" not in words
    assert len(set(spec.field_names)) == len(spec.field_names)
