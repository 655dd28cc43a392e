# SPDX-License-Identifier: MIT
"""A panic with registers and stacks full of anything: it ends the machine, and nothing else.

Once on the core alone, and once with the native image on the engine.
"""

from __future__ import annotations

import struct
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from svsmd.config import MIB, MachineConfig
from svsmd.core.backtrace.exception_frame import load_frame
from svsmd.core.backtrace.frames import MAX_FRAMES
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.backtrace.unwinder import unwind
from svsmd.core.gate import GateAction
from svsmd.core.port import IMAGE_MAP, PRIVATE_MAP
from svsmd.core.trap_frame import FRAME_SIZE
from svsmd.errors import ExitCode
from svsmd.host.layout import SvsmRegion
from svsmd.images import image_path
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import DebugEvent, Ended, Idle
from svsmd.snp.breakpoint import Breakpoint
from svsmd.snp.types import PAGE_SIZE
from tests.fake_vmpl0 import SVSM_BASE, SVSM_SECRETS, FakeVmpl0
from tests.svsm_image import built_svsm_image

STACK = PRIVATE_MAP + SVSM_BASE + 3 * MIB
STACK_WORDS = 64

# Addresses that mean something to an unwinder, near misses of them, and anything.
_places = st.sampled_from([STACK, IMAGE_MAP, PRIVATE_MAP + SVSM_SECRETS, 0x40_0000, 0, 1 << 47])
_near = st.builds(
    lambda place, offset: (place + offset) % (1 << 64), _places, st.integers(-16, 600)
)
_small = st.integers(0, 0x110)
words = st.one_of(_near, _near, _small, st.integers(0, (1 << 64) - 1))
MAX_REPORT = MAX_FRAMES + 20


@settings(max_examples=100)
@given(
    stack=st.lists(words, max_size=STACK_WORDS),
    rip=words, rbp=words, rsp=words, rdi=words, rax=words, vector=words, exception=st.booleans(),
)  # fmt: skip
def test_registers_of_the_core(
    stack: list[int], rip: int, rbp: int, rsp: int, rdi: int, rax: int, vector: int, exception: bool
) -> None:
    machine = FakeVmpl0()
    assert machine.run(0) == "guest"
    machine.put(SVSM_SECRETS, b"\xa5" * PAGE_SIZE)
    machine.put(STACK - PRIVATE_MAP, struct.pack(f"<{len(stack)}Q", *stack))
    before = len(machine.core.log.lines)
    call = machine.calls[0]
    call.rip, call.rbp, call.rsp, call.rdi, call.rax = rip, rbp, rsp, rdi, rax
    if exception:
        call.rbx = vector
        machine.core.exception_entry(call)
    else:
        machine.core._gate.panic(call, RecursionError())
    assert call.rbx == GateAction.PANIC
    assert machine.get(SVSM_SECRETS, PAGE_SIZE) == bytes(PAGE_SIZE)
    report = list(machine.core.log.lines)[before:]
    assert report[0].startswith("panic: ")
    assert len(report) <= MAX_REPORT


@cache
def _symbols() -> Symbols:
    return Symbols(image_path("svsm").read_bytes())


@given(stack=st.lists(words, max_size=STACK_WORDS), rip=words, rbp=words, rsp=words)
def test_unwinding_anything_ends(stack: list[int], rip: int, rbp: int, rsp: int) -> None:
    """Bounded; and of the memory it walks over it shows addresses of code, or what was saved."""
    data = struct.pack(f"<{len(stack)}Q", *stack)

    def read(gva: int, nbytes: int) -> bytes | None:
        start = gva - STACK
        return data[start : start + nbytes] if 0 <= start <= len(data) - nbytes else None

    trace = unwind(read, rip, rbp, rsp, kernel=_symbols().lookup)
    assert 1 <= len(trace.frames) <= MAX_FRAMES
    exact = {rip}
    for offset in range(max(0, len(data) - FRAME_SIZE) + 1):
        frame = load_frame(read, STACK + offset)
        if frame is not None:
            exact.add(frame.rip)
    for shown in trace.frames:
        if shown.kind == "native":
            assert shown.address in exact or _symbols().lookup(shown.address - 1) is not None
    assert "failed" not in trace.end


@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 15), st.integers(0, 255)), max_size=20),
    length=st.integers(0, 1 << 15),
)
def test_symbols_of_damaged_files(changes: list[tuple[int, int]], length: int) -> None:
    """Whatever is in the file, a name that comes out of it can be printed."""
    elf = bytearray(image_path("svsm").read_bytes())
    for at, byte in changes:
        elf[at % len(elf)] = byte
    symbols = Symbols(bytes(elf[: length or None]))
    for address in range(IMAGE_MAP, IMAGE_MAP + 0x600, 0x30):
        found = symbols.lookup(address)
        if found is not None:
            assert (found.symbol + found.file).isascii()
            assert (found.symbol + found.file).isprintable()


# The native image on the engine --------------------------------------------------------------

_CONFIG = MachineConfig(seed=b"panic", rtc=1_767_225_600, memory=64 * MIB)


def _run_to(machine: Machine, address: int, times: int) -> None:
    """Until an instruction is about to be executed for the nth time."""
    breakpoint_ = Breakpoint(address)
    machine.silicon.debug.add_breakpoint(breakpoint_)
    while times:
        times -= isinstance(machine.run_slice(), DebugEvent)
    machine.silicon.debug.remove_breakpoint(breakpoint_)


@settings(max_examples=40)
@given(
    rip=st.one_of(words, st.integers(IMAGE_MAP, IMAGE_MAP + 0x800)),
    registers=st.fixed_dictionaries(dict.fromkeys(("rbp", "rsp", "rdi", "rbx", "rax"), words)),
)
def test_registers_of_the_native_image(rip: int, registers: dict[str, int]) -> None:
    """Whatever the native code runs into, the machine is there, and ends where it panicked."""
    machine = build_machine(_CONFIG)
    stub = built_svsm_image()
    # The second time the launch info has been read: the core knows its secrets page.
    _run_to(machine, stub.core_gate, 2)
    world = machine.hypervisor.vcpus[0].world
    assert world is not None
    assert machine.silicon.load_for_debugger(world.vmcb)
    for name, value in registers.items():
        machine.silicon.registers.write(name, value)
    machine.silicon.cpu.rip = rip  # a debugger could not: it may not be canonical
    core = machine.core
    assert core is not None
    for _ in range(50):
        match machine.run_slice(200_000):
            case Ended(code, _):
                assert code == ExitCode.GUEST_CRASHED
                break
            case Idle(int() as deadline):
                machine.skip_idle(max(0, deadline - machine.clock_now))
    region = SvsmRegion.at_top_of(machine.silicon.memory.ranges, 1)
    if core.panicked:
        assert machine.silicon.memory.read(region.secrets, PAGE_SIZE) == bytes(PAGE_SIZE)
        assert sum(line.startswith("panic: ") for line in core.log.lines) == 1
