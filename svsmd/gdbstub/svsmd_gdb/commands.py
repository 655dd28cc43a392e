# SPDX-License-Identifier: MIT
"""`svsm ...`: the machine by what gdb has selected, with gdb's expressions for addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import gdb

from . import remote, structures
from .catalogue import Catalogue

_PAGE = 0x1000
_CALLS = 10
"""Calls that `svsm calls` shows."""


class _Prefix(gdb.Command):
    """Commands that know the SEV-SNP machine which svsmd runs.

    They need a connection to svsmd, and are about the selected thread or name a vCPU. Addresses are
    expressions of gdb's. `monitor help` lists what works in a gdb without Python, too.
    """

    def __init__(self) -> None:
        super().__init__("svsm", gdb.COMMAND_DATA, gdb.COMPLETE_NONE, True)


class _Rmp(gdb.Command):
    """Entries of the Reverse Map Table: svsm rmp [START[,END] | START,+LENGTH]

    Shows runs of equal entries: all of them, or those of the guest-physical addresses that are
    asked for, and who changed the first entry of each run last. Letters of rights: r read, w write,
    u execute at CPL 3, s execute at CPL 0 to 2.
    """

    _COLUMNS = (
        "spa", "pages", "size", "state", "gpa", "asid", "vmpl0", "vmpl1", "vmpl2", "vmpl3",
        "last change",
    )  # fmt: skip

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("svsm rmp", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)
        self._catalogue = catalogue

    def invoke(self, argument: str, from_tty: bool) -> None:
        first, last = _range(argument)
        if argument:
            first, last = first & ~self._catalogue.c_bit, last & ~self._catalogue.c_bit
        rows = [row for row in remote.table("rmp") if _overlaps(row, first, last)]
        if not rows:
            raise gdb.GdbError(f"the RMP has no entry for {first:#x}")
        _print_table(self._COLUMNS, rows)


def _range(argument: str) -> tuple[int, int]:
    """First and last address of START[,END] or START,+LENGTH; everything without an argument."""
    if not argument.strip():
        return 0, (1 << 64) - 1
    start, comma, end = argument.partition(",")
    first = remote.number(start)
    if not comma:
        return first, first
    end = end.strip()
    length = remote.number(end[1:]) if end.startswith("+") else remote.number(end) - first
    if length <= 0:
        raise gdb.GdbError("the range is empty")
    return first, first + length - 1


def _overlaps(row: remote.Row, first: int, last: int) -> bool:
    try:
        start = int(row["spa"], 16)
        pages = int(row["pages"])
    except ValueError:
        return True  # the row that says that there are more
    return start <= last and first < start + pages * _PAGE


class _Walk(gdb.Command):
    """Each level of the page tables of an address: svsm walk [ADDRESS]

    Without an address that of the program counter. `svsm why` says what may be done there.
    """

    def __init__(self) -> None:
        super().__init__("svsm walk", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, from_tty: bool) -> None:
        address = remote.number(argument or "$pc")
        print(f"{_symbol(address)}:")
        print(_indented(remote.monitor(f"walk {address:#x}").removeprefix("walk: ")))


class _Why(gdb.Command):
    """What may be done at an address, and which rule refuses the rest: svsm why [ADDRESS]

    Without an address it is about the last nested page fault, and the last #PF or #VC.
    """

    def __init__(self) -> None:
        super().__init__("svsm why", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, from_tty: bool) -> None:
        print(remote.monitor(f"why {remote.number(argument):#x}" if argument else "why"))


class _Ghcb(gdb.Command):
    """GHCB pages: svsm ghcb [VCPU]

    Shows, for each world that has registered one, what is marked valid in it.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("svsm ghcb", gdb.COMMAND_DATA)
        self._catalogue = catalogue

    def invoke(self, argument: str, from_tty: bool) -> None:
        words = _words(argument, "svsm ghcb [VCPU]", 1)
        for row in _of_vcpu(remote.table("ghcb"), words[0] if words else None):
            where = f"vCPU {row['vcpu']} at VMPL{row['vmpl']}: GHCB MSR {row['msr']}"
            if not row["gpa"].startswith("0x"):
                print(f"{where}, {row['gpa']}")
                continue
            print(f"{where}, page at {row['gpa']}")
            data = remote.read_physical(int(row["gpa"], 16), _PAGE)
            for line in structures.ghcb_lines(self._catalogue, data):
                print(line)

    def complete(self, text: str, word: str | None) -> Sequence[str]:
        return _vcpus(text)


