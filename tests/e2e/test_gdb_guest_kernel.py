# SPDX-License-Identifier: MIT
"""`target remote` alone: a stock kernel has its symbols, where it runs, from the first on."""

import contextlib
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.symbols.elf_file import PT_LOAD
from svsmd.symbols.image import EHDR, SHDR, SHF_ALLOC, read_image
from svsmd.symbols.kernel import symbol_file
from tests.linux_debugging import (
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
from tests.svsmd_process import Linux, Program, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

Start = Callable[..., SvsmdProcess]

KASLR = "--decompress=guest"
BANNER = r'= "Linux version '


def start(svsmd: Start, linux: Linux, *options: str) -> SvsmdProcess:
    """A machine that has not begun."""
    files = (f"--kernel={linux.kernel}", f"--initrd={linux.initrd}")
    return svsmd(*files, "--append=console=ttyS0", "-S", *options)


def continue_to(gdb: Program, function: str) -> None:
    gdb.send("continue")
    gdb.expect(rf"[Bb]reakpoint \d+, (?:0x\w+ in )?{function} \(")


def opens_a_file(gdb: Program, console_send: Callable[[str], None]) -> list[str]:
    """The frames of a system call, down to where the program is left."""
    gdb.send(f'tbreak do_sys_openat2 if $_streq((char *)filename, "{OPENED}")')
    gdb.expect(r"Temporary breakpoint \d+ at 0x")
    gdb.resume()
    console_send(f"cat {OPENED}\r")
    gdb.expect(rf'do_sys_openat2 \(dfd=-100, filename=0x\w+ "{OPENED}", how=0x')
    found = frames(gdb)
    return found[: found.index("<signal handler called>") + 1]


SYSTEM_CALL = [
    "do_sys_openat2", "__x64_sys_openat", "do_syscall_64",
    "entry_SYSCALL_64_after_hwframe", "<signal handler called>",
]  # fmt: skip


def test_from_the_first_instruction(svsmd: Start, linux: Linux, gdb_program: str) -> None:
    """Breakpoints by name before the kernel is unpacked, and has chosen where to be."""
    machine = start(svsmd, linux, KASLR)
    console = machine.console()
    with attached(machine, gdb_program) as gdb:
        linked = {}
        for function in ("x86_64_start_kernel", "start_kernel", "rest_init"):
            gdb.send(f"break {function}")
            linked[function] = int(gdb.expect(r"Breakpoint \d+ at (0x\w+)")[1], 16)
        # The other breakpoints stay as well.
        gdb.send("tbreak svsm_gate_loop")
        gdb.expect(r"Temporary breakpoint \d+ at 0x")
        continue_to(gdb, "svsm_gate_loop")
        gdb.send("continue")
        gdb.expect("is executing new program: /guest.elf")
        gdb.expect(r"Breakpoint 1, 0x\w+ in x86_64_start_kernel \(")
        moves = {number(gdb, f"&{name}") % (1 << 64) - at for name, at in linked.items()}
        (move,) = moves
        assert move > 0
        # The kernel itself has moved the address of that function, too.
        assert number(gdb, "*(unsigned long *)&initial_code == (long)&x86_64_start_kernel") == 1
        for function in ("start_kernel", "rest_init"):
            continue_to(gdb, function)
            assert_in_order(frames(gdb), [function, "x86_64_start_kernel", "common_startup_64"])
        gdb.send("print init_task.comm")
        gdb.expect(r'= "swapper')
        gdb.send("delete")
        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    console.send("grep ' _text$' /proc/kallsyms\r")
    text = console.expect("^([0-9a-f]{16}) T _text$")[1]

    # The file is there already, and the next debugger knows at once where the kernel is.
    with attached(machine, gdb_program) as gdb:
        assert number(gdb, "&_text") % (1 << 64) == int(text, 16)
        gdb.send("info line do_idle")
        gdb.expect(r"No line number information available for address 0x\w+ <do_idle>")
        gdb.send("x/2i do_idle")
        gdb.expect(r"<do_idle>:\s+nop[^\0]*<do_idle\+5>:")
        gdb.send("print linux_banner")
        gdb.expect(BANNER)
        assert number(gdb, "jiffies") > 0
        gdb.send("tbreak tick_nohz_idle_enter")
        continue_to(gdb, "tick_nohz_idle_enter")
        assert_in_order(frames(gdb), ["tick_nohz_idle_enter", "do_idle", "start_kernel"])
        assert opens_a_file(gdb, console.send) == SYSTEM_CALL
    work_and_power_off(machine, console)


@pytest.mark.slow
@pytest.mark.parametrize("decompress", ["host", "guest"])
@pytest.mark.parametrize("suite", [STOCK, *(["bookworm", "sid"] if ON_DEBIAN else [])])
def test_kernels(svsmd: Start, linux: Linux, gdb_program: str, suite: str, decompress: str) -> None:
    """Each kernel, however it is loaded, when it has booted and once more from its start on."""
    options = [f"--decompress={decompress}"]
    if suite == "bookworm":
        options.append("--no-svsm")  # it knows no SVSM
    linux = Linux(kernel_of(suite, linux), linux.initrd)
    machine, console = boot(svsmd, linux, *options)
    console.send("grep ' _text$' /proc/kallsyms\r")
    text = console.expect("^([0-9a-f]{16}) T _text$")[1]
    with attached(machine, gdb_program) as gdb:
        assert number(gdb, "&_text") % (1 << 64) == int(text, 16)
        gdb.send("print linux_banner")
        gdb.expect(BANNER)
        assert opens_a_file(gdb, console.send) == SYSTEM_CALL
        gdb.send("tbreak tick_nohz_idle_enter")
        continue_to(gdb, "tick_nohz_idle_enter")
        assert_in_order(frames(gdb), ["tick_nohz_idle_enter", "do_idle"])
    work_and_power_off(machine, console)

    machine = start(svsmd, linux, *options, "--cpus=2")
    console = machine.console()
    with attached(machine, gdb_program) as gdb:
        gdb.send("break start_kernel")
        gdb.send("break rest_init")
        for function in ("start_kernel", "rest_init"):
            continue_to(gdb, function)
        moved = "is executing new program" in gdb.transcript
        assert moved == (decompress == "guest")
        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
    console.expect("SVMBOOT: shell", BOOT_SECONDS)
    console.expect(PROMPT)
    work_and_power_off(machine, console)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--no-svsm",)])
def test_reboot(svsmd: Start, linux: Linux, gdb_program: str, options: tuple[str, ...]) -> None:
    """The next boot chooses anew; breakpoints and watchpoints go with it."""
    machine, console = boot(svsmd, linux, KASLR, *options)
    with attached(machine, gdb_program) as gdb:
        places = [number(gdb, "&_text")]
        gdb.send("break start_kernel")
        gdb.send("inferior 1")
        gdb.send("watch nr_cpu_ids")
        gdb.expect("Hardware watchpoint 2: nr_cpu_ids")
        for _ in range(2):
            gdb.resume()
            console.send("reboot -f\r")
            gdb.expect("is executing new program")
            gdb.expect(r"Breakpoint 1, 0x\w+ in start_kernel \(\)")
            assert_in_order(frames(gdb), ["start_kernel", "common_startup_64"])
            places.append(number(gdb, "&_text"))
            gdb.send("continue")
            gdb.expect(r"Hardware watchpoint 2: nr_cpu_ids[^\0]*New value = 1$")
            gdb.resume()
            console.expect("SVMBOOT: shell", BOOT_SECONDS)
            console.expect(PROMPT)
            gdb.interrupt()
            gdb.expect("received signal SIGINT")
        assert len(set(places)) > 1
        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
    work_and_power_off(machine, console)


def vmlinux_like(symbols: bytes) -> bytes:
    """The same file as linkers make a vmlinux: ET_EXEC, with a segment for each few sections."""
    header = list(EHDR.unpack_from(symbols))
    sections = [SHDR.unpack_from(symbols, header[6] + n * SHDR.size) for n in range(header[12])]
    spans = [(s[3], s[3] + s[5]) for s in sections if s[2] & SHF_ALLOC]
    groups = [spans[at : at + 3] for at in range(0, len(spans), 3)]
    assert len(groups) > 2
    table = b"".join(
        struct.pack("<IIQQQQQQ", PT_LOAD, 7, 0, group[0][0], 0, 0, group[-1][1] - group[0][0], 8)
        for group in groups
    )
    header[1], header[5], header[10] = 2, len(symbols), len(groups)
    return EHDR.pack(*header) + symbols[EHDR.size :] + table


@pytest.mark.slow
def test_symbols_of_ones_own(svsmd: Start, linux: Linux, gdb_program: str, tmp_path: Path) -> None:
    """What is given to gdb as the kernel's file is moved, too, and not replaced."""
    symbols = symbol_file(read_image(linux.kernel.read_bytes())).data
    for name, data in (("kernel.symbols", symbols), ("vmlinux", vmlinux_like(symbols))):
        (tmp_path / name).write_bytes(data)
    machine, console = boot(svsmd, linux, KASLR)
    for name in ("kernel.symbols", "vmlinux"):
        with attached(machine, gdb_program, tmp_path / name) as gdb:
            gdb.send("info inferiors")
            gdb.expect(f"process 3 +.*/{name}")
            gdb.send("print linux_banner")
            gdb.expect(BANNER)
            gdb.send("print init_task.comm")
            gdb.expect(r'= "swapper')
            assert opens_a_file(gdb, console.send) == SYSTEM_CALL
    work_and_power_off(machine, console)

    machine = start(svsmd, linux, KASLR)
    console = machine.console()
    with attached(machine, gdb_program, tmp_path / "vmlinux") as gdb:
        gdb.resume()
        console.expect("SVMBOOT: shell", BOOT_SECONDS)
        gdb.interrupt()
        gdb.expect("received signal SIGINT")
        gdb.send("inferior 1")
        gdb.send(f"symbol-file -o $lstar-(long)&entry_SYSCALL_64 {tmp_path / 'vmlinux'}")
        gdb.send("print linux_banner")
        gdb.expect(BANNER)
        assert "executing new program" not in gdb.transcript
    console.expect(PROMPT)
    work_and_power_off(machine, console)


@pytest.mark.slow
def test_nobody_waits_for_symbols(svsmd: Start, linux: Linux, gdb_program: str) -> None:
    """While they are made a console is served, a debugger may go, and so may the daemon."""
    machine = svsmd("--kernel", str(linux.kernel), "-S", "--serial=ring:64K")
    command = machine.gdb_command(gdb_program)
    with Program(command) as gdb:
        gdb.expect("Reading /guest.elf")
        child = child_of(machine.pid)
    # That one was killed. The next one has its place at once, and waits for its own file.
    with Program(machine.gdb_command(gdb_program, "inferior 1", "print &init_task")) as gdb:
        gdb.expect(r"= \(struct task_struct \*\) 0x\w+ <init_task>")
        assert not Path(f"/proc/{child}").exists()
    machine = svsmd("--kernel", str(linux.kernel), "-S", "--serial=ring:64K")
    with Program(machine.gdb_command(gdb_program)) as gdb:
        gdb.expect("Reading /guest.elf")
        child = child_of(machine.pid)
        machine.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert machine.wait() == 0
        assert time.monotonic() - began < 5
        assert not Path(f"/proc/{child}").exists()


def child_of(pid: int) -> int:
    """The process that a process has started."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                    return int(stat.parent.name)
        time.sleep(0.01)
    raise AssertionError(f"{pid} has no child")
