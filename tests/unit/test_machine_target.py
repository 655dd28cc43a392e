# SPDX-License-Identifier: MIT
"""The real machine as the debugger stub sees it, with a few instructions as its guest."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from svsmd.config import MIB, MachineConfig
from svsmd.errors import ExitCode
from svsmd.gdbstub.target import (
    ANY_WORLD,
    G_LAYOUT,
    NO_SYSCALL,
    BreakpointKind,
    Exited,
    Signal,
    Stopped,
    StopReason,
    SupportsBreakpoints,
    SupportsFiles,
    SupportsMonitor,
    SupportsProcesses,
    SupportsStepInterrupts,
    SupportsWatchpoints,
    TargetError,
    ThreadId,
    WatchpointKind,
)
from svsmd.gdbstub.target_xml import G_SPANS, REGISTER_NUMBERS, SYSTEM_REGISTERS
from svsmd.host.elf_loader import load_elf
from svsmd.host.launch import LaunchPlan, LaunchRange, LaunchVmsa
from svsmd.host.vcpu import Activity
from svsmd.images import image_path
from svsmd.machine import BARE_VMSA, Machine
from svsmd.slice_end import DebugEvent, Idle, SliceEnd
from svsmd.slice_end import Stopped as SliceStopped
from svsmd.snp.cpu_mode import CpuMode
from svsmd.snp.exits import DebugReason
from svsmd.snp.types import C_BIT, Gpa
from svsmd.snp.vmsa import Vmsa
from tests.plain_target import PlainTarget

CODE = 0x10_0000
AP_CODE = CODE + 0x800
DATA = CODE + 0x2000
MEMORY = 32 * MIB
AP_VMSA = Gpa(0xE000)
HLT = bytes.fromhex("f4 eb fd")  # hlt; jmp to it
NOPS = b"\x90" * 16
SPIN = bytes.fromhex("eb fe")
COUNT = bytes.fromhex("48 ff c0 eb fb")  # inc rax; jmp to it


def elf(code: bytes) -> bytes:
    """An executable of one segment with some zeros behind the code."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"), 2, 62, 1, CODE, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    return header + struct.pack("<IIQQQQQQ", 1, 7, 120, CODE, CODE, len(code), 0x8000, 4096) + code


class TwoVcpus(Machine):
    """The second vCPU starts together with the first one, at AP_CODE."""

    def _plan_without_svsm(self) -> LaunchPlan:
        plan = super()._plan_without_svsm()
        vmsa = Vmsa(bytearray(plan.vmsas[0].data))
        vmsa.rip = AP_CODE
        ranges: list[LaunchRange] = []
        for part in plan.ranges:
            if part.gpa <= AP_VMSA < part.gpa + part.nbytes:
                assert part.gpa + part.nbytes == AP_VMSA + 4096
                part = replace(part, size=AP_VMSA - part.gpa)
            ranges.append(part)
        second = LaunchVmsa(AP_VMSA, vmsa.tobytes(), vcpu=1)
        return replace(plan, ranges=tuple(ranges), vmsas=(*plan.vmsas, second))


Make = Callable[..., PlainTarget]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(code: bytes, second: bytes | None = None, cpus: int = 1) -> PlainTarget:
        path = tmp_path / "kernel"
        kind = Machine
        if second is not None:
            code = code.ljust(AP_CODE - CODE, b"\xcc") + second
            kind, cpus = TwoVcpus, 2
        path.write_bytes(elf(code))
        config = MachineConfig(
            seed=b"test", rtc=0, kernel=path, svsm=False, guest_vmpl=0, memory=MEMORY, cpus=cpus
        )
        target = PlainTarget(kind(config))
        machines[target] = target.machine
        return target

    machines.clear()
    return build


machines: dict[PlainTarget, Machine] = {}


def machine_of(target: PlainTarget) -> Machine:
    return machines[target]


def register(target: PlainTarget, name: str, tid: int = 1) -> int:
    if name in SYSTEM_REGISTERS:
        return target.read_register(tid, name)
    span = G_SPANS[REGISTER_NUMBERS[name]]
    return int.from_bytes(target.read_registers(tid)[span], "little")


