# SPDX-License-Identifier: MIT
"""The RMP against an oracle that keeps one plain record a page, all sizes spelt out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from svsmd.snp.faults import GuestFault, NestedFault
from svsmd.snp.rmp import Rmp, RmpReturn, RmpUpdate
from svsmd.snp.types import Gpa, PageSize, Spa, Vmpl

SMALL, HUGE = PageSize.SIZE_4K, PageSize.SIZE_2M
RAM: Final = (range(0x40_0000), range(0x60_0000, 0x80_3000))
"""Two whole 2 MiB regions, a hole, a whole region and three pages of the next."""

# Few pages, so that operations meet: both ends of regions, the hole, the rest of the last region.
PAGES: Final = (0, 1, 511, 512, 513, 1023, 1024, 1536, 2047, 2048, 2050, 2051)

pages = st.sampled_from(PAGES)
bases = st.sampled_from((0, 512, 1024, 1536, 2048, 1))
sizes = st.sampled_from(PageSize)
asids = st.sampled_from((0, 1, 1, 1, 2))
vmpls = st.sampled_from(Vmpl)
masks = st.integers(0, 15)


@dataclass(frozen=True)
class Page:
    """Oracle's record of a 4 KiB page; `huge` pages of a region always agree but for the GPA."""

    assigned: bool = False
    validated: bool = False
    vmsa: bool = False
    immutable: bool = False
    huge: bool = False
    gpa: int = 0
    asid: int = 0
    perms: tuple[int, ...] = (0, 0, 0, 0)


def covered(page: int) -> bool:
    return any(page << 12 in ram for ram in RAM)


def span(page: int, size: PageSize) -> range:
    return range(page, page + size.npages)


class Oracle:
    """What the manual says, without regard to cost."""

    def __init__(self) -> None:
        self.pages = {page: Page() for page in range(2052) if covered(page)}
        self.held: set[int] = set()

    def rmpupdate(self, page: int, new: RmpUpdate) -> RmpReturn:
        every = span(page, new.page_size)
        if page % len(every) or not all(covered(p) for p in every):
            return RmpReturn.FAIL_INPUT
        if not new.assigned and (new.immutable or new.asid):
            return RmpReturn.FAIL_INPUT
        if self.pages[page].immutable:
            return RmpReturn.FAIL_PERMISSION
        if self.held.intersection(every):
            return RmpReturn.FAIL_INUSE
        if any(self.pages[p].assigned and self.pages[p].huge != bool(new.page_size) for p in every):
            return RmpReturn.FAIL_OVERLAP
        for i, p in enumerate(every):
            self.pages[p] = Page()
            if new.assigned:
                self.pages[p] = Page(
                    True,
                    immutable=new.immutable,
                    huge=bool(new.page_size),
                    gpa=new.gpa + (i << 12),
                    asid=new.asid,
                    perms=(15, 0, 0, 0),
                )
        return RmpReturn.SUCCESS

    def psmash(self, page: int) -> RmpReturn:
        if page % 512 or not covered(page):
            return RmpReturn.FAIL_INPUT
        if self.pages[page].immutable:
            return RmpReturn.FAIL_PERMISSION
        if not self.pages[page].huge:
            return RmpReturn.FAIL_BADADDR
        if self.held.intersection(span(page, HUGE)):
            return RmpReturn.FAIL_INUSE
        for p in span(page, HUGE):
            self.pages[p] = replace(self.pages[p], huge=False)
        return RmpReturn.SUCCESS

    def refuses(self, page: int, gpa: int, asid: int, size: PageSize) -> bool:
        """Whether a guest's instruction ends in a nested fault."""
        found = self.pages.get(page)
        return (
            found is None
            or not found.assigned
            or found.immutable
            or (found.asid, found.gpa) != (asid, gpa)
            or (found.huge and size is SMALL)
        )

    def pvalidate(self, page: int, size: PageSize, validate: bool) -> tuple[RmpReturn, bool]:
        if size and not self.pages[page].huge:
            return RmpReturn.FAIL_SIZEMISMATCH, False
        if self.held.intersection(span(page, size)):
            return RmpReturn.FAIL_INUSE, False
        same = self.pages[page].validated == validate
        for p in span(page, size):
            self.pages[p] = replace(self.pages[p], validated=validate)
        return RmpReturn.SUCCESS, same

    def rmpadjust(self, page: int, vmpl: int, size: PageSize, attributes: int) -> RmpReturn:
        target, wanted = attributes & 0xFF, attributes >> 8 & 15
        if size and not self.pages[page].huge:
            return RmpReturn.FAIL_SIZEMISMATCH
        if self.held.intersection(span(page, size)):
            return RmpReturn.FAIL_INUSE
        if wanted | self.pages[page].perms[vmpl] != self.pages[page].perms[vmpl]:
            return RmpReturn.FAIL_PERMISSION
        for p in span(page, size):
            perms = list(self.pages[p].perms)
            perms[target] = wanted
            vmsa = self.pages[p].vmsa if vmpl else bool(attributes & 1 << 16)
            self.pages[p] = replace(self.pages[p], perms=tuple(perms), vmsa=vmsa)
        return RmpReturn.SUCCESS


