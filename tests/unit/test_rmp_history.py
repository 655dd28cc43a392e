# SPDX-License-Identifier: MIT
"""What the RMP remembers of those who changed it."""

from __future__ import annotations

from svsmd.config import MIB, MachineConfig
from svsmd.machine import build_machine
from svsmd.snp.exits import Hlt
from svsmd.snp.rmp import GUEST_ASID, Rmp, RmpUpdate
from svsmd.snp.rmp_history import (
    RUNNING,
    VCPU_SHIFT,
    VMPL_SHIFT,
    LastChange,
    RmpChange,
    RmpHistory,
)
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from tests.bare_machine import CODE, DATA, SPARE, BareMachine

MEMORY = 4 * HUGE_PAGE_SIZE


class Bench:
    """An RMP with a clock and an actor that a test sets."""

    def __init__(self) -> None:
        self.rmp = Rmp([range(MEMORY)])
        self.tick = 0
        self.actor = 0
        self.rmp.history.now = lambda: self.tick
        self.rmp.history.actor = lambda: self.actor

    def assign(self, spa: int, size: PageSize = PageSize.SIZE_4K) -> None:
        update = RmpUpdate(assigned=True, gpa=Gpa(spa), asid=GUEST_ASID, page_size=size)
        assert not self.rmp.rmpupdate(Spa(spa), update)

    def validate(self, spa: int, size: PageSize = PageSize.SIZE_4K) -> None:
        assert not self.rmp.pvalidate(Spa(spa), Gpa(spa), Vmpl.VMPL0, size, True)[0]

    def adjust(self, spa: int, size: PageSize = PageSize.SIZE_4K, attributes: int = 0x301) -> None:
        assert not self.rmp.rmpadjust(Spa(spa), Gpa(spa), Vmpl.VMPL0, size, attributes)

    def kinds(self, spa: int) -> list[RmpChange]:
        return [change.change for change in self.rmp.history.changes(spa >> 12)]


def test_nobody_changed_it() -> None:
    bench = Bench()
    assert bench.kinds(0) == bench.kinds(MEMORY) == bench.kinds(1 << 51) == []


def test_the_latest_comes_first_with_who_and_when() -> None:
    bench = Bench()
    bench.assign(0x5000)
    bench.tick, bench.actor = 77, 0x1234 | 3 << VCPU_SHIFT | RUNNING
    bench.validate(0x5000)
    bench.tick, bench.actor = 99, 0xFFFF_8000_1234 & 0xFFFF_FFFF_FFFF | RUNNING | 1 << VMPL_SHIFT
    bench.adjust(0x5000)
    adjusted, validated, updated = bench.rmp.history.changes(5)
    assert adjusted == LastChange(RmpChange.RMPADJUST, True, 0, 1, 0xFFFF_FFFF_8000_1234, 99, False)
    assert validated == LastChange(RmpChange.PVALIDATE, True, 3, 0, 0x1234, 77, False)
    assert (updated.change, updated.running, updated.tick) == (RmpChange.RMPUPDATE, False, 0)
    assert bench.kinds(0x6000) == bench.kinds(0x4000) == []


def test_on_one_tick_the_order_counts() -> None:
    bench = Bench()
    bench.assign(0)
    bench.validate(0)
    bench.adjust(0)
    assert bench.kinds(0) == [RmpChange.RMPADJUST, RmpChange.PVALIDATE, RmpChange.RMPUPDATE]
    bench.assign(0)
    assert bench.kinds(0)[0] is RmpChange.RMPUPDATE
    bench.validate(0)
    assert bench.kinds(0)[:2] == [RmpChange.PVALIDATE, RmpChange.RMPUPDATE]


def test_the_order_survives_the_end_of_its_count() -> None:
    history = RmpHistory(1)
    for _ in range(0xFFE):
        history.note(RmpChange.RMPUPDATE, 7, 1)
    for change in (RmpChange.RMPUPDATE, RmpChange.PVALIDATE, RmpChange.RMPADJUST):
        history.note(change, 3, 1)
    assert [change.change for change in history.changes(3)] == [
        RmpChange.RMPADJUST, RmpChange.PVALIDATE, RmpChange.RMPUPDATE,
    ]  # fmt: skip


