# SPDX-License-Identifier: MIT
"""Page state changes: the host makes pages private or shared with RMPUPDATE and PSMASH.

A guest asks for one page at a time through the GHCB MSR, or for a list of up to 253 pages of
either size through the GHCB. RAM starts out in 2 MiB RMP entries and is split where the guest
converts a part of one.

Spec: 56421, 2.3.1 (SNP Page State Change MSR protocol) and 4.1.6 (SNP_PSC); 24593, 15.36.3 to
15.36.6.
"""

from __future__ import annotations

import logging
from typing import Final

from svsmd.snp.ghcb import (
    SHARED_BUFFER_OFFSET,
    SHARED_BUFFER_SIZE,
    Ghcb,
    PscDescriptor,
    PscEntry,
    PscError,
    PscInputError,
    PscOperation,
)
from svsmd.snp.rmp import GUEST_ASID, Rmp, RmpReturn, RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE, Gpa, PageSize, Spa

log = logging.getLogger(__name__)

UPDATES_AT_ONCE: Final = 1024
"""RMP entries that are changed before the guest runs again, give or take one entry of its list: a
list of 2 MiB pages may stand for 130 thousand, which would take seconds."""

_NO_ERROR: Final = 0
"""SW_EXITINFO2 when no entry failed."""


class PageStateChange:
    """Changes page states on behalf of the guest; the GPA of a page is its SPA."""

    def __init__(self, rmp: Rmp) -> None:
        self._rmp: Final = rmp

    def handle_list(self, ghcb: Ghcb, ghcb_gpa: int) -> int:
        """SNP_PSC: work through the list at SW_SCRATCH and return SW_EXITINFO2.

        0 if every entry is done, or so many that the guest has to ask again: the list's current
        entry says how far it is. Else a `PscError`; the current entry then names the entry that
        failed, and those before it are done.
        """
        start = ghcb.sw_scratch
        room = ghcb_gpa + SHARED_BUFFER_OFFSET + SHARED_BUFFER_SIZE - start
        memory = ghcb.scratch(ghcb_gpa, max(room, 0))
        updates = 0
        try:
            for entry in PscDescriptor(memory).pending():
                if updates >= UPDATES_AT_ONCE:
                    break
                # The list itself and the answer could not be written any more.
                if entry.operation is PscOperation.PRIVATE and (
                    entry.gpa <= ghcb_gpa < entry.gpa + entry.page_size.nbytes
                ):
                    raise PscInputError(PscError.GENERIC, "the GHCB in use cannot become private")
                updates += self._change(entry)
        except PscInputError as error:
            log.debug("page state change refused: %s", error)
            return error.error
        return _NO_ERROR

    def handle_one(self, gfn: int, operation: int) -> bool:
        """SNP Page State Change by MSR: make the 4 KiB page `gfn` private (1) or shared (2).

        Returns whether it is so now.
        """
        if operation not in (PscOperation.PRIVATE, PscOperation.SHARED):
            return False
        entry = PscEntry(gfn << PAGE_SHIFT, PscOperation(operation), PageSize.SIZE_4K)
        try:
            self._change(entry)
        except PscInputError as error:
            log.debug("page state change refused: %s", error)
            return False
        return True

    def smash(self, spa: int) -> bool:
        """Split the 2 MiB entry that `spa` lies in; returns whether it was one and is split."""
        return self._rmp.psmash(Spa(spa & ~(HUGE_PAGE_SIZE - 1))) is RmpReturn.SUCCESS

    def _change(self, entry: PscEntry) -> int:
        """Do one entry; about how many of the RMP it was, or `PscInputError` if the RMP refuses."""
        first = entry.gpa >> PAGE_SHIFT
        npages = entry.page_size.npages
        if not (self._rmp.covers(first) and self._rmp.covers(first + npages - 1)):
            raise PscInputError(PscError.INVALID_ENTRY, f"{entry.gpa:#x} is not RAM")
        match entry.operation:
            case PscOperation.PRIVATE:
                return self._set_state(entry, assigned=True)
            case PscOperation.SHARED:
                return self._set_state(entry, assigned=False)
            case PscOperation.PSMASH:
                governing = self._rmp.lookup(entry.gpa)
                # Already split is what was wanted.
                if governing is not None and governing.page_size is PageSize.SIZE_2M:
                    self._require(entry.gpa, self._rmp.psmash(Spa(entry.gpa)))
            case PscOperation.UNSMASH:
                # A hint. No instruction joins entries without taking the pages' state away.
                pass
        return 1

    def _set_state(self, entry: PscEntry, *, assigned: bool) -> int:
        """Make the pages of an entry assigned to the guest, or not; how many RMP entries they have.

        Pages that are so already are left alone: RMPUPDATE would take away their VALIDATED bit.
        """
        if entry.page_size is PageSize.SIZE_2M:
            if entry.cur_page == 0 and self._set_huge_page(entry.gpa, assigned=assigned):
                return 1
            end = entry.gpa + HUGE_PAGE_SIZE
            for gpa in range(entry.gpa + entry.cur_page * PAGE_SIZE, end, PAGE_SIZE):
                self._set_page(gpa, assigned=assigned)
            return entry.page_size.npages
        self._set_page(entry.gpa, assigned=assigned)
        return 1

    def _set_huge_page(self, gpa: int, *, assigned: bool) -> bool:
        """Change 2 MiB at once; returns False if it has 4 KiB entries, which go one by one."""
        governing = self._rmp.lookup(gpa)
        if governing is not None and governing.page_size is PageSize.SIZE_2M:
            if assigned:
                return True
        elif not self._rmp.hypervisor_owned(gpa, PageSize.SIZE_2M):
            return False
        elif not assigned:
            return True
        self._require(gpa, self._rmp.rmpupdate(Spa(gpa), _state(gpa, PageSize.SIZE_2M, assigned)))
        return True

    def _set_page(self, gpa: int, *, assigned: bool) -> None:
        """Change one 4 KiB page, after splitting the 2 MiB entry that it is in."""
        governing = self._rmp.lookup(gpa)
        if governing is None or governing.assigned == assigned:
            return
        if governing.page_size is PageSize.SIZE_2M:
            self._require(gpa, self._rmp.psmash(Spa(gpa & ~(HUGE_PAGE_SIZE - 1))))
        self._require(gpa, self._rmp.rmpupdate(Spa(gpa), _state(gpa, PageSize.SIZE_4K, assigned)))

    @staticmethod
    def _require(gpa: int, code: RmpReturn) -> None:
        if code is not RmpReturn.SUCCESS:
            raise PscInputError(PscError.GENERIC, f"{gpa:#x}: {code.name}")


def _state(gpa: int, page_size: PageSize, assigned: bool) -> RmpUpdate:
    if not assigned:
        return RmpUpdate(page_size=page_size)
    return RmpUpdate(assigned=True, page_size=page_size, gpa=Gpa(gpa), asid=GUEST_ASID)
