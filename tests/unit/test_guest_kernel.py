# SPDX-License-Identifier: MIT
"""A bzImage as a debugger knows it: what is made of it, and where it lies once it has moved.

The kernel's own code is all that happens here: it maps its page where the test wants it, goes
there, and halts in its first function.
"""

import gzip
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.config import MIB, Decompress, MachineConfig
from svsmd.gdbstub.guest_kernel import MAP_BASE, STEP
from svsmd.gdbstub.machine_target import MachineTarget
from svsmd.gdbstub.target import (
    BreakpointKind,
    Preparing,
    Relocation,
    Stopped,
    StopReason,
    SupportsRelocation,
    ThreadId,
)
from svsmd.machine import Machine
from svsmd.slice_end import DebugEvent, Idle
from svsmd.snp.types import C_BIT
from svsmd.symbols.elf_file import find_symbol
from svsmd.symbols.kallsyms import Symbol
from tests.elf_kernel import elf_kernel
from tests.kernel_image import ALLOC, EXEC, RODATA, TEXT, Part, elf, kallsyms

GUEST_PID = 1
"""Without an SVSM the guest is at VMPL0."""
LOADED = 0x100_0000
TABLES = 0x80_0000
FUNCTION = 0x300
"""Of x86_64_start_kernel from _text on."""
MOVE = 37 * STEP
HERE = TEXT + MOVE
NAMES = (
    ("_text", 0), ("_stext", 0), ("x86_64_start_kernel", FUNCTION), ("_etext", 0x400),
    ("_sinittext", 0x400), ("_einittext", 0x400),
)  # fmt: skip


def kernel() -> bytes:
    """A vmlinux with symbols and nothing else."""
    symbols = [Symbol(TEXT + offset, "T", name) for name, offset in NAMES]
    tables = kallsyms(symbols, "7.0", RODATA + 0x40, ["_text"])
    return elf(
        {
            ".text": Part(TEXT, ALLOC | EXEC, b"\x90" * 0x400),
            ".rodata": Part(RODATA, ALLOC, bytes(0x40) + tables),
        }
    )


def own_code(move: int) -> bytes:
    """What runs from the entry on: a page table entry for the kernel, and a jump through it."""
    entry = (TEXT + move - MAP_BASE) // STEP * 8
    code = b"".join(
        (
            bytes.fromhex("0f20d8"),  # mov rax, cr3
            bytes.fromhex("48ba") + struct.pack("<Q", C_BIT),  # mov rdx, C-bit
            bytes.fromhex("4889d1 48f7d1 4821c8"),  # rax without the C-bit
            bytes.fromhex("bb") + struct.pack("<I", TABLES),  # mov ebx, TABLES
            bytes.fromhex("488d741303 4889b0f80f0000"),  # PML4[511]: the table at TABLES
            bytes.fromhex("488db41303100000 4889b3f00f0000"),  # its entry 510: the one behind it
            bytes.fromhex("48be") + struct.pack("<Q", C_BIT | LOADED | 0x83),
            bytes.fromhex("4889b3") + struct.pack("<I", 0x1000 + entry),  # 2 MiB: what is here
            bytes.fromhex("0f20d8 0f22d8"),  # mov cr3, cr3
            bytes.fromhex("48b8") + struct.pack("<Q", TEXT + move + FUNCTION),
            bytes.fromhex("ffe0"),  # jmp rax
        )
    )
    function = bytes.fromhex("90 90 fa f4 eb fd")  # nop; nop; cli; hlt, for ever
    return (bytes(0x200) + code).ljust(FUNCTION, b"\xcc") + function


