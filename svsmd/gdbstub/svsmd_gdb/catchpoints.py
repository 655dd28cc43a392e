# SPDX-License-Identifier: MIT
"""`catch vmgexit` and its like: events of the machine, as breakpoints with numbers of gdb's.

Theory of operation. The stub has the catches, and stops the machine. Here each is a breakpoint of
gdb's on a function that there is not, "catch vmgexit if ...": so it stands in `info breakpoints`,
and `delete`, `disable`, `enable`, `tcatch` and `commands` are about it as about any other one. What
gdb changes of it is passed on by `monitor catch` and `uncatch`. After a stop with the signal of a
class, the hit counts of the stub tell which of them it was.

When a connection ends the stub forgets its catches; they are armed anew when gdb is connected
again.

Spec: GDB manual, "Set Catchpoints", "Breakpoints In Python", "Events In Python".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import gdb

from . import connections, remote
from .catalogue import Catalogue, EventClass

_ARMED = re.compile(r"Catch (\d+): ")
_LISTED = re.compile(r"^ *(\d+) .*  (\d+) hits?$", re.MULTILINE)

COMMANDS: Mapping[str, tuple[str, str]] = {
    "vmgexit": ("vmgexit", "code"),
    "vc": ("vc", "code"),
    "pvalidate": ("pvalidate", "gpa"),
    "rmpadjust": ("rmpadjust", "gpa"),
    "rmpupdate": ("rmpupdate", "gpa"),
    "vmpl": ("vmpl", "to"),
    "svsm-call": ("svsm", "protocol"),
    "npf": ("npf", "gpa"),
    "vmsa": ("vmsa", "gpa"),
    "svsm-syscall": ("syscall", "number"),
    "guest-message": ("message", "type"),
}
"""Commands under `catch`: the class of events, and the field that an argument is about.

