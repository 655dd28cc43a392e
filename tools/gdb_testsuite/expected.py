# SPDX-License-Identifier: MIT
"""What is run, and how it may come out: files.toml.

    [[file]]
    name = "gdb.base/break.exp"
    passes = 116                # at least so many, lest tests that are not reached go unnoticed
    quick = true                # run by the project's own tests, too; default: false

    [[file.failures]]
    reason = "Why these cannot pass."
    tests = ["its name", "the beginning of names*"]

    [[left-out]]                # for people
    names = ["gdb.reverse/*.exp"]
    reason = "Why they are not run."

Spec: none; TOML 1.0.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.gdb_testsuite.runs import Result

FILES: Final = Path(__file__).resolve().parent / "files.toml"


@dataclass(frozen=True, slots=True)
class Expectation:
    """Of one file of the testsuite.

    Attributes:
        passes: so many tests pass with svsmd at least.
        reasons: why tests fail, by their names or `*` and how they begin.
    """

    name: str
    passes: int
    reasons: Mapping[str, str]
    quick: bool = False

    def complaints(self, result: Result) -> list[str]:
        """What is not as expected, failures that are gone included; one line each."""
        found = []
        used: set[str] = set()
        for text in result.bad:
            test = text.partition(": ")[2]
            pattern = next((each for each in self.reasons if _matches(each, test)), None)
            if pattern is None:
                found.append(text)
            else:
                used.add(pattern)
        found += [f"passes now: {each}" for each in self.reasons if each not in used]
        passes = result.counts.get("PASS", 0)
        if passes < self.passes:
            found.append(f"{passes} tests pass, {self.passes} should")
        if result.late:
            found.append("the time was up")
        return [f"{self.name}: {line}" for line in found]


def _matches(pattern: str, test: str) -> bool:
    return test.startswith(pattern[:-1]) if pattern.endswith("*") else test == pattern


def expectations(path: Path = FILES) -> list[Expectation]:
    """All of them, in the order of the file."""
    return [_expectation(entry) for entry in tomllib.loads(path.read_text())["file"]]


def _expectation(entry: Mapping[str, Any]) -> Expectation:
    reasons = {
        test: failures["reason"]
        for failures in entry.get("failures", [])
        for test in failures["tests"]
    }
    return Expectation(entry["name"], entry["passes"], reasons, entry.get("quick", False))
