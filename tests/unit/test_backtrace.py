# SPDX-License-Identifier: MIT
"""Backtraces: the unwinder on stacks made by hand, symbols, and the frames of handlers."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from svsmd.core.backtrace import handler_frames
from svsmd.core.backtrace.dwarf_lines import MAX_PROGRAMS, Lines
from svsmd.core.backtrace.elf_file import MAX_NAME, MAX_SECTIONS, MAX_SYMBOLS
from svsmd.core.backtrace.frames import MAX_FRAMES, Backtrace, Frame, FrameKind, Location
from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.backtrace.unwinder import FRAME_TAG, Module, unwind
from svsmd.core.port import IMAGE_MAP
from svsmd.core.trap_frame import FRAME_SIZE, VECTOR_SYSCALL, TrapFrame, vector_name
from svsmd.images import image_path

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = IMAGE_MAP + 0x1000
STACK = 0xFFFF_FF00_0001_0000
USER_TEXT = 0x40_0000
USER_STACK = 0x7FFF_0000

REGISTERS = [field.name for field in fields(TrapFrame)]
FUNCTIONS = {"outer": TEXT, "middle": TEXT + 0x100, "inner": TEXT + 0x200}
MODULE = {"start": USER_TEXT, "work": USER_TEXT + 0x100}


def kernel(address: int) -> Location | None:
    """Functions of 256 bytes."""
    for name, start in FUNCTIONS.items():
        if start <= address < start + 0x100:
            return Location(name, address - start, "kernel.c", 1 + address - start)
    return None


def module(address: int) -> Location | None:
    for name, start in MODULE.items():
        if start <= address < start + 0x100:
            return Location(name, address - start)
    return None


class Memory:
    """Words at addresses; all other addresses fault."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}
        self.reads: list[int] = []

    def put(self, address: int, *words: int) -> None:
        data = struct.pack(f"<{len(words)}Q", *words)
        self.bytes |= {address + i: byte for i, byte in enumerate(data)}

    def read(self, address: int, nbytes: int) -> bytes | None:
        self.reads.append(address)
        try:
            return bytes(self.bytes[address + i] for i in range(nbytes))
        except KeyError:
            return None

    def put_frame(self, address: int, **registers: int) -> int:
        """Saved registers; returns what RBP is after that."""
        values = dict.fromkeys(REGISTERS, 0) | {"rflags": 2} | registers
        self.put(address, *values.values())
        return address + FRAME_TAG


@pytest.fixture
def memory() -> Memory:
    return Memory()


def names(trace: Backtrace) -> list[str]:
    return [frame.symbol or hex(frame.address) for frame in trace.frames]


def test_calls(memory: Memory) -> None:
    memory.put(STACK, STACK + 0x40, TEXT + 0x123)
    memory.put(STACK + 0x40, 0, TEXT + 0x45)
    trace = unwind(memory.read, TEXT + 0x234, STACK, STACK - 8, kernel=kernel)
    assert names(trace) == ["inner", "middle", "outer"]
    assert [frame.offset for frame in trace.frames] == [0x34, 0x23, 0x45]
    # Of who has called, the line is that of the call, not that of what follows it.
    assert [frame.line for frame in trace.frames] == [0x35, 0x23, 0x45]
    assert trace.end == ""
    assert str(trace).splitlines()[0] == f"#0 [native] {TEXT + 0x234:#x} inner+0x34 at kernel.c:53"


def test_call_at_the_end_of_a_function(memory: Memory) -> None:
    memory.put(STACK, 0, TEXT + 0x100)
    trace = unwind(memory.read, TEXT + 0x234, STACK, 0, kernel=kernel)
    assert names(trace) == ["inner", "outer"]
    assert trace.frames[1].offset == 0x100


@pytest.mark.parametrize("done", [0, 1])
def test_function_that_has_not_pushed_rbp_yet(memory: Memory, done: int) -> None:
    memory.bytes[TEXT + 0x200] = 0x55
    memory.put(STACK - 8, STACK + 0x40, TEXT + 0x123)
    memory.put(STACK + 0x40, 0, TEXT + 0x45)
    trace = unwind(memory.read, TEXT + 0x200 + done, STACK + 0x40, STACK - 8 * done, kernel=kernel)
    assert names(trace) == ["inner", "middle", "outer"]


