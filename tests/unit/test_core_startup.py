# SPDX-License-Identifier: MIT
"""/svsm.toml of the archive: what is started, and each mistake that can be made."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from svsmd.core.archive import Archive
from svsmd.core.gate import SvsmPanic
from svsmd.core.log import CoreLog
from svsmd.core.memory import OutOfMemory
from svsmd.core.percpu import PerCpu
from svsmd.core.startup import start_programs
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.process import Capability, Program
from svsmd.core.tasks.task import Priority
from tests.own_memory import own_memory
from tests.unit.test_core_archive import BASE
from tools.make_archive import make_archive


class Started:
    """In place of the process table and the scheduler: what was started, and how."""

    def __init__(self, error: Exception | None = None) -> None:
        self.programs: list[dict[str, object]] = []
        self.error = error
        self.scheduler = self

    def program(self, cpu: PerCpu, path: str, **values: object) -> Program:
        if self.error is not None:
            raise self.error
        self.programs.append({"path": path, **values})
        return Program(path, None, [])  # type: ignore[arg-type]

    def spawn(
        self, cpu: PerCpu, make: Callable[[], Program], parent: None, name: str
    ) -> SimpleNamespace:
        make()
        self.programs[-1]["name"] = name
        return SimpleNamespace(task=self.programs[-1])

    def set_priority(self, task: dict[str, object], priority: Priority) -> None:
        task["priority"] = priority

    def set_affinity(
        self, cpu: PerCpu, task: dict[str, object], affinity: frozenset[int] | None
    ) -> None:
        task["affinity"] = affinity


def start(text: str | bytes | None, started: Started | None = None) -> list[dict[str, object]]:
    """Start what a configuration says on a machine of 2 CPUs."""
    raw = text.encode() if isinstance(text, str) else text
    data = make_archive({} if raw is None else {"/svsm.toml": raw})
    memory, cpu = own_memory(BASE, len(data))
    memory.data[:] = data
    table = started or Started()
    log = CoreLog()
    archive = Archive(cpu, BASE, len(data))
    start_programs(cpu, archive, table, 2, log)  # type: ignore[arg-type]
    assert [f"started {each['path']}" for each in table.programs] == list(log.lines)
    return table.programs


@pytest.mark.parametrize("text", [None, "", "# nothing", "program = []"])
def test_nothing(text: str | None) -> None:
    assert not start(text)


def test_defaults() -> None:
    (program,) = start('[[program]]\npath = "/bin/x"')
    assert (program["name"], program["arguments"]) == ("x", [b"/bin/x"])
    assert (program["capabilities"], program["services"]) == (Capability.NONE, frozenset())
    assert (program["priority"], program["affinity"]) == (Priority.NORMAL, None)


def test_everything() -> None:
    text = """
        [[program]]
        path = "/bin/x"
        arguments = ["x", "--y"]
        environment = ["A=1"]
        capabilities = ["spawn", "priority"]
        services = ["store"]
        pages = 77
        children = 3
        priority = "high"
        cpus = [1, 5]
        [[program]]
        path = "/bin/y"
        cpus = [7]
    """
    first, second = start(text)
    assert (first["arguments"], first["environment"]) == ([b"x", b"--y"], [b"A=1"])
    assert first["capabilities"] == Capability.SPAWN | Capability.PRIORITY
    assert first["services"] == frozenset({"store"})
    limits = first["limits"]
    assert (limits.pages, limits.children) == (77, 3)  # type: ignore[attr-defined]
    assert (first["priority"], first["affinity"]) == (Priority.HIGH, frozenset({1}))
    # The same image runs with any number of CPUs.
    assert second["affinity"] is None


def entry(line: str) -> str:
    return f'[[program]]\npath = "/bin/x"\n{line}'


MISTAKES: dict[str, str | bytes] = {
    "no TOML": "[[program",
    "no text": b"\xff\xfe",
    "unknown table": "[other]",
    "a program that is none": "program = 5",
    "a program that is text": 'program = "x"',
    "programs that are texts": 'program = ["x"]',
    "one table": '[program]\npath = "/bin/x"',
    "no path": "[[program]]",
    "path is no text": "[[program]]\npath = 5",
    "unknown key": entry("extra = 1"),
    "arguments are no list": entry('arguments = "x"'),
    "arguments are no texts": entry("arguments = [1]"),
    "environment": entry("environment = {A = 1}"),
    "capability": entry('capabilities = ["all"]'),
    "capability in capitals": entry('capabilities = ["SPAWN"]'),
    "capabilities": entry("capabilities = 1"),
    "services": entry("services = [1]"),
    "pages": entry('pages = "many"'),
    "negative pages": entry("pages = -1"),
    "truth is no number": entry("pages = true"),
    "children": entry("children = 1.5"),
    "priority": entry('priority = "urgent"'),
    "priority is no text": entry("priority = 1"),
    "cpus": entry("cpus = 1"),
    "cpus are texts": entry('cpus = ["0"]'),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_named(what: str) -> None:
    with pytest.raises(SvsmPanic, match=r"/svsm\.toml is wrong: ."):
        start(MISTAKES[what])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CallFailed(Errno.ENOENT), "/bin/x cannot be started: ENOENT"),
        (CallFailed(Errno.ENOEXEC), "/bin/x cannot be started: ENOEXEC"),
        (OutOfMemory(1), "/bin/x does not fit"),
    ],
)
def test_programs_that_cannot_be_started(error: Exception, message: str) -> None:
    with pytest.raises(SvsmPanic, match=message):
        start(entry(""), Started(error))
