# SPDX-License-Identifier: MIT
"""The table of access checks: what becomes of one access to one page, given its RMP entry.

Spec: 24593 (APM vol. 2) 15.36.10, table 15-39 (RMP memory access checks), 15.36.7 and table 15-36
(VMPL permissions), 15.36.12 and table 15-41 (VMRUN page checks). Every verdict names the row of
docs/access-checks.md it comes from. Deviations: features that this machine does not offer are not
in the table (guests without SNP, virtual top of memory, supervisor shadow stacks).

The RMP is looked at last: the guest's page tables and the nested tables have allowed the access
already (24593, 15.36.10), so P is set in every error code here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from svsmd.snp.faults import NpfError, PfError
from svsmd.snp.rmp import GUEST_ASID, Perm, RmpEntry
from svsmd.snp.types import PAGE_MASK, PageSize, Vmpl

HOST_ASID: Final = 0


class AccessKind(Enum):
    """What the processor wants of the page."""

    READ = auto()
    WRITE = auto()
    FETCH = auto()
    WALK = auto()
    """The page table walker reads an entry."""
    WALK_UPDATE = auto()
    """The page table walker sets the Accessed or Dirty bit of an entry."""


_WALKS: Final = (AccessKind.WALK, AccessKind.WALK_UPDATE)


@dataclass(frozen=True, slots=True)
class Access:
    """One access to one 4 KiB page.

    `asid` 0 is the host, for which only `kind`, `cpl` and `mapping_size` count. `gpa` may have
    offset bits; it is without the C-bit. `c_bit` is the C-bit of the guest's page table entry, from
    which fetches and walks are independent. `mapping_size` is that of the nested mapping (of the
    host's own mapping for a host access); a 1 GiB mapping counts as 2 MiB (24593, 15.36.10).
    """

    kind: AccessKind
    asid: int = GUEST_ASID
    c_bit: bool = True
    gpa: int = 0
    vmpl: Vmpl = Vmpl.VMPL0
    cpl: int = 0
    mapping_size: PageSize = PageSize.SIZE_4K

    @property
    def private(self) -> bool:
        """Effective C-bit: always set for fetches and walks (24593, 15.36.8 and 15.36.10)."""
        return self.c_bit or self.kind not in (AccessKind.READ, AccessKind.WRITE)


@dataclass(frozen=True, slots=True)
class Done:
    """The access happens: a guest's private one through its key, all others without."""

    row: str


@dataclass(frozen=True, slots=True)
class Ciphertext:
    """The read happens, without the key that the content was written with."""

    row: str


@dataclass(frozen=True, slots=True)
class PageFault:
    """#PF in the host, `error_code` of `PfError` bits."""

    row: str
    error_code: int


@dataclass(frozen=True, slots=True)
class VcNotValidated:
    """#VC with error code PAGE_NOT_VALIDATED (0x404) in the guest, CR2 = virtual address."""

    row: str


@dataclass(frozen=True, slots=True)
class NestedPageFault:
    """VMEXIT_NPF, `error_code` of `NpfError` bits for EXITINFO1."""

    row: str
    error_code: int


Verdict = Done | Ciphertext | PageFault | VcNotValidated | NestedPageFault


def check(
    entry: RmpEntry | None, access: Access, *, hypervisor_owned: bool | None = None
) -> Verdict:
    """What becomes of `access` to the page that `entry` governs (None: not covered by the RMP).

    `hypervisor_owned` is `Rmp.hypervisor_owned` of the whole mapping, which matters where a 2 MiB
    mapping has assigned pages beside this one. None: judge by `entry` alone.
    """
    assigned = entry is not None and entry.assigned
    if hypervisor_owned is None or assigned:
        hypervisor_owned = not assigned
    if access.asid == HOST_ASID:
        return _check_host(access, assigned, hypervisor_owned)
    if not access.private:
        return _check_shared(access, assigned, hypervisor_owned)
    return _check_private(entry, access)


def _check_host(access: Access, assigned: bool, hypervisor_owned: bool) -> Verdict:
    match access.kind:
        case AccessKind.READ | AccessKind.FETCH:
            return Ciphertext("AC-02") if assigned else Done("AC-01")
        case AccessKind.WRITE:
            if hypervisor_owned:
                return Done("AC-03")
            return PageFault("AC-04" if assigned else "AC-05", _page_fault_bits(access))
        case AccessKind.WALK | AccessKind.WALK_UPDATE:
            if hypervisor_owned:
                return Done("AC-06")
            return PageFault("AC-07", _page_fault_bits(access))


def _check_shared(access: Access, assigned: bool, hypervisor_owned: bool) -> Verdict:
    if access.kind is AccessKind.READ:
        return Ciphertext("AC-11") if assigned else Done("AC-10")
    if hypervisor_owned:
        return Done("AC-12")
    return NestedPageFault("AC-13" if assigned else "AC-14", _nested_fault_bits(access))


def _check_private(entry: RmpEntry | None, access: Access) -> Verdict:
    refused = _refused_by_rmp(entry, access)
    if refused is not None:
        return NestedPageFault(refused, _nested_fault_bits(access))
    assert entry is not None  # an uncovered page was refused
    if not entry.validated:
        return VcNotValidated("AC-26")
    refused = _refused_by_vmpl(entry.permissions[access.vmpl], access)
    if refused is not None:
        return NestedPageFault(refused, _nested_fault_bits(access) | NpfError.VMPL)
    return Done("AC-40")


def _refused_by_rmp(entry: RmpEntry | None, access: Access) -> str | None:
    """Row of the first RMP check that fails, in the order of table 15-39."""
    if entry is None:
        return "AC-20"
    if not entry.assigned:
        return "AC-21"
    if entry.asid != access.asid:
        return "AC-22"
    if entry.gpa != access.gpa & ~PAGE_MASK:
        return "AC-23"
    if entry.immutable:
        return "AC-24"
    if entry.page_size != access.mapping_size:
        return "AC-25"
    return None


def _refused_by_vmpl(granted: Perm, access: Access) -> str | None:
    """Row of the VMPL permission that is missing.

    Walks are data accesses: a read, or a write where a bit of the entry is set.
    """
    match access.kind:
        case AccessKind.FETCH if access.cpl == 3:
            return None if granted & Perm.EXECUTE_USER else "AC-33"
        case AccessKind.FETCH:
            return None if granted & Perm.EXECUTE_SUPERVISOR else "AC-34"
    if granted & (Perm.READ | Perm.WRITE) == Perm.WRITE:
        return "AC-32"
    match access.kind:
        case AccessKind.READ:
            return None if granted & Perm.READ else "AC-30"
        case AccessKind.WRITE:
            return None if granted & Perm.WRITE else "AC-31"
        case AccessKind.WALK:
            return None if granted & Perm.READ else "AC-35"
        case AccessKind.WALK_UPDATE:
            return None if granted & Perm.WRITE else "AC-36"


def _page_fault_bits(access: Access) -> int:
    """Error code of a host's #PF. W of a walk follows what the walker did."""
    bits = PfError.P | PfError.RMP
    if access.kind in (AccessKind.WRITE, AccessKind.WALK_UPDATE):
        bits |= PfError.W
    if access.cpl == 3:
        bits |= PfError.U
    return int(bits)


def _nested_fault_bits(access: Access) -> int:
    """EXITINFO1 of a guest's nested page fault. The walker's accesses all count as writes."""
    bits = NpfError.P | NpfError.U | NpfError.RMP
    bits |= NpfError.WALK if access.kind in _WALKS else NpfError.FINAL
    if access.kind is AccessKind.FETCH:
        bits |= NpfError.ID
    elif access.kind is not AccessKind.READ:
        bits |= NpfError.W
    if access.private:
        bits |= NpfError.ENC
    return int(bits)


@dataclass(frozen=True, slots=True)
class VmrunRefused:
    """VMRUN ends at once: VMEXIT_BUSY if `busy`, else VMEXIT_INVALID."""

    row: str
    busy: bool = False


def check_vmsa(entry: RmpEntry | None, asid: int = GUEST_ASID) -> VmrunRefused | None:
    """VMRUN's checks of the VMSA page of an SNP guest; None if it may be loaded.

    Table 15-41 has a Reverse-Map check too, which cannot fail here: the VMCB names the VMSA by its
    SPA alone. The size of the entry does not matter.
    """
    if entry is None or not entry.assigned:
        return VmrunRefused("AC-60")
    if entry.asid != asid:
        return VmrunRefused("AC-61")
    if entry.immutable:
        return VmrunRefused("AC-62")
    if not entry.vmsa:
        return VmrunRefused("AC-63")
    if entry.in_use:
        return VmrunRefused("AC-64", busy=True)
    return None
