# SPDX-License-Identifier: MIT
"""What results of gdb's testsuite are held against."""

import pytest

from tools.gdb_testsuite.expected import Expectation, expectations
from tools.gdb_testsuite.runs import Result, parse_summary

SUMMARY = """\
Running target svsmd-program
PASS: gdb.base/break.exp: first
PASS: gdb.base/break.exp: second: with a colon
FAIL: gdb.base/break.exp: third (timeout)
KFAIL: gdb.base/break.exp: fourth (PRMS: gdb/1)
UNRESOLVED: gdb.base/break.exp: fifth

		=== gdb Summary ===

# of expected passes		2
"""


def result(*, late: bool = False) -> Result:
    return parse_summary(SUMMARY, late=late)


def test_summary() -> None:
    assert result().counts == {"PASS": 2, "FAIL": 1, "KFAIL": 1, "UNRESOLVED": 1}
    assert result().bad == ("FAIL: third (timeout)", "UNRESOLVED: fifth")


@pytest.mark.parametrize(
    ("passes", "tests", "late", "complaints"),
    [
        (2, ["third*", "fifth"], False, []),
        (2, ["fifth", "third (timeout)"], False, []),
        (2, ["third*"], False, ["UNRESOLVED: fifth"]),
        (2, ["third", "fifth"], False, ["FAIL: third (timeout)", "passes now: third"]),
        (3, ["third*", "fifth"], False, ["2 tests pass, 3 should"]),
        (2, ["third*", "fifth", "sixth*"], False, ["passes now: sixth*"]),
        (2, ["third*", "fifth"], True, ["the time was up"]),
    ],
)
def test_complaints(passes: int, tests: list[str], late: bool, complaints: list[str]) -> None:
    expectation = Expectation("f", passes, dict.fromkeys(tests, "because"))
    assert expectation.complaints(result(late=late)) == [f"f: {line}" for line in complaints]


def test_the_list() -> None:
    """Each file once, each failure with a reason, and those of the project's tests are there."""
    listed = expectations()
    assert len({each.name for each in listed}) == len(listed)
    assert all(reason for each in listed for reason in each.reasons.values())
    quick = {each.name for each in listed if each.quick}
    for name in ("break", "condbreak", "display", "step-test", "watchpoint", "hbreak"):
        assert f"gdb.base/{name}.exp" in quick
    assert "gdb.server/server-mon.exp" in quick
