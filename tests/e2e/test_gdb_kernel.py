# SPDX-License-Identifier: MIT
"""Stock kernels with the symbols that are in them: without one that runs, and in a live machine."""

import re
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from svsmd.symbols.call_frames import Landings
from svsmd.symbols.dwarf import Reg
from svsmd.symbols.image import read_image
from tests.kernel_image import ORC_HASHES, Orc, read_rows
from tests.linux_debugging import (
    CURRENT,
    ON_DEBIAN,
    OPENED,
    STOCK,
    assert_in_order,
    attached,
    boot,
    frames,
    kernel_of,
    number,
    work_and_power_off,
)
from tests.linux_shell import BOOT_SECONDS, PROMPT
from tests.svsmd_process import Linux, SvsmdProcess
from tests.symbol_reader import SymbolReader
from tests.unwinders import assert_same_caller

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]


def make_symbols(kernel: Path, directory: Path, *options: str) -> Path:
    """The symbols of a kernel; there is nothing to complain of."""
    output = directory / f"{kernel.name}.symbols"
    command = [sys.executable, "-m", "svsmd", "symbols", str(kernel), str(output), *options]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == (b"", b"")
    return output


@pytest.fixture(scope="module", params=[STOCK, *(["sid"] if ON_DEBIAN else [])])
def booted(
    request: pytest.FixtureRequest, linux: Linux, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Linux, Path]:
    """A kernel that runs under an SVSM with its initrd, and its symbols."""
    kernel = kernel_of(request.param, linux)
    symbols = make_symbols(kernel, tmp_path_factory.mktemp("symbols"))
    return Linux(kernel, linux.initrd), symbols


# -- without a machine --------------------------------------------------------------------------