def test_call_through_a_wild_pointer(memory: Memory) -> None:
    memory.put(STACK, TEXT + 0x123)
    memory.put(STACK + 0x40, 0, TEXT + 0x45)
    trace = unwind(memory.read, 0x1234, STACK + 0x40, STACK, kernel=kernel)
    assert names(trace) == ["0x1234", "middle", "outer"]


def test_exception(memory: Memory) -> None:
    rbp = memory.put_frame(
        STACK, vector=14, error_code=2, rip=TEXT + 0x234, cs=8, rbp=STACK + 0x400, rsp=STACK + 0x3F0
    )
    memory.put(STACK + 0x400, 0, TEXT + 0x45)
    trace = unwind(memory.read, TEXT + 0x150, rbp, STACK, kernel=kernel)
    assert names(trace) == ["middle", "#PF, error 0x2", "inner", "outer"]
    assert trace.frames[1].kind is FrameKind.EXCEPTION


@pytest.mark.parametrize(
    "wrong",
    [{"vector": 0x101}, {"error_code": 1 << 32}, {"cs": 9}, {"cs": 1 << 16}, {"ss": 1 << 16},
     {"rflags": 0}, {"rflags": 1 << 22 | 2}],
    ids=str,
)  # fmt: skip
def test_saved_registers_that_are_some_other_data(memory: Memory, wrong: dict[str, int]) -> None:
    rbp = memory.put_frame(STACK, **({"rip": TEXT, "cs": 8, "rbp": 0x5EC2E7} | wrong))
    trace = unwind(memory.read, TEXT + 0x150, rbp, STACK, kernel=kernel)
    assert names(trace) == ["middle"]
    assert trace.end == f"there are no saved registers at {STACK:#x}"


def test_exception_on_another_stack(memory: Memory) -> None:
    """IST: the interrupted stack may lie below."""
    rbp = memory.put_frame(STACK, vector=8, rip=TEXT + 0x234, cs=8, rbp=STACK - 0x400)
    memory.put(STACK - 0x400, 0, TEXT + 0x45)
    trace = unwind(memory.read, TEXT + 0x150, rbp, STACK, kernel=kernel)
    assert names(trace) == ["middle", "#DF, error 0x0", "inner", "outer"]


def test_system_call(memory: Memory) -> None:
    rbp = memory.put_frame(
        STACK, vector=VECTOR_SYSCALL, rip=USER_TEXT + 0x120, cs=0x33, rbp=USER_STACK,
        rsp=USER_STACK - 0x10,
    )  # fmt: skip
    memory.put(USER_STACK, 0, USER_TEXT + 0x10)
    memory.put(STACK - 0x40, rbp, TEXT + 0x145)
    trace = unwind(
        memory.read,
        TEXT + 0x234,
        STACK - 0x40,
        0,
        kernel=kernel,
        module=Module(memory.read, module),
    )
    assert names(trace) == ["inner", "middle", "SYSCALL", "work", "start"]
    assert [f.kind for f in trace.frames[2:]] == [
        FrameKind.SYSTEM_CALL, FrameKind.MODULE, FrameKind.MODULE,
    ]  # fmt: skip


@pytest.mark.parametrize("rbp", [STACK, STACK + FRAME_TAG, (1 << 64) - 8, (1 << 63) + 8])
def test_module_cannot_have_the_kernels_memory_printed(memory: Memory, rbp: int) -> None:
    tag = memory.put_frame(STACK + 0x800, vector=14, rip=USER_TEXT + 0x50, cs=0x33, rbp=rbp)
    memory.put_frame(STACK, rip=USER_TEXT + 0x110, cs=0x33)
    memory.put(STACK, 0x5EC2E7, USER_TEXT + 0x110)
    trace = unwind(
        memory.read, TEXT + 0x250, tag, 0, kernel=kernel, module=Module(memory.read, module)
    )
    assert names(trace) == ["inner", "#PF, error 0x0", "start"]
    assert trace.end
    assert {read for read in memory.reads if read >= 1 << 47} == {STACK + 0x800}


