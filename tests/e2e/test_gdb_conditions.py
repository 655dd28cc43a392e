# SPDX-License-Identifier: MIT
"""The stock gdb with conditions and commands that the stub evaluates, and the live demo guest."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from svsmd.images import image_path
from tests.e2e.test_determinism import OPTIONS, finish
from tests.svsmd_process import Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")
IN_STUB = "set breakpoint condition-evaluation target"


@contextmanager
def busy(machine: SvsmdProcess, gdb: str) -> Iterator[Program]:
    """A gdb that stands at the beginning of the demo's busy loop, before its first round."""
    console = machine.console()
    console.expect("demo> ")
    with Program(machine.gdb_command(gdb, "echo attached\\n", symbols=DEMO)) as session:
        session.expect("^attached")
        session.send("tbreak demo_busy_loop")
        session.resume()
        console.send("busy\r")
        session.expect("Temporary breakpoint 1, demo_busy_loop")
        yield session


def ask(gdb: Program, expression: str) -> int:
    """Value of a number."""
    gdb.send(f'printf "is %ld.\\n", (long) ({expression})')
    return int(gdb.expect(r"is (-?\d+)\.")[1])


@pytest.mark.parametrize("where", ["target", "auto"])
def test_a_hundred_thousand_rejected_hits(svsmd: Start, gdb_program: str, where: str) -> None:
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send(f"set breakpoint condition-evaluation {where}")
        gdb.send("break commands.c:29 if demo_counter == 100000")
        gdb.send("continue")
        gdb.expect("Breakpoint 2, demo_busy_loop", 20)
        assert ask(gdb, "demo_counter") == 100_000
        gdb.send("info breakpoints 2")
        gdb.expect("breakpoint already hit 1 time")
        gdb.send("monitor breakpoints")
        gdb.expect("software, 1 hit, 100001 evaluations of its condition")
        # Another condition is another one for the stub, too.
        gdb.send("condition 2 demo_counter > 100010 && (demo_counter & 7) == 1")
        gdb.send("continue")
        gdb.expect("Breakpoint 2, demo_busy_loop")
        assert ask(gdb, "demo_counter") == 100_017
        gdb.send("ignore 2 2")
        gdb.send("continue")
        gdb.expect("Breakpoint 2, demo_busy_loop")
        assert ask(gdb, "demo_counter") == 100_017 + 24
        gdb.send("condition 2")
        gdb.send("continue")
        gdb.expect("Breakpoint 2, demo_busy_loop")
        assert ask(gdb, "demo_counter") == 100_017 + 25
        gdb.send("delete")
        gdb.send("tbreak commands.c:29 if demo_counter == 200000 || $vmpl == 9")
        gdb.send("continue")
        gdb.expect("Temporary breakpoint 3, demo_busy_loop", 20)
        assert ask(gdb, "demo_counter") == 200_000


def test_a_condition_that_cannot_be_evaluated_stops(svsmd: Start, gdb_program: str) -> None:
    """gdb then finds out by itself that it cannot evaluate it either, and says so."""
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send(IN_STUB)
        gdb.send("break commands.c:29 if *(char *) 0xffffdead00000000 == 1")
        gdb.send("continue")
        gdb.expect("Error in testing .*condition")
        gdb.expect("Cannot access memory at address 0xffffdead00000000")
        gdb.expect("Breakpoint 2, demo_busy_loop")


