# SPDX-License-Identifier: MIT
"""The stock gdb and the boot of the SVSM: from the first 32-bit instruction into its kernel."""

import re
from collections.abc import Callable

import pytest

from tests.svsmd_process import SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]

SYMBOLS = ("add-symbol-file target:/stages.elf", "unset tdesc filename")
"""What docs/gdb.md says: the machine has the stages where they run, and its kernel by itself."""
BASE = 0x1FC0_0000


def names_of_registers(output: str) -> list[str]:
    return re.findall(r"^(\w+) +0x", output, re.MULTILINE)


def test_from_the_first_instruction_into_the_kernel(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo", "-S")
    output = machine.gdb(
        gdb_program,
        *SYMBOLS,
        "echo \\n-- stage 1\\n",
        "frame",
        "info registers",
        "stepi",
        "step",
        "step",
        "echo \\n-- stage 2, 32 bits\\n",
        "break stage2_start32",
        "continue",
        "backtrace",
        "break *((char *) stage2_start64 - 1)",
        "continue",
        "info registers cr0",
        "echo \\n-- stage 2, 64 bits\\n",
        "stepi",
        "frame",
        "info registers",
        "break validate_region",
        "continue",
        "backtrace",
        "finish",
        "next",
        "echo \\n-- kernel\\n",
        "break stage2_enter_kernel",
        "continue",
        "stepi 3",
        "frame",
        "info registers",
        "stepi",
        "step",
        "break svsm_gate_loop",
        "continue",
        "backtrace",
        "print/x ((struct kernel_launch *) ($rax + 0xffff800000000000))->kernel_entry",
        "print &svsm_start",
        "detach",
    )
    before, stage1, stage2_32, stage2_64, kernel = re.split(r"^-- .*$", output, flags=re.MULTILINE)
    assert "Reading symbols from target:/svsm.elf" in before
    assert "Reading /stages.elf from remote target" in before
    assert re.search(r"#0  stage1_start \(\) at \S*stages/stage1\.S:\d+\n\d+\t\tcld", stage1), (
        output
    )
    assert f"rip            {BASE:#x}" in stage1
    lines = [int(n) for n in re.findall(r"^(\d+)\t", stage1, re.MULTILINE)]
    assert lines == list(range(lines[0], lines[0] + 4))

    hit = r"hit Breakpoint 1, stage2_start32 \(\) at \S*stages/entry\.S:\d+"
    assert re.search(hit, stage2_32), output
    assert re.search(r"lretl", stage2_32), output
    assert re.search(r"^cr0 .*\[ PE ET NE WP PG \]", stage2_32, re.MULTILINE), output

    assert re.search(r"#0  stage2_start64 \(\) at \S*stages/entry\.S:\d+", stage2_64), output
    assert re.search(r"^efer .*\[ LME LMA NXE SVME \]", stage2_64, re.MULTILINE), output
    frames = (
        r"#0  validate_region \(info=.*\) at \S*stages/validate\.c:\d+\n"
        rf"#1 .* stage2_main \(base={BASE}, info={BASE + 0x80000:#x}, .*\) at \S*stage2\.c:\d+\n"
        r"#2 .* stage2_start64 \(\) at \S*entry\.S:\d+$"
    )
    assert re.search(frames, stage2_64, re.MULTILINE), output
    assert re.search(r"Value returned is .* = \{launched = \d+, validated = \d+", stage2_64), output

    assert re.search(r"#0  svsm_start \(\) at \S*native/start\.S:\d+", kernel), output
    hit = r"hit Breakpoint 5, svsm_gate_loop \(\) at \S*native/gate\.S:\d+\n\d+\t\tud2"
    assert re.search(hit, kernel), output
    assert re.search(r"\$2 = 0xffffffff80000000", kernel), output

    layouts = [names_of_registers(part) for part in (stage1, stage2_64, kernel)]
    for names in layouts:
        assert names[:17] == layouts[0][:17] == [
            "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11",
            "r12", "r13", "r14", "r15", "rip",
        ]  # fmt: skip
        assert {"cr3", "efer", "vmpl"} <= set(names)
    machine.console().expect("demo> ")


def test_a_panic_of_stage_2_is_seen_in_gdb_where_it_happens(svsmd: Start, gdb_program: str) -> None:
    """The host is honest here, so a debugger plays the hostile one."""
    machine = svsmd("demo", "-S")
    output = machine.gdb(
        gdb_program,
        *SYMBOLS,
        "break panic",
        "break elf_check",
        "continue",
        "set var *(char *) file = 0",
        "continue",
        "backtrace",
        "info locals",
        "continue",
    )
    frames = (
        r"#0  panic \(code=(?:code@entry=)?5, format=.*\) at \S*panic\.c:\d+\n"
        r"#1 .* stage2_main .*stage2\.c:\d+"
    )
    assert re.search(frames, output), output
    assert machine.wait() == 4, machine.stderr
    assert "its second stage panicked, and its log says why" in machine.stderr


def test_the_svsm_console_has_the_lines_of_the_stages(svsmd: Start) -> None:
    machine = svsmd("demo", "--svsm-console=stdio", "--time-limit=60")
    for line in (
        rf"stage 1: started at {BASE:x}, C-bit 39, SEV status 7",
        r"stage 2: long mode, GHCB protocol 2, hypervisor features [0-9a-f]+",
        rf"stage 2: region {BASE:x}\.\.1fffffff: \d+ KiB launched, \d+ KiB validated in .*",
        r"stage 2: kernel of \d+ KiB at [0-9a-f]+, mapped at ffffffff80000000, .*",
        r"stage 2: memory: stages \d+ KiB, .* free behind them \d+ KiB",
        rf"SVSM at {BASE:#x}, 1 vCPUs",
        r"guest starts at 0x200000",
    ):
        machine.stdout.expect(line)