def ticks(target: PlainTarget) -> int:
    return machine_of(target).clock_now


def run(target: PlainTarget, limit: int = 1_000_000) -> SliceEnd:
    """Until something other than the end of a slice."""
    while True:
        end = machine_of(target).run_slice(100_000)
        if not isinstance(end, SliceStopped) or ticks(target) >= limit:
            return end


# -- vCPUs and registers ------------------------------------------------------------------


def test_protocols(make: Make) -> None:
    target = make(HLT).whole
    assert isinstance(target, SupportsBreakpoints)
    assert isinstance(target, SupportsWatchpoints)
    assert isinstance(target, SupportsMonitor)
    assert isinstance(target, SupportsProcesses)
    assert isinstance(target, SupportsFiles)
    assert isinstance(target, SupportsStepInterrupts)


@pytest.mark.parametrize("activity", Activity)
def test_threads(make: Make, activity: Activity) -> None:
    target = make(HLT, cpus=2)
    world = machine_of(target).hypervisor.vcpus[0].world
    assert world is not None
    world.activity = activity
    first, second = target.threads()
    assert (first.id, first.name) == (ThreadId(ANY_WORLD, 1), "vcpu0")
    assert first.info.startswith("VMPL0, ")
    assert (second.id.tid, second.info) == (2, "not started")


def test_registers_at_the_entry(make: Make) -> None:
    target = make(HLT)
    values = G_LAYOUT.unpack(target.read_registers(1))
    assert values[16:22] == (CODE, 2, 0x10, 0x18, 0x18, 0x18)
    assert values[25] == 0x040  # fctrl after INIT (24593, 14.1.3)
    assert values[34] == 0x1F80
    assert values[35] == NO_SYSCALL
    assert register(target, "cr0") >> 31 == 1
    assert register(target, "cr3") & C_BIT
    assert register(target, "efer") == 0x1500
    assert register(target, "vmpl") == 0
    assert register(target, "cs_limit") == 0xFFFF_FFFF


def test_every_register_can_be_read(make: Make) -> None:
    target = make(HLT)
    for name in SYSTEM_REGISTERS:
        assert target.read_register(1, name) >= 0
    with pytest.raises(TargetError):
        target.read_register(1, "cr5")


def test_registers_follow_the_guest(make: Make) -> None:
    code = bytes.fromhex(
        "0f 20 e0 0f ba e8 09 0f 22 e0"  # set CR4.OSFXSR
        "48 b8 8877665544332211"  # mov rax, imm
        "66 48 0f 6e f8"  # movq xmm7, rax
        "d9 e8"  # fld1
        "31 c0"  # xor eax, eax
    )
    target = make(code + HLT)
    for _ in range(7):
        target.step(1)
    assert register(target, "rax") == 0
    assert register(target, "eflags") == 0x46
    assert register(target, "xmm7") == 0x1122334455667788
    assert register(target, "st0") == 0x3FFF_8000_0000_0000_0000
    assert register(target, "fstat") >> 11 & 7 == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rax", (1 << 64) - 1),
        ("r15", 0x8000_0000_0000_0000),
        ("rip", CODE + 3),
        ("eflags", 0x8D7),
        ("xmm0", (1 << 128) - 1),
        ("xmm15", 1),
        ("mxcsr", 0x1F00),
        ("fs_base", 0xFFFF_8000_0000_0000),
        ("gs_base", 0x7FFF_FFFF_F000),
        ("cr2", 0xDEAD_0000),
        ("dr3", 0x1234),
        ("lstar", 0xFFFF_8000_0000_1000),
        ("k_gs_base", 0x1000),
        ("star", 0x0023_0010_0000_0000),
        ("st3", 0x3FFF_8000_0000_0000_0000),
        ("cr8", 15),
        ("dr7", 0x0000_0403),
        ("dr7", 0xFFFF_FFFF),
        ("ghcb_msr", (1 << 64) - 1),
        ("tr_base", 0xFFFF_8000_0000_0000),
    ],
)
def test_written_registers_are_read_and_saved(make: Make, name: str, value: int) -> None:
    target = make(HLT)
    target.write_register(1, name, value)
    assert register(target, name) == value
    machine_of(target).silicon.save_loaded()
    assert register(target, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lstar", 1 << 63),
        ("fs_base", 0x8000_0000_0000),
        ("mxcsr", 1 << 16),
        ("vmpl", 1),
        ("cpu_mode", 0),
        ("pc_lin", CODE),
        ("ghcb", 0x1000),
        ("sev_status", 1),
        ("tsc", 0),
        ("snp_event", 1),
        ("cr8", 16),
        ("dr7", 1 << 32),
        ("no_such", 0),
    ],
)
def test_refused_values(make: Make, name: str, value: int) -> None:
    target = make(HLT)
    before = target.read_registers(1)
    others = [target.read_register(1, each) for each in SYSTEM_REGISTERS]
    with pytest.raises(TargetError, match=rf"\b{name}\b"):
        target.write_register(1, name, value)
    assert target.read_registers(1) == before
    assert [target.read_register(1, each) for each in SYSTEM_REGISTERS] == others


