# SPDX-License-Identifier: MIT
"""Catchpoints: events of the machine as a debugger waits for them and sees them.

`monitor catch` arms a class; an event of it is a stop with the signal of the class, a line of words
on the console, and its details in registers. docs/gdb.md has the tables, for users.

Spec: signal numbers are gdb's own (include/gdb/signals.def).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from svsmd.gdbstub.target import MonitorCommand, Signal, Stopped, TargetError
from svsmd.snp.events import (
    CLASSES,
    Catch,
    ConditionError,
    EventClass,
    SnpEvent,
    SnpEvents,
    TooManyCatches,
)

SIGNALS: Final[Mapping[EventClass, Signal]] = {
    EventClass.VMGEXIT: Signal.SIG40,
    EventClass.VC: Signal.SIG41,
    EventClass.PVALIDATE: Signal.SIG42,
    EventClass.RMPADJUST: Signal.SIG43,
    EventClass.RMPUPDATE: Signal.SIG44,
    EventClass.VMPL: Signal.SIG45,
    EventClass.SVSM: Signal.SIG46,
    EventClass.NPF: Signal.SIG47,
    EventClass.VMSA: Signal.SIG48,
    EventClass.SYSCALL: Signal.SIG49,
    EventClass.MESSAGE: Signal.SIG50,
}
"""What a stop at an event of a class is reported as."""

_BY_NAME: Final = {spec.name: kind for kind, spec in CLASSES.items()}

REGISTER_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "snp_code": ("code", "call", "number", "type"),
    "snp_gpa": ("gpa", "ghcb"),
    "snp_gva": ("gva",),
    "snp_size": ("size",),
    "snp_vmpl_to": ("to", "target"),
    "snp_info1": ("info1", "validate", "perms", "assigned", "rcx", "arg1", "key", "cpl"),
    "snp_info2": ("info2", "carry", "vmsa", "rdx", "arg2", "seqno"),
    "snp_protocol": ("protocol",),
    "snp_result": ("result",),
    "snp_task": ("task",),
    "snp_vcpu": ("vcpu",),
    "snp_vmpl_from": ("vmpl",),
    "snp_rip": ("rip",),
}
"""Which field of an event a register shows: the first one that its class has."""


def event_stop(event: SnpEvent) -> Stopped:
    """The stop that reports an event."""
    return Stopped(event.vcpu + 1, SIGNALS[event.kind], words=event.describe())


def is_event_register(name: str) -> bool:
    """Whether `event_register` has it."""
    return name == "snp_event" or name in REGISTER_FIELDS


def event_register(event: SnpEvent | None, name: str) -> int:
    """A register of `org.svsmd.snp` that tells of the last event; 0 before there is one."""
    if event is None:
        return 0
    if name == "snp_event":
        return event.kind
    has = CLASSES[event.kind].field_names
    return next((event.field(field) for field in REGISTER_FIELDS[name] if field in has), 0)


class Catchpoints:
    """The user's side of the events of a machine."""

    def __init__(self, events: Callable[[], SnpEvents]) -> None:
        """`events` gives those of the machine as it is now."""
        self._events = events

    @property
    def commands(self) -> Mapping[str, MonitorCommand]:
        """Commands of `monitor`, by name."""
        return {
            "catch": MonitorCommand(
                "[CLASS [CONDITION]]", "stop at events; alone: classes and catches", self._catch
            ),
            "uncatch": MonitorCommand("N|all", "do not stop at them any more", self._uncatch),
            "event": MonitorCommand("", "the last event that was caught, in words", self._event),
        }

    def pass_signals(self, signals: Collection[int]) -> None:
        """See SupportsEvents."""
        self._events().pass_over(kind for kind, signal in SIGNALS.items() if signal in signals)

    def forget_events(self) -> None:
        """See SupportsEvents."""
        self._events().reset()

    def _catch(self, arguments: Sequence[str]) -> str:
        if not arguments:
            return self._list()
        name, *condition = arguments
        kind = _BY_NAME.get(name)
        if kind is None:
            names = ", ".join(_BY_NAME)
            raise TargetError(f"there is no class {name[:40]!r}; classes: {names}")
        try:
            catch = self._events().catch(kind, " ".join(condition))
        except (ConditionError, TooManyCatches) as error:
            raise TargetError(str(error)) from None
        return f"Catch {catch.number}: {_describe(catch)}, reported as {SIGNALS[kind].name}"

    def _list(self) -> str:
        catches = self._events().catches
        if not catches:
            rows = [
                (spec.name, SIGNALS[kind].name, f"{spec.doc}: {', '.join(spec.field_names)}")
                for kind, spec in CLASSES.items()
            ]
            table = "\n".join(f"{name:10} {signal}  {text}" for name, signal, text in rows)
            return f"nothing is caught; classes, their signals and fields:\n{table}"
        return "\n".join(
            f"{each.number:3} {_describe(each)}  {each.hits} hit{'' if each.hits == 1 else 's'}"
            for each in catches
        )

    def _uncatch(self, arguments: Sequence[str]) -> str:
        match arguments:
            case ["all"]:
                self._events().uncatch_all()
            case [number] if number.isascii() and number.isdigit() and len(number) < 10:
                if not self._events().uncatch(int(number)):
                    raise TargetError(f"there is no catch {number}")
            case _:
                raise TargetError("usage: uncatch N|all")
        return ""

    def _event(self, arguments: Sequence[str]) -> str:
        if arguments:
            raise TargetError("event takes no arguments")
        last = self._events().last
        return "no event was caught" if last is None else last.describe()


def _describe(catch: Catch) -> str:
    text = catch.condition.text
    return f"{CLASSES[catch.kind].name}{f' if {text}' if text else ''}"
