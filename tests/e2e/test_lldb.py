# SPDX-License-Identifier: MIT
"""Debian's lldb as a client: it knows the protocol from another source than gdb."""

import re
import subprocess
from collections.abc import Callable

import pytest

from svsmd.elf_symbols import elf_symbols
from svsmd.images import image_path
from tests.svsmd_process import SECONDS, SvsmdProcess
from tools.apt_packages import AptError
from tools.gdb_testsuite.packages import LLDB_PACKAGES, Unpacked, unpacked

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]


@pytest.fixture(scope="session")
def lldb() -> Unpacked:
    """lldb, unpacked and not installed."""
    try:
        return unpacked(LLDB_PACKAGES)
    except AptError as error:
        pytest.skip(f"no lldb: {error}")


def address_of(symbol: str) -> int:
    """Of something in the demo guest."""
    return elf_symbols(image_path("demo").read_bytes())[symbol].start


def run_lldb(lldb: Unpacked, machine: SvsmdProcess, *commands: str) -> str:
    """What it prints that attaches and executes commands; it leaves at the first that fails."""
    lines = (
        f"target create {image_path('demo')}",
        f"gdb-remote 127.0.0.1:{machine.gdb_port}",
        *commands,
    )
    options = [part for line in lines for part in ("-o", line)]
    done = subprocess.run(
        [lldb.program("lldb"), "--no-lldbinit", "--batch", *options],
        env=lldb.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, timeout=SECONDS, check=False,
    )  # fmt: skip
    return done.stdout.decode(errors="backslashreplace")


def test_a_session(svsmd: Start, lldb: Unpacked) -> None:
    """From the first instruction on: breakpoints, steps, watchpoints, registers, memory."""
    machine = svsmd("demo", "-S", "--cpus=2")
    console = machine.console()
    counter = hex(address_of("demo_counter"))
    text = run_lldb(
        lldb, machine,
        "breakpoint set -n demo_main", "breakpoint set -n shell", "continue", "bt",
        "register read rip rdi cs", "register read cr3 vmpl",
        "thread step-inst", "register read rip",
        "breakpoint disable 1", "continue", "bt 2", "next",
        f"memory write --size 8 {counter} 0x1122334455667788",
        f"memory read --format x --size 8 --count 2 {counter}", "target variable demo_counter",
        "register write rbx 0x1234", "register read rbx",
        "thread list", "breakpoint delete 1 2", "detach",
    )  # fmt: skip
    assert "error:" not in text.replace("error: memory read failed for 0x1fc00000", ""), text
    stops = re.findall(r"\* thread #1, stop reason = (.*)", text)
    assert stops[0] == "signal SIGTRAP", text
    assert "breakpoint 1.1" in stops, text
    assert "breakpoint 2.1" in stops, text
    assert "instruction step into" in stops, text
    assert "step over" in stops, text
    assert re.search(r"frame #\d: 0x\w+ demo.elf`demo_main\(boot_params=\d+\) at main.c", text)
    assert re.search(r"frame #\d: 0x\w+ demo.elf`image_start at start.S", text), text
    assert "vmpl = 0x00000002" in text, text
    assert re.search(r"cr3 = 0x0*[1-9a-f]\w*", text), text
    rips = re.findall(r" rip = (0x\w+)", text)
    assert len(set(rips)) == 2, text
    assert re.search(r"thread #2: tid = 0x0002", text), text
    assert f"{int(counter, 16):#010x}: 0x1122334455667788" in text, text
    assert f"demo_counter = {0x1122334455667788}" in text, text
    assert "rbx = 0x0000000000001234" in text, text
    assert "Process 1 detached" in text, text
    console.expect("demo> ")


def test_watchpoints_and_a_machine_that_runs(svsmd: Start, lldb: Unpacked) -> None:
    machine = svsmd("demo", "--cpus=2")
    console = machine.console()
    console.expect("demo> ")
    console.send("busy\r")
    console.expect("any key stops")
    text = run_lldb(
        lldb, machine,
        f"watchpoint set expression -w write -s 8 -- {address_of('demo_counter')}",
        "continue", "bt 1",
        "watchpoint delete 1", "detach",
    )  # fmt: skip
    assert "stop reason = watchpoint 1" in text, text
    assert "old value:" in text, text
    assert re.search(r"frame #0: 0x\w+ demo.elf`demo_busy_loop", text), text
    assert "Process 1 detached" in text, text
    console.send("x")
    console.expect("demo_counter is ")


def test_leaving_in_the_middle(svsmd: Start, lldb: Unpacked) -> None:
    """lldb's `quit` kills, which for a machine is to let it go; the next debugger finds it well."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    console.send("busy\r")
    console.expect("any key stops")
    assert "step into" in run_lldb(lldb, machine, "breakpoint set -n shell", "thread step-inst")
    assert "Process 1 detached" in run_lldb(lldb, machine, "thread list", "detach")
    console.send("x")
    console.expect("demo_counter is ")
    console.expect("demo> ")