def test_registers_that_the_host_keeps(make: Make) -> None:
    """CR8 holds interrupts back at once; of DR7 a guest reads what its host says."""
    target = make(bytes.fromhex("44 0f 20 c0") + HLT)  # mov rax, cr8
    target.write_register(1, "cr8", 9)
    world = machine_of(target).hypervisor.vcpus[0].world
    assert world is not None
    assert world.plane.apic.state.tpr == 0x90
    target.step(1)
    assert register(target, "rax") == 9
    target.write_register(1, "dr7", 1)
    assert (world.dr7, register(target, "dr7")) == (0x401, 0x401)


def test_the_mode_and_the_clock(make: Make) -> None:
    target = make(NOPS + HLT)
    assert register(target, "cpu_mode") == CpuMode.LONG_64
    assert register(target, "sev_status") == 0b111
    for count in range(3):
        assert register(target, "tsc") == ticks(target) == count
        assert register(target, "pc_lin") == register(target, "rip") == CODE + count
        target.step(1)


def test_written_registers_are_used(make: Make) -> None:
    target = make(bytes.fromhex("48 01 d8") + HLT)  # add rax, rbx
    target.write_register(1, "rax", 40)
    target.write_register(1, "rbx", 2)
    target.step(1)
    assert register(target, "rax") == 42
    target.write_register(1, "rip", CODE)
    target.step(1)
    assert register(target, "rax") == 44


def test_a_vcpu_without_a_world(make: Make) -> None:
    target = make(HLT, cpus=2)
    assert target.read_registers(2) == bytes(G_LAYOUT.size)
    assert target.read_register(2, "cr0") == 0
    for refused in (
        lambda: target.write_register(2, "rax", 1),
        lambda: target.read_memory(2, CODE, 1),
        lambda: target.write_memory(2, CODE, b"a"),
    ):
        with pytest.raises(TargetError, match="not started"):
            refused()
    assert target.step(2) == Stopped(2)


# -- memory -------------------------------------------------------------------------------


def test_memory(make: Make) -> None:
    target = make(HLT)
    assert target.read_memory(1, CODE, 3) == HLT
    data = bytes(range(256)) * 40
    target.write_memory(1, DATA + 100, data)
    assert target.read_memory(1, DATA + 99, len(data) + 2) == b"\0" + data + b"\0"


def test_reads_end_where_the_memory_ends(make: Make) -> None:
    target = make(HLT)
    assert target.read_memory(1, MEMORY - 4, 100) == bytes(4)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (MEMORY, "no RAM"),
        (0xFEE0_0000, "no RAM"),
        (1 << 32, "no page table maps 0x100000000"),
        ((1 << 64) - 1, "no page table maps 0xffffffffffffffff"),
        (1 << 63, "not a canonical address"),
    ],
)
def test_memory_that_is_not_there(make: Make, address: int, why: str) -> None:
    target = make(HLT)
    with pytest.raises(TargetError, match=why):
        target.read_memory(1, address, 8)
    with pytest.raises(TargetError, match=why):
        target.write_memory(1, address, b"abc")


