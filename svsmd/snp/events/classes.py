# SPDX-License-Identifier: MIT
"""The classes of events, and what is to be known of each event: its fields, and a line of words.

The fields are what conditions compare. Every class also has those of `COMMON`: who it was, and
where. Numbers are unsigned; what a class has no room for is 0.

Spec: 56421 (GHCB), table 6 and 2.3.1; 24593, 15.35.5 (#VC), 15.36 (SEV-SNP); 24594 (PVALIDATE,
RMPADJUST); 58019 (SVSM), section 4; 56860 (guest messages), chapter 7.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from svsmd.snp.faults import PAGE_NOT_VALIDATED, NpfError
from svsmd.snp.ghcb import GhcbExit
from svsmd.snp.ghcb_msr import GhcbInfo
from svsmd.snp.guest_message import MessageType


class EventClass(IntEnum):
    """What kind of event it is; `bit` is its place in `SnpEvents.armed`."""

    VMGEXIT = 1
    VC = 2
    PVALIDATE = 3
    RMPADJUST = 4
    RMPUPDATE = 5
    VMPL = 6
    SVSM = 7
    NPF = 8
    VMSA = 9
    SYSCALL = 10
    MESSAGE = 11

    @property
    def bit(self) -> int:
        """One bit for each class."""
        return 1 << self


@dataclass(frozen=True, slots=True)
class Field:
    """A number that events of a class have."""

    name: str
    doc: str


COMMON: Final = (
    Field("vcpu", "index of the vCPU"),
    Field("vmpl", "VMPL that ran; for what the host does, the one whose exit it serves"),
    Field("rip", "linear RIP: of the instruction, or behind it where the host comes in"),
)
"""Fields of every class."""


@dataclass(frozen=True, slots=True)
class SnpEvent:
    """Something that has happened.

    Attributes:
        kind: its class.
        vcpu, vmpl, rip: the fields of `COMMON`.
        values: the fields of its class by name.
        note: what words can say and numbers cannot, such as the row of docs/access-checks.md.
    """

    kind: EventClass
    vcpu: int
    vmpl: int
    rip: int
    values: Mapping[str, int]
    note: str = ""

    def field(self, name: str) -> int:
        """A field by name, 0 if the class has none of that name."""
        match name:
            case "vcpu":
                return self.vcpu
            case "vmpl":
                return self.vmpl
            case "rip":
                return self.rip
            case _:
                return self.values.get(name, 0)

    def describe(self) -> str:
        """One line: what, by whom, where."""
        spec = CLASSES[self.kind]
        what = spec.words(self)
        note = f" ({self.note})" if self.note else ""
        who = f"vCPU {self.vcpu} at VMPL{self.vmpl}"
        return f"{spec.title} {what}{note} by {who}, rip {self.rip:#x}"


@dataclass(frozen=True, slots=True)
class EventSpec:
    """What there is to know of a class.

    Attributes:
        name: what `monitor catch` calls it.
        title: what a line of words begins with.
        doc: what it is, in one line.
        stop: where the machine stands when such an event has stopped it.
        fields: beside those of `COMMON`.
        words: the details of an event.
        constants: names that conditions may use for numbers.
    """

    name: str
    title: str
    doc: str
    stop: str
    fields: tuple[Field, ...]
    words: Callable[[SnpEvent], str]
    constants: Mapping[str, int] = field(default_factory=dict)

    @property
    def field_names(self) -> tuple[str, ...]:
        """All of them, in the order in which they are listed."""
        return tuple(each.name for each in (*self.fields, *COMMON))


_GHCB_NAMES: Final = {int(code): code.name for code in GhcbExit}
_MSR_NAMES: Final = {int(code): code.name for code in GhcbInfo}
_MESSAGE_NAMES: Final = {int(kind): kind.name for kind in MessageType}
_VC_NAMES: Final = {
    **{code: name.removeprefix("SVM_EXIT_") for code, name in _GHCB_NAMES.items() if code < 0x400},
    0x400: "NPF",
    PAGE_NOT_VALIDATED: "PAGE_NOT_VALIDATED",
}


def _named(code: int, names: Mapping[int, str]) -> str:
    return f"{code:#x} {names[code]}" if code in names else f"{code:#x}"


def _size(event: SnpEvent) -> str:
    return "2M" if event.field("size") > 0x1000 else "4K"


def _vmgexit(event: SnpEvent) -> str:
    get = event.field
    if not get("ghcb"):
        return f"MSR {get('msr'):#x} {_MSR_NAMES.get(get('code'), '')}".rstrip()
    infos = f"info1 {get('info1'):#x} info2 {get('info2'):#x}"
    return f"{_named(get('code'), _GHCB_NAMES)} {infos}"


def _vc(event: SnpEvent) -> str:
    gva = f" gva {event.field('gva'):#x}" if event.field("code") == PAGE_NOT_VALIDATED else ""
    return f"{_named(event.field('code'), _VC_NAMES)}{gva} CPL {event.field('cpl')}"


def _pvalidate(event: SnpEvent) -> str:
    get = event.field
    verb = "validate" if get("validate") else "rescind"
    same = ", CF: it was so before" if get("carry") else ""
    return f"{verb} gpa {get('gpa'):#x} {_size(event)} -> {get('result')}{same}"


def _rmpadjust(event: SnpEvent) -> str:
    get = event.field
    vmsa = " VMSA" if get("vmsa") else ""
    return (
        f"gpa {get('gpa'):#x} {_size(event)} VMPL{get('target')} "
        f"permissions {get('perms'):#x}{vmsa} -> {get('result')}"
    )


def _rmpupdate(event: SnpEvent) -> str:
    state = "private" if event.field("assigned") else "shared"
    return f"gpa {event.field('gpa'):#x} {_size(event)} {state}"


def _npf(event: SnpEvent) -> str:
    code = event.field("code")
    names = " ".join(flag.name or "" for flag in NpfError if code & flag)
    return f"gpa {event.field('gpa'):#x} EXITINFO1 {code:#x} [{names}]"


def _svsm(event: SnpEvent) -> str:
    get = event.field
    return (
        f"protocol {get('protocol')} call {get('call')} "
        f"rcx {get('rcx'):#x} rdx {get('rdx'):#x} -> {get('result'):#x}"
    )


def _syscall(event: SnpEvent) -> str:
    get = event.field
    return f"{get('number'):#x} of task {get('task')}, arguments {get('arg1'):#x} {get('arg2'):#x}"


def _message(event: SnpEvent) -> str:
    get = event.field
    return (
        f"{_named(get('type'), _MESSAGE_NAMES)} VMPCK{get('key')} number {get('seqno')} "
        f"-> {get('result'):#x}"
    )


_GPA: Final = Field("gpa", "guest-physical address of the page, without the C-bit")
_GVA: Final = Field("gva", "linear address that the instruction was given")
_SIZE: Final = Field("size", "bytes of the page: 0x1000 or 0x200000")
_TARGET: Final = Field("target", "VMPL whose rights are set")
_BEHIND: Final = "behind the instruction; in the SVSM's core, behind the gate instruction"

CLASSES: Final[Mapping[EventClass, EventSpec]] = {
    EventClass.VMGEXIT: EventSpec(
        "vmgexit", "VMGEXIT", "a guest or the SVSM calls the host",
        "behind VMGEXIT, before the host looks at the request",
        (
            Field("code", "SW_EXITCODE; without a GHCB, GHCBInfo of the MSR protocol"),
            Field("info1", "SW_EXITINFO1; without a GHCB, GHCBData"),
            Field("info2", "SW_EXITINFO2"),
            Field("ghcb", "GPA of the GHCB; 0 for the MSR protocol"),
            Field("msr", "value of the GHCB MSR"),
        ),
        _vmgexit,
        {name: code for code, name in _GHCB_NAMES.items()}
        | {name: code for code, name in _MSR_NAMES.items()},
    ),
    EventClass.VC: EventSpec(
        "vc", "#VC", "a #VC is raised",
        "at the first instruction of the handler",
        (
            Field("code", "exit code, the error code of the exception"),
            Field("gva", "for 0x404: the address that faulted (CR2)"),
            Field("cpl", "where it was raised"),
        ),
        _vc,
        {name: code for code, name in _VC_NAMES.items()},
    ),
    EventClass.PVALIDATE: EventSpec(
        "pvalidate", "PVALIDATE", "PVALIDATE was executed, without a fault", _BEHIND,
        (
            _GPA, _GVA, _SIZE, Field("validate", "1: to validated, 0: to not validated"),
            Field("result", "EAX"), Field("carry", "CF: the page was so before"),
        ),
        _pvalidate,
    ),
    EventClass.RMPADJUST: EventSpec(
        "rmpadjust", "RMPADJUST", "RMPADJUST was executed, without a fault", _BEHIND,
        (
            _GPA, _GVA, _SIZE, _TARGET,
            Field("perms", "1 read, 2 write, 4 execute at CPL 3, 8 execute at CPL 0 to 2"),
            Field("vmsa", "bit VMSA of RDX"), Field("result", "EAX"),
        ),
        _rmpadjust,
    ),
    EventClass.RMPUPDATE: EventSpec(
        "rmpupdate", "RMPUPDATE", "the host makes a page private or shared",
        "when the host has served the exit, before anything runs",
        (_GPA, _SIZE, Field("assigned", "1: the guest's, 0: the host's")),
        _rmpupdate,
    ),
    EventClass.VMPL: EventSpec(
        "vmpl", "VMPL switch", "a vCPU goes on at another VMPL",
        "before the first instruction at the new VMPL",
        (Field("from", "VMPL that ran"), Field("to", "VMPL that runs next")),
        lambda event: f"from VMPL{event.field('from')} to VMPL{event.field('to')}",
    ),
    EventClass.SVSM: EventSpec(
        "svsm", "SVSM call", "the SVSM has served a call of the guest",
        "behind the gate instruction in which the answer came",
        (
            Field("protocol", "RAX[63:32]"), Field("call", "RAX[31:0]"),
            Field("rcx", "argument"), Field("rdx", "argument"),
            Field("result", "RAX of the answer"),
        ),
        _svsm,
    ),
    EventClass.NPF: EventSpec(
        "npf", "NPF", "a nested page fault, RMP violations included, ends VMRUN",
        "at the instruction that faulted, before the host acts",
        (_GPA, Field("code", "EXITINFO1")),
        _npf,
    ),
    EventClass.VMSA: EventSpec(
        "vmsa", "VMSA created", "RMPADJUST makes a page a VMSA", _BEHIND,
        (_GPA, _GVA, Field("target", "VMPL that RMPADJUST was for")),
        lambda event: f"gpa {event.field('gpa'):#x}",
    ),
    EventClass.SYSCALL: EventSpec(
        "syscall", "System call", "a module calls the SVSM",
        "behind the gate instruction in which it was taken up",
        (
            Field("number", "RAX: class << 32 | number"), Field("task", "number of the task"),
            Field("arg1", "RDI"), Field("arg2", "RSI"), Field("arg3", "RDX"),
        ),
        _syscall,
    ),
    EventClass.MESSAGE: EventSpec(
        "message", "Guest message", "the security processor has answered a guest message",
        "when the host has served the exit, before anything runs",
        (
            Field("type", "MSG_TYPE of the request"), Field("key", "number of the VMPCK"),
            Field("seqno", "MSG_SEQNO of the request"),
            Field("result", "status of the firmware"),
        ),
        _message,
        {name: code for code, name in _MESSAGE_NAMES.items()},
    ),
}  # fmt: skip
"""All of them, in the order of their numbers."""
