# SPDX-License-Identifier: MIT
"""The stock gdb and the live demo guest: `info os`, `monitor why` and its neighbours, `find`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from svsmd.errors import ExitCode
from svsmd.images import image_path
from tests.svsmd_process import Program, SvsmdProcess
from tools.bench.rsp import RspClient

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")


@pytest.fixture
def demo(svsmd: Start) -> SvsmdProcess:
    """The demo guest at its prompt, the SVSM being done with everything."""
    machine = svsmd("demo", "--cpus=2", "--memory=64M")
    machine.console().expect("demo> ")
    for _ in range(50):
        with RspClient(machine.gdb_port) as client:
            info = bytes.fromhex(client.request(b"qThreadExtraInfo,1").decode()).decode()
        if info == "vcpu0: VMPL2, halted":
            return machine
        time.sleep(0.1)
    raise AssertionError(info)


def table(output: str, *columns: str) -> list[list[str]]:
    """Cells of the rows of one table that gdb printed, which has these columns first."""
    lines = output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[: len(columns)] == list(columns))
    rows = []
    for line in lines[head + 1 :]:
        if line.startswith("--"):
            break
        rows.append(line.split())
    return rows


def test_info_os(demo: SvsmdProcess, gdb_program: str) -> None:
    names = ("rmp", "pagetable", "vcpus", "vmsa", "ghcb", "calls", "modules")
    commands = [part for name in names for part in (f"info os {name}", "echo --\\n")]
    output = demo.gdb(gdb_program, "info os", "echo --\\n", *commands, symbols=DEMO)
    types = table(output, "Type", "Description")
    assert [row[0] for row in types] == list(names)

    rmp = table(output, "spa", "pages", "size")
    pages = [int(row[1]) for row in rmp]
    assert sum(pages) == 64 << 8
    assert any("RMPADJUST by VMPL0 of vCPU 0" in " ".join(row) for row in rmp)
    assert any(row[3] == "shared" and "RMPUPDATE" in row for row in rmp)

    assert [row[:3] for row in table(output, "vcpu", "apic", "id")] == [
        ["0", "0", "2"], ["1", "1", "0"],
    ]  # fmt: skip
    assert len(table(output, "vcpu", "vmpl", "spa")) == 3
    ghcbs = table(output, "vcpu", "vmpl", "msr")
    assert [row[:2] for row in ghcbs] == [["0", "0"], ["0", "2"], ["1", "0"]]
    calls = table(output, "vcpu", "protocol", "call")
    assert ["SVSM_CORE_REMAP_CA", "SVSM_SUCCESS"] in [[row[2], row[4]] for row in calls]
    assert [row[1:3] for row in table(output, "task", "name")] == [["echo", "/bin/echo"]]
    assert table(output, "start", "end", "bytes")[-1][5] == "shared"


def test_why(demo: SvsmdProcess, gdb_program: str) -> None:
    output = demo.gdb(
        gdb_program,
        "monitor why",
        'eval "monitor why 0x%lx", &demo_counter',
        "monitor why 0xffff800000000000",
        "monitor why 0x8000000000000000",
        'eval "monitor walk 0x%lx", &demo_counter',
        # A page of the SVSM's, by an address that the guest maps: the RMP is what stops it.
        "monitor why 0x3e00000",
        "monitor why 0x8003e00000",
        symbols=DEMO,
    )
    assert "vCPU 0 at VMPL2 has had no fault" in output
    counter = output[output.index(" for vCPU 0 at VMPL2, CPL 0") :]
    assert re.search(
        r"^  PTE at 0x[0-9a-f]+ is 0x[0-9a-f]+ \[P C W A( D)? NX\]$", counter, re.MULTILINE
    )
    assert "  read: allowed\n  write: allowed\n  execute: PTE at 0x" in counter
    assert re.search(r"NX is set\n    -> #PF, error code 0x11 \(24593, 5\.6\)", counter)
    assert re.search(
        r"RMPADJUST by VMPL0 of vCPU 0, rip 0xffffffff8[0-9a-f]+, tick \d+\n"
        r"    PVALIDATE by VMPL0 of vCPU 0, rip 0xffffffff8[0-9a-f]+, tick \d+\n"
        r"    RMPUPDATE by the host, tick 0\n",
        counter,
    )
    assert "PML4E at" in output[output.index("0xffff800000000000 for vCPU") :]
    assert "P is clear\n    -> #PF, error code 0x2 (24593, 5.4)" in output
    assert "it is not a canonical address" in output
    assert re.search(r"^0x[0-9a-f]+ -> 0x[0-9a-f]+, C-bit set$", output, re.MULTILINE)
    private = output[output.index("0x3e00000 for vCPU") : output.index("0x8003e00000 for vCPU")]
    for name, permission in (("read", "READ"), ("write", "WRITE")):
        assert f"  {name}: VMPL2 lacks {permission}\n    -> VMEXIT_NPF, EXITINFO1 0x" in private
    assert "table 15-36; AC-30)" in private
    assert re.search(r"last change of that RMP entry: PVALIDATE by VMPL0 of vCPU 0, rip", private)
    shared = output[output.index("0x8003e00000 for vCPU") :]
    assert "shared (C = 0)" in shared
    assert "reads see ciphertext\n    -> ciphertext (24593, 15.34.5; AC-11)" in shared
    assert "  write: the C-bit is clear, and the page is private\n    -> VMEXIT_NPF" in shared


def test_why_of_the_last_fault(svsmd: Start, gdb_program: str) -> None:
    """The instruction faults, and gdb stops in the handler; an access of VMPL2 to the SVSM's memory
    ends the machine, which says the same rule."""
    machine = svsmd("demo", "--memory=64M")
    console = machine.console()
    console.expect("demo> ")
    with Program(machine.gdb_command(gdb_program, "echo attached\\n", symbols=DEMO)) as gdb:
        gdb.expect("^attached")
        gdb.send("break demo_busy_loop")
        gdb.resume()
        console.send("busy\r")
        gdb.expect("Breakpoint 1, ")
        gdb.send("delete")
        gdb.send("set var $start = $pc")
        gdb.send("set var *(unsigned *) $pc = 0x90008948")  # mov [rax], rax
        gdb.send("set var $rax = 0x10000001238")
        gdb.send("stepi")
        gdb.send("monitor why")
        gdb.expect("CR2, the last #PF or #VC 0x404 of vCPU 0 at VMPL2:$")
        gdb.expect("^0x10000001238 for vCPU 0 at VMPL2, CPL 0")
        gdb.expect(r"^  write: PTE at 0x[0-9a-f]+ is 0x0 \[\]: P is clear$")
        gdb.expect(r"^    -> #PF, error code 0x2 \(24593, 5\.4\)$")
        gdb.send("set var $pc = $start")
        gdb.send("set var $rax = 0x3e00008")
        gdb.send("monitor why 0x3e00008")
        gdb.expect(r"^  write: VMPL2 lacks WRITE$")
        gdb.expect(r"^    -> VMEXIT_NPF, .*; AC-31\)$")
        gdb.send("stepi")
        gdb.expect("exited with code")
        gdb.send("quit")
        gdb.wait()
    assert machine.wait() == ExitCode.GUEST_CRASHED
    assert "(AC-31)" in machine.stderr


def test_one_world_or_the_other(demo: SvsmdProcess, gdb_program: str) -> None:
    output = demo.gdb(
        gdb_program,
        "info threads", "thread 2.2", "monitor cpu", "monitor info registers", "thread 1.1",
        "monitor cpu", "thread 2.2", "monitor cpu 0", "monitor cpu",
        "monitor info registers", "monitor info", "monitor help",
    )  # fmt: skip
    assert "vCPU 1 at VMPL0, the selected thread's" in output
    assert "vCPU 0 at VMPL2, the selected thread's" in output
    assert "vCPU 0 at VMPL2, chosen here" in output
    assert re.findall(r"^CPU#(\d)$", output, re.MULTILINE) == ["1", "0"]
    assert re.search(r"^\S+: \d+ ticks$", output, re.MULTILINE)
    assert re.search(r"^why \[GVA\] +what may be done", output, re.MULTILINE)


def test_physical_memory(demo: SvsmdProcess, gdb_program: str) -> None:
    output = demo.gdb(
        gdb_program,
        # A page of the SVSM's that the guest cannot read, by its physical address.
        "x/2xg 0xffffffff80000300",
        "maintenance packet Qqemu.PhyMemMode:1",
        "maintenance packet qqemu.PhyMemMode",
        "x/xg $cr3 & 0xfffff000",
        "maintenance packet Qqemu.PhyMemMode:0",
        "x/xg $cr3 & 0xfffff000",
        'eval "monitor xp /xg 0x%lx", $cr3',
        'eval "monitor xp /xg 0x%lx", $cr3 & 0xfffff000',
    )
    assert "Cannot access memory at address 0xffffffff80000300" in output
    assert 'received: "1"' in output
    entries = re.findall(r"^0x[0-9a-f]+(?: <\S+>)?:\t(0x[0-9a-f]+)$", output, re.MULTILINE)
    dumps = re.findall(r"^[0-9a-f]{16}: (0x[0-9a-f]+)$", output, re.MULTILINE)
    assert len(entries) == len(dumps) == 2
    assert len({*entries, *dumps}) == 1, "the guest's tables are mapped one to one"


def test_find_and_compare_sections(demo: SvsmdProcess, gdb_program: str) -> None:
    output = demo.gdb(
        gdb_program,
        "set var demo_counter = 0x1122334455667788",
        "set debug remote 1",
        "find /g &demo_counter - 1000, +16000, 0x1122334455667788",
        "set debug remote 0",
        "print $_ == &demo_counter",
        "find /g &demo_counter, +8, 7",
        "compare-sections .text",
        "set var *(char *) demo_main ^= 1",
        "compare-sections .text",
        symbols=DEMO,
    )
    assert "qSearch:memory" in output
    assert "Packet qSearch:memory (search-memory) is supported" in output
    assert "$1 = 1" in output
    assert "Pattern not found." in output
    assert re.findall(r"^Section \.text, .*: (matched|MIS-MATCHED!)\.?$", output, re.MULTILINE) == [
        "matched", "MIS-MATCHED!",
    ]  # fmt: skip


def test_info_mem_stays_out_of_the_way(demo: SvsmdProcess, gdb_program: str) -> None:
    """Why there is no memory map: with one of the RAM, gdb reads no kernel's addresses."""
    output = demo.gdb(
        gdb_program,
        "info mem", "thread 2.1", "x/i $pc", "mem 0 0x4000000 rw", "x/i $pc",
    )  # fmt: skip
    assert "There are no memory regions defined" in output or "no memory regions" in output.lower()
    assert re.search(r"=> 0xffffffff8[0-9a-f]+ <svsm_gate_loop\S*>:\t", output)
    assert re.search(r"Cannot access memory at address 0xffffffff8[0-9a-f]+", output)


def test_errors_in_words(demo: SvsmdProcess) -> None:
    """For clients that take text: gdb 16 does."""
    with RspClient(demo.gdb_port) as client:
        assert b"error-message+" in client.request(b"qSupported:error-message+")
        said = client.request(b"mffff800000000000,8").decode()
        assert re.fullmatch(
            r"E\.no page table maps 0xffff800000000000: "
            r"P(ML4|DPT|D|T)E at 0x[0-9a-f]+ is 0x0 \[\]: P is clear",
            said,
        )