def test_return_addresses_that_are_none_are_not_printed(memory: Memory) -> None:
    memory.put(STACK, STACK + 0x40, 0x0123_4567_89AB_CDEF)
    trace = unwind(memory.read, TEXT + 0x234, STACK, 0, kernel=kernel)
    assert names(trace) == ["inner"]
    assert "return address" in trace.end
    assert "89abcdef" not in str(trace)


@pytest.mark.parametrize("rbp", [STACK, STACK - 0x40, STACK + 0x10])
def test_chain_that_does_not_go_up(memory: Memory, rbp: int) -> None:
    for address in (STACK, STACK - 0x40):
        memory.put(address, rbp, TEXT + 0x123)
    trace = unwind(memory.read, TEXT + 0x234, STACK, 0, kernel=kernel)
    assert names(trace)[:2] == ["inner", "middle"]
    assert len(trace.frames) == 2
    assert trace.end


def test_exceptions_in_a_ring(memory: Memory) -> None:
    one, two = STACK + FRAME_TAG, STACK + 0x400 + FRAME_TAG
    memory.put_frame(STACK, rip=TEXT + 0x50, cs=8, rbp=two)
    memory.put_frame(STACK + 0x400, rip=TEXT + 0x150, cs=8, rbp=one)
    trace = unwind(memory.read, TEXT + 0x234, one, 0, kernel=kernel)
    assert len(trace.frames) == 5
    assert "lead to themselves" in trace.end


def test_chain_without_an_end(memory: Memory) -> None:
    for at in range(STACK, STACK + 1000 * 16, 16):
        memory.put(at, at + 16, TEXT + 0x123)
    trace = unwind(memory.read, TEXT + 0x234, STACK, 0, kernel=kernel)
    assert len(trace.frames) == MAX_FRAMES
    assert "more than" in trace.end


def test_function_that_has_no_frame(memory: Memory) -> None:
    """A leaf that uses no stack: RSP has its return address, if what is there has called it."""
    memory.put(STACK - 8, TEXT + 0x123)
    memory.put(STACK + 0x40, 0, TEXT + 0x45)
    call = b"\xe8" + (TEXT + 0x200 - (TEXT + 0x123)).to_bytes(4, "little")
    memory.bytes |= {TEXT + 0x11E + n: byte for n, byte in enumerate(call)}
    trace = unwind(memory.read, TEXT + 0x234, STACK + 0x40, STACK - 8, kernel=kernel)
    assert names(trace) == ["inner", "middle", "outer"]
    for elsewhere in (TEXT + 0x11E, TEXT + 0x11F):
        kept = memory.bytes[elsewhere]
        memory.bytes[elsewhere] ^= 1
        trace = unwind(memory.read, TEXT + 0x234, STACK + 0x40, STACK - 8, kernel=kernel)
        assert names(trace) == ["inner", "outer"]
        memory.bytes[elsewhere] = kept


def test_module_is_read_through_its_own_memory(memory: Memory) -> None:
    """SMAP keeps the core's own loads from it."""
    own = Memory()
    own.put(USER_STACK, 0, USER_TEXT + 0x10)
    rbp = memory.put_frame(STACK, vector=14, rip=USER_TEXT + 0x120, cs=0x33, rbp=USER_STACK)
    there = Module(own.read, module)
    trace = unwind(memory.read, TEXT + 0x234, rbp, 0, kernel=kernel, module=there)
    assert names(trace) == ["inner", "#PF, error 0x0", "work", "start"]
    assert all(read >= 1 << 47 for read in memory.reads)
    assert all(read < 1 << 47 for read in own.reads)


def test_what_reading_raises_ends_the_chain() -> None:
    def read(address: int, nbytes: int) -> bytes | None:
        raise ZeroDivisionError

    trace = unwind(read, TEXT + 0x234, STACK, 0, kernel=kernel)
    assert (len(trace.frames), trace.end) == (1, f"RBP {STACK:#x} cannot be read")

    def lookup(address: int) -> Location | None:
        raise KeyError

    trace = unwind(Memory().read, TEXT, STACK, 0, kernel=lookup)
    assert trace == Backtrace((), "the unwinder failed: KeyError")