def bzimage(payload: bytes, move: int = MOVE) -> bytes:
    """A bzImage that goes its own way."""
    code, packed = own_code(move), gzip.compress(payload)
    data = bytearray(5 * 512)
    data[0x1F1] = 4
    struct.pack_into("<H", data, 0x1FE, 0xAA55)
    data[0x201] = 0x66
    data[0x202:0x208] = b"HdrS\x0f\x02"
    struct.pack_into("<I", data, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<HI", data, 0x236, 1, 2047)
    struct.pack_into("<II", data, 0x248, len(code), len(packed))
    struct.pack_into("<QI", data, 0x258, LOADED, 3 * MIB)
    return bytes(data) + code + packed


Make = Callable[..., MachineTarget]
machines: dict[MachineTarget, Machine] = {}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def build(
        image: bytes | None = None, decompress: Decompress = Decompress.GUEST
    ) -> MachineTarget:
        path = tmp_path / "kernel"
        path.write_bytes(bzimage(kernel()) if image is None else image)
        config = MachineConfig(
            seed=b"test", rtc=0, kernel=path, decompress=decompress, svsm=False, guest_vmpl=0,
            memory=32 * MIB,
        )  # fmt: skip
        machine = Machine(config)
        target = MachineTarget(machine)
        machines[target] = machine
        return target

    machines.clear()
    return build


async def read(target: MachineTarget) -> bytes | None:
    """The guest's file, which has to be made."""
    name = target.executable(GUEST_PID)
    assert name == "/guest.elf"
    with pytest.raises(Preparing) as work:
        target.read_file(name)
    await work.value.prepare()
    return target.read_file(name)


def run(target: MachineTarget) -> Stopped | None:
    """How the machine stops; None if it has halted for good."""
    while True:
        match machines[target].run_slice():
            case DebugEvent(vcpu=vcpu):
                return target.name_process(Stopped(vcpu + 1, reason=StopReason.SWBREAK))
            case Idle():
                return None
        target.take_output()


async def test_symbols_are_made_by_a_process_of_its_own(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    data = await read(make())
    assert data is not None
    assert find_symbol(data, "x86_64_start_kernel") == TEXT + FUNCTION
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [line.partition(": no ")[2].partition(":")[0] for line in warnings] == [
        "call frames", "types",
    ]  # fmt: skip


async def test_a_kernel_without_symbols(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    target = make(bzimage(elf_kernel(b"\xf4")))
    assert await read(target) is None
    assert "the kernel's ELF file has no section headers" in caplog.text
    assert target.executable(GUEST_PID) is None
    assert target.read_file("/guest.elf") is None


async def test_a_python_that_is_not_there(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert await read(make()) is None
    assert "no symbols of the guest's kernel: " in caplog.text


async def test_a_kernel_that_moves(make: Make) -> None:
    target = make()
    assert isinstance(target, SupportsRelocation)
    target.report_moves(True)
    assert await read(target) is not None
    assert target.relocation(GUEST_PID) is None

    stop = run(target)
    assert stop == Stopped(1, reason=StopReason.EXEC, pid=GUEST_PID, file="/guest.elf")
    assert target.relocation(GUEST_PID) == Relocation(TEXT, HERE)
    assert target.relocation(GUEST_PID + 1) is None
    (pc,) = struct.unpack_from("<Q", target.read_registers(stop.thread), 128)
    assert pc == HERE + FUNCTION

    # What the debugger sets there now is not reached yet.
    target.insert_breakpoint(GUEST_PID, BreakpointKind.SOFTWARE, pc)
    stop = run(target)
    assert stop == Stopped(1, reason=StopReason.SWBREAK, pid=GUEST_PID)
    target.remove_breakpoint(GUEST_PID, BreakpointKind.SOFTWARE, pc)
    assert run(target) is None


@pytest.mark.parametrize("move", [0, 1 * STEP, 490 * STEP])
async def test_wherever_it_goes(make: Make, move: int) -> None:
    target = make(bzimage(kernel(), move))
    target.report_moves(True)
    await read(target)
    stop = run(target)
    assert stop is not None
    assert stop.reason is StopReason.EXEC
    assert target.relocation(GUEST_PID) == Relocation(TEXT, TEXT + move)


async def test_nobody_who_cares(make: Make) -> None:
    """A debugger that has no symbols from here, or knows no such event, is told of nothing."""
    target = make()
    target.report_moves(True)
    assert run(target) is None
    assert target.relocation(GUEST_PID) == Relocation(TEXT, HERE)
    target = make()
    await read(target)
    assert run(target) is None
    assert target.relocation(GUEST_PID) == Relocation(TEXT, HERE)
    # One that has gone.
    target = make()
    target.report_moves(True)
    await read(target)
    target.report_moves(False)
    assert run(target) is None


async def test_the_guest_does_the_same(make: Make) -> None:
    clocks = set()
    for told in (False, True):
        target = make()
        target.report_moves(told)
        await read(target)
        while run(target) is not None:
            pass
        clocks.add(machines[target].clock_now)
    assert len(clocks) == 1


async def test_after_a_reset(make: Make) -> None:
    target = make()
    machine = machines[target]
    target.report_moves(True)
    await read(target)
    target.report_moves(True)  # extensions of gdb introduce themselves as well
    for _ in range(2):
        stop = run(target)
        assert stop is not None
        assert stop.reason is StopReason.EXEC
        assert run(target) is None
        machine._reset()
        assert target.relocation(GUEST_PID) is None
        target.take_output()
    target.report_moves(False)
    assert run(target) is None
    # The next debugger has not read its file yet.
    target.report_moves(True)
    machine._reset()
    target.take_output()
    assert run(target) is None


async def test_a_kernel_that_is_where_it_was(make: Make) -> None:
    target = make()
    assert run(target) is None
    target.report_moves(True)
    await read(target)
    assert target.relocation(GUEST_PID) == Relocation(TEXT, HERE)
    assert not machines[target].silicon.debug.breakpoints_at(HERE + FUNCTION)


def test_no_bzimage(make: Make) -> None:
    target = make(elf_kernel(bytes.fromhex("fa f4 eb fd")), Decompress.HOST)
    target.report_moves(True)
    assert target.relocation(GUEST_PID) is None
    assert run(target) is None
    assert target.relocation(GUEST_PID) is None
    assert target.name_process(Stopped(1)).thread == ThreadId(GUEST_PID, 1)
