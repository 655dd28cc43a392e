# SPDX-License-Identifier: MIT
"""Registers in every mode, and steps among interrupts, as the stock gdb shows them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.gdbstub.target_xml import REGISTERS
from svsmd.images import image_path
from tests.linux_shell import COMMAND_LINE
from tests.svsmd_process import Linux, SvsmdProcess
from tests.symbol_reader import SymbolReader

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")

MODES = """
set $n = 0
set $mode = -1
while $cpu_mode != 6 && $n < 3000
  if $cpu_mode != $mode
    set $mode = (int) $cpu_mode
    output $cpu_mode
    printf " at cs_base %#lx + %#lx is %#lx\\n", $cs_base, $rip - $cs_base, $pc_lin
  end
  stepi
  set $n = $n + 1
end
output $cpu_mode
"""

TIMER = """
break apic_timer_start
continue
finish
delete
eval "tbreak cpu_pause if $tsc > %lu", $tsc + 99300
continue
set $n = 0
while $n < 300
  next
  printf "off %#lx\\n", $pc
  set $n = $n + 1
end
while $n < 600
  stepi
  printf "off %#lx\\n", $pc
  set $n = $n + 1
end
printf "clock %lu, taken %u\\n", $tsc, taken
SWITCH
set $n = 0
while $n < 5
  stepi
  printf "on %#lx\\n", $pc
  set $n = $n + 1
end
backtrace 3
tbreak apic_timer_stop
continue
printf "clock %lu, taken %u\\n", $tsc, taken
delete
continue
"""
"""The selftest irq.timer: a loop that an interrupt ends once its 100,000 ticks are over."""


def values(output: str) -> dict[str, str]:
    """What `info registers` has printed, without the numbers."""
    return dict(re.findall(r"^(\w+) +(?:0x[0-9a-f]+|-?\d\S*|\{.*\}) +(.*)$", output, re.MULTILINE))


def test_every_register_is_there(svsmd: Start, gdb_program: str) -> None:
    """In the SVSM's 32-bit code before its first instruction; no name and no number twice."""
    machine = svsmd("demo", "-S")
    output = machine.gdb(
        gdb_program,
        "unset tdesc filename",  # of the SVSM: gdb has read it for the first inferior
        "print $cpu_mode",
        "print $pc_lin",
        "info registers all",
        "info registers system",
        "echo == remote\\n",
        "maintenance print remote-registers",
    )
    first, _, remote = output.partition("== remote")
    assert "$1 = PROTECTED_32" in first
    assert re.search(r"^\$2 = \(void \(\*\)\(\)\) 0x1fc00000$", first, re.MULTILINE)
    assert "unavailable" not in first
    shown = values(first)
    assert shown["cr0"] == "[ PE ET NE ]"
    assert shown["cr4"] == shown["eflags"] == "[ ]"
    assert shown["efer"] == "[ SVME ]"
    listed = re.findall(r"^ (\w+) +\d+ +\d+ +\d+ +\d+ \S+ +(\d+)", remote, re.MULTILINE)
    numbers = sorted((int(number), name) for name, number in listed)
    assert numbers == list(enumerate(r.name for r in REGISTERS))
    for register in REGISTERS:
        assert re.search(rf"^{register.name} +\S", first, re.MULTILINE), register.name