`catch syscall` is gdb's own, for Linux processes.
"""


class Catchpoint(gdb.Breakpoint):
    """A catch of the stub's, with a number of gdb's."""

    def __init__(self, kind: EventClass, condition: str, temporary: bool) -> None:
        self.kind = kind
        self.stub_condition = condition
        self.stub_number: int | None = None
        self.seen_hits = 0
        text = f"catch {kind.name}" + (f" if {condition}" if condition else "")
        super().__init__(function=text, temporary=temporary)

    def arm(self) -> None:
        """Have the stub wait for it; GdbError if the stub refuses the condition."""
        words = f"catch {self.kind.name} {self.stub_condition}".rstrip()
        answer = remote.monitor(words)
        match = _ARMED.match(answer)
        if match is None:
            raise gdb.GdbError(answer)
        self.stub_number, self.seen_hits = int(match[1]), 0
        gdb.execute(f"handle {self.kind.signal} stop print", False, True)

    def disarm(self) -> None:
        """Have the stub wait for it no more."""
        number, self.stub_number = self.stub_number, None
        if number is not None and remote.is_connected() and gdb.selected_thread() is not None:
            remote.monitor(f"uncatch {number}")


class _Catchpoints:
    """All there are, and what gdb tells of them."""

    def __init__(self) -> None:
        self._all: dict[int, Catchpoint] = {}
        connections.at_end(self._delete_all)
        for registry, callback in (
            (gdb.events.breakpoint_deleted, self._deleted),
            (gdb.events.breakpoint_modified, self._modified),
            (gdb.events.stop, self._stopped),
            (gdb.events.before_prompt, self._connected),
            (gdb.events.connection_removed, self._disconnected),
        ):
            connections.connect(registry, callback)

    def _delete_all(self) -> None:
        for each in list(self._all.values()):
            each.disarm()
            each.delete()

    def add(self, kind: EventClass, condition: str, temporary: bool) -> None:
        """A new one, armed; GdbError if it cannot be."""
        remote.select_thread()
        made: list[Catchpoint] = []

        def make() -> None:
            made.append(Catchpoint(kind, condition, temporary))

        _quietly(make)
        new = made[0]
        try:
            new.arm()
        except (gdb.GdbError, gdb.error):
            new.delete()
            raise
        self._all[new.number] = new
        what = f"{kind.name} if {condition}" if condition else kind.name
        print(f"{'Temporary catchpoint' if temporary else 'Catchpoint'} {new.number} ({what})")

    def _deleted(self, breakpoint_: gdb.Breakpoint) -> None:
        gone = self._all.pop(breakpoint_.number, None)
        if gone is not None:
            gone.disarm()

    def _modified(self, breakpoint_: gdb.Breakpoint) -> None:
        found = self._all.get(breakpoint_.number)
        if found is None or not remote.is_connected():
            return
        if found.enabled and found.stub_number is None:
            found.arm()
        elif not found.enabled:
            found.disarm()

    def _connected(self, _event: None = None) -> None:
        """Arm what is not, which is so after the target was connected again."""
        if not self._all or not remote.is_connected() or gdb.selected_thread() is None:
            return
        for each in self._all.values():
            if each.enabled and each.stub_number is None:
                each.arm()

    def _disconnected(self, event: object) -> None:
        for each in self._all.values():
            each.stub_number = None

    def _stopped(self, event: gdb.StopEvent) -> None:
        if not isinstance(event, gdb.SignalEvent):
            return
        signal = event.stop_signal
        if all(each.kind.signal != signal for each in self._all.values()):
            return
        counts = {int(n): int(hits) for n, hits in _LISTED.findall(remote.monitor("catch"))}
        for each in list(self._all.values()):
            hits = counts.get(each.stub_number or 0, 0)
            if hits == each.seen_hits or each.kind.signal != signal:
                each.seen_hits = hits
                continue
            each.seen_hits = hits
            print(f"{'Temporary catchpoint' if each.temporary else 'Catchpoint'} {each.number}")
            if each.commands:
                _post(each.commands)
            if each.temporary:
                each.delete()


def _quietly(make: object) -> None:
    """Call something without what gdb prints meanwhile: that it knows no such function."""
    name = "_svsmd_gdb_make"
    setattr(gdb, name, make)
    try:
        gdb.execute(f"python gdb.{name}()", False, True)
    finally:
        delattr(gdb, name)


def _post(commands: str) -> None:
    lines = [line for line in commands.splitlines() if line.strip() != "silent"]
    gdb.post_event(lambda: gdb.execute("\n".join(lines)))


class _Catch(gdb.Command):
    """One of `catch` or `tcatch`."""

    def __init__(self, prefix: str, name: str, catalogue: Catalogue, owner: _Catchpoints) -> None:
        class_name, self._main = COMMANDS[name]
        self._kind, self._catalogue, self._owner = catalogue.classes[class_name], catalogue, owner
        main = self._main
        self._usage = f"{prefix} {name} [{main.upper()}] [if CONDITION]"
        self._temporary = prefix == "tcatch"
        self.__doc__ = self._help(name)
        super().__init__(f"{prefix} {name}", gdb.COMMAND_BREAKPOINTS)

    def _help(self, name: str) -> str:
        kind = self._kind
        fields = "\n".join(f"  {field:10} {doc}" for field, doc in kind.fields.items())
        once = ", once" if self._temporary else ""
        return (
            f"Stop when {kind.doc}{once}.\nUsage: {self._usage}\n\n"
            f"The machine then stands {kind.stop}.\n"
            f"CONDITION compares these fields, with and, or, not, &, parentheses:\n{fields}\n"
            f"The stop is reported as {kind.signal}."
        )

    def invoke(self, argument: str, from_tty: bool) -> None:
        argument, given, condition = _split(argument)
        parts = [self._about(argument)] if argument else []
        if given:
            if not condition:
                raise gdb.GdbError(f"usage: {self._usage}")
            parts.append(f"({condition})" if parts else condition)
        self._owner.add(self._kind, " and ".join(parts), self._temporary)

    def _about(self, argument: str) -> str:
        """The condition that an argument stands for."""
        if self._main == "gpa":
            return f"gpa == {self._catalogue.page(remote.number(argument)):#x}"
        if self._main == "protocol":
            protocol, *call = argument.split()
            if len(call) > 1:
                raise gdb.GdbError(f"usage: {self._usage.replace('[PROTOCOL]', 'PROTOCOL CALL')}")
            text = f"protocol == {remote.number(protocol):#x}"
            return f"{text} and call == {remote.number(call[0]):#x}" if call else text
        if argument in self._kind.constants:
            return f"{self._main} == {argument}"
        return f"{self._main} == {remote.number(argument):#x}"

    def complete(self, text: str, word: str | None) -> Sequence[str]:
        before, given, condition = _split(text, complete=True)
        names = [*self._kind.fields, "and", "or", "not"] if given else ["if"]
        last = (condition if given else before).split(" ")[-1]
        # gdb replaces what lies behind the last of its word breaks, and so asks for that part.
        skip = len(last) - len(word or "")
        candidates = [*names, *self._kind.constants]
        return [name[skip:] for name in candidates if name.startswith(last)]


def _split(text: str, *, complete: bool = False) -> tuple[str, bool, str]:
    """What comes before `if`, whether there is one, and what comes behind it."""
    match = re.match(r"(?:(.*?)\s)??if\s(.*)$" if complete else r"(?:(.*?)\s)??if\b(.*)$", text)
    if match is None:
        return (text if complete else text.strip()), False, ""
    behind = match[2] if complete else match[2].strip()
    return (match[1] or "").strip(), True, behind


def register(catalogue: Catalogue) -> None:
    """Make the commands known to gdb."""
    owner = _Catchpoints()
    for prefix in ("catch", "tcatch"):
        for name in COMMANDS:
            _Catch(prefix, name, catalogue, owner)