class RmpAgainstOracle(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.changed: set[int] = set()
        self.rmp = Rmp(RAM, lambda first, count: self.changed.update(range(first, first + count)))
        self.oracle = Oracle()
        self.shown = dict(self.oracle.pages)

    @rule(page=pages, size=sizes, assigned=st.booleans(), immutable=st.booleans(), asid=asids)
    def rmpupdate(
        self, page: int, size: PageSize, assigned: bool, immutable: bool, asid: int
    ) -> None:
        new = RmpUpdate(assigned, size, immutable and page == 513, Gpa(page << 12), asid)
        assert self.rmp.rmpupdate(Spa(page << 12), new) == self.oracle.rmpupdate(page, new)

    @rule(page=bases, size=sizes)
    def grant(self, page: int, size: PageSize) -> None:
        """Assigned and validated at once: the way to a state in which RMPADJUST gets far."""
        new = RmpUpdate(True, size, False, Gpa(page << 12), 1)
        code = self.rmp.rmpupdate(Spa(page << 12), new)
        assert code == self.oracle.rmpupdate(page, new)
        self.changes_are_reported()
        if code == RmpReturn.SUCCESS:
            answer = self.rmp.pvalidate(Spa(page << 12), Gpa(page << 12), Vmpl.VMPL0, size, True)
            assert answer == self.oracle.pvalidate(page, size, True)

    @rule(page=bases)
    def psmash(self, page: int) -> None:
        assert self.rmp.psmash(Spa(page << 12)) == self.oracle.psmash(page)

    @rule(page=pages, size=sizes, validate=st.booleans(), off=st.sampled_from((0, 0, 0, 1)))
    def pvalidate(self, page: int, size: PageSize, validate: bool, off: int) -> None:
        gpa = page + off * size.npages << 12

        def run() -> tuple[RmpReturn, bool]:
            return self.rmp.pvalidate(Spa(page << 12), Gpa(gpa), Vmpl.VMPL0, size, validate)

        if gpa % size.nbytes:
            assert run() == (RmpReturn.FAIL_INPUT, False)
        elif self.oracle.refuses(page, gpa, 1, size):
            with pytest.raises(NestedFault):
                run()
        else:
            assert run() == self.oracle.pvalidate(page, size, validate)

    @rule(
        page=pages,
        size=sizes,
        vmpl=vmpls,
        to=st.integers(0, 4),
        mask=masks,
        vmsa=st.booleans(),
    )
    def rmpadjust(
        self, page: int, size: PageSize, vmpl: Vmpl, to: int, mask: int, vmsa: bool
    ) -> None:
        attributes = to | mask << 8 | vmsa << 16

        def run() -> RmpReturn:
            return self.rmp.rmpadjust(Spa(page << 12), Gpa(page << 12), vmpl, size, attributes)

        if page % size.npages:
            assert run() == RmpReturn.FAIL_INPUT
        elif to <= vmpl:
            assert run() == RmpReturn.FAIL_PERMISSION
        elif to == 4:
            assert run() == RmpReturn.FAIL_INPUT
        elif self.oracle.refuses(page, page << 12, 1, size):
            with pytest.raises(NestedFault):
                run()
        elif not self.oracle.pages[page].validated:
            with pytest.raises(GuestFault):
                run()
        else:
            assert run() == self.oracle.rmpadjust(page, vmpl, size, attributes)

    @rule(page=pages, in_use=st.booleans())
    def vmrun(self, page: int, in_use: bool) -> None:
        self.rmp.set_in_use(Spa(page << 12), in_use)
        (self.oracle.held.add if in_use else self.oracle.held.discard)(page)

    @invariant()
    def same_entries(self) -> None:
        for number in PAGES:
            found = self.rmp.lookup(number << 12)
            page = self.oracle.pages.get(number)
            if page is None:
                assert found is None
                continue
            assert found is not None
            assert found.in_use == (number in self.oracle.held)
            assert (found.assigned, found.validated, found.vmsa, found.immutable) == (
                page.assigned,
                page.validated,
                page.vmsa,
                page.immutable,
            )
            assert (bool(found.page_size), found.gpa, found.asid) == (
                page.huge,
                page.gpa,
                page.asid,
            )
            assert found.permissions == page.perms

    @invariant()
    def changes_are_reported(self) -> None:
        """A page that differs from its last shown state was named by on_change, and no other."""
        pages, shown = self.oracle.pages, self.shown
        differing = {p for p in pages if pages[p] is not shown[p] and pages[p] != shown[p]}
        assert differing <= self.changed
        self.shown = dict(pages)
        # Whole regions at once are right; a page that is not in a touched region is not.
        assert {p // 512 for p in self.changed} == {p // 512 for p in differing}
        self.changed.clear()

    @invariant()
    def hypervisor_owned(self) -> None:
        for number in PAGES:
            region = range(number // 512 * 512, number // 512 * 512 + 512)
            free = not any(p in self.oracle.pages and self.oracle.pages[p].assigned for p in region)
            assert self.rmp.hypervisor_owned(number << 12, HUGE) == free


TestRmpAgainstOracle = RmpAgainstOracle.TestCase
TestRmpAgainstOracle.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, derandomize=True
)