def test_without_symbols_there_are_addresses(memory: Memory) -> None:
    memory.put(STACK, 0, TEXT + 0x123)
    trace = unwind(memory.read, TEXT + 0x234, STACK, 0)
    assert names(trace) == [hex(TEXT + 0x234), hex(TEXT + 0x123)]
    memory.put(STACK, 0, STACK)
    assert len(unwind(memory.read, TEXT + 0x234, STACK, 0).frames) == 1


def test_vectors_have_the_manuals_names() -> None:
    assert [vector_name(v) for v in (0, 2, 9, 14, 29, 32, 255, 256, 1 << 40)] == [
        "#DE", "NMI", "vector 0x9", "#PF", "#VC", "interrupt 0x20", "interrupt 0xff", "SYSCALL",
        "vector 0x10000000000",
    ]  # fmt: skip
    assert FRAME_SIZE == 22 * 8


def test_backtraces_are_values() -> None:
    inner = Backtrace((Frame(FrameKind.HANDLER, "f", file="a.py", line=1),))
    outer = Backtrace((Frame(FrameKind.NATIVE, "g", 0x10, 2, "b.c", 3),), "no more")
    both = inner.before(outer)
    assert both == Backtrace((*inner.frames, *outer.frames), "no more")
    assert both.lines() == [
        "#0 [handler] f at a.py:1", "#1 [native] 0x10 g+0x2 at b.c:3", "(no more)",
    ]  # fmt: skip
    assert outer.before(inner).end == "no more"
    assert hash(both) == hash(inner.before(outer))
    assert str(Frame(FrameKind.NATIVE)) == "[native] 0x0"


class TestSymbols:
    def test_native_image(self) -> None:
        symbols = Symbols(image_path("svsm").read_bytes())
        start = symbols.lookup(IMAGE_MAP)
        assert start is not None
        assert (start.symbol, start.offset) == ("svsm_start", 0)
        assert start.file == "svsmd/core/native/start.S"
        assert start.line > 0
        found = [symbols.lookup(at) for at in range(IMAGE_MAP, IMAGE_MAP + 0x800)]
        lines = {(loc.file, loc.line) for loc in found if loc and loc.symbol == "svsm_cpu_init"}
        assert {file for file, _ in lines} == {"svsmd/core/native/cpu.c"}
        assert len(lines) > 5
        # A label inside of a function does not hide it.
        assert not any(loc and loc.symbol == "svsm_gate_action" for loc in found)

    def test_what_is_no_code(self) -> None:
        symbols = Symbols(image_path("svsm").read_bytes())
        for address in (0, -1, IMAGE_MAP - 1, IMAGE_MAP + 0x10_0000, 1 << 64, 1 << 200):
            assert symbols.lookup(address) is None

    def test_bias(self) -> None:
        symbols = Symbols(image_path("svsm").read_bytes(), bias=0x123_4000)
        found = symbols.lookup(IMAGE_MAP + 0x123_4000)
        assert found is not None
        assert found.symbol == "svsm_start"
        assert symbols.lookup(IMAGE_MAP) is None

    def test_nothing_is_read_before_it_is_needed(self) -> None:
        class Explosive(bytes):
            def __buffer__(self, flags: int) -> memoryview:
                raise AssertionError

        Symbols(Explosive(b"\x7fELF"))

    @pytest.mark.parametrize("elf", [b"", b"\x7fELF", b"x" * 1000, bytes(4096)])
    def test_files_that_are_none(self, elf: bytes) -> None:
        assert Symbols(elf).lookup(IMAGE_MAP) is None

    def test_names_are_cleaned(self) -> None:
        elf = image_path("svsm").read_bytes()
        hostile = elf.replace(b"svsm_start\0", b"\x1b]0;pwnd\x07\xff\0")
        assert len(hostile) == len(elf)
        assert hostile != elf
        found = Symbols(hostile).lookup(IMAGE_MAP)
        assert found is not None
        assert found.symbol.isascii()
        assert found.symbol.isprintable()
        assert len(found.symbol) <= MAX_NAME

    def test_huge_names_cost_nothing(self) -> None:
        """Every symbol has the same name, which is as long as a file can be."""
        count, name = 50_000, b"n" * (1 << 20)
        entry = struct.pack("<IBBHQQ", 0, 2, 0, 1, TEXT, 0x10)
        symbols = Symbols(elf_with(symtab=entry * count, strtab=name))
        found = symbols.lookup(TEXT + 4)
        assert found is not None
        assert (found.symbol, found.offset) == ("n" * MAX_NAME, 4)

    def test_symbols_are_counted(self) -> None:
        some = struct.pack("<IBBHQQ", 0, 2, 0, 1, TEXT, 0x10) * MAX_SYMBOLS
        last = struct.pack("<IBBHQQ", 0, 2, 0, 1, TEXT + 0x20, 0x10)
        found = Symbols(elf_with(symtab=some + last, strtab=b"f\0")).lookup(TEXT + 0x20)
        assert found == Location()

    def test_too_many_sections(self) -> None:
        elf = bytearray(elf_with(symtab=b"", strtab=b""))
        assert Symbols(bytes(elf)).lookup(TEXT) == Location()
        elf[60:62] = struct.pack("<H", MAX_SECTIONS + 1)
        elf += bytes(64 * MAX_SECTIONS)
        assert Symbols(bytes(elf)).lookup(TEXT) is None


