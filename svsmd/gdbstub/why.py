# SPDX-License-Identifier: MIT
"""Why an access is refused: the rule that fails first, its source, and who made it so.

The judgement is the silicon's own (`Processor.trace`, `PhysicalAccess.resolve`); this module finds
words for it. A sentence is short enough for an error reply; `explain` is for `monitor why`.

Spec: 24593, 5.4 and 5.6 (page tables), 15.35.5, 15.36.7, 15.36.10, 15.36.11; docs/access-checks.md
has the rows by which rules of the RMP are named.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from svsmd.snp.access import AccessKind
from svsmd.snp.faults import PAGE_NOT_VALIDATED, GuestFault, NestedFault, PfError, Vector
from svsmd.snp.page_walk import CR0_PG, Refusal, refusal
from svsmd.snp.processor import Processor
from svsmd.snp.rmp import Rmp, RmpEntry
from svsmd.snp.rmp_history import BY_HOST, LastChange, RmpChange
from svsmd.snp.types import C_BIT, PAGE_SHIFT, PageSize
from svsmd.snp.vmcb import LastNpf
from svsmd.snp.walk_trace import TracedEntry, WalkTrace

_TABLE: Final = "24593, 15.36.10, table 15-39"
NOT_VALIDATED: Final = "AC-26"
CIPHERTEXT: Final = "AC-11"
NO_RAM: Final = "no RAM"
_PERMISSIONS: Final = "rwus"
"""READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR, from bit 0 on."""
_FLAGS: Final = ("assigned", "validated", "vmsa", "immutable", "in_use")

RULES: Final = {
    "AC-11": (
        "the C-bit is clear, and the page is private: reads see ciphertext",
        "24593, 15.34.5",
    ),
    "AC-13": ("the C-bit is clear, and the page is private", f"{_TABLE}: Hypervisor-Owned"),
    "AC-14": (
        "the C-bit is clear, and a page in the same 2 MiB mapping is private",
        f"{_TABLE}: Hypervisor-Owned",
    ),
    "AC-20": ("the RMP does not cover the page", f"{_TABLE}: RMP-Covered"),
    "AC-21": (
        "the access is private, and the page is shared: not assigned to the guest",
        f"{_TABLE}: Guest-Owned",
    ),
    "AC-22": ("the page is assigned to another ASID", f"{_TABLE}: Guest-Owned"),
    "AC-23": ("the RMP entry has another GPA", f"{_TABLE}: Reverse-Map"),
    "AC-24": ("the RMP entry is immutable", f"{_TABLE}: Mutable"),
    "AC-25": (
        "the RMP entry has another page size than the nested mapping",
        f"{_TABLE}: Page-Size",
    ),
    "AC-26": ("the page is not validated", f"{_TABLE}: Validated"),
    "AC-30": ("the VMPL lacks READ", "24593, 15.36.7, table 15-36"),
    "AC-31": ("the VMPL lacks WRITE", "24593, 15.36.7, table 15-36"),
    "AC-32": ("the VMPL has WRITE without READ", "24593, 15.36.7"),
    "AC-33": ("the VMPL lacks EXECUTE_USER", "24593, 15.36.7, table 15-36"),
    "AC-34": ("the VMPL lacks EXECUTE_SUPERVISOR", "24593, 15.36.7, table 15-36"),
    "AC-35": ("the VMPL lacks READ, which a page walk needs", f"{_TABLE}: VMPL"),
    "AC-36": (
        "the VMPL lacks WRITE, which a page walk needs to set an Accessed or Dirty bit",
        "24593, 15.36.10",
    ),
    "RI-20": ("the RMP does not cover the operand", "24593, 15.36.10"),
    "RI-21": ("the operand is not assigned", "24593, 15.36.10"),
    "RI-22": ("the operand is assigned to another ASID", "24593, 15.36.10"),
    "RI-23": ("the RMP entry of the operand has another GPA", "24593, 15.36.10"),
    "RI-24": ("the RMP entry of the operand is immutable", "24593, 15.36.10"),
    "RI-25": (
        "PVALIDATE or RMPADJUST of 4 KiB in a 2 MiB entry: the host has to PSMASH it",
        "24593, 15.36.11, table 15-40",
    ),
    NO_RAM: ("there is no RAM", "24593, 15.25.6"),
}
"""Row of docs/access-checks.md: what is wrong in words, and the source."""

_KINDS: Final = (
    ("read", AccessKind.READ), ("write", AccessKind.WRITE), ("execute", AccessKind.FETCH),
)  # fmt: skip
_ENTRY_FLAGS: Final = (
    (0, "P"), (1, "W"), (2, "U"), (3, "PWT"), (4, "PCD"), (5, "A"), (6, "D"), (7, "PS"), (8, "G"),
    (63, "NX"),
)  # fmt: skip
_OPERANDS: Final = {
    PageSize.SIZE_4K: "PVALIDATE and RMPADJUST of 2 MiB: FAIL_SIZEMISMATCH",
    PageSize.SIZE_2M: "PVALIDATE and RMPADJUST of 4 KiB: VMEXIT_NPF with SIZEM, until a PSMASH",
}
_SIZES: Final = {1 << 12: "4 KiB", 1 << 21: "2 MiB", 1 << 22: "4 MiB", 1 << 30: "1 GiB"}
_P: Final = 1 << 0
_ALLOWED: Final = 0b110
_NX: Final = 1 << 63


class Reason:
    """One rule that fails.

    Attributes:
        text: what is wrong.
        source: manual and section.
        effect: what the guest or the host gets, such as "#PF, error code 0x3".
        page: number of the page whose RMP entry the rule has looked at, or None.
    """

    def __init__(self, text: str, source: str, effect: str = "", page: int | None = None) -> None:
        self.text: Final = text
        self.source: Final = source
        self.effect: Final = effect
        self.page: Final = page


# -- words ----------------------------------------------------------------------------------


def flags_text(entry: RmpEntry) -> str:
    """State of an RMP entry in words: "assigned validated", "shared"."""
    return " ".join(name for name in _FLAGS if getattr(entry, name)) or "shared"


def permissions_text(mask: int) -> str:
    """A permission mask as "rwus": READ, WRITE, EXECUTE_USER, EXECUTE_SUPERVISOR."""
    return "".join(letter if mask >> bit & 1 else "-" for bit, letter in enumerate(_PERMISSIONS))


def change_text(change: LastChange) -> str:
    """ "RMPADJUST by VMPL0 of vCPU 0, rip 0x..., tick 1234"."""
    who = f"VMPL{change.vmpl} of vCPU {change.vcpu}, rip {change.rip:#x}"
    if change.change is RmpChange.LAUNCH:
        text = "SNP_LAUNCH_UPDATE by the security processor"
    elif change.change in BY_HOST:
        serving = f", serving {who}" if change.running else ""
        text = f"{change.change.name} by the host{serving}"
    else:
        text = f"{change.change.name} by {who}"
    size = " (2 MiB)" if change.huge else ""
    return f"{text}, tick {change.tick}{size}"


def last_change_text(rmp: Rmp, page: int) -> str:
    """Who changed the RMP entry of a page last, in words."""
    changes = rmp.history.changes(page)
    return change_text(changes[0]) if changes else "never changed"


def entry_text(entry: TracedEntry) -> str:
    """A page table entry with the names of its bits: "PDE at 0x1000 is 0x83 [P W PS]"."""
    if entry.value is None:
        return f"{entry.level} at {entry.gpa:#x} cannot be read"
    names = [name for bit, name in _ENTRY_FLAGS if entry.value >> bit & 1]
    if entry.nbytes == 8 and entry.value & C_BIT:
        names.insert(1, "C")
    return f"{entry.level} at {entry.gpa:#x} is {entry.value:#x} [{' '.join(names)}]"


def rmp_text(rmp: Rmp, page: int) -> str:
    """An RMP entry on one line."""
    entry = rmp.lookup(page << PAGE_SHIFT)
    if entry is None:
        return f"{page << PAGE_SHIFT:#x}: no RAM"
    permissions = " ".join(
        f"VMPL{vmpl}:{permissions_text(mask)}" for vmpl, mask in enumerate(entry.permissions)
    )
    size = "2M" if entry.page_size is PageSize.SIZE_2M else "4K"
    return (
        f"{page << PAGE_SHIFT:#x}: {flags_text(entry)} gpa {entry.gpa:#x} asid {entry.asid} "
        f"{size} {permissions}"
    )


# -- judgement ------------------------------------------------------------------------------


def _walk_reason(p: Processor, trace: WalkTrace, kind: AccessKind) -> Reason:
    """Why a walk ended with a fault."""
    fault = trace.fault
    assert fault is not None
    last = trace.entries[-1] if trace.entries else None
    if last is None:
        assert isinstance(fault, GuestFault)
        return Reason("it is not a canonical address", "24593, 5.3.1", "#GP(0)")
    if last.value is None or trace.updating:
        reason = _rmp_reason(p, fault, last.gpa)
        doing = "its page cannot be written" if trace.updating else "its page cannot be read"
        text = f"{last.level} at {last.gpa:#x}: {doing}: {reason.text}"
        return Reason(text, reason.source, reason.effect, reason.page)
    assert isinstance(fault, GuestFault)
    error = fault.error_code or 0
    effect = f"#PF, error code {error:#x}"
    if not last.value & _P:
        return Reason(f"{entry_text(last)}: P is clear", "24593, 5.4", effect)
    if error & PfError.RSVD:
        return Reason(f"{entry_text(last)}: reserved bits are set", "24593, 5.4", effect)
    return _refusal_reason(p, trace, kind, effect)


def _refusal_reason(p: Processor, trace: WalkTrace, kind: AccessKind, effect: str) -> Reason:
    """All entries are there, but their flags do not allow it: which entry, and which flag."""
    state = p.paging_state()
    names = [entry.level for entry in trace.entries]
    # The four pointers of legacy PAE have no rights.
    counted = [
        entry for entry in trace.entries if not (entry.level == "PDPTE" and names[0] == "PDPTE")
    ]
    allowed, no_execute = _ALLOWED, 0
    for entry in counted:
        value = entry.value or 0
        allowed &= value
        no_execute |= value & _NX
        refused = refusal(state, kind, p.cpu.cpl, allowed, no_execute)
        # SMEP and SMAP are about what all levels together say.
        if refused in (Refusal.USER, Refusal.READ_ONLY, Refusal.NO_EXECUTE):
            return Reason(f"{entry_text(entry)}: {refused.value}", "24593, 5.6", effect)
    refused = refusal(state, kind, p.cpu.cpl, allowed, no_execute)
    assert refused is not None, "the silicon refused what the flags allow"
    return Reason(f"{entry_text(counted[-1])}: {refused.value}", "24593, 5.6", effect)


def _rmp_reason(p: Processor, fault: GuestFault | NestedFault, gpa: int) -> Reason:
    """The rule of the RMP behind a fault of an access to `gpa`."""
    if isinstance(fault, GuestFault):
        assert fault.error_code == PAGE_NOT_VALIDATED
        row, effect = NOT_VALIDATED, f"#VC, error code {PAGE_NOT_VALIDATED:#x}"
    else:
        row, effect = fault.row, f"VMEXIT_NPF, EXITINFO1 {fault.error_code:#x}"
    text, source = RULES[row]
    if "the VMPL" in text:
        text = text.replace("the VMPL", f"VMPL{p.vmpl}")
    page = None if row == NO_RAM else (gpa & ~C_BIT) >> PAGE_SHIFT
    if row.startswith("AC-"):
        source += f"; {row}"
    return Reason(text, source, effect, page)


def judge(p: Processor, address: int, kind: AccessKind) -> Reason | None:
    """Why the loaded world cannot do that at its CPL; None if it can.

    A read that gives ciphertext counts as one that it cannot do.
    """
    trace = p.trace(address, kind)
    if trace.translation is None:
        return _walk_reason(p, trace, kind)
    gpa = trace.translation.gpa
    plain = gpa & ~C_BIT
    data = kind is not AccessKind.FETCH
    if data and not gpa & C_BIT and not p.memory.contains(plain):
        return Reason(
            "the C-bit is clear and there is no RAM: a device's address, for the #VC handler",
            "24593, 15.35.5", "#VC, error code 0x400",
        )  # fmt: skip
    try:
        _, encrypted = p.physical.resolve(p.vmpl, gpa, kind, p.cpu.cpl)
    except (GuestFault, NestedFault) as fault:
        return _rmp_reason(p, fault, gpa)
    if encrypted:
        text, source = RULES[CIPHERTEXT]
        return Reason(text, f"{source}; {CIPHERTEXT}", "ciphertext", plain >> PAGE_SHIFT)
    return None


def debugger_refusal(p: Processor, address: int) -> str:
    """Why a debugger, whom permissions do not stop, finds no memory at an address: one sentence."""
    trace = p.trace(address, debug=True)
    if trace.translation is not None:
        spa = trace.translation.gpa & ~C_BIT
        return f"{address:#x} is at {spa:#x}, which is no RAM"
    fault = trace.fault
    if isinstance(fault, GuestFault) and fault.vector == Vector.GP:
        return f"{address:#x} is not a canonical address"
    reason = _walk_reason(p, trace, AccessKind.READ)
    if reason.page is not None:
        changed = last_change_text(p.rmp, reason.page)
        return (
            f"the page tables that map {address:#x} cannot be read: {reason.text} "
            f"({reason.source}); last change: {changed}"
        )
    return f"no page table maps {address:#x}: {reason.text}"


# -- monitor why ----------------------------------------------------------------------------


def explain(p: Processor, address: int, title: str) -> Iterator[str]:
    """Lines about an address: its walk, its RMP entry, and what may be done there."""
    cpu = p.cpu
    yield f"{address:#x} for {title}, CPL {cpu.cpl}, cr3 {cpu.cr[3]:#x}"
    trace = p.trace(address, debug=True)
    if not cpu.cr[0] & CR0_PG:
        yield "  no paging: the GPA is the linear address, and private"
    for entry in trace.entries:
        yield f"  {entry_text(entry)}"
    page = None
    if trace.translation is not None:
        gpa = trace.translation.gpa
        page = (gpa & ~C_BIT) >> PAGE_SHIFT
        private = "private (C = 1)" if gpa & C_BIT else "shared (C = 0)"
        size = _SIZES[trace.translation.page_size]
        yield f"  GPA {gpa & ~C_BIT:#x}, {private}, in a page of {size}"
        yield from rmp_lines(p.rmp, page)
    reasons = [(name, judge(p, address, kind)) for name, kind in _KINDS]
    for name, reason in reasons:
        if reason is None:
            yield f"  {name}: allowed"
            continue
        yield f"  {name}: {reason.text}"
        yield f"    -> {reason.effect} ({reason.source})"
        if reason.page is not None:
            yield f"    last change of that RMP entry: {last_change_text(p.rmp, reason.page)}"


def rmp_lines(rmp: Rmp, page: int) -> Iterator[str]:
    """The RMP entry of a page and everybody who is known to have changed it."""
    yield f"  RMP {rmp_text(rmp, page)}"
    for change in rmp.history.changes(page):
        yield f"    {change_text(change)}"
    entry = rmp.lookup(page << PAGE_SHIFT)
    if entry is not None and entry.assigned:
        yield f"    {_OPERANDS[entry.page_size]} (24593, 15.36.11, table 15-40)"


def explain_npf(p: Processor, npf: LastNpf, title: str) -> Iterator[str]:
    """Lines about a nested page fault that the host was told of."""
    text, source = RULES[npf.row]
    text = text.replace("the VMPL", f"VMPL{p.vmpl}")
    yield (
        f"nested page fault of {title} at GPA {npf.gpa:#x}, EXITINFO1 {npf.error_code:#x}, "
        f"rip {npf.rip:#x}, tick {npf.tick}"
    )
    yield f"  {text} ({source}; {npf.row})"
    yield from rmp_lines(p.rmp, npf.gpa >> PAGE_SHIFT)


__all__ = ["Reason", "debugger_refusal", "explain", "explain_npf", "judge", "rmp_text"]
