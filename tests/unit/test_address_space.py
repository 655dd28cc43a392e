# SPDX-License-Identifier: MIT
"""VMPL0's address space on the real engine: what is mapped, what is not, and what faults."""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import pytest

from svsmd.config import MIB
from svsmd.core.page_entry import PageFlags
from svsmd.core.paging.cpu_area import (
    CONTROL,
    GHCB,
    HUGE_SLOT_COUNT,
    HUGE_SLOTS,
    IST_STACK,
    SLOT_COUNT,
    SLOTS,
    STACK,
)
from svsmd.core.port import IMAGE_MAP, PERCPU_MAP, PRIVATE_MAP
from svsmd.errors import ExitCode
from svsmd.host.layout import SvsmRegion
from svsmd.slice_end import Ended
from svsmd.snp.exits import Exit, Vmgexit
from svsmd.snp.faults import PfError, Vector
from svsmd.snp.types import PAGE_SIZE
from svsmd.snp.vmcb import Vmcb
from svsmd.snp.vmsa import Cr0, Cr4, Efer
from tests.vmpl0_machine import Leaf, Vmpl0Machine, pages_of

DOUBLE_FAULT = 8
GUARDS = tuple(
    sorted(
        {
            CONTROL + PAGE_SIZE,
            IST_STACK.start - PAGE_SIZE,
            IST_STACK.stop,
            STACK.start - PAGE_SIZE,
            STACK.stop,
            GHCB - PAGE_SIZE,
            GHCB + PAGE_SIZE,
            SLOTS - PAGE_SIZE,
            PERCPU_MAP - PAGE_SIZE,
        }
    )
)


@pytest.fixture(scope="module")
def booted() -> Vmpl0Machine:
    """Two CPUs, run to their end: what is mapped then is what was mapped while the guest ran."""
    machine = Vmpl0Machine()
    end = machine.run()
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.OK
    assert set(machine.cr3) == {0, 1}
    return machine


def area(machine: Vmpl0Machine, vcpu: int) -> list[Leaf]:
    return [
        leaf
        for leaf in machine.leaves(machine.cr3[vcpu])
        if PERCPU_MAP <= leaf.gva < PERCPU_MAP + (1 << 39)
    ]


def region(machine: Vmpl0Machine) -> range:
    found = SvsmRegion.at_top_of(machine.machine.silicon.memory.ranges, 2)
    return range(found.base, found.end)


@pytest.mark.parametrize("vcpu", [0, 1])
def test_map_of_a_cpu(booted: Vmpl0Machine, vcpu: int) -> None:
    own = region(booted)
    core = booted.machine.core
    assert core is not None
    assert core.machine is not None
    kernel = core.machine.kernel.kernel
    for leaf in booted.leaves(booted.cr3[vcpu]):
        gva, (gpa, flags, _size) = leaf
        assert gpa in own, f"{gva:#x} maps {gpa:#x}, which is not the SVSM's"
        assert not flags & PageFlags.WRITE or not flags & PageFlags.EXECUTE, f"{gva:#x} is W and X"
        assert not flags & PageFlags.USER
        if gva >= IMAGE_MAP:
            image = booted.image
            assert bool(flags & PageFlags.EXECUTE) == (gva < image.text_end)
            assert bool(flags & PageFlags.WRITE) == (gva >= image.rodata_end)
            assert gpa == kernel.base + gva - IMAGE_MAP
        elif gva >= PERCPU_MAP:
            shared = gva == GHCB
            assert bool(flags & PageFlags.SHARED) == shared
        else:
            assert gva == PRIVATE_MAP + gpa
            assert flags == PageFlags.WRITE


@pytest.mark.parametrize("vcpu", [0, 1])
def test_nothing_is_mapped_twice(booted: Vmpl0Machine, vcpu: int) -> None:
    pages = [page for leaf in booted.leaves(booted.cr3[vcpu]) for page in pages_of(leaf)]
    assert len(pages) == len(set(pages))


@pytest.mark.parametrize("vcpu", [0, 1])
def test_area_of_a_cpu(booted: Vmpl0Machine, vcpu: int) -> None:
    mapped = {leaf.gva for leaf in area(booted, vcpu)}
    assert mapped == {CONTROL, *IST_STACK[::PAGE_SIZE], *STACK[::PAGE_SIZE], GHCB}
    assert not mapped & set(GUARDS)
    assert HUGE_SLOTS + HUGE_SLOT_COUNT * (2 << 20) < PERCPU_MAP + (1 << 30)
    assert SLOTS + SLOT_COUNT * PAGE_SIZE <= HUGE_SLOTS


def test_area_of_a_cpu_is_mapped_nowhere_else(booted: Vmpl0Machine) -> None:
    areas = [{leaf.mapping.gpa for leaf in area(booted, vcpu)} for vcpu in (0, 1)]
    for vcpu, theirs in ((0, areas[1]), (1, areas[0])):
        mapped = {page for leaf in booted.leaves(booted.cr3[vcpu]) for page in pages_of(leaf)}
        assert not mapped & theirs


def test_pages_of_others_are_not_mapped(booted: Vmpl0Machine) -> None:
    """VMSAs, the guest's calling area, pages that are shared for fw_cfg."""
    found = SvsmRegion.at_top_of(booted.machine.silicon.memory.ranges, 2)
    rmp = booted.machine.silicon.rmp
    mapped = {leaf.mapping.gpa: leaf for vcpu in (0, 1) for leaf in booted.leaves(booted.cr3[vcpu])}
    assert found.caa not in mapped
    assert found.vmsa not in mapped
    for gpa, leaf in mapped.items():
        entry = rmp.lookup(gpa)
        assert entry is not None
        assert not entry.vmsa
        assert entry.assigned != bool(leaf.mapping.flags & PageFlags.SHARED)
        assert not any(entry.permissions[1:])
    entries = [rmp.lookup(page) for page in range(found.base, found.end, PAGE_SIZE)]
    assert sum(entry is not None and entry.vmsa for entry in entries) >= 3


