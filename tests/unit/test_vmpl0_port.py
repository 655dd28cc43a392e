# SPDX-License-Identifier: MIT
"""VMPL0's port: its TLB, and that the engine forgets what the port has invalidated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from svsmd.snp.exits import Hlt
from svsmd.snp.faults import GuestFault, PfError, Vector
from svsmd.snp.silicon import GateCall
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE
from svsmd.snp.vmpl0_port import Vmpl0Port
from svsmd.snp.vmsa import Cr4
from tests.bare_machine import CODE, DATA, PML4, SPARE, BareMachine, P, U, W, assemble

UPPER = 0xFFFF_8000_0000_0000
OTHER = SPARE
TABLE = SPARE + 8 * PAGE_SIZE
HUGE = SPARE // HUGE_PAGE_SIZE * HUGE_PAGE_SIZE + HUGE_PAGE_SIZE
LEAF = P | W | C_BIT
Work = Callable[[Vmpl0Port], None]


@pytest.fixture
def machine() -> BareMachine:
    """All of it is mapped a second time in the upper half."""
    machine = BareMachine(0)
    machine.write_u64(PML4 + 256 * 8, machine.read_u64(PML4))
    machine.own(OTHER, 1)
    machine.own(TABLE, 2)
    machine.write(DATA, b"old".ljust(8))
    machine.write(OTHER, b"new".ljust(8))
    return machine


def gates(machine: BareMachine, *work: Work, code: str = "") -> None:
    """Code that comes to each of the gates once, with `code` before each and after the last."""
    pieces = b""
    for each in work:
        pieces += assemble(code)
        machine.silicon.register_gate(CODE + len(pieces), partial(enter, each))
        pieces += b"\x0f\x0b"
    assert machine.run(pieces + assemble(f"{code}\nhlt")) == Hlt()


def enter(work: Work, call: GateCall) -> None:
    work(call.port)


def remap(port: Vmpl0Port, gva: int, entry: int) -> None:
    port.write(BareMachine.entry_of(gva), entry.to_bytes(8, "little"))


def test_translation_stays_until_it_is_invalidated(machine: BareMachine) -> None:
    def work(port: Vmpl0Port) -> None:
        assert port.read(UPPER + DATA, 3) == b"old"
        remap(port, DATA, OTHER | LEAF)
        assert port.read(UPPER + DATA, 3) == b"old"
        port.invlpg(UPPER + DATA + PAGE_SIZE)
        assert port.read(UPPER + DATA, 3) == b"old"
        port.invlpg(UPPER + DATA + 123)
        assert port.read(UPPER + DATA, 3) == b"new"
        remap(port, DATA, DATA | LEAF)
        port.flush_tlb()
        assert port.read(UPPER + DATA, 3) == b"old"
        remap(port, DATA, OTHER | LEAF)
        port.write_cr3(PML4 | C_BIT)
        assert port.read(UPPER + DATA, 3) == b"new"

    gates(machine, work)


def test_page_tables_do_not_stay(machine: BareMachine) -> None:
    """A walk for the neighbour sees the page table that is there now."""

    def work(port: Vmpl0Port) -> None:
        assert port.read(UPPER + DATA, 3) == b"old"
        port.write(TABLE, b"".join((OTHER | LEAF).to_bytes(8, "little") for _ in range(512)))
        directory = PML4 + 2 * PAGE_SIZE
        port.write(directory + (DATA >> 21) * 8, (TABLE | LEAF).to_bytes(8, "little"))
        assert port.read(UPPER + DATA + PAGE_SIZE, 3) == b"new"
        assert port.read(UPPER + DATA, 3) == b"old"
        port.invlpg(UPPER + DATA)
        assert port.read(UPPER + DATA, 3) == b"new"

    gates(machine, work)


def test_write_is_checked_after_a_read(machine: BareMachine) -> None:
    machine.map(DATA, DATA, P)

    def work(port: Vmpl0Port) -> None:
        assert port.read(UPPER + DATA, 3) == b"old"
        with pytest.raises(GuestFault) as caught:
            port.write(UPPER + DATA, b"x")
        assert caught.value.error_code == PfError.P | PfError.W
        assert caught.value.address == UPPER + DATA
        remap(port, DATA, DATA | LEAF)
        # What the TLB has allows no write, so the tables are walked again.
        port.write(UPPER + DATA, b"x")
        remap(port, DATA, DATA | P | C_BIT)
        port.write(UPPER + DATA, b"y")
        port.invlpg(UPPER + DATA)
        with pytest.raises(GuestFault):
            port.write(UPPER + DATA, b"z")
        assert port.read(UPPER + DATA, 3) == b"yld"

    gates(machine, work)


def test_large_page_goes_as_a_whole(machine: BareMachine) -> None:
    machine.own_huge(HUGE)
    machine.write(HUGE + 0x1F_F000, b"far")
    directory = PML4 + 2 * PAGE_SIZE + (HUGE >> 21) * 8

    def work(port: Vmpl0Port) -> None:
        port.write(directory, (HUGE | LEAF | 0x80).to_bytes(8, "little"))
        assert port.read(UPPER + HUGE + 0x1F_F000, 3) == b"far"
        port.write(directory, bytes(8))
        assert port.read(UPPER + HUGE, 3) == bytes(3)
        port.invlpg(UPPER + HUGE + 0x1234)
        with pytest.raises(GuestFault):
            port.read(UPPER + HUGE + 0x1F_F000, 3)

    gates(machine, work)


def test_translations_belong_to_a_cr3(machine: BareMachine) -> None:
    machine.write(TABLE, machine.read(PML4, PAGE_SIZE))
    machine.write_u64(TABLE + 256 * 8, 0)

    def work(port: Vmpl0Port) -> None:
        assert port.read(UPPER + DATA, 3) == b"old"
        port.write_cr3(TABLE | C_BIT)
        with pytest.raises(GuestFault):
            port.read(UPPER + DATA, 3)
        port.write_cr3(PML4 | C_BIT)
        assert port.read(UPPER + DATA, 3) == b"old"
        with pytest.raises(GuestFault) as caught:
            port.write_cr3(1 << 52)
        assert caught.value.vector == Vector.GP

    gates(machine, work)


def test_store_of_two_pages_is_whole_or_nothing(machine: BareMachine) -> None:
    machine.map(DATA + PAGE_SIZE, DATA + PAGE_SIZE, P)

    def work(port: Vmpl0Port) -> None:
        with pytest.raises(GuestFault) as caught:
            port.write(UPPER + DATA + PAGE_SIZE - 2, b"four")
        assert caught.value.address == UPPER + DATA + PAGE_SIZE
        assert port.read(UPPER + DATA + PAGE_SIZE - 2, 4) == bytes(4)

    gates(machine, work)


@pytest.mark.parametrize("how", ["invlpg", "flush_tlb", "write_cr3"])
def test_engine_forgets_with_the_port(machine: BareMachine, how: str) -> None:
    """The guest's own loads, before and after."""

    def work(port: Vmpl0Port) -> None:
        remap(port, DATA, OTHER | LEAF)
        if how == "invlpg":
            port.invlpg(DATA)
        elif how == "flush_tlb":
            port.flush_tlb()
        else:
            port.write_cr3(PML4 | C_BIT)

    gates(machine, work, code=f"mov rcx, rdx; mov rdx, [{DATA}]")
    assert machine.gpr("rcx").to_bytes(8, "little") == b"old".ljust(8)
    assert machine.gpr("rdx").to_bytes(8, "little") == b"new".ljust(8)


def test_smap_holds_for_the_port(machine: BareMachine) -> None:
    """A page of the user is out of reach, unless RFLAGS.AC is set; nothing of it is remembered."""
    machine.map(DATA, DATA, P | W | U)
    machine.write_u64(PML4, machine.read_u64(PML4) | U)
    machine.vmsa.cr4 |= Cr4.SMAP
    seen: list[bytes | int | None] = []

    def work(port: Vmpl0Port) -> None:
        try:
            seen.append(port.read(DATA, 3))
        except GuestFault as fault:
            seen.append(fault.error_code)

    code = b"\x0f\x0b" + assemble("stac") + b"\x0f\x0b" + assemble("clac") + b"\x0f\x0b"
    for offset in (0, 5, 10):
        machine.silicon.register_gate(CODE + offset, partial(enter, work))
    assert machine.run(code + b"\xf4") == Hlt()
    assert seen == [PfError.P, b"old", PfError.P]