def elf_with(**tables: bytes) -> bytes:
    """An ELF file with 256 bytes of code at TEXT, and these sections behind it."""
    names = b"\0" + b"".join(b"." + name.encode() + b"\0" for name in ("text", *tables))
    sections = [(".text", 1, 6, TEXT, 0x100, b"")]
    sections += [
        (f".{name}", 2 if name == "symtab" else 3, 0, 0, len(data), data)
        for name, data in tables.items()
    ]
    sections.append(("", 3, 0, 0, len(names), names))
    body, headers = b"", b""
    for number, (name, kind, flags, address, size, data) in enumerate(sections):
        at = names.index(name.encode() + b"\0") if name else 0
        headers += struct.pack(
            "<IIQQQQIIQQ", at, kind, flags, address, 64 + len(body), size, number + 1, 0, 1, 0
        )
        body += data
    return (
        struct.pack(
            "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, TEXT, 0, 64 + len(body), 0, 64,
            56, 0, 64, len(sections), len(sections) - 1,
        ) + body + headers
    )  # fmt: skip


# Lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_lines_are_those_of_pyelftools(tmp_path: Path, version: int) -> None:
    """At each address of a program that is compiled with that version of DWARF."""
    sdk = ROOT / "svsmd" / "modules" / "sdk"
    file = tmp_path / "program"
    subprocess.run(
        ["cc", f"-gdwarf-{version}", "-std=gnu11", "-O2", "-ffreestanding", "-fno-stack-protector",
         "-nostdlib", "-static", "-no-pie", f"-I{sdk}/include", "-o", file,
         ROOT / "tests" / "modules" / "wild" / "wild.c", sdk / "lib" / "print.c",
         sdk / "lib" / "string.c", sdk / "lib" / "start.S"],
        check=True,
    )  # fmt: skip
    elf = file.read_bytes()
    symbols, known = Symbols(elf), 0
    for start, stop, name, line in pyelftools_rows(elf):
        for address in (start, stop - 1):
            found = symbols.lookup(address)
            assert found is not None
            assert (found.file.rpartition("/")[2], found.line) == (name, line)
            known += 1
    assert known > 500


def pyelftools_rows(elf: bytes) -> Iterator[tuple[int, int, str, int]]:
    """First address and end, name of the file, and line."""
    dwarf = ELFFile(io.BytesIO(elf)).get_dwarf_info()
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        assert program is not None
        first = 0 if program["version"] >= 5 else 1
        states = [entry.state for entry in program.get_entries() if entry.state is not None]
        for row, after in pairwise(states):
            if row.address < after.address and not row.end_sequence:
                name = program["file_entry"][row.file - first].name.decode()
                yield row.address, after.address, name.rpartition("/")[2], row.line


HEADER = bytes((1, 1, 1, 0, 14, 4, 0, 1, 1))  # versions 4 and 5: opcode_base is 4


def line_unit(header: bytes, program: bytes, version: int = 4) -> bytes:
    """One unit of .debug_line."""
    unit = struct.pack("<H", version) + (b"\x08\0" if version == 5 else b"")
    unit += struct.pack("<I", len(header)) + header + program
    return struct.pack("<I", len(unit)) + unit