class _Vmsa(gdb.Command):
    """VM save areas: svsm vmsa [/a] [VCPU [VMPL]]

    Shows the registers that are not 0 of each VMPL of the vCPU, or of one; with /a all of them.
    Without a number it is about the vCPU of the selected thread.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("svsm vmsa", gdb.COMMAND_DATA)
        self._catalogue = catalogue

    def invoke(self, argument: str, from_tty: bool) -> None:
        everything = argument.startswith("/a")
        words = _words(argument[2:] if everything else argument, "svsm vmsa [/a] [VCPU [VMPL]]", 2)
        rows = _of_vcpu(remote.table("vmsa"), words[0] if words else str(_selected_vcpu()))
        if len(words) == 2:
            rows = [row for row in rows if row["vmpl"] == words[1]]
        if not rows:
            raise gdb.GdbError("there is no such VMSA")
        for row in rows:
            gpa = int(row["spa"], 16)
            print(f"vCPU {row['vcpu']} at VMPL{row['vmpl']}: VMSA at {gpa:#x}, {row['state']}")
            data = remote.read_physical(gpa, _PAGE)
            for line in structures.vmsa_lines(self._catalogue, data, everything):
                print(line)

    def complete(self, text: str, word: str | None) -> Sequence[str]:
        before = text.removeprefix("/a").split(" ")[:-1]
        return list("0123") if any(before) else _vcpus(text)


class _Caa(gdb.Command):
    """A calling area: svsm caa [/p] ADDRESS

    ADDRESS is one that the selected thread maps, with /p a guest-physical one.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("svsm caa", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)
        self._catalogue = catalogue

    def invoke(self, argument: str, from_tty: bool) -> None:
        physical = argument.startswith("/p")
        expression = argument[2:] if physical else argument
        if not expression.strip():
            raise gdb.GdbError("usage: svsm caa [/p] ADDRESS")
        address = remote.number(expression)
        if physical:
            data = remote.read_physical(address, _PAGE)
        else:
            data = bytes(gdb.selected_inferior().read_memory(address, _PAGE))
        print("\n".join(structures.caa_lines(self._catalogue, data)))


class _Calls(gdb.Command):
    """The guest's last calls to its SVSM, the latest at the end: svsm calls [N]"""

    def __init__(self) -> None:
        super().__init__("svsm calls", gdb.COMMAND_DATA, gdb.COMPLETE_EXPRESSION)

    def invoke(self, argument: str, from_tty: bool) -> None:
        count = remote.number(argument) if argument else _CALLS
        rows = remote.table("calls")
        columns = ("vcpu", "protocol", "call", "rcx", "result", "tick", "ticks")
        _print_table(columns, rows[-count:] if count else [])


class _Modules(gdb.Command):
    """The programs that the SVSM runs at CPL 3, and the inferiors that they are: svsm modules"""

    def __init__(self) -> None:
        super().__init__("svsm modules", gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        _words(argument, "svsm modules", 0)
        inferiors = {inferior.pid: str(inferior.num) for inferior in gdb.inferiors()}
        rows = remote.table("modules")
        for row in rows:
            row["inferior"] = inferiors.get(remote.FIRST_PROGRAM + int(row["task"]), "")
        columns = ("task", "inferior", "name", "program", "state", "vcpu", "pages", "ticks")
        _print_table(columns, rows)


# -- shared ---------------------------------------------------------------------------------


def _words(argument: str, usage: str, most: int) -> list[str]:
    words = argument.split()
    if len(words) > most or not all(word.isdecimal() for word in words):
        raise gdb.GdbError(f"usage: {usage}")
    return words


def _of_vcpu(rows: Iterable[remote.Row], vcpu: str | None) -> list[remote.Row]:
    found = [row for row in rows if vcpu is None or row["vcpu"] == vcpu]
    if not found:
        raise gdb.GdbError(f"there is no vCPU {vcpu}")
    return found


def _selected_vcpu() -> int:
    """The vCPU of the selected thread; that of a program has it loaded."""
    pid, tid = remote.selected()
    if pid < remote.FIRST_PROGRAM:
        return tid - 1
    core = next((each.core for each in remote.threads() if each.pid == pid), None)
    if core is None:
        raise gdb.GdbError("no vCPU has this program: name one")
    return core


def _vcpus(text: str) -> list[str]:
    if not remote.is_connected():
        return []
    word = text.split(" ")[-1]
    numbers = sorted({row["vcpu"] for row in remote.table("vcpus")}, key=int)
    return [number for number in numbers if number.startswith(word)]


def _symbol(address: int) -> str:
    """An address, and where that is: "0x20964b <ghcb_call+43>"."""
    found = gdb.execute(f"info symbol {address:#x}", False, True)
    match = re.match(r"(\S+(?: \+ \d+)?) in section", found)
    return f"{address:#x} <{match[1].replace(' ', '')}>" if match else f"{address:#x}"


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _print_table(columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    cells = [columns, *([row.get(column, "") for column in columns] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    for row in cells:
        print(" ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip())


def register(catalogue: Catalogue) -> None:
    """Make the commands known to gdb."""
    _Prefix()
    for command in (_Walk, _Why, _Calls, _Modules):
        command()
    for structure in (_Rmp, _Ghcb, _Vmsa, _Caa):
        structure(catalogue)
