# SPDX-License-Identifier: MIT
"""Frames of a program whose registers and stack hold anything."""

from __future__ import annotations

import re
import struct

from hypothesis import given
from hypothesis import strategies as st

from svsmd.core import costs
from svsmd.core.backtrace.frames import Location
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import USER_END, Access, AddressSpace, Contents, Quota
from svsmd.core.tasks.program_frames import FRAMES_MAX, frames_of, module_of
from svsmd.core.trap_frame import TrapFrame
from svsmd.snp.types import PAGE_SIZE
from tests.process_memory import FailingAllocator, ProcessMemory, process_memory

TEXT = 0x40_0000
STACK = 0x7F_0000_0000
STACK_WORDS = 2 * PAGE_SIZE // 8
HERE = TrapFrame(rip=TEXT + 0x10, rsp=STACK, rbp=STACK)
TICKS = (FRAMES_MAX + 1) * (2 * costs.SYMBOL + 40 * costs.MEMORY_ACCESS)


def program(*words: int) -> tuple[ProcessMemory, PerCpu, FailingAllocator, AddressSpace]:
    """One page of code, and a stack of two that begins with these words."""
    memory, cpu, pages = process_memory()
    space = AddressSpace(cpu, pages, Quota(100))
    space.map(cpu, TEXT, 2 * PAGE_SIZE, Access.READ | Access.EXECUTE, Contents(b"\x90"))
    space.read(cpu, TEXT, 1)
    space.map(cpu, STACK, 2 * PAGE_SIZE, Access.READ | Access.WRITE)
    space.write(cpu, STACK, struct.pack(f"<{len(words)}Q", *words))
    return memory, cpu, pages, space


def test_calls() -> None:
    _, cpu, _, space = program(STACK + 16, TEXT + 0x20, 0, TEXT + 0x30)
    frames = frames_of(module_of(cpu, space, Symbols(b"")), HERE)
    assert frames.lines() == [f"#{n} [module] {TEXT + 0x10 * (n + 1):#x}" for n in range(3)]


def test_code_is_what_may_be_executed() -> None:
    class Known(Symbols):
        def lookup(self, address: int) -> Location | None:
            return Location("known", 1)

    _, cpu, _, space = program()
    module = module_of(cpu, space, Known(b""))
    assert module.lookup(TEXT) == Location("known", 1)
    assert module.lookup(STACK) is None
    assert module.lookup(TEXT - 1) is None
    space.protect(cpu, TEXT, PAGE_SIZE, Access.READ)
    assert module.lookup(TEXT) is None


def test_pages_that_are_not_there_stay_so() -> None:
    _, cpu, pages, space = program(STACK + PAGE_SIZE, TEXT + 0x20)
    free, used = pages.statistics().free, space.quota.used
    frames = frames_of(module_of(cpu, space, Symbols(b"")), HERE)
    assert len(frames.frames) == 2
    assert frames.end == "RBP cannot be read"
    assert (pages.statistics().free, space.quota.used) == (free, used)


def test_long_chains_are_cut() -> None:
    words = [word for n in range(1, 200) for word in (STACK + 16 * n, TEXT + 0x20)]
    memory, cpu, _, space = program(*words)
    before = memory.ticks
    frames = frames_of(module_of(cpu, space, Symbols(b"")), HERE)
    assert len(frames.frames) == FRAMES_MAX
    assert frames.end == f"more than {FRAMES_MAX} frames"
    assert FRAMES_MAX * costs.SYMBOL < memory.ticks - before <= TICKS


places = st.sampled_from([0, TEXT, STACK, STACK + PAGE_SIZE, STACK + 2 * PAGE_SIZE, USER_END])
words = st.one_of(
    st.builds(lambda place, offset: (place + offset) % (1 << 64), places, st.integers(-24, 600)),
    st.builds(lambda place, n: place + 8 * n, places, st.integers(0, 60)),
    st.integers(0, (1 << 64) - 1),
)


@given(stack=st.lists(words, max_size=60), rip=words, rsp=words, rbp=words)
def test_anything_is_harmless(stack: list[int], rip: int, rsp: int, rbp: int) -> None:
    memory, cpu, pages, space = program(*stack)
    free, used, stores = pages.statistics().free, space.quota.used, memory.stores
    before = memory.ticks
    frames = frames_of(module_of(cpu, space, Symbols(b"")), TrapFrame(rip=rip, rsp=rsp, rbp=rbp))
    assert 1 <= len(frames.frames) <= FRAMES_MAX
    assert "failed" not in frames.end
    assert (pages.statistics().free, space.quota.used, memory.stores) == (free, used, stores)
    assert memory.ticks - before <= TICKS
    # The addresses in it are that where it was, and such as may be executed.
    assert not re.search("[0-9]", frames.end.replace(f"{FRAMES_MAX}", ""))
    assert all(TEXT < frame.address <= TEXT + 2 * PAGE_SIZE for frame in frames.frames[1:])