PROGRAM = (
    b"\0\x09\x02" + struct.pack("<Q", TEXT) + b"\x03\x04\x01"  # line 5
    + b"\x02\x10\x03\x7f\x01"  # 16 bytes further on, line 4
    + b"\x02\x10\0\x01\x01"
)  # fmt: skip
FILES = b"\0a.c\0\0\0\0\0"


def lines_of(section: bytes) -> Lines:
    return Lines(memoryview(section), memoryview(b""), memoryview(b""))


def test_line_program() -> None:
    lines = lines_of(line_unit(HEADER + FILES, PROGRAM))
    found = [lines.lookup(TEXT + at) for at in (-1, 0, 15, 16, 31, 32)]
    assert found == [("", 0), ("a.c", 5), ("a.c", 5), ("a.c", 4), ("a.c", 4), ("", 0)]


@pytest.mark.parametrize(
    "bad",
    [
        line_unit(HEADER + b"\0\xff\xff\xff\xff\xff\xff\xff\xff\x7f", PROGRAM, 5),
        line_unit(HEADER + b"\x01\x01\x08\xff\xff\xff\xff\xff\x7f", PROGRAM, 5),
        line_unit(HEADER + FILES, b"\x02" + b"\xff" * 1000),
        line_unit(HEADER + FILES, b"\0\x7f"),
        line_unit(HEADER[:4] + b"\0" + HEADER[5:] + FILES, PROGRAM),
        line_unit(HEADER + FILES, PROGRAM, 77),
        line_unit(b"", b""),
    ],
    ids=["no contents", "no entries", "number", "extended", "range", "version", "empty"],
)
def test_one_bad_unit_leaves_the_others(bad: bytes) -> None:
    lines = lines_of(bad + line_unit(HEADER + FILES, PROGRAM))
    assert lines.lookup(TEXT) == ("a.c", 5)


def test_line_programs_are_bounded() -> None:
    good = line_unit(HEADER + FILES, PROGRAM)
    assert lines_of(line_unit(HEADER + FILES, b"\x05" * MAX_PROGRAMS) + good).lookup(TEXT) == (
        "",
        0,
    )


# Handlers ------------------------------------------------------------------------------------


def leaf() -> Generator[int, None, Backtrace]:
    yield 1
    return handler_frames.of_caller()


def branch() -> Generator[int, None, Backtrace]:
    return (yield from leaf())


def test_suspended_handler() -> None:
    handler = branch()
    assert handler_frames.of_generator(handler).frames[0].symbol == "branch"
    next(handler)
    trace = handler_frames.of_generator(handler)
    assert names(trace) == ["leaf", "branch"]
    assert trace.frames[0].file == "test_backtrace.py"
    assert trace.frames[0].line == leaf.__code__.co_firstlineno + 1
    assert all(frame.kind is FrameKind.HANDLER for frame in trace.frames)
    handler.close()
    assert handler_frames.of_generator(handler) == Backtrace()
    assert handler_frames.of_generator(None) == Backtrace()


def test_running_handler() -> None:
    handler = branch()
    next(handler)
    with pytest.raises(StopIteration) as stop:
        next(handler)
    assert names(stop.value.value) == ["branch"]


def test_raised_handler() -> None:
    def fails() -> Generator[int, None, None]:
        yield 1
        raise KeyError("secret")

    def outer() -> Generator[int, None, None]:
        yield from fails()

    handler = outer()
    next(handler)
    with pytest.raises(KeyError) as caught:
        next(handler)
    trace = handler_frames.of_traceback(caught.value.__traceback__)
    assert names(trace)[:2] == ["fails", "outer"]
    assert "secret" not in str(trace)


def test_endless_recursion_is_bounded() -> None:
    def fall() -> None:
        fall()

    with pytest.raises(RecursionError) as caught:
        fall()
    trace = handler_frames.of_traceback(caught.value.__traceback__)
    assert len(trace.frames) == MAX_FRAMES
    assert trace.end
    assert sys.getrecursionlimit() > MAX_FRAMES


def test_files_of_the_core_are_named_from_its_directory() -> None:
    try:
        Symbols(b"").lookup("not a number")  # type: ignore[arg-type]
    except TypeError as error:
        frames = handler_frames.of_traceback(error.__traceback__).frames
        assert frames[0].file == "core/backtrace/symbols.py"
