# SPDX-License-Identifier: MIT
"""A panic of the SVSM, with gdb attached and without: report, stop, exit code, wiped secrets.

gdb plays the host that answers what it likes, and the bug that makes native code fault.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svsmd.config import MIB
from svsmd.core.port import PRIVATE_MAP
from svsmd.errors import ExitCode
from svsmd.host.layout import SvsmRegion
from svsmd.snp.types import PAGE_SIZE
from tests.svsmd_process import Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
SECRETS = PRIVATE_MAP + SvsmRegion.at_top_of([range(64 * MIB)]).secrets


@contextmanager
def stopped_in_the_svsm(
    svsmd: Start, gdb: str, *options: str
) -> Iterator[tuple[SvsmdProcess, Program]]:
    """At the gate, with the answer to a page state change in RAX: the second vCPU's GHCB page."""
    machine = svsmd("demo", "-S", "--memory=64M", "--cpus=2", *options)
    with Program(machine.gdb_command(gdb, "echo attached\\n")) as session:
        session.expect("^attached")
        session.send("tbreak svsm_core_gate if $rbx == 0 && ($rax & 0xfff) == 0x15")
        session.send("continue")
        session.expect(r"hit Temporary breakpoint 1, svsm_gate_loop \(\) at \S*gate\.S:\d+")
        yield machine, session


def secrets(session: Program, file: Path) -> bytes:
    """The SVSM's secrets page."""
    session.send(f"dump binary memory {file} {SECRETS:#x} {SECRETS + PAGE_SIZE:#x}")
    session.send("echo dumped\\n")
    session.expect(r"dumped$")
    return file.read_bytes()


def ends(machine: SvsmdProcess, code: int) -> None:
    """The machine ends as one whose SVSM has panicked."""
    assert machine.wait() == ExitCode.GUEST_CRASHED
    assert f"reason set 2, code {code:#x}" in machine.stderr


def test_panic_stops_at_gdb(svsmd: Start, gdb_program: str, tmp_path: Path) -> None:
    log = tmp_path / "svsm.log"
    console = f"--svsm-console=file:{log}"
    with stopped_in_the_svsm(svsmd, gdb_program, console) as (machine, gdb):
        assert any(secrets(gdb, tmp_path / "before"))
        gdb.send("set $rax = 0")
        gdb.send("continue")
        gdb.expect('Thread 2.2 "vcpu1/VMPL0" received signal SIGABRT')
        gdb.send("backtrace")
        gdb.expect(r"#0 +svsm_panic \(\) at \S*gate\.S:\d+$")
        gdb.expect(r"^#1 .* in svsm_gate_loop \(\) at \S*gate\.S:\d+$")
        assert secrets(gdb, tmp_path / "after") == bytes(PAGE_SIZE)
        gdb.send("continue")
        gdb.expect("exited with code 04")
        ends(machine, 0)
    report = log.read_text()
    assert "panic: the hypervisor breaks the GHCB protocol" in report
    assert re.search(
        r"^  #0 \[handler\] make_shared at core/hypervisor\.py:\d+$", report, re.MULTILINE
    )
    assert re.search(
        r"^  #\d+ \[native\] 0x\w+ svsm_gate_loop at svsmd/core/", report, re.MULTILINE
    )


def test_exception_stops_at_gdb(svsmd: Start, gdb_program: str) -> None:
    with stopped_in_the_svsm(svsmd, gdb_program) as (machine, gdb):
        gdb.send("set $rip = 0x1000")
        gdb.send("continue")
        gdb.expect('Thread 2.2 "vcpu1/VMPL0" received signal SIGABRT')
        gdb.send("backtrace")
        gdb.expect(r"#0 +svsm_panic \(\) at \S*gate\.S:\d+$")
        gdb.expect(
            r"^#1 .* in svsm_exception \(\) at \S*gate\.S:\d+$|^#1 +<signal handler called>$"
        )
        gdb.expect(r"0x0*1000 in \?\? \(\)")
        gdb.send("continue")
        gdb.expect("exited with code 04")
        ends(machine, 1)
    assert "svsmd:   #PF, error 0x10, CR2 0x1000\n" in machine.stderr
    assert "svsmd:   RIP 0x1000 CS 0x8 " in machine.stderr


def test_panic_that_nobody_looks_at(svsmd: Start, gdb_program: str) -> None:
    with stopped_in_the_svsm(svsmd, gdb_program) as (machine, gdb):
        gdb.send("set $rip = 0x1000")
        gdb.send("disconnect")
        ends(machine, 1)
    assert "svsmd: panic: exception 14 (#PF) at VMPL0\n" in machine.stderr
    assert "svsmd: the secrets page is wiped" in machine.stderr