def test_a_write_is_done_whole_or_not_at_all(make: Make) -> None:
    target = make(HLT)
    with pytest.raises(TargetError):
        target.write_memory(1, MEMORY - 4, b"12345678")
    assert target.read_memory(1, MEMORY - 4, 4) == bytes(4)


def test_written_code_is_executed(make: Make) -> None:
    target = make(COUNT)
    run(target, 1000)
    assert register(target, "rax") > 100
    target.write_register(1, "rax", 0)
    target.write_memory(1, CODE + 2, b"\xc8")  # dec rax
    run(target, ticks(target) + 1000)
    assert register(target, "rax") > 1 << 63


def test_the_vmsa_has_the_registers(make: Make) -> None:
    target = make(NOPS + HLT)
    target.step(1)
    offset = Vmsa.FIELDS["rip"].offset
    page = target.read_memory(1, BARE_VMSA, 4096)
    assert int.from_bytes(page[offset : offset + 8], "little") == CODE + 1
    target.write_memory(1, BARE_VMSA + offset, (CODE + 5).to_bytes(8, "little"))
    assert register(target, "rip") == CODE + 5
    target.step(1)
    assert register(target, "rip") == CODE + 6


def test_before_paging_is_on(make: Make) -> None:
    target = make(HLT)
    machine = machine_of(target)
    cr0 = Vmsa.FIELDS["cr0"].offset
    target.read_registers(1)
    machine.silicon.save_loaded()
    machine.silicon.memory.write(BARE_VMSA + cr0, (1).to_bytes(8, "little"))
    assert target.read_memory(1, CODE, 3) == HLT


# -- breakpoints --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BreakpointKind)
def test_breakpoint(make: Make, kind: BreakpointKind) -> None:
    target = make(NOPS + COUNT)
    at = CODE + len(NOPS)
    target.insert_breakpoint(kind, at)
    for count in range(3):
        assert run(target) == DebugEvent(0, DebugReason.BREAKPOINT, at)
        assert register(target, "rip") == at
        assert register(target, "rax") == count
    assert target.read_memory(1, at, len(COUNT)) == COUNT
    target.remove_breakpoint(kind, at)
    assert isinstance(run(target, ticks(target) + 1000), SliceStopped)


def test_two_kinds_at_one_address(make: Make) -> None:
    target = make(COUNT)
    for kind in BreakpointKind:
        target.insert_breakpoint(kind, CODE)
    target.remove_breakpoint(BreakpointKind.SOFTWARE, CODE)
    assert isinstance(run(target), DebugEvent)
    target.remove_breakpoint(BreakpointKind.HARDWARE, CODE)
    assert isinstance(run(target, 1000), SliceStopped)


def test_a_removed_breakpoint_costs_nothing(make: Make) -> None:
    target = make(COUNT)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, CODE)
    run(target)
    target.remove_breakpoint(BreakpointKind.SOFTWARE, CODE)
    exits = machine_of(target).silicon.cpu.shared.exits
    run(target, ticks(target) + 10_000)
    assert machine_of(target).silicon.cpu.shared.exits - exits < 10


def test_breakpoints_do_not_change_the_count(make: Make) -> None:
    code = bytes.fromhex("b9 00010000 48 ff c0 90 ff c9 75 f8") + HLT  # 256 rounds of 4
    free = make(code)
    assert isinstance(run(free), Idle)
    target = make(code)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, CODE + 8)
    hits = 0
    while not isinstance(run(target), Idle):
        hits += 1
        target.step(1)
    assert hits == 256
    assert ticks(target) == ticks(free)


