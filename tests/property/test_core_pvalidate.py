# SPDX-License-Identifier: MIT
"""Whatever a guest sends and its host does: a documented answer, and no page open that must not."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svsmd.core.guest_memory import subtract
from svsmd.core.protocols.core import SvsmCoreCall
from svsmd.core.result_codes import SvsmCoreResult, SvsmResult
from svsmd.snp.rmp import RmpUpdate
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from svsmd.snp.vmsa import Efer
from tests.fake_vmpl0 import (
    GUEST_CAA,
    GUEST_VMPL,
    INFO,
    LAUNCH_INFO,
    LAUNCHED,
    MIB,
    RAM_SIZE,
    SVSM_BASE,
    SVSM_SECRETS,
    SVSM_VMSA,
    FakeVmpl0,
)

DOCUMENTED: Final = {*map(int, SvsmResult), *map(int, SvsmCoreResult)}
FREE: Final = 8 * MIB
LIST: Final = GUEST_CAA + 8
VMSA: Final = 6 * MIB + 0x5000

u64 = st.integers(0, 2**64 - 1)
pages = st.sampled_from(
    [
        *(FREE + i * PAGE_SIZE for i in range(4)),
        FREE + HUGE_PAGE_SIZE - PAGE_SIZE,
        VMSA,
        VMSA + PAGE_SIZE,
        6 * MIB,
        2 * MIB,
        0,
        GUEST_CAA,
        SVSM_BASE,
        SVSM_SECRETS,
        SVSM_VMSA,
        LAUNCH_INFO,
        SVSM_BASE + 2 * MIB,
        RAM_SIZE,
        RAM_SIZE - PAGE_SIZE,
        FREE | C_BIT,
        2**64 - PAGE_SIZE,
    ]
)
addresses = st.builds(lambda page, offset: page + offset, pages, st.sampled_from([0, 0, 0, 8, 4]))
registers = st.one_of(u64, addresses, st.integers(0, 8))
entries = st.one_of(
    u64, st.builds(lambda page, flags: page | flags, pages, st.integers(0, 15)), addresses
)
lists = st.one_of(
    st.binary(min_size=8, max_size=64),
    st.builds(
        lambda words, start: (
            len(words).to_bytes(2, "little")
            + start.to_bytes(2, "little")
            + bytes(4)
            + b"".join((w % 2**64).to_bytes(8, "little") for w in words)
        ),
        st.lists(entries, min_size=1, max_size=6),
        st.integers(0, 2),
    ),
)
core_calls = st.one_of(st.sampled_from([int(c) for c in SvsmCoreCall]), u64)

guest_calls = st.tuples(st.just("call"), core_calls, registers, registers, registers)
list_calls = st.tuples(st.just("list"), lists)
host_acts = st.tuples(
    st.just("host"), st.sampled_from(["psmash", "swap", "take"]), st.sampled_from([FREE, 6 * MIB])
)
spurious = st.tuples(st.just("resume"), st.integers(0, 1))


class Driver:
    """Applies what Hypothesis thought of, as long as a vCPU answers."""

    def __init__(self) -> None:
        # Without a kernel there are fewer small pages to boot through.
        self.machine = FakeVmpl0(info=replace(INFO, validated=(LAUNCHED[0], LAUNCHED[-1])))
        self.machine.boot()
        self.machine.checks.append(self.machine.check_security)
        self.stuck = False
        self.hostile = False
        self.caa = GUEST_CAA
        self.machine.write_vmsa(VMSA)

    def call(self, rax: int, rcx: int, rdx: int, r8: int) -> None:
        machine = self.machine
        if self.stuck or machine.core.panicked:
            return
        gpa = machine.vmsas[0, GUEST_VMPL]
        state = machine.begin_call(rax, rcx, rdx, r8, gpa=gpa, caa=self.caa)
        end = machine.run(0)
        if end == "guest":
            assert state.rax in DOCUMENTED, hex(state.rax)
            assert state.efer & Efer.SVME
            if rax == SvsmCoreCall.SVSM_CORE_REMAP_CA and state.rax == 0:
                self.caa = rcx
        elif end == "fault":
            assert self.hostile
            self.stuck = True
        else:
            # Only a host that swaps pages of the calling areas or VMSAs makes the SVSM give up.
            assert end == "end"
            assert self.hostile, list(machine.core.log.lines)

    def list(self, data: bytes) -> None:
        where = self.caa + 8
        self.machine.put(where, data)
        self.call(SvsmCoreCall.SVSM_CORE_PVALIDATE, where, 0, 0)

    def host(self, what: str, gpa: int) -> None:
        rmp = self.machine.rmp
        rmp.psmash(Spa(gpa))
        if what == "psmash":
            return
        self.hostile = True
        for page in (gpa, gpa + 3 * PAGE_SIZE):
            rmp.rmpupdate(Spa(page), RmpUpdate())
            if what == "swap":
                rmp.rmpupdate(Spa(page), RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(page), 1))

    def resume(self, vcpu: int) -> None:
        end = self.machine.run(vcpu)
        assert end in {"guest", "halt"} or self.hostile


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(guest_calls, list_calls, list_calls, host_acts, spurious), max_size=16))
def test_any_guest_on_any_host(steps: list[tuple[object, ...]]) -> None:
    driver = Driver()
    for name, *arguments in steps:
        getattr(driver, str(name))(*arguments)
        driver.machine.check_security()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=4),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=4),
)
def test_subtract_is_set_difference(
    some: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    ranges = [range(a, a + n) for a, n in some]
    holes = [range(a, a + n) for a, n in others]
    left = subtract(ranges, holes)
    assert {x for r in left for x in r} == {x for r in ranges for x in r} - {
        x for r in holes for x in r
    }
    assert all(left)
