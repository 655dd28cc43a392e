# SPDX-License-Identifier: MIT
"""Which programs the SVSM starts by itself: /svsm.toml of its archive.

    [[program]]
    path = "/bin/vtpm"
    arguments = ["vtpm", "--quiet"]     # default: the path
    environment = ["LEVEL=1"]
    capabilities = ["register"]         # names of Capability, lower case
    services = ["store"]                # that it may open
    protocols = [0xC0010000]            # that it may serve, with the capability serve_protocol
    pages = 2048                        # of 4 KiB, at most
    children = 0
    priority = "normal"                 # low, normal, high
    cpus = [0]                          # default: all

The archive is part of what was measured, so a mistake in it is one of whoever made the image: the
SVSM panics and says which. CPUs that the machine does not have are left out, since the same image
runs with any number.

Spec: none; TOML 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar

from svsmd.core.archive import Archive
from svsmd.core.gate import SvsmPanic
from svsmd.core.log import CoreLog
from svsmd.core.memory import OutOfMemory
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.errno import CallFailed
from svsmd.core.tasks.process import Capability, Limits
from svsmd.core.tasks.process_table import ProcessTable
from svsmd.core.tasks.task import Priority

E = TypeVar("E", bound=Enum)

CONFIGURATION: Final = "/svsm.toml"
_KEYS: Final = frozenset(
    ("path", "arguments", "environment", "capabilities", "services", "protocols", "pages",
     "children", "priority", "cpus")
)  # fmt: skip


def start_programs(
    cpu: PerCpu, archive: Archive, processes: ProcessTable, ncpus: int, log: CoreLog
) -> None:
    """Start them all. Raises SvsmPanic for a configuration that is none, or cannot be met."""
    raw = archive.read(cpu, CONFIGURATION)
    if raw is None:
        return
    import tomllib  # an SVSM without modules starts sooner

    try:
        configuration = tomllib.loads(raw.decode())
        if configuration.keys() - {"program"}:
            raise ValueError(f"unknown keys: {', '.join(configuration.keys() - {'program'})}")
        programs = configuration.get("program", [])
        if not isinstance(programs, list) or not all(isinstance(each, dict) for each in programs):
            raise TypeError("program is no array of tables")
        for entry in programs:
            _start(cpu, processes, entry, ncpus)
            log.write(f"started {entry['path']}")
    except (ValueError, TypeError) as error:
        raise SvsmPanic(f"{CONFIGURATION} is wrong: {error}") from error


def _start(cpu: PerCpu, processes: ProcessTable, entry: Mapping[str, object], ncpus: int) -> None:
    if entry.keys() - _KEYS:
        raise ValueError(f"unknown keys: {', '.join(sorted(entry.keys() - _KEYS))}")
    if "path" not in entry:
        raise ValueError("a program without path")
    path = _text(entry["path"])
    arguments = [text.encode() for text in _texts(entry.get("arguments", [path]))]
    capabilities = Capability.NONE
    for name in _texts(entry.get("capabilities", [])):
        capabilities |= _named(Capability, name)
    default = Limits()
    limits = Limits(_number(entry.get("pages", default.pages)), _number(entry.get("children", 0)))
    priority = _named(Priority, _text(entry.get("priority", "normal")))
    affinity = None
    if "cpus" in entry:
        affinity = frozenset(n for n in _numbers(entry["cpus"]) if n < ncpus) or None
    try:
        process = processes.spawn(
            cpu,
            lambda: processes.program(
                cpu,
                path,
                arguments=arguments,
                environment=[text.encode() for text in _texts(entry.get("environment", []))],
                limits=limits,
                capabilities=capabilities,
                services=frozenset(_texts(entry.get("services", []))),
                protocols=frozenset(_numbers(entry.get("protocols", []))),
            ),
            None,
            path.rpartition("/")[2],
        )
    except CallFailed as error:
        raise ValueError(f"{path} cannot be started: {error.errno.name}") from error
    except OutOfMemory as error:
        raise SvsmPanic(f"{path} does not fit: {error}") from error
    processes.scheduler.set_priority(process.task, priority)
    processes.scheduler.set_affinity(cpu, process.task, affinity)


def _named(kind: type[E], name: str) -> E:
    """A member by its name in lower case."""
    found = kind.__members__.get(name.upper())
    if found is None or name != name.lower():
        raise ValueError(f"{name!r} is no {kind.__name__.lower()}")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of texts")
    return [_text(item) for item in value]


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{value!r} is no number")
    return value


def _numbers(value: object) -> list[int]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list of numbers")
    return [_number(item) for item in value]
