# SPDX-License-Identifier: MIT
"""What a program finds on its stack, its handles and its output; and memory that runs out."""

from __future__ import annotations

import struct
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from svsmd.core.gate import Effect, EnterUser
from svsmd.core.memory import OutOfMemory, SlabCache
from svsmd.core.percpu import PerCpu
from svsmd.core.tasks.address_space import STACK_TOP, USER_END
from svsmd.core.tasks.cpuid import ProgramCpuid
from svsmd.core.tasks.errno import CallFailed, Errno
from svsmd.core.tasks.executable import read_executable
from svsmd.core.tasks.files import LINE_MAX, ArchiveFile, File, LogOutput
from svsmd.core.tasks.handles import HANDLES_MAX, HandleTable
from svsmd.core.tasks.process import ARGUMENTS_MAX, STATE_SIZE, Limits, Process, Program
from svsmd.core.trap_frame import TrapFrame
from svsmd.snp.cpuid_page import CpuidFunction
from tests.process_memory import FailingAllocator, process_memory
from tests.property.test_executable import BASE, GOOD

EXECUTABLE = read_executable(GOOD)
CPU = PerCpu(0, process_memory()[0])
texts = st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\0", b"")), max_size=8)


def no_calls(process: Process, frame: TrapFrame) -> Generator[Effect, int, None]:
    yield EnterUser(0, 0)
    raise AssertionError("it does not run")


def load(program: Program, cpu: PerCpu, pages: FailingAllocator) -> Process:
    states = SlabCache(pages, STATE_SIZE, "test")
    return Process(cpu, program, pages, states, no_calls, print, ProgramCpuid())


def string_at(process: Process, cpu: PerCpu, where: int) -> bytes:
    return process.space.read_string(cpu, where, ARGUMENTS_MAX)


@given(texts, texts)
def test_stack_is_that_of_the_abi(arguments: list[bytes], environment: list[bytes]) -> None:
    _, cpu, pages = process_memory()
    process = load(Program("/bin/x", EXECUTABLE, arguments, environment), cpu, pages)
    words = read_stack(process, cpu)
    assert words[0] == len(arguments)
    argv, rest = words[1 : 1 + len(arguments)], words[1 + len(arguments) :]
    assert [string_at(process, cpu, where) for where in argv] == arguments
    assert rest[0] == 0
    envp, rest = rest[1 : 1 + len(environment)], rest[1 + len(environment) :]
    assert [string_at(process, cpu, where) for where in envp] == environment
    assert rest[0] == 0
    pairs = dict(zip(rest[1::2], rest[2::2], strict=False))
    assert pairs[3] == BASE + 64  # AT_PHDR
    assert (pairs[4], pairs[5]) == (56, 3)  # AT_PHENT, AT_PHNUM
    assert (pairs[6], pairs[9]) == (4096, BASE + 0x1000)  # AT_PAGESZ, AT_ENTRY
    assert len(process.space.read(cpu, pairs[25], 16)) == 16  # AT_RANDOM
    assert string_at(process, cpu, pairs[31]) == b"/bin/x"  # AT_EXECFN