def test_no_guest_memory_is_mapped_whenever_the_guest_runs() -> None:
    """All tables of VMPL0, at every exit from VMPL0 that asks the host to run the guest."""
    machine = Vmpl0Machine(append="selftest svsm.", memory=32 * MIB)
    silicon, own = machine.machine.silicon, region(machine)
    checked = 0

    def is_deposited(gpa: int) -> bool:
        """The guest has given it to the SVSM, and cannot reach it."""
        core, entry = machine.machine.core, silicon.rmp.lookup(gpa)
        assert core is not None
        assert core.machine is not None
        assert entry is not None
        return core.machine.pages.has_deposited(gpa, PAGE_SIZE) and not any(entry.permissions[1:])

    vmrun = silicon.vmrun

    def watch(vmcb: Vmcb, until: int) -> Exit:
        nonlocal checked
        exit_ = vmrun(vmcb, until)
        if silicon.processor.vmpl == 0 and isinstance(exit_, Vmgexit):
            for cr3 in machine.cr3.values():
                for leaf in machine.leaves(cr3):
                    gpa = leaf.mapping.gpa
                    assert gpa in own or is_deposited(gpa), f"{leaf.gva:#x} maps {gpa:#x}"
            checked += 1
        return exit_

    with patch.object(silicon, "vmrun", watch):
        end = machine.run()
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.OK
    assert checked > 100


def test_state_of_the_cpus() -> None:
    machine = Vmpl0Machine()
    cpu = machine.machine.silicon.cpu
    seen: dict[int, tuple[int, int, int]] = {}

    def look(vcpu: int) -> None:
        seen[vcpu] = (cpu.cr[0], cpu.cr[4], cpu.word(cpu.layout.efer))

    machine.at_gate = look
    machine.run()
    assert set(seen) == {0, 1}
    for cr0, cr4, efer in seen.values():
        assert cr0 & Cr0.WP
        assert cr4 & (Cr4.SMEP | Cr4.SMAP) == Cr4.SMEP | Cr4.SMAP
        assert efer & Efer.NXE


def both_run(machine: Vmpl0Machine) -> bool:
    return len(machine.cr3) == 2


def fault(source: str, vcpu: int = 0, machine: Vmpl0Machine | None = None) -> Vmpl0Machine:
    """Code at VMPL0 on a vCPU that has its area; the machine ends with a panic of the SVSM."""
    machine = machine or Vmpl0Machine()
    machine.execute(vcpu, source, partial(both_run, machine))
    end = machine.run()
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert any("the secrets page is wiped" in line for line in machine.svsm_lines)
    return machine


def test_cpu_1_cannot_read_the_area_of_cpu_0(booted: Vmpl0Machine) -> None:
    """There is no address for it: the one where the SVSM's own memory would be faults."""
    (control,) = (leaf.mapping.gpa for leaf in area(booted, 0) if leaf.gva == CONTROL)
    address = PRIVATE_MAP + control
    machine = fault(f"movabs rax, {address}; mov rbx, [rax]", vcpu=1)
    (taken,) = machine.exceptions
    assert taken == (1, Vector.PF, 0, address)


def test_each_cpu_finds_its_own_area() -> None:
    for vcpu in (0, 1):
        machine = Vmpl0Machine()
        machine.execute(
            vcpu, f"movabs rax, {CONTROL}; mov rbx, gs:[0]; cmp rax, rbx; jne 1f; ud2; 1: int3",
            partial(both_run, machine),
        )  # fmt: skip
        machine.run()
        assert [(e.vcpu, e.vector) for e in machine.exceptions] == [(vcpu, Vector.UD)]


@pytest.mark.parametrize("address", GUARDS, ids=hex)
def test_guard_pages_fault(address: int) -> None:
    machine = fault(f"movabs rax, {address}; mov byte ptr [rax], 0")
    (taken,) = machine.exceptions
    assert (taken.vector, taken.error_code, taken.cr2) == (Vector.PF, PfError.W, address)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (f"movabs rax, {IMAGE_MAP}; mov [rax], rax", PfError.P | PfError.W),
        (f"movabs rax, {CONTROL}; jmp rax", PfError.P | PfError.ID),
        ("mov rax, [0]", PfError(0)),
        (f"movabs rax, {SLOTS}; mov rax, [rax]", PfError(0)),
        (f"movabs rax, {HUGE_SLOTS}; mov rax, [rax]", PfError(0)),
    ],
)
def test_what_else_faults(source: str, error: PfError) -> None:
    (taken,) = fault(source).exceptions
    assert (taken.vector, taken.error_code) == (Vector.PF, error)


@pytest.mark.parametrize("vcpu", [0, 1])
def test_stack_overflow_is_a_panic(vcpu: int) -> None:
    """The push faults, and so does the frame of its #PF: #DF comes on the IST stack."""
    machine = fault("1: push rax; jmp 1b", vcpu)
    (taken,) = machine.exceptions
    assert (taken.vcpu, taken.vector, taken.error_code) == (vcpu, DOUBLE_FAULT, 0)
    assert any("exception 8 (#DF) at VMPL0" in line for line in machine.svsm_lines)