def test_writes_in_64_bit_code(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    machine.console().expect("demo> ")
    output = machine.gdb(
        gdb_program,
        "print $cpu_mode", "print $cr0", "print $cr4", "print $efer", "print $eflags",
        "print/x $cr3", "set $cr3 = $cr3 + 0x10000000000", "set $cr3 = 0x1000", "print/x $cr3",
        "x/xb $pc",
        "set $st0 = 1.5", "set $st7 = -2", "print $st0 + $st7",
        "set $xmm1.v2_double[1] = 0.25", "print $xmm1.v2_double",
        "set $eflags |= 1", "print $eflags",
        "set $cr0 = $cr0 & ~0x10000", "print $cr0", "set $cr0 = 0x11",
        "set $efer = $efer | 0x4000", "print $efer", "set $efer = 0x1101",
        "set $dr0 = &demo_counter", "print $dr0", "set $dr7 = 0x401", "print/x $dr7",
        "set $lstar = 0x800000000000", "set $cs = 0x18", "set $fs = 0x10",
        "set $tr_limit = 0x68", "print $tr_limit", "set $cr8 = 16", "set $cr8 = 3", "print $cr8",
        "set $vmpl = 1", "set $cpu_mode = 0", "set $pc_lin = 0",
        "print/x $sev_status", "print $pc == $pc_lin",
        symbols=DEMO,
    )  # fmt: skip
    for line in (
        r"\$1 = LONG_64",
        r"\$2 = \[ PE MP ET NE WP PG \]",
        r"\$3 = \[ PAE OSFXSR OSXMMEXCPT \]",
        r"\$4 = \[ SCE LME LMA NXE SVME \]",
        r"\$5 = \[ .*IF \]",
        r"\$6 = 0x80002[0-9a-f]{5}",
        r".*'E\.cr3 has 40 bits, 0x180002[0-9a-f]{5} has more'",
        r"\$7 = 0x1000",
        r"0x[0-9a-f]+.*:\tCannot access memory at address 0x[0-9a-f]+",
        r"\$8 = -0\.5",
        r"\$9 = \{.*, 0\.25\}",
        r"\$10 = \[ CF .*IF \]",
        r"\$11 = \[ PE MP ET NE PG \]",
        r".*'E\.cr0 cannot become 0x11 here: a general protection exception \(24593, 3\.1\.1\)'",
        r"\$12 = \[ SCE LME LMA NXE SVME FFXSR \]",
        r".*'E\.LMA follows from LME and CR0\.PG'",
        r"\$13 = \(void \*\) 0x[0-9a-f]+ <demo_counter>",
        r"\$14 = 0x401",
        r".*'E\.0x800000000000 is not a canonical address, as lstar has to be'",
        r".*'E\..*0x18.*",
        r"\$15 = 104",
        r".*'E\.cr8 has 4 bits, 0x10 has more'",
        r"\$16 = 3",
        r".*'E\.vmpl cannot be written: it belongs to the VMSA'",
        r".*'E\.cpu_mode cannot be written: it follows from cr0, efer, eflags and cs'",
        r".*'E\.pc_lin cannot be written: set rip'",
        r"\$17 = 0x7",
        r"\$18 = 1",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), f"{line}\n{output}"


@pytest.mark.slow
def test_modes_on_the_way_to_64_bits(
    svsmd: Start, gdb_program: str, linux: Linux, tmp_path: Path
) -> None:
    """The second vCPU of a Linux starts in real mode."""
    script = tmp_path / "modes.gdb"
    script.write_text(MODES)
    machine = svsmd(
        "-S", "--cpus=2", f"--kernel={linux.kernel}", f"--initrd={linux.initrd}",
        f"--append={COMMAND_LINE}",
    )  # fmt: skip
    output = machine.gdb(
        gdb_program,
        "set schedule-multiple on",
        "monitor catch vmpl vcpu == 1 and to == 2",
        "continue",
        "thread 1.2",
        f"source {script}",
        seconds=120,
    )
    where = re.findall(r"^([A-Z_0-9]+) at cs_base (\w+) \+ (\w+) is (\w+)$", output, re.MULTILINE)
    assert [mode for mode, *_ in where] == [
        "REAL", "PROTECTED_16", "PROTECTED_32", "COMPATIBILITY_32"
    ]  # fmt: skip
    assert output.count("LONG_64") == 1
    numbers = [tuple(int(number, 16) for number in rest) for _, *rest in where]
    assert numbers[0][0] != 0, "the base of CS in real mode"
    assert all((base + offset) == linear for base, offset, linear in numbers)


def steps(svsmd: Start, gdb: str, tmp_path: Path, switch: str) -> str:
    """A run of TIMER."""
    script = tmp_path / "timer.gdb"
    script.write_text(TIMER.replace("SWITCH", switch))
    machine = svsmd("demo", "-S", "--append=selftest")
    output = machine.gdb(gdb, f"source {script}", symbols=DEMO)
    assert "exited normally" in output, output
    assert machine.wait() == 0, machine.stderr
    return output


@pytest.mark.parametrize("switch", ["monitor step-irq on", "maintenance packet Qqemu.sstep=0x1"])
def test_steps_and_interrupts(svsmd: Start, gdb_program: str, tmp_path: Path, switch: str) -> None:
    """300 `next` and 300 `stepi`, an interrupt pending; then with it, and it came once."""
    output = steps(svsmd, gdb_program, tmp_path, switch)
    function = SymbolReader(DEMO.read_bytes()).symbol("irq_timer")
    start, size = function["st_value"], function["st_size"]
    off = [int(pc, 16) for pc in re.findall(r"^off (0x[0-9a-f]+)$", output, re.MULTILINE)]
    on = [int(pc, 16) for pc in re.findall(r"^on (0x[0-9a-f]+)$", output, re.MULTILINE)]
    assert (len(off), len(on)) == (600, 5)
    assert all(start <= pc < start + size for pc in off)
    assert not any(start <= pc < start + size for pc in on)
    assert re.search(r"^#0  <signal handler called>\n#1 +cpu_pause", output, re.MULTILINE), output
    clocks = re.findall(r"^clock (\d+), taken (\d)$", output, re.MULTILINE)
    assert [taken for _, taken in clocks] == ["0", "1"]


def test_steps_are_the_same_in_every_run(svsmd: Start, gdb_program: str, tmp_path: Path) -> None:
    first, second = (
        re.findall(r"^(?:off|on|clock) .*$", steps(svsmd, gdb_program, tmp_path, ""), re.MULTILINE)
        for _ in range(2)
    )
    assert len(first) == 607
    assert first == second
