# SPDX-License-Identifier: MIT
"""What a debugger asks of a Linux guest's page tables, and how long it waits for that."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from tests.linux_shell import Shell
from tests.svsmd_process import Linux, SvsmdProcess
from tools.bench.rsp import RspClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

Start = Callable[..., SvsmdProcess]
SECONDS = 1.0
"""Two noisy cores; it takes 6 ms where nobody else is."""


def test_mappings_of_linux(svsmd: Start, linux: Linux, gdb_program: str) -> None:
    """The kernel's text is there, its rights are as they must be, and nobody waits long."""
    shell = Shell(svsmd, linux)
    with RspClient(shell.machine.gdb_port) as client:
        began = time.monotonic()
        mem = client.monitor("info mem")
        elapsed = time.monotonic() - began
    assert elapsed < SECONDS, f"info mem took {elapsed} s"
    assert re.search(r"^ffffffff81000000-[0-9a-f]{16} [0-9a-f]{16} -r-$", mem, re.MULTILINE), mem
    # All of `info tlb` in console packets, far more than one holds.
    output = shell.machine.gdb(
        gdb_program, "monitor info tlb", "monitor why 0xffffffff81000000", "info os pagetable",
        "info os calls",
    )  # fmt: skip
    pages = re.findall(r"^[0-9a-f]{16}: [0-9a-f]{16} [X-][G-][P-]", output, re.MULTILINE)
    assert len(pages) > 3000
    why = output[output.index("0xffffffff81000000 for vCPU 0 at VMPL2") :]
    assert re.search(r"  read: allowed\n  write: PDE at .*: R/W is clear\n", why)
    row = r"^0xffffffff81000000 +0x[0-9a-f]+ +0x[0-9a-f]+ +r-x +super"
    assert re.search(row, output, re.MULTILINE)
    assert output.count("SVSM_CORE_PVALIDATE") > 10
    shell.power_off()