@pytest.mark.parametrize("suite", [STOCK, *(["bookworm", "sid"] if ON_DEBIAN else [])])
def test_what_gdb_knows(suite: str, linux: Linux, gdb_program: str, tmp_path: Path) -> None:
    symbols = make_symbols(kernel_of(suite, linux), tmp_path)
    commands = (
        "print sizeof(struct pt_regs)",
        "ptype vfs_read",
        "whatis jiffies",
        "whatis init_task",
        "info symbol entry_SYSCALL_64_after_hwframe",
        "print &((struct pt_regs *)0)->ip",
        "break do_sys_openat2",
    )
    arguments = [part for command in commands for part in ("-ex", command)]
    done = subprocess.run(
        [gdb_program, "-nx", "-batch", *arguments, symbols],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert [re.sub(r"0x[0-9a-f]+", "0x", line) for line in done.stdout.splitlines()] == [
        "$1 = 168",
        "type = long (struct file *, char *, size_t, loff_t *)",
        "type = unsigned long",
        "type = struct task_struct",
        "entry_SYSCALL_64_after_hwframe in section .text",
        "$2 = (unsigned long *) 0x",
        "Breakpoint 1 at 0x",
    ]


@pytest.mark.parametrize("suite", [STOCK, *(["bookworm", "sid"] if ON_DEBIAN else [])])
def test_call_frames(suite: str, linux: Linux, tmp_path: Path) -> None:
    """They lead where the kernel's own unwinder goes, from some instructions of each kind."""
    kernel = kernel_of(suite, linux)
    sections = read_image(kernel.read_bytes())
    ips, entries = sections[".orc_unwind_ip"], sections[".orc_unwind"]
    header = sections.get(".orc_header")
    versions = {known: version for version, known in ORC_HASHES.items()}
    version = versions[header.data.hex()] if header else "6.1"
    rows = read_rows(ips.data, ips.address, entries.data, version)
    starts = [row.address for row in rows]
    reader = SymbolReader(make_symbols(kernel, tmp_path).read_bytes())
    frames = {frame["initial_location"]: frame for frame in reader.call_frames()}
    beginnings = sorted(frames)
    landings = Landings.below(sections[".text"].address)
    below = [frames[landing - 1] for landing in (landings.iret, landings.regs)]

    random = Random(0)
    kinds: dict[tuple[str, str, str], list[Orc]] = {}
    for row in rows:
        kinds.setdefault((row.kind, row.sp, row.bp), []).append(row)
    for same in kinds.values():
        for row in random.sample(same, min(len(same), 60)):
            place = bisect_right(starts, row.address) - 1
            row = rows[place]  # the last one for this address
            near = frames[beginnings[bisect_right(beginnings, row.address) - 1]]
            registers = {reg: random.getrandbits(64) for reg in Reg} | {Reg.RIP: row.address}
            assert_same_caller(row, registers, [near, *below], reader.dwarf, landings)


# -- with one -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2])
def test_running_kernel(
    svsmd: Start, booted: tuple[Linux, Path], gdb_program: str, cpus: int
) -> None:
    """A system call, an interrupt on each vCPU, idle vCPUs, variables, and away again."""
    linux, symbols = booted
    machine, console = boot(svsmd, linux, f"--cpus={cpus}")
    with attached(machine, gdb_program, symbols) as gdb:
        gdb.send(f'break do_sys_openat2 if $_streq((char *)filename, "{OPENED}")')
        gdb.expect("Breakpoint 1 at 0x")
        gdb.resume()
        console.send(f"cat {OPENED}\r")
        gdb.expect(rf'Breakpoint 1, .*do_sys_openat2 \(dfd=-100, filename=0x\w+ "{OPENED}", how=0x')
        # Behind the program's own frame are those that gdb guesses: nobody knows its code.
        assert frames(gdb)[:6] == [
            "do_sys_openat2", "__x64_sys_openat", "do_syscall_64",
            "entry_SYSCALL_64_after_hwframe", "<signal handler called>", "??",
        ]  # fmt: skip
        gdb.send("print *how")
        gdb.expect(r"= \{flags = 32768, mode = 0, resolve = 0\}")
        before = number(gdb, "jiffies")
        old, new = CURRENT
        gdb.send("info address pcpu_hot")
        current = new if gdb.expect("No symbol|is ")[0] == "No symbol" else old
        gdb.send(f"print ({current})->comm")
        gdb.expect(r'= "cat"')
        gdb.send("finish")
        gdb.expect(r"__x64_sys_openat[^\0]*Value returned is \$\d+ = 3")
        # A caller's registers are not known, and are not made up.
        gdb.send("up")
        gdb.send("print $rbx")
        gdb.expect("<not saved>")
        gdb.send("delete")

        for thread in range(1, cpus + 1):
            gdb.send(f"tbreak update_process_times thread {thread}")
            gdb.expect(r"Temporary breakpoint \d+ at 0x")
            gdb.send("continue")
            gdb.expect(r"Temporary breakpoint \d+, .*update_process_times \(user_tick=[01]\)")
            found = frames(gdb)
            assert_in_order(
                found,
                ["update_process_times", "asm_sysvec_apic_timer_interrupt",
                 "<signal handler called>"],
            )  # fmt: skip
            interrupted = found[found.index("<signal handler called>") + 1 :]
            # An idle vCPU, a kernel thread, a system call or a program; each is known to its end.
            assert interrupted
            assert found[-1] in (
                "common_startup_64", "ret_from_fork_asm", "??"
            ), found  # fmt: skip
        assert number(gdb, "jiffies") > before

        # Sooner or later they have nothing to do.
        for thread in range(1, cpus + 1):
            gdb.send(f"tbreak tick_nohz_idle_enter thread {thread}")
            gdb.send("continue")
            gdb.expect("Temporary breakpoint \\d+, .*tick_nohz_idle_enter")
            assert_in_order(frames(gdb), ["tick_nohz_idle_enter", "do_idle", "common_startup_64"])
        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
    work_and_power_off(machine, console)


def test_interrupts_of_a_busy_kernel(
    svsmd: Start, booted: tuple[Linux, Path], gdb_program: str
) -> None:
    """Wherever an interrupt comes, its backtrace goes down to where the kernel was entered."""
    linux, symbols = booted
    machine, console = boot(svsmd, linux, "--cpus=2")
    console.send("dd if=/dev/zero of=/dev/null bs=1M &\r")
    console.expect(PROMPT)
    console.send("while :; do :; done &\r")
    console.expect(PROMPT)
    with attached(machine, gdb_program, symbols) as gdb:
        gdb.send("break update_process_times")
        gdb.expect(r"Breakpoint 1 at 0x")
        seen: set[str] = set()
        # A newer kernel is busy with itself for a while.
        for number_of_ticks in range(300):
            if number_of_ticks >= 25 and {"entry_SYSCALL_64_after_hwframe", "??"} <= seen:
                break
            gdb.send("continue")
            gdb.expect(r"Breakpoint 1, .*update_process_times \(")
            found = frames(gdb)
            assert_in_order(found, ["asm_sysvec_apic_timer_interrupt", "<signal handler called>"])
            ends = ("common_startup_64", "ret_from_fork_asm", "??")
            assert found[-1] in ends, found
            seen |= set(found)
        assert {"entry_SYSCALL_64_after_hwframe", "??"} <= seen
        gdb.send("delete")
        gdb.resume()
    console.send("kill %1 %2\r")
    work_and_power_off(machine, console)


def test_kernel_that_has_moved(
    svsmd: Start, booted: tuple[Linux, Path], gdb_program: str, tmp_path: Path
) -> None:
    """A file made for where it is, and one that gdb moves there, are the same."""
    linux, symbols = booted
    machine, console = boot(svsmd, linux, "--decompress=guest")
    console.send("grep ' _text$' /proc/kallsyms\r")
    text = console.expect("^([0-9a-f]{16}) T _text$")[1]
    fixed = make_symbols(linux.kernel, tmp_path, "--text", text)
    for file in (symbols, fixed):
        with attached(machine, gdb_program, file) as gdb:
            assert number(gdb, "&_text") % (1 << 64) == int(text, 16)
            assert number(gdb, "&entry_SYSCALL_64 == $lstar") == 1
            gdb.send("print linux_banner")
            gdb.expect(r'= "Linux version ')
            gdb.send("quit")
            gdb.wait()
    work_and_power_off(machine, console)


def test_from_the_first_instruction(
    svsmd: Start, booted: tuple[Linux, Path], gdb_program: str
) -> None:
    """Breakpoints by name before the kernel has made its page tables."""
    linux, symbols = booted
    machine = svsmd(
        f"--kernel={linux.kernel}", f"--initrd={linux.initrd}", "--append=console=ttyS0", "-S"
    )
    console = machine.console()
    with attached(machine, gdb_program, symbols) as gdb:
        gdb.send("break start_kernel")
        gdb.send("break rest_init")
        for function in ("start_kernel", "rest_init"):
            gdb.send("continue")
            gdb.expect(rf"Breakpoint \d, .*{function} \(\)")
            assert_in_order(frames(gdb), [function, "x86_64_start_kernel", "common_startup_64"])
        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    work_and_power_off(machine, console)
