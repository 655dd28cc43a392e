# SPDX-License-Identifier: MIT
"""Temporary mappings of the core, and the user half of its address space."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from svsmd.core.access import load, load_own, load_shared, mapped, store, zero
from svsmd.core.gate import SvsmPanic
from svsmd.core.memory import PageKind
from svsmd.core.page_entry import PageFlags
from svsmd.core.paging import PageTable
from svsmd.core.paging.cpu_area import GHCB, HUGE_SLOT_COUNT, SLOT_COUNT
from svsmd.core.percpu import PerCpu
from svsmd.core.port import PERCPU_MAP, PRIVATE_MAP
from svsmd.snp.faults import GuestFault
from svsmd.snp.rmp import RmpUpdate
from svsmd.snp.types import HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa
from tests.fake_vmpl0 import GUEST_CAA, MIB, SVSM_BASE, FakeVmpl0

FREE = 6 * MIB


@pytest.fixture
def machine() -> FakeVmpl0:
    machine = FakeVmpl0()
    machine.boot()
    return machine


@pytest.fixture
def cpu(machine: FakeVmpl0) -> PerCpu:
    return machine.core._cpus[0]


def finish(handler: Generator[object, int, object]) -> object:
    """What it returns; it must not suspend."""
    with pytest.raises(StopIteration) as stopped:
        next(handler)
    return stopped.value.value


def temporary(cpu: PerCpu) -> list[int]:
    """GPAs that are mapped in slots now."""
    assert cpu.area is not None
    slots = [PERCPU_MAP + 0x10_0000 + n * PAGE_SIZE for n in range(SLOT_COUNT)]
    slots += [PERCPU_MAP + HUGE_PAGE_SIZE * (n + 1) for n in range(HUGE_SLOT_COUNT)]
    found = (cpu.area.tables.lookup(cpu, slot) for slot in slots)
    return [mapping.gpa for mapping in found if mapping is not None]


def test_mapping_lasts_as_long_as_its_block(machine: FakeVmpl0, cpu: PerCpu) -> None:
    machine.put(FREE, b"guest")
    assert not temporary(cpu)
    with mapped(cpu, FREE) as gva:
        assert temporary(cpu) == [FREE]
        assert cpu.port.read(gva, 5) == b"guest"
        with mapped(cpu, FREE) as same:
            assert same == gva
        assert temporary(cpu) == [FREE]
        assert finish(load(cpu, FREE, 5)) == b"guest"
    assert not temporary(cpu)
    with pytest.raises(GuestFault):
        cpu.port.read(gva, 5)


def test_page_of_a_large_mapping_uses_it(cpu: PerCpu) -> None:
    with mapped(cpu, FREE, PageSize.SIZE_2M) as gva:
        with mapped(cpu, FREE + 5 * PAGE_SIZE) as page:
            assert page == gva + 5 * PAGE_SIZE
        # Not the other way round: the page behind is not in it.
        with mapped(cpu, FREE + HUGE_PAGE_SIZE):
            assert sorted(temporary(cpu)) == [FREE, FREE + HUGE_PAGE_SIZE]
    assert not temporary(cpu)


def test_mapping_goes_with_an_exception(machine: FakeVmpl0, cpu: PerCpu) -> None:
    machine.rmp.firmware_update(Spa(FREE & -HUGE_PAGE_SIZE), validated=False)
    with pytest.raises(GuestFault):
        finish(load(cpu, FREE, 8))
    assert not temporary(cpu)


def test_mapping_stays_while_the_host_is_asked(machine: FakeVmpl0, cpu: PerCpu) -> None:
    machine.rmp.psmash(Spa(FREE))
    entry = machine.rmp.lookup(FREE)
    assert entry is not None
    machine.rmp.rmpupdate(Spa(FREE), RmpUpdate())
    handler = store(cpu, FREE, b"late")
    next(handler)
    assert temporary(cpu) == [FREE]
    machine.rmp.rmpupdate(
        Spa(FREE), RmpUpdate(True, PageSize.SIZE_4K, False, Gpa(FREE), entry.asid)
    )
    machine.rmp.firmware_update(Spa(FREE), validated=True)
    with pytest.raises(StopIteration):
        handler.send(0)
    assert not temporary(cpu)
    assert machine.get(FREE, 4) == b"late"


def test_handler_that_is_closed_leaves_the_machine_alone(machine: FakeVmpl0, cpu: PerCpu) -> None:
    machine.rmp.psmash(Spa(FREE))
    machine.rmp.rmpupdate(Spa(FREE), RmpUpdate())
    handler = store(cpu, FREE, b"late")
    next(handler)
    machine.ports[0].log.clear()
    ticks = machine.ports[0].ticks
    handler.close()
    assert machine.ports[0].ticks == ticks
    assert temporary(cpu) == [FREE]


def test_access_goes_over_pages(machine: FakeVmpl0, cpu: PerCpu) -> None:
    data = bytes(range(256)) * 48
    finish(store(cpu, FREE - 100, data))
    assert machine.get(FREE - 100, len(data)) == data
    assert finish(load(cpu, FREE - 100, len(data))) == data
    assert finish(load(cpu, FREE, 0)) == b""


def test_too_many_mappings_are_a_panic(cpu: PerCpu) -> None:
    blocks = [mapped(cpu, FREE + n * PAGE_SIZE) for n in range(SLOT_COUNT + 1)]
    for block in blocks[:-1]:
        block.__enter__()
    with pytest.raises(SvsmPanic, match="no place"):
        blocks[-1].__enter__()
    for block in blocks[:-1]:
        block.__exit__(None)
    assert not temporary(cpu)
    finish(zero(cpu, FREE, PageSize.SIZE_2M))


def test_ghcb_is_mapped_for_good_and_shared(machine: FakeVmpl0, cpu: PerCpu) -> None:
    gpa = machine.ghcbs[0]
    with mapped(cpu, gpa, shared=True) as gva:
        assert gva == GHCB
    assert finish(load_shared(cpu, gpa, 16)) == machine.get(gpa, 16)
    with mapped(cpu, gpa) as private:
        assert private != GHCB


@pytest.mark.parametrize("what", ["vmsa", "caa", "area", "ghcb", "guest"])
def test_pages_that_are_not_mapped_as_its_own(machine: FakeVmpl0, cpu: PerCpu, what: str) -> None:
    assert cpu.area is not None
    control = cpu.area.tables.lookup(cpu, PERCPU_MAP)
    assert control is not None
    gpa = {
        "vmsa": machine.vmsas[1, 0],
        "caa": GUEST_CAA,
        "area": control.gpa,
        "ghcb": machine.ghcbs[0],
        "guest": FREE,
    }[what]
    with pytest.raises(SvsmPanic, match="is gone"):
        load_own(cpu, gpa, 8)
    assert load_own(cpu, SVSM_BASE + 0x8_0000, 8) == b"SVSMDLI1"


def test_user_half_of_a_cpu(machine: FakeVmpl0, cpu: PerCpu) -> None:
    core_machine = machine.core._machine
    assert core_machine is not None
    pages = core_machine.maps.pages
    one, two = PageTable(cpu, pages, 3), PageTable(cpu, pages, 3)
    frames = []
    for table in (one, two):
        frame = pages.allocate(cpu, 0, PageKind.ANONYMOUS)
        frames.append(frame)
        table.map(cpu, 0x40_0000, frame, PageFlags.WRITE | PageFlags.USER)
        machine.put(frame, f"frame {len(frames)}".encode())
    cpu.switch_user(one)
    assert cpu.port.read(0x40_0000, 7) == b"frame 1"
    cpu.switch_user(two)
    assert cpu.port.read(0x40_0000, 7) == b"frame 2"
    assert machine.core._cpus[1].area is not None
    assert machine.core._cpus[1].area.tables.lookup(cpu, 0x40_0000) is None
    assert cpu.port.read(PRIVATE_MAP + frames[0], 7) == b"frame 1"
    with pytest.raises(ValueError, match="user half"):
        cpu.switch_user(PageTable(cpu, pages))
    with pytest.raises(ValueError, match="user half"):
        cpu.switch_user(PageTable(cpu, pages, 3, PRIVATE_MAP))
    cpu.switch_user(None)
    with pytest.raises(GuestFault):
        cpu.port.read(0x40_0000, 7)
    with pytest.raises(RuntimeError, match="no page tables"):
        PerCpu(0, cpu.port).switch_user(None)