def test_each_vcpu_goes_past_its_own_breakpoint(make: Make) -> None:
    """Both run one loop: that a stop of one was reported does not hide one of the other."""
    target = make(NOPS + COUNT, b"\xe9" + struct.pack("<i", CODE - AP_CODE - 5))
    at = CODE + len(NOPS)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, at)
    stop = run(target)
    assert isinstance(stop, DebugEvent)
    first, second = stop.vcpu + 1, 2 - stop.vcpu
    while register(target, "rip", second) != at:
        target.step(second)
    # A step ended there: that is a report too. The first one goes on with its own round.
    assert run(target) == stop
    assert (register(target, "rax", first), register(target, "rax", second)) == (1, 0)
    target.step(second)
    target.step(second)
    assert register(target, "rax", second) == 1
    assert run(target) == stop
    assert (register(target, "rax", first), register(target, "rax", second)) == (2, 1)


def test_breakpoints_survive_a_reset(make: Make) -> None:
    target = make(NOPS + COUNT)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, CODE + 4)
    target.insert_watchpoint(WatchpointKind.WRITE, DATA, 8)
    assert isinstance(run(target), DebugEvent)
    machine_of(target)._reset()
    assert run(target) == DebugEvent(0, DebugReason.BREAKPOINT, CODE + 4)
    assert machine_of(target).silicon.debug.watches_page(DATA >> 12)
    target.remove_watchpoint(WatchpointKind.WRITE, DATA, 8)
    assert not machine_of(target).silicon.debug.watches_page(DATA >> 12)


# -- watchpoints --------------------------------------------------------------------------

MOV_RDI = b"\xbf" + struct.pack("<I", DATA)
WATCH_REASONS = {
    WatchpointKind.WRITE: DebugReason.WRITE_WATCHPOINT,
    WatchpointKind.READ: DebugReason.READ_WATCHPOINT,
    WatchpointKind.ACCESS: DebugReason.ACCESS_WATCHPOINT,
}
W, R = {WatchpointKind.WRITE, WatchpointKind.ACCESS}, {WatchpointKind.READ, WatchpointKind.ACCESS}


@pytest.mark.parametrize("kind", WatchpointKind)
@pytest.mark.parametrize(
    ("instruction", "hits"),
    [
        ("48 89 47 10", W),  # mov [rdi + 0x10], rax
        ("89 47 0d", W),  # mov [rdi + 0xd], eax: its last byte
        ("89 47 0c", set()),  # mov [rdi + 0xc], eax: ends just before
        ("88 47 18", set()),  # mov [rdi + 0x18], al: just behind
        ("8a 47 17", R),  # mov al, [rdi + 0x17]
        ("ff 47 10", W | R),  # inc dword [rdi + 0x10]
        ("48 89 bf 00 10 00 00", set()),  # mov [rdi + 0x1000], rdi: another page
        ("48 8d 47 10", set()),  # lea rax, [rdi + 0x10]
        ("67 8b 47 10", R),  # mov eax, [edi + 0x10]
        ("db 6f 07", R),  # fld tbyte [rdi + 7]
        ("48 8b 04 25 10 20 10 00", R),  # mov rax, [DATA + 0x10]
    ],
)
def test_watchpoint(make: Make, kind: WatchpointKind, instruction: str, hits: set[Any]) -> None:
    body = bytes.fromhex(instruction)
    target = make(MOV_RDI + body + HLT)
    target.insert_watchpoint(kind, DATA + 0x10, 8)
    end = run(target)
    if kind in hits:
        assert end == DebugEvent(0, WATCH_REASONS[kind], DATA + 0x10)
        assert register(target, "rip") == CODE + len(MOV_RDI) + len(body)
        assert ticks(target) == 2
    else:
        assert end == Idle(None)
    target.remove_watchpoint(kind, DATA + 0x10, 8)
    assert run(target) == Idle(None)
    assert ticks(target) == 3


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bc 18 20 10 00 50", WatchpointKind.WRITE),  # mov esp, DATA + 0x18; push rax
        ("bc 10 20 10 00 58", WatchpointKind.READ),  # pop rax
        ("bc 18 20 10 00 e8 00 00 00 00", WatchpointKind.WRITE),  # call
        ("bd 10 20 10 00 c9", WatchpointKind.READ),  # mov ebp, DATA + 0x10; leave
        ("bf 17 20 10 00 aa", WatchpointKind.WRITE),  # mov edi, DATA + 0x17; stosb
        ("be 10 20 10 00 ac", WatchpointKind.READ),  # mov esi, DATA + 0x10; lodsb
    ],
)
def test_watched_without_an_operand(make: Make, code: str, kind: WatchpointKind) -> None:
    target = make(bytes.fromhex(code) + HLT)
    target.insert_watchpoint(kind, DATA + 0x10, 8)
    assert run(target) == DebugEvent(0, WATCH_REASONS[kind], DATA + 0x10)
    assert ticks(target) == 2


