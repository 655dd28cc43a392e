# SPDX-License-Identifier: MIT
"""Whatever a debugger writes into registers: it is read back or refused, and the machine goes on.

Nothing that is written may end in an exception of ours: a guest, or an SVSM, with such registers
faults, or crashes, as it would on hardware.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from svsmd.config import MIB, MachineConfig
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.packets import regs
from svsmd.gdbstub.packets.context import Context
from svsmd.gdbstub.target import Stopped, TargetError
from svsmd.gdbstub.target_xml import G_REGISTERS, REGISTER_NUMBERS, REGISTERS, Register
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import Ended
from svsmd.snp.register_writes import ReadOnlyRegister
from svsmd.snp.types import C_BIT
from svsmd.snp.vmsa import Vmsa
from svsmd.snp.vmsa_state import illegal_state
from tests.bare_machine import CODE, DATA, GDT, IDT, KERNEL_SS, PML4, USER_CS, VMSA, BareMachine
from tests.unit.test_machine_target import HLT, elf
from tests.unit.test_register_writes import loaded, protected_mode, real_mode, state, value

HOST_KEPT = {"cr8", "dr7", "ghcb", "ghcb_msr"}
NAMES = [
    r.name
    for r in REGISTERS
    if r.name not in HOST_KEPT | {"orig_rax"} and not r.name.startswith(("snp_", "fi", "fo"))
]
INTERESTING = (
    0, 1, 3, 0x11, KERNEL_SS, USER_CS, 0x400, 0x1500, 0x1F80, 0xFFFF, 0x1_0000, CODE, DATA, GDT,
    IDT, PML4 | C_BIT, 0x8005_0033, 0xFFFF_FFFF, 1 << 32, 1 << 40, 1 << 47, (1 << 47) - 1,
    0xFFFF_8000_0000_0000, (1 << 64) - 1,
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(INTERESTING),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(0, (1 << 80) - 1),
)
MODES = {"long": lambda m: None, "protected": protected_mode, "real": real_mode}


def as_kept(name: str, number: int, before: int) -> int:
    """What the processor makes of bits that it does not have, or keeps as they are."""
    match name:
        case "eflags":
            return number & 0x3E_7FD7 | 2
        case "ftag":
            return sum(3 << shift for shift in range(0, 16, 2) if number >> shift & 3 == 3)
        case "dr6":
            return number & 0xE00F | 0xFFFF_0FF0
        case "cr0":
            return number | 0x10
    return number


@cache
def machine() -> BareMachine:
    return BareMachine()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(sorted(MODES)),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), min_size=1, max_size=6),
)
@example("real", [("cs", 0xF000), ("rip", 0xFFFF0)])
@example("long", [("efer", 0x1500), ("cr4", 0), ("cs", 0x50), ("cr0", 0x11), ("cr0", 0x10)])
def test_read_after_write(mode: str, writes: list[tuple[str, int]]) -> None:
    m = machine()
    m.silicon.save_loaded()
    m.make_vmsa(2)
    MODES[mode](m)
    registers = loaded(m)
    for name, wide in writes:
        bits = REGISTERS[REGISTER_NUMBERS[name]].bitsize
        number = wide & (1 << bits) - 1
        before, was = state(m), value(registers, name)
        try:
            registers.write(name, number)
        except (ValueError, ReadOnlyRegister):
            assert state(m) == before
            continue
        assert value(registers, name) == as_kept(name, number, was)
        m.silicon.make_readable(VMSA, 4096)
        assert illegal_state(Vmsa(bytearray(m.read(VMSA, 4096)))) is None
    m.silicon.save_loaded()
    kept = m.read(VMSA, 4096)
    m.silicon.load_for_debugger(m.vmcb)
    m.silicon.save_loaded()
    assert m.read(VMSA, 4096) == kept, "a round trip through the VMSA keeps all of it"
    loaded(m)
    m.run(ticks=50)


def width(register: Register) -> int:
    return (1 << register.bitsize) - 1


WRITABLE = [r for r in REGISTERS if r.name != "orig_rax"]


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 3_000_000),
    st.lists(
        st.tuples(st.integers(0, 20), st.sampled_from(WRITABLE), VALUES), min_size=1, max_size=5
    ),
    st.booleans(),
)
def test_a_machine_with_an_svsm_survives_or_crashes(
    ticks: int, writes: list[tuple[int, Register, int]], interrupts: bool
) -> None:
    whole = build_machine(MachineConfig(seed=b"test", rtc=0, memory=64 * MIB))
    target = MachineTarget(whole)
    target.step_interrupts = interrupts
    end = whole.run_slice(ticks)
    for which, register, wide in writes:
        if isinstance(end, Ended):
            return
        threads = target.process_threads()
        thread = threads[which % len(threads)].id
        number = wide & width(register)
        try:
            target.write_register(thread, register.name, number)
        except TargetError as error:
            assert "\n" not in str(error)  # noqa: PT017 (a refusal is one line)
            continue
        target.read_registers(thread)
        for _ in range(3):
            target.step(thread)
        end = whole.run_slice(200_000)


IN_G = [r for r in REGISTERS[:G_REGISTERS] if r.name != "orig_rax"]


@cache
def context() -> Context:
    """A debugger of a machine whose guest, on its own, stands at its first instruction."""
    path = Path(tempfile.mkdtemp()) / "kernel"
    path.write_bytes(elf(HLT))
    config = MachineConfig(
        seed=b"test", rtc=0, kernel=path, svsm=False, guest_vmpl=0, memory=32 * MIB
    )
    target = MachineTarget(Machine(config))
    return Context(target, Stopped(1), target.threads()[0].id)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(IN_G), VALUES), min_size=1, max_size=6))
def test_g_gives_back_what_it_has_read(writes: list[tuple[Register, int]]) -> None:
    ctx = context()
    before = regs.read_all(ctx, b"")
    for register, wide in writes:
        number, data = REGISTER_NUMBERS[register.name], wide & width(register)
        text = data.to_bytes(register.nbytes, "little").hex().encode()
        reply = regs.write_one(ctx, b"%x=%b" % (number, text))
        assert reply == b"OK" or reply.startswith(b"E."), reply
    assert regs.write_all(ctx, before) == b"OK"
    assert regs.read_all(ctx, b"") == before