def read_stack(process: Process, cpu: PerCpu) -> tuple[int, ...]:
    """The words from the initial stack pointer on, up to AT_NULL."""
    raw = cpu.port.read(0xFFFF_8000_0000_0000 + process._state + 512, 176)
    frame = TrapFrame.unpack(raw)
    assert frame.rsp % 16 == 0
    assert frame.rip == BASE + 0x1000
    assert STACK_TOP - 64 * 1024 < frame.rsp < STACK_TOP <= USER_END
    raw = process.space.read(cpu, frame.rsp, min(4096, (STACK_TOP - frame.rsp) & ~7))
    words = struct.unpack(f"<{len(raw) // 8}Q", raw[: len(raw) // 8 * 8])
    count = words[0] + 2
    while words[count]:
        count += 1
    count += 1
    while words[count]:
        count += 2
    return words[:count]


@pytest.mark.parametrize(
    ("arguments", "errno"),
    [([b"x" * ARGUMENTS_MAX], Errno.E2BIG), ([b"a\0b"], Errno.EINVAL)],
)
def test_arguments_that_are_refused(arguments: list[bytes], errno: Errno) -> None:
    _, cpu, pages = process_memory()
    with pytest.raises(CallFailed, match=errno.name):
        load(Program("/bin/x", EXECUTABLE, arguments), cpu, pages)


def test_memory_may_run_out_at_any_allocation() -> None:
    left = 0
    while True:
        _, cpu, pages = process_memory()
        states = SlabCache(pages, STATE_SIZE, "test")
        states.free(cpu, states.allocate(cpu))
        free = pages.statistics().free
        pages.left = left
        program = Program("/bin/x", EXECUTABLE, [b"x"])
        try:
            Process(cpu, program, pages, states, no_calls, print, ProgramCpuid())
        except (OutOfMemory, CallFailed) as error:
            assert not isinstance(error, CallFailed) or error.errno is Errno.ENOMEM  # noqa: PT017
            assert pages.statistics().free >= free
            left += 1
        else:
            break
    assert left > 4


def test_quota_of_pages_holds_from_the_start() -> None:
    _, cpu, pages = process_memory()
    with pytest.raises(CallFailed, match="ENOMEM"):
        load(Program("/bin/x", EXECUTABLE, [b"x"], limits=Limits(pages=3)), cpu, pages)


# Handles -------------------------------------------------------------------------------------


class Counted(File):
    """Counts its handles."""

    def __init__(self) -> None:
        self.handles = 0

    def opened(self) -> None:
        self.handles += 1

    def closed(self, cpu: PerCpu) -> None:
        self.handles -= 1


@given(st.lists(st.one_of(st.none(), st.integers(-1, HANDLES_MAX + 1)), max_size=200))
def test_handles_are_the_lowest_that_are_free(actions: list[int | None]) -> None:
    table, objects = HandleTable(), dict[int, Counted]()
    for handle in actions:
        if handle is None and len(objects) == HANDLES_MAX:
            with pytest.raises(CallFailed, match="EMFILE"):
                table.add(Counted())
        elif handle is None:
            target = Counted()
            number = table.add(target)
            assert number == min(set(range(HANDLES_MAX)) - set(objects))
            objects[number] = target
        elif handle in objects:
            assert table.get(handle, Counted) is objects[handle]
            with pytest.raises(CallFailed, match="EBADF"):
                table.get(handle, ArchiveFile)
            table.close(CPU, handle)
            assert objects.pop(handle).handles == 0
        else:
            with pytest.raises(CallFailed, match="EBADF"):
                table.close(CPU, handle)
        assert all(each.handles == 1 for each in objects.values())
    table.close_all(CPU)
    assert not len(table)
    assert all(each.handles == 0 for each in objects.values())


# Files ---------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=3 * LINE_MAX), max_size=10))
def test_output_becomes_lines(pieces: list[bytes]) -> None:
    lines: list[str] = []
    output = LogOutput("me", lines.append)
    output.opened()
    for piece in pieces:
        assert output.write(piece) == len(piece)
    output.closed(CPU)
    assert all(line.startswith("me: ") and line.isprintable() for line in lines)
    assert all(len(line) <= len("me: ") + 3 * LINE_MAX for line in lines)
    data = b"".join(pieces)
    said = "".join(line.removeprefix("me: ") for line in lines)
    assert [c for c in said if c.isascii()] == [
        c for c in data.decode("latin-1") if c.isascii() and c.isprintable()
    ]


@given(st.binary(max_size=50), st.lists(st.tuples(st.integers(-60, 60), st.integers(-1, 3))))
def test_files_of_the_archive_can_be_read_anywhere(
    data: bytes, seeks: list[tuple[int, int]]
) -> None:
    file, position = ArchiveFile(data), 0
    for offset, whence in seeks:
        wanted = {0: 0, 1: position, 2: len(data)}.get(whence)
        if wanted is None or wanted + offset < 0:
            with pytest.raises(CallFailed, match="EINVAL"):
                file.seek(offset, whence)
        else:
            position = file.seek(offset, whence)
            assert position == wanted + offset
        piece = file.read(7)
        assert piece == data[position : position + 7]
        position += len(piece)
    assert file.contents == data


# CPUID ---------------------------------------------------------------------------------------


def test_cpuid_says_what_programs_have() -> None:
    table = ProgramCpuid(
        [
            CpuidFunction(0, 0, 0, 0, 0xD, 1, 2, 3),
            CpuidFunction(1, 0, 0, 0, 5, 0xFF00_0800, 0xFFFF_FFFF, 7),
            CpuidFunction(7, 0, 0, 0, 0, 0xFFFF_FFFF, 0, 0),
            CpuidFunction(4, 0, 0, 0, 1, 1, 1, 1),
            CpuidFunction(4, 1, 0, 0, 2, 2, 2, 2),
            CpuidFunction(0xD, 0, 1, 0, 7, 7, 7, 7),
        ]
    )
    assert table.query(0, 99, 0) == (0xD, 1, 2, 3)
    assert table.query(4, 1, 0) == (2, 2, 2, 2)
    assert table.query(4, 2, 0) == (0, 0, 0, 0)
    assert table.query(0xD, 0, 0) == (0, 0, 0, 0)
    assert table.query(0x8000_0000, 0, 0) == (0, 0, 0, 0)
    eax, ebx, ecx, edx = table.query(1, 0, 3)
    assert (eax, ebx, edx) == (5, 0x0300_0800, 7)
    assert not ecx & (1 << 26 | 1 << 27 | 1 << 28)  # XSAVE, OSXSAVE, AVX
    assert not table.query(7, 0, 0)[1] & (1 << 0 | 1 << 5)  # FSGSBASE, AVX2