def test_watchpoint_and_operand_across_pages(make: Make) -> None:
    edge = DATA + 0x1000
    code = MOV_RDI + bytes.fromhex("48 89 87 fc0f0000 88 87 01100000") + HLT
    target = make(code)
    target.insert_watchpoint(WatchpointKind.WRITE, edge - 2, 4)
    assert isinstance(run(target), DebugEvent)  # mov [edge - 4], rax
    assert ticks(target) == 2
    assert run(target) == DebugEvent(0, DebugReason.WRITE_WATCHPOINT, edge)  # mov [edge + 1], al
    assert ticks(target) == 3
    target.remove_watchpoint(WatchpointKind.WRITE, edge - 2, 4)
    target.insert_watchpoint(WatchpointKind.WRITE, edge, 1)
    target.write_register(1, "rip", CODE)
    assert isinstance(run(target), DebugEvent)  # only the operand crosses
    assert register(target, "rip") == CODE + 12


def test_a_watched_page_keeps_working(make: Make) -> None:
    code = MOV_RDI + bytes.fromhex("b9 00010000 ff 07 ff c9 75 fa") + HLT
    free, target = make(code), make(code)
    assert run(free) == Idle(None)
    target.insert_watchpoint(WatchpointKind.ACCESS, DATA + 4, 4)
    assert run(target) == Idle(None)
    assert target.read_memory(1, DATA, 4) == struct.pack("<I", 256)
    assert ticks(target) == ticks(free)


def test_a_step_reports_a_watchpoint(make: Make) -> None:
    target = make(MOV_RDI + bytes.fromhex("88 07") + HLT)
    target.insert_watchpoint(WatchpointKind.WRITE, DATA, 1)
    assert target.step(1) == Stopped(1)
    assert target.step(1) == Stopped(1, Signal.SIGTRAP, StopReason.WATCH, DATA)
    assert target.step(1) == Stopped(1)


def test_refused_watchpoints(make: Make) -> None:
    target = make(HLT)
    for address, length in ((MEMORY, 1), (1 << 32, 8), (DATA, 1 << 20), (MEMORY - 1, 2)):
        with pytest.raises(TargetError):
            target.insert_watchpoint(WatchpointKind.WRITE, address, length)
        target.remove_watchpoint(WatchpointKind.WRITE, address, length)
    assert not machine_of(target).silicon.debug.watches_page((MEMORY - 1) >> 12)


def test_a_watchpoint_stays_in_its_world(make: Make) -> None:
    """The vCPU that has stopped need not be one that maps the address."""
    target = make(SPIN, bytes.fromhex("90 88 04 25 00201000") + HLT)
    cr3 = register(target, "cr3")
    stopped = machine_of(target).current_vcpu + 1
    target.write_register(stopped, "cr3", (MEMORY - 0x10000) | C_BIT)
    target.insert_watchpoint(WatchpointKind.WRITE, DATA, 1)
    target.remove_watchpoint(WatchpointKind.WRITE, DATA, 1)
    target.write_register(stopped, "cr3", cr3)
    target.insert_watchpoint(WatchpointKind.WRITE, DATA, 1)
    assert run(target, 5_000_000) == DebugEvent(1, DebugReason.WRITE_WATCHPOINT, DATA)


# -- steps --------------------------------------------------------------------------------


def test_steps(make: Make) -> None:
    target = make(NOPS + HLT)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, CODE + 3)
    for count in range(len(NOPS)):
        assert (register(target, "rip"), ticks(target)) == (CODE + count, count)
        # Nothing but the signal: the stub's range steps go on after exactly this.
        assert target.step(1) == Stopped(1)


