# SPDX-License-Identifier: MIT
"""Panics of the SVSM in the whole machine: a host that takes its pages, exceptions at VMPL0."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile

from svsmd.config import MIB, MachineConfig
from svsmd.core.port import IMAGE_MAP
from svsmd.elf_symbols import elf_symbols
from svsmd.errors import ExitCode
from svsmd.gdbstub.target import BreakpointKind, Signal, Stopped
from svsmd.host.layout import SvsmRegion
from svsmd.images import image_path
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import DebugEvent, Ended, Idle, SliceEnd
from svsmd.snp.exits import DebugReason
from svsmd.snp.rmp import GUEST_ASID, RmpUpdate
from svsmd.snp.types import PAGE_SIZE, Gpa, Spa
from tests.plain_target import PlainTarget

NCPUS = 2


@pytest.fixture(scope="module")
def symbols() -> dict[str, int]:
    found = elf_symbols(image_path("svsm").read_bytes())
    return {symbol: place.start for symbol, place in found.items()}


@pytest.fixture
def machine() -> Machine:
    config = MachineConfig(seed=b"panic", rtc=1_767_225_600, memory=64 * MIB, cpus=NCPUS)
    return build_machine(config)


def region(machine: Machine) -> SvsmRegion:
    return SvsmRegion.at_top_of(machine.silicon.memory.ranges, NCPUS)


def run(machine: Machine) -> SliceEnd:
    """Until it ends, is idle for good, or stops for a debugger."""
    for _ in range(10_000):
        match machine.run_slice():
            case (Ended() | DebugEvent() | Idle(None)) as end:
                return end
            case Idle(int() as deadline):
                machine.skip_idle(max(0, deadline - machine.clock_now))
    raise AssertionError("the machine neither ends nor stops")


def report(machine: Machine) -> list[str]:
    assert machine.core is not None
    lines = list(machine.core.log.lines)
    return lines[next(n for n, line in enumerate(lines) if line.startswith("panic")) :]


def take_page(machine: Machine, gpa: int) -> None:
    """What a host can do to any page: take it, and give another one."""
    machine.silicon.rmp.rmpupdate(Spa(gpa), RmpUpdate())
    machine.silicon.rmp.rmpupdate(Spa(gpa), RmpUpdate(assigned=True, gpa=Gpa(gpa), asid=GUEST_ASID))


def assert_wiped(machine: Machine) -> None:
    secrets = region(machine).secrets
    assert machine.silicon.memory.read(secrets, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_host_takes_a_page_of_the_svsm(machine: Machine, symbols: dict[str, int]) -> None:
    assert run(machine) == Idle(None)
    secrets = region(machine).secrets
    assert any(machine.silicon.memory.read(secrets, PAGE_SIZE))
    take_page(machine, region(machine).cpuid)
    machine.console_write(b"reboot\r")
    assert run(machine) == DebugEvent(0, DebugReason.PANIC, symbols["svsm_panic_gate"])
    assert_wiped(machine)
    lines = report(machine)
    assert lines[0].startswith("panic: memory of the SVSM is gone")
    frames = [line.split("[")[1] for line in lines if line.startswith("  #")]
    assert frames[0].startswith("handler] load_own at core/access.py:")
    assert any(frame.startswith("handler] run at core/request_loop.py:") for frame in frames)
    assert frames[-1].startswith(f"native] {symbols['svsm_core_gate']:#x} svsm_gate_loop at svsmd/")
    assert sum(line.startswith("  vCPU ") for line in lines) == NCPUS
    end = run(machine)
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert "reason set 2, code 0x0" in end.reason
    assert list(end.report) == lines


def stop_at(machine: Machine, address: int, times: int = 1) -> tuple[PlainTarget, int]:
    """The nth time that some vCPU is about to execute an instruction; the vCPU as a thread."""
    target = PlainTarget(machine)
    target.insert_breakpoint(BreakpointKind.SOFTWARE, address)
    vcpu = 0
    for _ in range(times):
        stop = run(machine)
        assert isinstance(stop, DebugEvent)
        vcpu = stop.vcpu
    target.remove_breakpoint(BreakpointKind.SOFTWARE, address)
    return target, vcpu + 1


def test_exception_at_vmpl0(machine: Machine, symbols: dict[str, int]) -> None:
    target, tid = stop_at(machine, symbols["svsm_core_gate"], 3)
    target.write_register(tid, "rip", IMAGE_MAP - 0x1000)
    assert run(machine) == DebugEvent(0, DebugReason.PANIC, symbols["svsm_panic_gate"])
    assert_wiped(machine)
    lines = report(machine)
    assert lines[0] == "panic: exception 14 (#PF) at VMPL0"
    assert lines[2] == f"  #PF, error 0x10, CR2 {IMAGE_MAP - 0x1000:#x}"
    assert lines[3].startswith(f"  RIP {IMAGE_MAP - 0x1000:#x} CS 0x8 ")
    assert " svsm_exception+" in lines[4]
    assert lines[5] == "  #1 [exception] #PF, error 0x10"
    assert lines[6] == f"  #2 [native] {IMAGE_MAP - 0x1000:#x}"
    assert lines[7].startswith("  #3 [handler] ")
    end = run(machine)
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED
    assert "reason set 2, code 0x1: it took an exception" in end.reason


def test_exception_in_a_function_names_its_callers(
    machine: Machine, symbols: dict[str, int]
) -> None:
    """LTR of a selector that is none, when the boot CPU gets its own area."""
    start = symbols["svsm_cpu_init"]
    text = next(ELFFile(io.BytesIO(image_path("svsm").read_bytes())).iter_segments())
    offset = text.data().index(b"\x0f\x00\xd8", start - text["p_vaddr"])  # LTR AX
    # The first time is before the core has been called, and nobody knows symbols then.
    target, tid = stop_at(machine, text["p_vaddr"] + offset, 2)
    target.write_register(tid, "rax", 0xFFF8)
    assert isinstance(run(machine), DebugEvent)
    lines = report(machine)
    assert lines[0] == "panic: exception 13 (#GP) at VMPL0"
    assert lines[2] == "  #GP, error 0xfff8"
    assert lines[5] == "  #1 [exception] #GP, error 0xfff8"
    assert " svsm_cpu_init+" in lines[6]
    assert " at svsmd/core/native/cpu.c:" in lines[6]
    assert " svsm_load_tables+" in lines[7]
    assert " at svsmd/core/native/cpu_start.S:" in lines[7]
    assert_wiped(machine)
    end = run(machine)
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED


def test_panic_on_a_stack_that_is_none(machine: Machine, symbols: dict[str, int]) -> None:
    """The first report stays, the double fault comes on its own stack, and the host is asked."""
    target, tid = stop_at(machine, symbols["svsm_core_gate"], 3)
    target.write_register(tid, "rsp", 0x1238)
    target.write_register(tid, "rip", IMAGE_MAP - 0x1000)
    assert run(machine) == DebugEvent(0, DebugReason.PANIC, symbols["svsm_panic_gate"])
    assert report(machine)[0] == "panic: exception 8 (#DF) at VMPL0"
    assert_wiped(machine)
    end = run(machine)
    assert isinstance(end, Ended)
    assert end.exit_code == ExitCode.GUEST_CRASHED


def test_handler_panics_on_a_stack_that_is_none(machine: Machine, symbols: dict[str, int]) -> None:
    """The call of svsm_panic itself then faults: that is the second exception."""
    target, tid = stop_at(machine, symbols["svsm_core_gate"])
    take_page(machine, region(machine).launch_info)
    target.write_register(tid, "rsp", 0x1238)
    end = run(machine)
    lines = report(machine)
    assert lines[0].startswith("panic: memory of the SVSM is gone")
    assert "then exception 8 (#DF), ignored" in lines
    assert isinstance(end, Ended)
    assert "reason set 2, code 0x0" in end.reason


def test_step_into_a_panic(machine: Machine, symbols: dict[str, int]) -> None:
    target, tid = stop_at(machine, symbols["svsm_core_gate"])
    take_page(machine, region(machine).launch_info)
    stops = [target.step(tid) for _ in range(24)]
    assert stops.count(Stopped(tid, Signal.SIGABRT)) == 1
