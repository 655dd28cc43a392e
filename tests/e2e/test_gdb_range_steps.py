# SPDX-License-Identifier: MIT
"""The stock gdb's `next`, which steps through the code of a line by ranges of addresses."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.e2e.test_gdb_conditions import ask, busy
from tests.svsmd_process import SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
JUMP_TO_ITSELF = 0xFEEB


def test_next_goes_from_line_to_line(svsmd: Start, gdb_program: str) -> None:
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send("set debug remote 1")
        gdb.send("next 20")
        gdb.expect(r"vCont;r")
        gdb.send("set debug remote 0")
        counted = ask(gdb, "demo_counter")
        assert 9 <= counted <= 10  # two lines a round
        gdb.send("next 200")
        assert ask(gdb, "demo_counter") == counted + 100
        # A breakpoint on the way stops it.
        gdb.send(f"break commands.c:29 if demo_counter == {counted + 150}")
        gdb.send("next 2000")
        gdb.expect("Breakpoint 2, demo_busy_loop")
        assert ask(gdb, "demo_counter") == counted + 150


def test_ctrl_c_ends_a_step_that_does_not_end(svsmd: Start, gdb_program: str) -> None:
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send("next")
        before = ask(gdb, "*(unsigned short *) $pc")
        gdb.send(f"set var *(unsigned short *) $pc = {JUMP_TO_ITSELF}")
        gdb.send("next")
        time.sleep(0.5)
        gdb.interrupt()
        gdb.expect("received signal SIGINT")
        gdb.send(f"set var *(unsigned short *) $pc = {before}")
        gdb.send("next 200")
        assert ask(gdb, "demo_counter") >= 99