def test_stepping_a_halt(make: Make) -> None:
    target = make(HLT)
    for _ in range(3):
        assert target.step(1) == Stopped(1)
        assert (register(target, "rip"), ticks(target)) == (CODE + 1, 1)


def test_stepping_a_halt_goes_to_the_next_timer(make: Make) -> None:
    target = make(HLT)
    fired: list[int] = []
    machine_of(target).platform.timers.timer(lambda: fired.append(ticks(target))).arm(5000)
    target.step(1)
    assert register(target, "rip") == CODE + 1
    target.step(1)
    assert fired == [5000]
    assert ticks(target) == 5000
    assert register(target, "rip") == CODE + 1


def test_steps_take_interrupts_if_they_shall(make: Make) -> None:
    target = make(HLT)

    def taken() -> bool:
        return target.whole.step_interrupts

    command = target.monitor_commands["step-irq"]
    assert not taken()
    assert command.run([]) == "interrupts wait while a step is made\n"
    assert command.run(["on"]) == command.run([]) == "steps take interrupts, as a free run does\n"
    assert taken()
    for mistake in (["maybe"], ["on", "off"]):
        with pytest.raises(TargetError, match="on or off"):
            command.run(mistake)
    command.run(["off"])
    assert not taken()


def test_others_stand_still(make: Make) -> None:
    """Whoever's turn it is: the vCPU that is asked for steps, past timers too, and no other."""
    target = make(COUNT, COUNT)
    machine_of(target).run_slice(999_990)  # the end of a turn is near
    fired: list[int] = []
    timer = machine_of(target).platform.timers.timer(lambda: fired.append(ticks(target)))
    for tid in (1, 2, 1):
        timer.arm(ticks(target) + 20)
        other = target.read_registers(3 - tid)
        before, rax = ticks(target), register(target, "rax", tid)
        for _ in range(60):
            assert target.step(tid) == Stopped(tid)
        assert target.read_registers(3 - tid) == other
        assert (ticks(target), register(target, "rax", tid)) == (before + 60, rax + 30)
    assert len(fired) == 3


def test_stepping_an_exit_to_the_host(make: Make) -> None:
    # The GHCB MSR protocol: SEV information.
    code = "b9 300101c0 b8 02000000 31 d2 0f 30 f3 0f 01 d9 0f 32"
    target = make(bytes.fromhex(code) + HLT)
    for length in (5, 5, 2, 2, 4, 2):
        before = register(target, "rip"), ticks(target)
        assert target.step(1) == Stopped(1)
        assert (register(target, "rip"), ticks(target)) == (before[0] + length, before[1] + 1)
    assert register(target, "rax") & 0xFFF == 1


def test_the_end_of_the_machine(make: Make) -> None:
    target = make(bytes.fromhex("90 0f 0b"))  # #UD without an IDT
    assert target.step(1) == Stopped(1)
    assert target.step(1) == Exited(ExitCode.GUEST_CRASHED)
    assert target.step(1) == Exited(ExitCode.GUEST_CRASHED)


REPEATED = {
    "rep movsb": "f3 a4",
    "rep stosq": "f3 48 ab",
    "repne scasb": "f2 ae",
    "repe scasb": "f3 ae",
    "repe cmpsb": "f3 a6",
    "rep lodsb": "f3 ac",
    "rep movsb of ECX": "67 f3 a4",
    "rep movsb in an interrupt shadow": "fb f3 a4 fa",
}


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("body", REPEATED.values(), ids=REPEATED.keys())
def test_repeated_instructions_count_the_same(make: Make, body: str, count: int) -> None:
    code = MOV_RDI + b"\xbe" + struct.pack("<I", DATA + 0x1000)
    code += b"\xb9" + struct.pack("<I", count) + bytes.fromhex("31 c0" + body) + HLT
    free = make(code)
    assert run(free) == Idle(None)

    stepped = make(code)
    for _ in range(ticks(free)):
        stepped.step(1)
    assert stepped.threads()[0].info.endswith("halted with interrupts off")
    assert ticks(stepped) == ticks(free)
    assert stepped.read_registers(1) == free.read_registers(1)

    watched = make(code)
    watched.insert_watchpoint(WatchpointKind.ACCESS, DATA + 0x100, 1)
    watched.insert_watchpoint(WatchpointKind.ACCESS, DATA + 0x1100, 1)
    assert run(watched) == Idle(None)
    assert ticks(watched) == ticks(free)
    assert watched.read_registers(1) == free.read_registers(1)


