# SPDX-License-Identifier: MIT
"""The launch of a guest: what is measured, and how the rest of RAM is handed over.

Works on a plan and knows nothing of what the pages mean: with an SVSM its image and the VMSA of
VMPL0 are in the plan, without one the guest's pages and its VMSA at VMPL0.

Spec: 56860, chapter 8 (SNP_LAUNCH_START, SNP_LAUNCH_UPDATE, SNP_LAUNCH_FINISH) and 5.3 (page
states); 24594, RMPUPDATE.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from svsmd.host.silicon_port import HostSilicon
from svsmd.snp.firmware_status import FirmwareStatus
from svsmd.snp.launch_digest import PageType
from svsmd.snp.rmp import GUEST_ASID, Perm, RmpReturn, RmpUpdate
from svsmd.snp.types import (
    HUGE_PAGE_SIZE,
    PAGE_MASK,
    PAGE_SHIFT,
    PAGE_SIZE,
    Gpa,
    PageSize,
    Spa,
    Vmpl,
)

log = logging.getLogger(__name__)

DEFAULT_POLICY: Final = 0x3_0000
"""Guest policy: SMT allowed, bit 17 that must be one; no debugging, no migration."""

NO_PERMISSIONS: Final = (Perm.NONE, Perm.NONE, Perm.NONE)

_FILLED_BY_FIRMWARE: Final = frozenset((PageType.ZERO, PageType.SECRETS))


class LaunchError(Exception):
    """The plan cannot be launched; the text is one line."""


@dataclass(frozen=True, slots=True)
class LaunchRange:
    """Pages of one type.

    Attributes:
        gpa: where they start, page aligned.
        page_type: NORMAL, ZERO, UNMEASURED, SECRETS or CPUID.
        data: contents, a multiple of 4 KiB; empty for ZERO and SECRETS, which firmware fills.
        size: bytes of a range without contents; 0 where `data` says it.
        vmpl_permissions: of VMPL1, VMPL2 and VMPL3.
    """

    gpa: Gpa
    page_type: PageType
    data: bytes = b""
    size: int = 0
    vmpl_permissions: tuple[Perm, Perm, Perm] = NO_PERMISSIONS

    @property
    def nbytes(self) -> int:
        """Bytes of the range."""
        return len(self.data) or self.size


@dataclass(frozen=True, slots=True)
class LaunchVmsa:
    """The first state of one VMPL of one vCPU.

    Attributes:
        gpa: its page.
        data: 4 KiB in the format of 24593, table B-4.
        vcpu: index of the vCPU that starts with it.
        vmpl: the level that it says it is for.
    """

    gpa: Gpa
    data: bytes
    vcpu: int = 0
    vmpl: Vmpl = Vmpl.VMPL0


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """Everything that a guest starts with, in the order of the measurement; VMSAs come last.

    Attributes:
        host_data: 32 bytes that attestation reports show (56860, SNP_LAUNCH_FINISH).
        desired_tsc_khz: frequency of the TSC of VMSAs that have Secure TSC; 0 if none has it.
    """

    ranges: tuple[LaunchRange, ...]
    vmsas: tuple[LaunchVmsa, ...]
    policy: int = DEFAULT_POLICY
    host_data: bytes = bytes(32)
    desired_tsc_khz: int = 0


def launch(silicon: HostSilicon, plan: LaunchPlan) -> bytes:
    """Launch the guest and return its launch digest, 48 bytes.

    Afterwards the pages of the plan are assigned and validated, and all other RAM is assigned to
    the guest and not validated: in 2 MiB entries where no page of the plan lies, so that the guest
    can validate as much at once. A range of the plan has 2 MiB entries too, where it fills them.

    Raises LaunchError: a range is not page aligned, not RAM, or overlaps another one; or the
    security processor or the RMP refuses a step.
    """
    psp = silicon.psp
    pages = _check(silicon, plan)
    started = psp.launch_start(plan.policy, desired_tsc_khz=plan.desired_tsc_khz)
    _require("LAUNCH_START", started)
    for item in plan.ranges:
        _add(silicon, item)
    for vmsa in plan.vmsas:
        _add(silicon, LaunchRange(vmsa.gpa, PageType.VMSA, vmsa.data))
    _require("LAUNCH_FINISH", psp.launch_finish(host_data=plan.host_data))
    assign_the_rest(silicon, silicon.memory.ranges)
    digest = psp.launch_digest
    log.debug("launched %d pages, launch digest %s", len(pages), digest.hex())
    return digest


def _check(silicon: HostSilicon, plan: LaunchPlan) -> set[int]:
    """Page numbers of the plan; LaunchError if it makes no sense."""
    pages: set[int] = set()
    pieces = [(item.gpa, item.nbytes, item.page_type) for item in plan.ranges]
    pieces += [(vmsa.gpa, len(vmsa.data), PageType.VMSA) for vmsa in plan.vmsas]
    for gpa, nbytes, page_type in pieces:
        name = f"launch of {page_type.name} pages at {gpa:#x}"
        if gpa & PAGE_MASK or nbytes & PAGE_MASK or not nbytes:
            raise LaunchError(f"{name}: {nbytes} bytes are not whole pages")
        if page_type is PageType.VMSA and nbytes != PAGE_SIZE:
            raise LaunchError(f"{name}: a VMSA is one page")
        new = range(gpa >> PAGE_SHIFT, gpa + nbytes >> PAGE_SHIFT)
        if not (silicon.rmp.covers(new.start) and silicon.rmp.covers(new.stop - 1)):
            raise LaunchError(f"{name}: {nbytes} bytes are not all RAM")
        if not pages.isdisjoint(new):
            raise LaunchError(f"{name}: overlaps what is there already")
        pages.update(new)
    for item in plan.ranges:
        if bool(item.data) == (item.page_type in _FILLED_BY_FIRMWARE):
            raise LaunchError(f"launch at {item.gpa:#x}: {item.page_type.name} and its contents")
    return pages


def _add(silicon: HostSilicon, item: LaunchRange) -> None:
    """Give the pages of a range to the guest and have them measured."""
    if item.data:
        silicon.host_write(item.gpa, item.data)
    one, two, three = (int(mask) for mask in item.vmpl_permissions)
    gpa, end = int(item.gpa), item.gpa + item.nbytes
    while gpa < end:
        # The digest is the same for either size; large pages take less of everybody's time.
        large = not gpa % HUGE_PAGE_SIZE and end - gpa >= HUGE_PAGE_SIZE
        page_size = PageSize.SIZE_2M if large else PageSize.SIZE_4K
        state = RmpUpdate(
            assigned=True, page_size=page_size, immutable=True, gpa=Gpa(gpa), asid=GUEST_ASID
        )
        _assign(silicon, gpa, state)
        status = silicon.psp.launch_update(
            Spa(gpa), item.page_type, page_size, vmpl_permissions=(one, two, three)
        )
        _require(f"LAUNCH_UPDATE of the {item.page_type.name} page at {gpa:#x}", status)
        gpa += page_size.nbytes


def assign_the_rest(silicon: HostSilicon, ranges: Iterable[range]) -> None:
    """Give the guest all RAM in `ranges` (bytes, whole 2 MiB) that is not assigned, not validated.

    At launch that is what the plan does not name, at a restart what the guest has shared.

    Raises LaunchError: the RMP refuses.
    """
    rmp = silicon.rmp
    for pages in ranges:
        for region in range(pages.start, pages.stop, HUGE_PAGE_SIZE):
            if rmp.hypervisor_owned(region, PageSize.SIZE_2M):
                _assign(silicon, region, _private(region, PageSize.SIZE_2M))
                continue
            entry = rmp.lookup(region)
            if entry is not None and entry.assigned and entry.page_size is PageSize.SIZE_2M:
                continue
            for gpa in range(region, region + HUGE_PAGE_SIZE, PAGE_SIZE):
                if not rmp.assigned(gpa >> PAGE_SHIFT):
                    _assign(silicon, gpa, _private(gpa, PageSize.SIZE_4K))


def _private(gpa: int, page_size: PageSize) -> RmpUpdate:
    return RmpUpdate(assigned=True, page_size=page_size, gpa=Gpa(gpa), asid=GUEST_ASID)


def _assign(silicon: HostSilicon, gpa: int, state: RmpUpdate) -> None:
    code = silicon.rmp.rmpupdate(Spa(gpa), state)
    if code is not RmpReturn.SUCCESS:
        raise LaunchError(f"RMPUPDATE of {gpa:#x}: {code.name}")


def _require(step: str, status: FirmwareStatus) -> None:
    if status is not FirmwareStatus.SUCCESS:
        raise LaunchError(f"{step}: {status.name}")
