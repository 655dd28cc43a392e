# SPDX-License-Identifier: MIT
"""How a run ends: the exit codes, and that nothing is left behind."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.elf_kernel import elf_kernel
from tests.svsmd_process import SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]

FOR_EVER = bytes.fromhex("ebfe")  # jmp .
TRIPLE_FAULT = bytes.fromhex("6a006a000f011c24cc")  # push 0; push 0; lidt [rsp]; int3
TERMINATE = bytes.fromhex(  # GHCB MSR = 0x100, a request to terminate; VMGEXIT
    "b9300101c0b80001000031d20f30f30f01d9"
)
WILD_GHCB = bytes.fromhex(  # GHCB MSR = a page that is not there; VMGEXIT; jmp .
    "b9300101c0b800f0ffff31d20f30f30f01d9ebfe"
)


@pytest.fixture
def kernel(tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes an ELF kernel of a few instructions."""

    def make(code: bytes) -> Path:
        path = tmp_path / "kernel"
        path.write_bytes(elf_kernel(code))
        return path

    return make


@pytest.mark.parametrize(
    ("code", "exit_code", "reason"),
    [
        (
            TERMINATE,
            3,
            "terminated (vCPU 0, VMPL2), reason set 0, code 0x0: it said",
        ),
        (TRIPLE_FAULT, 4, "the guest crashed: vCPU 0 at VMPL2: triple fault ("),
        (WILD_GHCB, 4, "the guest crashed"),
    ],
)
def test_guest_ends(
    svsmd: Start, kernel: Callable[[bytes], Path], code: bytes, exit_code: int, reason: str
) -> None:
    machine = svsmd(f"--kernel={kernel(code)}")
    assert machine.wait() == exit_code, machine.stderr
    assert reason in machine.stderr
    assert "Traceback" not in machine.stderr


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
@pytest.mark.parametrize("busy", [True, False])
def test_signals(
    svsmd: Start,
    kernel: Callable[[bytes], Path],
    number: signal.Signals,
    exit_code: int,
    busy: bool,
) -> None:
    if busy:
        machine = svsmd(f"--kernel={kernel(FOR_EVER)}")
        assert machine.gdb_port
    else:
        machine = svsmd("demo")
        machine.console().expect("demo> ")
    sent = time.monotonic()
    machine.send_signal(number)
    assert machine.wait() == exit_code
    assert time.monotonic() - sent < 1


def test_time_limit(svsmd: Start, kernel: Callable[[bytes], Path]) -> None:
    machine = svsmd(f"--kernel={kernel(FOR_EVER)}", "--time-limit=0.5")
    assert machine.wait() == 5
    assert "the time limit of 0.5 s ran out" in machine.stderr


def test_reboot(svsmd: Start) -> None:
    """A reset starts the guest again, or ends the run."""
    machine = svsmd("demo")
    console = machine.console()
    for _ in range(2):
        console.expect("demo> ")
        console.send("reboot\r")
    console.expect("demo> ")
    machine = svsmd("demo", "--on-reboot=exit")
    console = machine.console()
    console.expect("demo> ")
    console.send("reboot\r")
    assert machine.wait() == 0
    assert "the guest reset the machine" in machine.stderr


def test_unix_sockets_are_removed(svsmd: Start, tmp_path: Path) -> None:
    paths = [tmp_path / "gdb", tmp_path / "console"]
    machine = svsmd("demo", f"--gdb=unix:{paths[0]}", f"--serial=unix:{paths[1]}")
    machine.said(r"(debugger: gdb)")
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
    machine.send_signal(signal.SIGINT)
    assert machine.wait() == 130
    assert not any(path.exists() for path in paths)


def test_a_waiting_guest_uses_no_cpu(svsmd: Start) -> None:
    machine = svsmd("demo")
    machine.console().expect("demo> ")

    def cpu_ticks() -> int:
        # Behind the name in parentheses: state is field 3, utime and stime are 14 and 15 (proc(5)).
        fields = Path(f"/proc/{machine.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(0.5)
    before = cpu_ticks()
    time.sleep(2)
    assert (cpu_ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.2


def test_resident_memory(svsmd: Start) -> None:
    machine = svsmd("demo", "--memory=512M")
    machine.console().expect("demo> ")
    pages = int(Path(f"/proc/{machine.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 150 << 20