def test_stepping_into_another_vmpl() -> None:
    """The step that leaves the SVSM ends before the guest's first instruction."""
    config = MachineConfig(seed=b"test", rtc=0, memory=64 * MIB)
    entry = load_elf(image_path("demo").read_bytes(), (range(64 * MIB),)).entry
    first = PlainTarget(machine := Machine(config))
    first.insert_breakpoint(BreakpointKind.SOFTWARE, entry)
    while not isinstance(machine.run_slice(), DebugEvent):
        pass
    assert first.read_register(1, "vmpl") == 2
    arrived = machine.clock_now

    target = PlainTarget(machine := Machine(config))
    while machine.clock_now < arrived - 50:
        machine.run_slice(arrived - 50 - machine.clock_now)
    assert target.read_register(1, "vmpl") == 0
    while target.read_register(1, "vmpl") == 0:
        assert target.step(1) == Stopped(1)
    assert register(target, "rip") == entry
    assert machine.clock_now == arrived


# -- monitor ------------------------------------------------------------------------------


def monitor(target: PlainTarget, line: str) -> str:
    name, *arguments = line.split()
    text = target.monitor_commands[name].run(arguments)
    assert text.endswith("\n")
    return text


def test_monitor_info(make: Make) -> None:
    target = make(NOPS, cpus=2)
    target.step(1)
    text = monitor(target, "info")
    assert "1 ticks" in text
    assert "vcpu0: VMPL0, running" in text
    assert "vcpu1: not started" in text


def test_monitor_rmp(make: Make) -> None:
    target = make(HLT)
    (line,) = monitor(target, f"rmp {CODE:#x}").splitlines()
    assert line.startswith("0x100000: assigned validated")
    assert "vmsa" in monitor(target, f"rmp {int(BARE_VMSA):#x}")
    lines = monitor(target, f"rmp {MEMORY - 4096:#x} 3").splitlines()
    assert [line.endswith("no RAM") for line in lines] == [False, True, True]
    assert len(monitor(target, "rmp 0 1000000").splitlines()) == 64


def test_monitor_vmsa(make: Make) -> None:
    target = make(NOPS)
    target.step(1)
    text = monitor(target, "vmsa")
    assert f"* VMPL0: VMSA at {int(BARE_VMSA):#x}, running" in text
    assert f"rip {CODE + 1:#x}" in text
    assert monitor(make(HLT, cpus=2), "vmsa 1") == "vCPU 1 has no VMSA\n"


def test_monitor_walk(make: Make) -> None:
    *levels, where = monitor(make(HLT), "walk 0x100123").splitlines()
    assert [line.split()[0] for line in levels] == ["PML4E", "PDPTE", "PDE"]
    assert levels[-1].endswith("[P C W PS]")
    assert where == "0x100123 -> 0x100123, C-bit set"
    with pytest.raises(TargetError, match=r"PDPTE .* is 0x0 \[\]\n.*PDPTE .*: P is clear$"):
        monitor(make(HLT), "walk 0x100000000")


@pytest.mark.parametrize(
    "line",
    [
        "info all", "rmp", "rmp x", "rmp -1", "rmp 1 2 3", "rmp 0x10000000000000000", "vmsa 7",
        "vmsa 0 0", "vmsa x", "walk", "walk 0x100000000", "walk 0x8000000000000000", "walk 1 2",
    ],
)  # fmt: skip
def test_monitor_mistakes(make: Make, line: str) -> None:
    with pytest.raises(TargetError):
        monitor(make(HLT), line)
