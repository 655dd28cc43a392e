# SPDX-License-Identifier: MIT
"""The tables of `info os` and the monitor's commands, on a live machine with its SVSM."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.config import MIB, MachineConfig
from svsmd.core.recent_calls import RECENT_CALLS
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.packets import osdata
from svsmd.gdbstub.target import ANY_WORLD, Selection, Table, TargetError, ThreadId
from svsmd.gdbstub.why import permissions_text
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import Idle, SliceEnd
from svsmd.snp.rmp import GUEST_ASID, Rmp, RmpEntry, RmpUpdate
from svsmd.snp.types import C_BIT, HUGE_PAGE_SIZE, PAGE_SIZE, Gpa, PageSize, Spa, Vmpl
from tests.fake_target import FakeMachine
from tests.unit.test_gdb_session import Client

MEMORY = 64 * MIB


@pytest.fixture(scope="module")
def machine() -> Machine:
    machine = build_machine(MachineConfig(seed=b"tables", rtc=1_767_225_600, memory=MEMORY, cpus=2))
    output = bytearray()
    machine.on_console = output.extend
    end: SliceEnd | None = None
    # A slice may end anywhere; where all vCPUs are halted, everybody is where he always will be.
    while b"demo> " not in output or not isinstance(end, Idle):
        end = machine.run_slice()
        if isinstance(end, Idle) and end.deadline is not None:
            machine.skip_idle(max(0, end.deadline - machine.clock_now))
    return machine


def _vcpu(tid: int) -> ThreadId:
    return ThreadId(ANY_WORLD, tid)


def register(target: MachineTarget, name: str) -> int:
    value = target.read_register(_vcpu(1), name)
    assert value is not None
    return value


@pytest.fixture
def target(machine: Machine) -> MachineTarget:
    target = MachineTarget(machine)
    target.select(Selection(_vcpu(1)))
    return target


def rows(target: MachineTarget, name: str) -> list[dict[str, str]]:
    table = target.tables[name]
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows()]
    assert all(isinstance(cell, str) for row in found for cell in row.values())
    return found


def monitor(target: MachineTarget, line: str) -> str:
    name, *arguments = line.split()
    return target.monitor_commands[name].run(arguments)


# tables


def test_rmp(target: MachineTarget, machine: Machine) -> None:
    """Every page is in exactly one run, which says what its entry says."""
    rmp = machine.silicon.rmp
    page = 0
    for row in rows(target, "rmp"):
        first = int(row["spa"], 16) >> 12
        assert first == page
        for page in range(first, first + int(row["pages"])):
            entry = rmp.lookup(page << 12)
            assert entry is not None
            assert row["size"] == ("2M" if entry.page_size else "4K")
            assert ("validated" in row["state"].split()) == entry.validated
            assert (row["state"] == "shared") == (not entry.assigned)
            if entry.assigned:
                assert int(row["gpa"], 16) + (page - first << 12) == entry.gpa
            granted = [row[f"vmpl{vmpl}"] for vmpl in range(4)]
            assert granted == [permissions_text(mask) for mask in entry.permissions]
        page += 1
        assert re.match("RMPUPDATE|PVALIDATE|RMPADJUST|PSMASH|SNP_LAUNCH", row["last change"])
    assert page == MEMORY >> 12


def test_vcpus_and_vmsas(target: MachineTarget, machine: Machine) -> None:
    first, second = rows(target, "vcpus")
    assert (first["vcpu"], first["vmpl"], first["worlds"]) == ("0", "2", "0 2")
    assert (second["vcpu"], second["vmpl"], second["worlds"]) == ("1", "0", "0")
    vmsas = {(row["vcpu"], row["vmpl"]): row for row in rows(target, "vmsa")}
    assert set(vmsas) == {("0", "0"), ("0", "2"), ("1", "0")}
    assert vmsas["0", "2"]["rip"] == first["rip"]
    assert int(vmsas["0", "2"]["cr3"], 16) == register(target, "cr3")
    world = machine.hypervisor.vcpus[0].world
    assert world is not None
    assert int(vmsas["0", "2"]["spa"], 16) == world.vmcb.vmsa_spa


def test_ghcb(target: MachineTarget, machine: Machine) -> None:
    for row in rows(target, "ghcb"):
        assert row["version"] == "2"
        assert machine.silicon.host_page(int(row["gpa"], 16)) is not None
    guest = next(row for row in rows(target, "ghcb") if row["vmpl"] == "2")
    assert re.search(r"\brax=0x[0-9a-f]+", guest["fields"]) or guest["exit"]


def test_calls(target: MachineTarget) -> None:
    calls = rows(target, "calls")
    assert "SVSM_CORE_PVALIDATE" in [row["call"] for row in calls]
    assert {row["result"] for row in calls} == {"SVSM_SUCCESS"}
    ticks = [int(row["tick"]) for row in calls]
    assert ticks == sorted(ticks)
    assert all(int(row["ticks"]) > 0 for row in calls)
    assert len(calls) <= RECENT_CALLS


def test_modules(target: MachineTarget) -> None:
    (echo,) = rows(target, "modules")
    assert (echo["name"], echo["program"], echo["children"]) == ("echo", "/bin/echo", "0")
    assert 0 < int(echo["pages"]) <= int(echo["limit"])
    assert int(echo["ticks"]) > 0
    assert echo["state"].startswith("waits for")


def test_pagetable_and_info_mem_are_of_the_selected_vcpu(target: MachineTarget) -> None:
    guest = rows(target, "pagetable")
    assert all(row["start"].startswith("0x") and len(row["start"]) < 14 for row in guest)
    assert {"private", "shared"} == {row["c-bit"] for row in guest}
    lines = monitor(target, "info mem").splitlines()
    for line in lines:
        assert re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16} [0-9a-f]{16} [u-]r[w-]", line)
    target.select(Selection(_vcpu(2)))
    assert any(row["start"].startswith("0xffff") for row in rows(target, "pagetable"))
    assert monitor(target, "info mem").splitlines() != lines
    tlb = monitor(target, "info tlb").splitlines()
    assert all(
        re.fullmatch(r"[0-9a-f]{16}: [0-9a-f]{16} [X-][G-][P-][D-][A-][C-][T-][U-][W-]", line)
        for line in tlb
    )


def test_without_an_svsm(machine: Machine) -> None:
    bare = build_machine(
        MachineConfig(seed=b"x", rtc=0, memory=32 * MIB, svsm=False, guest_vmpl=0, cpus=2)
    )
    target = MachineTarget(bare)
    assert rows(target, "calls") == rows(target, "modules") == []
    assert [row["state"] for row in rows(target, "vcpus")] == ["running", "not started"]
    assert rows(target, "ghcb")[0]["gpa"] == "not registered"
    target.select(Selection(_vcpu(2)))
    assert "Cannot access memory" in monitor(target, "x 0")
    with pytest.raises(TargetError, match="not started"):
        rows(target, "pagetable")
    for line in ("info mem", "info tlb", "info registers", "why 0", "walk 0", "xp /i 0"):
        with pytest.raises(TargetError):
            monitor(target, line)


# monitor


def test_which_vcpu(target: MachineTarget) -> None:
    """gdb does not say that another thread was selected before it has to know its registers."""
    assert monitor(target, "cpu") == "vCPU 0 at VMPL2, the selected thread's\n"
    assert monitor(target, "cpu 1") == "vCPU 1 at VMPL0, chosen here\n"
    target.select(Selection(_vcpu(1), vcpu=1))
    assert monitor(target, "info registers").startswith("\nCPU#1\n")
    assert "for vCPU 1 at VMPL0" in monitor(target, "why 0")
    assert monitor(target, "cpu thread") == "vCPU 0 at VMPL2, the selected thread's\n"
    assert monitor(target, "info registers").startswith("\nCPU#0\n")


def test_each_client_has_a_choice_of_its_own(target: MachineTarget) -> None:
    one, other = Selection(_vcpu(1)), Selection(_vcpu(1))
    target.select(one)
    monitor(target, "cpu 1")
    target.select(other)
    assert monitor(target, "cpu") == "vCPU 0 at VMPL2, the selected thread's\n"
    target.select(one)
    assert monitor(target, "cpu") == "vCPU 1 at VMPL0, chosen here\n"


def test_a_world_that_does_not_run_is_looked_at(target: MachineTarget) -> None:
    target.select(Selection(ThreadId(1, 1)))
    assert monitor(target, "cpu") == "vCPU 0 at VMPL0, the selected thread's\n"
    cr3 = target.read_register(ThreadId(1, 1), "cr3")
    assert f"CR3={cr3:016x}" in monitor(target, "info registers")
    assert cr3 != register(target, "cr3")


def test_a_program_is_looked_at(target: MachineTarget) -> None:
    """By its own page tables, wherever a vCPU has them loaded."""
    programs = [t.id for t in target.process_threads() if t.id.pid > 16]
    assert programs
    for thread in programs:
        target.select(Selection(thread))
        code = target.read_memory(thread, 0x400000, 16)
        dump = " ".join(f"0x{byte:02x}" for byte in code[:8])
        assert monitor(target, "x /8xb 0x400000") == f"{0x400000:016x}: {dump}\n"
        assert monitor(target, "x /i 0x401000").startswith("0x00401000:  ")
        place = monitor(target, "cpu")
        if place.startswith("vCPU"):
            gpa = int(monitor(target, "gva2gpa 0x400000").split()[1], 16)
            assert target.read_physical_memory(gpa, 16) == code
        else:
            assert place == f"task {thread.pid - 16}, which no vCPU runs, the selected thread's\n"
            with pytest.raises(TargetError, match="its page tables are not loaded"):
                monitor(target, "walk 0x400000")
            with pytest.raises(TargetError, match="its page tables are not loaded"):
                rows(target, "pagetable")
    target.select(Selection(ThreadId(9999, 1)))
    with pytest.raises(TargetError, match="not loaded"):
        monitor(target, "info mem")
    assert "Cannot access memory" in monitor(target, "x 0x400000")


def test_registers_are_those_of_gdb(target: MachineTarget) -> None:
    text = monitor(target, "info registers")
    values = dict(re.findall(r"\b([A-Z0-9]+) *=([0-9a-f]+)", text))
    for name in ("cr0", "cr2", "cr3", "cr4", "efer", "dr6", "dr7"):
        assert int(values[name.upper()], 16) == register(target, name)
    rax, rbx = target.read_registers(_vcpu(1))[:8], target.read_registers(_vcpu(1))[8:16]
    assert int(values["RAX"], 16) == int.from_bytes(rax, "little")
    assert int(values["RBX"], 16) == int.from_bytes(rbx, "little")


def test_memory_dumps(target: MachineTarget, machine: Machine) -> None:
    cr3 = register(target, "cr3") & ~C_BIT
    first = machine.silicon.memory.read_u64(cr3)
    expected = f"{cr3:016x}: 0x{first:016x}\n"
    assert monitor(target, f"xp /gx {cr3:#x}") == expected
    # What programs take out of a table has the C-bit in it.
    assert monitor(target, f"xp /gx {cr3 | C_BIT:#x}").endswith(expected[17:])
    assert target.read_physical_memory(cr3 | C_BIT, 8) == first.to_bytes(8, "little")
    assert monitor(target, "gva2gpa 0x200123") == "gpa: 0x200123\n"
    assert monitor(target, "gva2gpa 0xffff000000000000") == "Unmapped\n"
    assert monitor(target, "info cpus") == "* CPU #0: VMPL2\n  CPU #1: VMPL0\n"
    assert monitor(target, "xp /2xw 0x3fffffc").endswith(": Cannot access memory\n")
    assert "Cannot access memory" in monitor(target, "x /i 0xffff000000000000")
    assert len(monitor(target, "x /7i 0x200000").splitlines()) >= 7


@pytest.mark.parametrize(
    "line",
    [
        "xp", "xp /x", "xp 1 2", "xp /99999999999x 0", "xp /65537b 0", "xp /zz 0", "xp -1",
        "xp x", "x /4z 0", "info nothing", "info mem 1", "why x", "why 1 2", "why -1", "walk",
        "cpu 2", "cpu x", "cpu 0 1", "rmp 0 x", "vmsa 1 1",
    ],
)  # fmt: skip
def test_mistakes(target: MachineTarget, line: str) -> None:
    with pytest.raises(TargetError):
        monitor(target, line)
    monitor(target, "cpu thread")


_WORDS = (
    "/x", "/16xg", "/5i", "/c", "/3ub", "/999999999o", "0", "0x200000", "0xffffffff80000000", "1",
    "2", "3", "mem", "tlb", "registers", "thread", "-1", "0x8000000000000000",
    "18446744073709551615",
)  # fmt: skip
_words = st.one_of(st.sampled_from(_WORDS), st.text(max_size=6))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_is_typed(machine: Machine, data: st.DataObject) -> None:
    """Text or a TargetError, and never much of it."""
    target = MachineTarget(machine)
    target.select(Selection(_vcpu(data.draw(st.integers(1, 2)))))
    name = data.draw(st.sampled_from(sorted(target.monitor_commands)))
    arguments = data.draw(st.lists(_words, max_size=3))
    try:
        text = target.monitor_commands[name].run(arguments)
    except TargetError as error:
        text = str(error)
    assert len(text) < 3 << 20


# documents


class Tables(FakeMachine):
    def __init__(self, number: int = 3) -> None:
        super().__init__()
        self.number = number

    @property
    def tables(self) -> dict[str, Table]:
        def lines() -> Iterator[Sequence[str]]:
            for index in range(self.number):
                yield (str(index), "<&>")

        def fail() -> Iterator[Sequence[str]]:
            raise TargetError("not now")

        return {
            "t": Table("Title", "Some & any", ("n", "text"), lines),
            "f": Table("Title", "Fails", ("n",), fail),
        }


def read(client: Client, annex: bytes) -> ET.Element:
    document = b""
    while True:
        reply = client.ask(b"qXfer:osdata:read:%b:%x,40" % (annex, len(document)))
        assert reply[:1] in (b"m", b"l"), reply
        document += reply[1:]
        if reply[:1] == b"l":
            return ET.fromstring(document)


def cells(document: ET.Element) -> list[list[str | None]]:
    return [[column.text for column in item] for item in document]


def test_documents() -> None:
    client = Client(Tables())
    assert b"qXfer:osdata:read+" in client.ask(b"qSupported:x+").split(b";")
    types = read(client, b"")
    assert types.get("type") == "types"
    assert cells(types) == [["t", "Some & any", "Title"], ["f", "Fails", "Title"]]
    table = read(client, b"t")
    assert table.get("type") == "t"
    assert [column.get("name") for column in table[0]] == ["n", "text"]
    assert cells(table) == [["0", "<&>"], ["1", "<&>"], ["2", "<&>"]]


def test_long_tables_have_an_end() -> None:
    for number, expected in ((osdata.MAX_ROWS, osdata.MAX_ROWS), (1 << 40, osdata.MAX_ROWS + 1)):
        client = Client(Tables(number))
        client.ask(b"qXfer:osdata:read:t:0,10")
        document = ET.fromstring(client.session._context.document)
        assert len(document) == expected
        assert (cells(document)[-1] == ["...", "..."]) == (number > expected)


@pytest.mark.parametrize(
    ("packet", "reply"),
    [
        (b"qXfer:osdata:read:none:0,10", b"E16"),
        (b"qXfer:osdata:read:\xff:0,10", b"E16"),
        (b"qXfer:osdata:read:f:0,10", b"E0e"),
        (b"qXfer:osdata:read:t:0", b"E16"),
        (b"qXfer:osdata:read:t:ffffff,10", b"l"),
        (b"qXfer:osdata:write:t:0:00", b""),
    ],
)
def test_mistakes_in_transfers(packet: bytes, reply: bytes) -> None:
    assert Client(Tables()).ask(packet) == reply


def test_a_machine_without_tables() -> None:
    client = Client()
    assert b"osdata" not in client.ask(b"qSupported:x+")
    assert client.ask(b"qXfer:osdata:read::0,10") == b""


# runs of the RMP


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 9)), max_size=40))
def test_runs_of_the_rmp(steps: list[tuple[int, int, int]]) -> None:
    """They cover everything once, and join exactly the entries that go on."""
    size = 3 * HUGE_PAGE_SIZE - 7 * PAGE_SIZE
    rmp = Rmp([range(size), range(1 << 32, (1 << 32) + 5 * PAGE_SIZE)])
    for region, kind, page in steps:
        spa = region * HUGE_PAGE_SIZE + page * PAGE_SIZE
        small, huge = PageSize.SIZE_4K, PageSize.SIZE_2M
        head = region * HUGE_PAGE_SIZE
        match kind:
            case 0:
                rmp.rmpupdate(Spa(spa), RmpUpdate(assigned=True, gpa=Gpa(spa), asid=GUEST_ASID))
            case 1:
                update = RmpUpdate(assigned=True, gpa=Gpa(head), asid=GUEST_ASID, page_size=huge)
                rmp.rmpupdate(Spa(head), update)
            case 2:
                rmp.psmash(Spa(head))
            case 3 if rmp.assigned(spa >> 12):
                entry = rmp.lookup(spa)
                assert entry is not None
                at = head if entry.page_size else spa
                rmp.pvalidate(Spa(at), Gpa(at), Vmpl.VMPL0, PageSize(entry.page_size), True)
            case 4:
                for each in range(512):
                    at = head + each * PAGE_SIZE
                    rmp.rmpupdate(Spa(at), RmpUpdate(assigned=True, gpa=Gpa(at), asid=1))
            case _:
                rmp.rmpupdate(Spa(spa), RmpUpdate(page_size=small))
    covered: list[int] = []
    before: RmpEntry | None = None
    for first, count in rmp.runs():
        entries = [rmp.lookup(page << 12) for page in range(first, first + count)]
        for index, entry in enumerate(entries):
            assert entry is not None
            assert entries[0] is not None
            step = index * PAGE_SIZE if entry.assigned else 0
            assert entry.gpa == entries[0].gpa + step
            assert (entry.validated, entry.page_size, entry.permissions, entry.assigned) == (
                entries[0].validated, entries[0].page_size, entries[0].permissions,
                entries[0].assigned,
            )  # fmt: skip
        last, start = before, entries[0]
        if last is not None and covered[-1] + 1 == first:
            assert start is not None
            goes_on = last.gpa + PAGE_SIZE == start.gpa if last.assigned else start.gpa == 0
            same = (last.validated, last.page_size, last.assigned, last.permissions) == (
                start.validated, start.page_size, start.assigned, start.permissions,
            )  # fmt: skip
            assert not (goes_on and same), "two runs that are one"
        covered += range(first, first + count)
        before = entries[-1]
    assert covered == [*range(size >> 12), *range(1 << 20, (1 << 20) + 5)]
