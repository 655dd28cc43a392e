# SPDX-License-Identifier: MIT
"""The page table walker and the engine's own agree on every translation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.snp.access import AccessKind
from svsmd.snp.exits import Hlt
from svsmd.snp.faults import GuestFault
from tests.bare_machine import CODE, PML4, A, BareMachine, D, P, U, W

GVA = 24 << 20
RIGHTS = (
    P | W | U,
    P | W,
    P | U,
    P,
    0,
    P | W | U | 1 << 63,
    P | W | U | 1 << 40,
    P | W | U | A | D,
)
TARGET = 0x40_0000
LEVELS = (PML4, PML4 + 0x1000, PML4 + 0x2000 + (GVA >> 21) * 8, BareMachine.entry_of(GVA))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(RIGHTS), min_size=4, max_size=4),
    st.sampled_from((AccessKind.READ, AccessKind.WRITE)),
    st.booleans(), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_the_walker_translates_as_the_engine_does(rights, kind, wp, smap, ac, nxe):
    outcomes = []
    for by_walker in (False, True):
        m = BareMachine()
        for level, right in zip(LEVELS[2:], rights[2:], strict=True):
            address = m.read_u64(level) & 0xFF_FFFF_F000 if level != LEVELS[3] else TARGET | 1 << 39
            m.write_u64(level, address | right)
        vmsa = m.vmsa
        vmsa.cr0 = vmsa.cr0 & ~(1 << 16) | wp << 16
        vmsa.cr4 |= smap << 21
        vmsa.rflags |= ac << 18
        vmsa.efer = vmsa.efer & ~(1 << 11) | nxe << 11
        source = f"mov rax, [{GVA + 8}]" if kind is AccessKind.READ else f"mov [{GVA + 8}], rax"
        found: object
        if by_walker:
            m.silicon.load_for_debugger(m.vmcb)
            try:
                gpa = m.silicon.processor.translate(GVA + 8, kind, 0)
                found = gpa == TARGET + 8 | 1 << 39
            except GuestFault as fault:
                found = (fault.vector, fault.error_code, fault.address)
        else:
            assert m.run(source + "; hlt") == Hlt()
            found = True if m.vmsa.rip < CODE + 0x100 and m.vmsa.rip > CODE else None
            if found is None:
                found = (m.trap.vector, m.trap.error_code, m.vmsa.cr2)
        accessed = [m.read_u64(level) & (A | D) for level in LEVELS[2:]]
        outcomes.append((found, accessed if found is True else None))
    assert outcomes[0] == outcomes[1]