def test_what_changes_nothing_is_not_noted() -> None:
    bench = Bench()
    bench.assign(0)
    bench.validate(0)
    bench.tick = 5
    assert bench.rmp.pvalidate(Spa(0), Gpa(0), Vmpl.VMPL0, PageSize.SIZE_4K, True)[1]
    assert bench.rmp.history.changes(0)[0].tick == 0


def test_huge_entries_are_one_and_outlive_their_split() -> None:
    huge = PageSize.SIZE_2M
    bench = Bench()
    bench.assign(HUGE_PAGE_SIZE, huge)
    bench.tick = 1
    bench.validate(HUGE_PAGE_SIZE, huge)
    bench.tick = 2
    assert not bench.rmp.psmash(Spa(HUGE_PAGE_SIZE))
    bench.tick = 3
    bench.adjust(HUGE_PAGE_SIZE + PAGE_SIZE)
    last = HUGE_PAGE_SIZE * 2 - PAGE_SIZE
    changes = bench.rmp.history.changes(last >> 12)
    assert [(c.change, c.tick, c.huge) for c in changes] == [
        (RmpChange.PSMASH, 2, True), (RmpChange.PVALIDATE, 1, True), (RmpChange.RMPUPDATE, 0, True),
    ]  # fmt: skip
    assert bench.kinds(HUGE_PAGE_SIZE + PAGE_SIZE)[:2] == [RmpChange.RMPADJUST, RmpChange.PSMASH]
    # The first page's own change hides the whole entry's, for itself alone.
    bench.tick = 4
    bench.assign(HUGE_PAGE_SIZE)
    first, *_ = bench.rmp.history.changes(HUGE_PAGE_SIZE >> 12)
    assert (first.change, first.tick, first.huge) == (RmpChange.RMPUPDATE, 4, False)
    assert bench.rmp.history.changes(last >> 12) == changes
    assert bench.kinds(HUGE_PAGE_SIZE - PAGE_SIZE) == bench.kinds(2 * HUGE_PAGE_SIZE) == []


def test_the_guests_own_instructions() -> None:
    machine = BareMachine(vmpl=0)
    machine.own(SPARE, validated=False)
    machine.vmcb.vcpu = 5
    code = f"mov eax, {SPARE}; xor ecx, ecx; mov edx, 1; pvalidate; hlt"
    assert machine.run(code) == Hlt()
    change = machine.rmp.history.changes(SPARE >> 12)[0]
    assert change == LastChange(RmpChange.PVALIDATE, True, 5, 0, CODE + 12, 3, False)
    assert machine.rmp.history.changes(DATA >> 12)[0].change is RmpChange.LAUNCH


def test_a_whole_machine() -> None:
    """The core's RMPADJUST, the host's answer to a guest, and the launch, by their authors."""
    machine = build_machine(MachineConfig(seed=b"test", rtc=0, memory=64 * MIB, append="selftest"))
    launched = machine.silicon.rmp.history.changes((64 * MIB >> 12) - 1)
    assert [(change.change, change.running) for change in launched][:1] == [
        (RmpChange.RMPUPDATE, False)
    ]
    for _ in range(200):
        machine.run_slice(1_000_000)
    seen: dict[RmpChange, set[tuple[bool, int]]] = {}
    for page in range(64 * MIB >> 12):
        for change in machine.silicon.rmp.history.changes(page):
            seen.setdefault(change.change, set()).add((change.running, change.vmpl))
    assert seen[RmpChange.RMPADJUST] == seen[RmpChange.PVALIDATE] == {(True, 0)}
    assert seen[RmpChange.LAUNCH] == {(False, 0)}
    assert (True, 2) in seen[RmpChange.RMPUPDATE], "page state changes of the guest"