def test_steps(svsmd: Start, gdb_program: str) -> None:
    """A step onto a breakpoint whose condition does not hold is a step; one that holds is a hit."""
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send(IN_STUB)
        gdb.send("break commands.c:29")
        gdb.send("continue")
        gdb.expect("Breakpoint 2, demo_busy_loop")
        start = ask(gdb, "$pc")
        gdb.send("condition 2 demo_counter == 3")
        for _ in range(30):
            gdb.send("stepi")
            if ask(gdb, "$pc") == start:
                break
        assert ask(gdb, "demo_counter") == 1
        gdb.send("info breakpoints 2")
        gdb.expect("breakpoint already hit 1 time")
        # `next` steps over a line by a range; a breakpoint lies within.
        gdb.send("delete")
        gdb.send("x/2i $pc")
        inside = gdb.expect(r"=> [^\n]*\n *(0x[0-9a-f]+)")[1]
        gdb.send(f"break *{inside} if demo_counter == 12345")
        gdb.send("next")
        assert ask(gdb, "demo_counter") == 2
        assert ask(gdb, f"$pc == {inside}") == 0
        gdb.send("condition 3 demo_counter > 2")
        for _ in range(4):  # to the line, through it, to it, into it
            gdb.send("next")
        gdb.expect("Breakpoint 3, 0x")
        assert ask(gdb, f"$pc == {inside}") == 1


def test_agent_dprintf(svsmd: Start, gdb_program: str) -> None:
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send("set dprintf-style agent")
        gdb.send(
            'dprintf commands.c:29,"round %lu, %d%%\\n", demo_counter, (int) demo_counter * 10'
        )
        gdb.send("break commands.c:29 if demo_counter == 10")
        gdb.send("delete 3")
        gdb.send("tbreak command_busy if 0")
        gdb.send("watch demo_counter if demo_counter == 3")
        gdb.send("continue")
        for number in range(3):
            gdb.expect(f"^round {number}, {number * 10}%\n")
        gdb.expect(r"Old value = 2\nNew value = 3\n")
        gdb.send("delete 5")
        gdb.send("info breakpoints 2")
        gdb.expect('agent-printf "round %lu, %d%%')
        gdb.send("monitor breakpoints")
        gdb.expect("software, 3 hits, prints and goes on")
        # A step onto it prints as well.
        for _ in range(30):
            gdb.send("stepi")
            gdb.send('printf "stepped, %lu.\\n", demo_counter')
            if "round 3, 30%" in gdb.expect(r"[^\0]*?stepped, \d+\.")[0]:
                break
        else:
            raise AssertionError("no step printed")


def test_agent_dprintf_while_the_machine_runs(svsmd: Start, gdb_program: str) -> None:
    """Nobody has to stop it to read."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with Program(machine.gdb_command(gdb_program, "echo attached\\n", symbols=DEMO)) as gdb:
        gdb.expect("^attached")
        gdb.send("set dprintf-style agent")
        gdb.send('dprintf command_busy,"busy %d\\n", 7')
        gdb.resume()
        console.send("busy\r")
        gdb.expect("^busy 7\n")
        gdb.interrupt()
        gdb.expect("received signal SIGINT")


def test_a_watchpoint_with_a_condition(svsmd: Start, gdb_program: str) -> None:
    """gdb evaluates it itself."""
    with busy(svsmd("demo"), gdb_program) as gdb:
        gdb.send(IN_STUB)
        gdb.send("watch -l demo_counter if demo_counter == 5")
        gdb.send("continue")
        gdb.expect(r"Old value = 4\nNew value = 5\n")


def test_rejected_hits_change_no_tick(svsmd: Start, gdb_program: str) -> None:
    first = finish(svsmd(*OPTIONS))
    machine = svsmd(*OPTIONS, "-S")
    output = machine.gdb(
        gdb_program,
        IN_STUB,
        "set dprintf-style agent",
        "break print if $rdi == 5",
        "break ghcb_out if (long) $rsp & 1",
        "break memset if $rip == 0 || *(long *) $rsp == 0",
        "break selftest_run if $cr8 == 9",
        'dprintf memcmp,"compares %lu bytes\\n", $rdx',
        "watch boot_info.command_line[0]",
        "continue",
        "continue",
        symbols=DEMO,
        seconds=180,
    )
    assert "exited normally" in output, output
    assert re.search(r"^compares \d+ bytes$", output, re.MULTILINE), output
    assert finish(machine) == first
