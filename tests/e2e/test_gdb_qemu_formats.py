# SPDX-License-Identifier: MIT
"""`monitor info mem`, `info tlb`, `info registers` and `xp` against a real QEMU's.

Programs such as pwndbg and gef read them. The page tables are random ones, the same in both.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.gdbstub.monitor.info import mem_lines, tlb_lines
from svsmd.gdbstub.page_tables import PageTables
from svsmd.snp.memory import GuestMemory
from svsmd.snp.page_walk import PagingState
from svsmd.snp.types import PAGE_SIZE
from tests.svsmd_process import SvsmdProcess
from tools.bench.guest_code import kernel

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
SECONDS = 20.0
QEMU = "qemu-system-x86_64"
ROOT = 0x10_0000
LEVELS = {8: (1, 2, 3, 4), 4: (1, 4)}
CR0, CR3, CR4, EFER = 27, 29, 30, 32
"""Numbers of QEMU's registers."""
STATES = {
    "long": PagingState(0x8000_0011, ROOT, 0x20, 0x500),
    "legacy": PagingState(0x8000_0011, ROOT, 0x10, 0),
}


@pytest.fixture(scope="module")
def qemu() -> str:
    found = shutil.which(QEMU)
    if found is None:
        pytest.skip(f"{QEMU} is not installed")
    return found


def ask_qemu(gdb: str, qemu: str, options: str, *commands: str) -> str:
    """What gdb prints that is attached to a QEMU which stands still."""
    lines = ["set pagination off", "set confirm off", "set width 0"]
    lines.append(f"target remote | {qemu} -S -display none -m 64M -gdb stdio {options}")
    parts = [part for line in [*lines, *commands, "kill"] for part in ("-ex", line)]
    # gdb starts QEMU, and both have to go if one hangs.
    process = subprocess.Popen(
        [gdb, "-nx", "-q", "-batch", *parts],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return output.decode().replace("\r", "")


def random_tables(seed: int, width: int) -> bytes:
    """Tables from ROOT on, by level: `LEVELS` has how many there are of each, the root first."""
    rng = random.Random(seed)
    levels = LEVELS[width]
    pages = []
    first_below = 1
    for depth, count in enumerate(levels):
        below = levels[depth + 1] if depth + 1 < len(levels) else 0
        for _ in range(count):
            page = bytearray(PAGE_SIZE)
            entries = PAGE_SIZE // width
            for index in rng.sample(range(entries), 2 if below else 5):
                for at in range(index, min(index + rng.choice((1, 1, 3)), entries)):
                    entry = rng.randrange(1 << 9) | rng.choice((1, 1, 1, 0))
                    if below and not (depth and rng.random() < 0.3):
                        entry &= ~0x80
                        entry |= ROOT + (first_below + rng.randrange(below)) * PAGE_SIZE
                    elif below:
                        entry |= 0x80 | rng.randrange(4) << 30
                    else:
                        entry |= rng.randrange(1 << 20) << 12
                        # The C-bit is a part of the address to QEMU.
                        entry |= rng.choice((0, 1 << 39)) if width == 8 else 0
                    entry |= rng.choice((0, 1 << 63)) if width == 8 else 0
                    page[at * width : (at + 1) * width] = entry.to_bytes(width, "little")
            pages.append(bytes(page))
        first_below += below
    return b"".join(pages)


def put(register: int, value: int) -> str:
    """gdb sets no registers of flags."""
    return f"maintenance packet P{register:x}={value.to_bytes(8, 'little').hex()}"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", STATES)
def test_mappings(tmp_path: Path, gdb_program: str, qemu: str, mode: str, seed: int) -> None:
    state = STATES[mode]
    data = random_tables(seed, 8 if mode == "long" else 4)
    memory = GuestMemory(64 << 20)
    memory.write(ROOT, data)
    path = tmp_path / "tables"
    path.write_bytes(data)
    output = ask_qemu(
        gdb_program, qemu, f"-device loader,file={path},addr={ROOT:#x},force-raw=on",
        put(CR3, ROOT), put(CR4, state.cr4), put(EFER, state.efer & 0x100), put(CR0, state.cr0),
        "monitor info mem", "monitor info tlb",
    )  # fmt: skip
    theirs = output.splitlines()
    mem = list(mem_lines(PageTables(memory, state)))
    tlb = list(tlb_lines(PageTables(memory, state)))
    if mode == "legacy":
        # 32-bit arithmetic of QEMU's: 2 GiB and above wrap into its signed addresses.
        theirs = [re.sub(r"\bffffffff(?=[89a-f])", "00000000", line) for line in theirs]
    assert [line for line in theirs if re.match(r"[0-9a-f]{16}-", line)] == mem
    assert [line for line in theirs if re.match(r"[0-9a-f]{16}:", line)] == tlb
    assert len(mem) > 5
    assert len(tlb) > 5


def shape(dump: str) -> list[str]:
    """Lines with names, widths and order, without values and flags."""
    lines = [re.sub(r"(?<==)[0-9a-f]+|\b[0-9a-f]{4,}\b", lambda m: "#" * len(m[0]), line.rstrip())
             for line in dump.splitlines()]  # fmt: skip
    return [re.sub(r"\[[-A-Z]+\]", "[*]", line) for line in lines]


def dump_of(output: str) -> str:
    match = re.search(r"^CPU#0\n(?:.*\n)*?XMM14.*$", output, re.MULTILINE)
    assert match is not None, output
    return match[0]


FORMS = ("/7xg", "/5ub", "/9dh", "/6xb", "/3ow", "/20cb", "/4dg", "/2og", "/3xw", "/5i")


def test_registers_and_memory_of_the_same_guest(
    svsmd: Start, gdb_program: str, qemu: str, tmp_path: Path
) -> None:
    """64-bit code that both boot: lines, names and widths are the same, and memory is too."""
    path = tmp_path / "spin"
    path.write_bytes(kernel("spin"))
    machine = svsmd(f"--kernel={path}", "--no-svsm", "-S")
    where = 'eval "monitor %s 0x%lx", $form, $pc'
    commands = ["monitor info registers", "echo \\n"]
    for name in ("xp", "x"):
        for form in FORMS:
            commands += [f'set $form = "{name} {form}"', where]
    commands += ["monitor xp /zx 0", "monitor xp", "monitor x /2xg 0x7fff00000000"]
    theirs = ask_qemu(
        gdb_program, qemu, f"-kernel {path}", f"file {path}", "hbreak _start", "continue", *commands
    )
    ours = machine.gdb(gdb_program, *commands)
    assert shape(dump_of(ours)) == shape(dump_of(theirs))
    values = re.compile(r"^(?:[0-9a-f]{16}|0x[0-9a-f]{8}): .*$", re.MULTILINE)
    assert values.findall(ours) == values.findall(theirs)
    assert len(values.findall(ours)) > 2 * len(FORMS)
    assert "invalid char in format: 'z'" in ours
    assert "00007fff00000000: Cannot access memory" in ours
