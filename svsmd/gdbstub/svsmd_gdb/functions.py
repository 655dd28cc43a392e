# SPDX-License-Identifier: MIT
"""Functions for expressions: `break memcpy if $_svsm_vmpl() == 2 && !$_rmp_validated($rdi)`.

gdb calls them, so a condition that has one is evaluated by gdb, at each hit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import gdb

from . import remote
from .catalogue import Catalogue

_ENTRY = re.compile(
    r"0x[0-9a-f]+: (?P<state>.*) gpa (?P<gpa>0x[0-9a-f]+) asid (?P<asid>\d+) (?P<size>2M|4K)"
    r"(?P<rights>(?: VMPL\d:[rwus-]{4}){4})$"
)
_RIGHTS = "rwus"
"""Bits 0 to 3 of a mask of rights (24593, 15.36.5)."""
_MASK = (1 << 64) - 1


def rmp_entry(catalogue: Catalogue, gpa: int) -> dict[str, str]:
    """The RMP entry of a page; GdbError if there is none."""
    line = remote.monitor(f"rmp {catalogue.page(gpa):#x}")
    match = _ENTRY.match(line)
    if match is None:
        raise gdb.GdbError(line)
    return match.groupdict()


def _arguments(args: Sequence[gdb.Value], count: int) -> list[int]:
    if len(args) != count:
        raise gdb.GdbError(f"{count} argument{'' if count == 1 else 's'} expected")
    return [int(value) & _MASK for value in args]


class _Vmpl(gdb.Function):
    """VMPL of the selected thread: $_svsm_vmpl()

    That of a program of the SVSM is 0.
    """

    def __init__(self) -> None:
        super().__init__("_svsm_vmpl")

    def invoke(self, *args: gdb.Value) -> int:
        pid, _ = remote.selected()
        return 0 if pid >= remote.FIRST_PROGRAM else pid - 1


class _Task(gdb.Function):
    """Number of the task that the selected thread is: $_svsm_task()

    0 if it is none, but a world.
    """

    def __init__(self) -> None:
        super().__init__("_svsm_task")

    def invoke(self, *args: gdb.Value) -> int:
        pid, _ = remote.selected()
        return max(0, pid - remote.FIRST_PROGRAM)


class _Gpa(gdb.Function):
    """Guest-physical address of one that the selected thread maps: $_svsm_gpa(ADDRESS)"""

    def __init__(self) -> None:
        super().__init__("_svsm_gpa")

    def invoke(self, *args: gdb.Value) -> int:
        (address,) = _arguments(args, 1)
        answer = remote.monitor(f"gva2gpa {address:#x}")
        match = re.match(r"gpa: (0x[0-9a-f]+)$", answer)
        if match is None:
            raise gdb.GdbError(f"no page table maps {address:#x}")
        return int(match[1], 16)


class _RmpState(gdb.Function):
    """One word of the state of an RMP entry."""

    def __init__(self, catalogue: Catalogue, word: str, doc: str) -> None:
        self.__doc__ = f"{doc}: $_rmp_{word}(GPA)"
        self._catalogue = catalogue
        self._word = word
        super().__init__(f"_rmp_{word}")

    def invoke(self, *args: gdb.Value) -> bool:
        (gpa,) = _arguments(args, 1)
        return self._word in rmp_entry(self._catalogue, gpa)["state"].split()


class _RmpPermissions(gdb.Function):
    """What a VMPL may do with a page: $_rmp_perms(GPA, VMPL)

    1 read, 2 write, 4 execute at CPL 3, 8 execute at CPL 0 to 2, as RMPADJUST has them.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        super().__init__("_rmp_perms")
        self._catalogue = catalogue

    def invoke(self, *args: gdb.Value) -> int:
        gpa, vmpl = _arguments(args, 2)
        entry = rmp_entry(self._catalogue, gpa)
        rights = dict(part.split(":") for part in entry["rights"].split())
        mine = rights.get(f"VMPL{vmpl}")
        if mine is None:
            raise gdb.GdbError("a VMPL is 0 to 3")
        return sum(1 << bit for bit, letter in enumerate(_RIGHTS) if letter in mine)


def register(catalogue: Catalogue) -> None:
    """Make the functions known to gdb."""
    _Vmpl()
    _Task()
    _Gpa()
    _RmpState(catalogue, "assigned", "Whether a page is the guest's")
    _RmpState(catalogue, "validated", "Whether a page is validated")
    _RmpState(catalogue, "vmsa", "Whether a page is a VMSA")
    _RmpPermissions(catalogue)
