# SPDX-License-Identifier: MIT
"""Several debuggers at one machine: stock gdbs look while another one works, and take turns."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from svsmd.images import image_path
from tests.raw_debugger import RawDebugger
from tests.svsmd_process import Console, Program, SvsmdProcess
from tests.symbol_reader import SymbolReader

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")
REFUSAL = "another debugger has the run control; monitor run-control"


@contextmanager
def attached(machine: SvsmdProcess, gdb: str, *commands: str) -> Iterator[Program]:
    """An interactive gdb with the demo guest's symbols."""
    command = machine.gdb_command(gdb, *commands, "echo attached\\n", symbols=DEMO)
    with Program(command) as session:
        session.expect("^attached")
        yield session


def counter(gdb: Program) -> int:
    gdb.send('printf "counter %lu.\\n", demo_counter')
    return int(gdb.expect(r"counter (\d+)\.")[1])


def busy(console: Console) -> None:
    console.send("busy\r")
    console.expect("any key stops")


def test_a_reader_looks_while_the_owner_runs_and_stands(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program) as owner, attached(machine, gdb_program) as reader:
        owner.resume()
        busy(console)
        first = counter(reader)
        assert counter(reader) > first
        # Registers and stack are those of when gdb read them, until it is told to forget them.
        reader.send("maintenance flush register-cache")
        reader.send("backtrace")
        reader.expect(r"#\d .*command_busy .* at \S*commands\.c:\d+")
        reader.send("info threads")
        reader.expect(r'Thread 3\.1 "vcpu0/VMPL2"')
        reader.expect(r'Thread 17\.1 "task 1 echo"')
        reader.send("thread apply all backtrace 1")
        reader.expect(r"Thread 3\.1 \(Thread 17\.1")
        reader.expect(r"Thread 2\.1 \(Thread 1\.1")
        reader.send("info os vcpus")
        reader.expect(r"yes +$")
        reader.send("monitor info mem")
        reader.expect(r"^[0-9a-f]{16}-[0-9a-f]{16} [0-9a-f]{16} [u-]r[w-]$")
        reader.send("find /b &demo_counter, +64, 0x7f, 0x45, 0x4c, 0x46")
        reader.expect("Pattern not found")

        # Nothing that changes the machine, and gdb goes on to work.
        reader.send("stepi")
        reader.expect(REFUSAL)
        reader.send("next")
        reader.expect(REFUSAL)
        reader.send("set var demo_counter = 5")
        reader.expect("Cannot access memory at address")
        reader.send("set var $rbx = 5")
        reader.expect('Could not write register "rbx"')
        reader.send("tbreak demo_main")
        reader.send("continue")
        reader.expect(r"Cannot insert breakpoint \d+")
        reader.send("delete")
        reader.send("monitor catch vmgexit")
        reader.expect(f"catch: {REFUSAL}")
        assert counter(reader) > first

        # The owner has heard of nothing.
        owner.interrupt()
        owner.expect("received signal SIGINT")
        stood = counter(owner)
        assert counter(reader) == counter(reader) == stood
        reader.send("detach")
        reader.expect("detached")
    console.send("x")
    console.expect("demo_counter is")


def test_a_reader_waits_for_the_owners_stops(svsmd: Start, gdb_program: str) -> None:
    """`continue` is to wait, and Ctrl-C to look again; neither stops the machine."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program, "break demo_busy_loop") as owner:
        owner.resume()
        with attached(machine, gdb_program) as reader:
            reader.resume()
            time.sleep(0.5)
            reader.interrupt()
            reader.expect("received signal SIGINT")
            reader.send("backtrace")
            reader.expect(r"#\d .*demo_main ")

            reader.resume()
            console.send("busy\r")
            owner.expect("Breakpoint 1, demo_busy_loop")
            reader.expect(r'Thread 1\.1 "vcpu0/VMPL2" stopped\.\ndemo_busy_loop ')
            # Many stops of the machine, one command of its user's.
            for command in ("next", "stepi 100", "until 29"):
                reader.resume()
                owner.send(command)
                reader.expect(r'"vcpu0/VMPL2" stopped\.')
                places = []
                for gdb in (owner, reader):
                    gdb.send('printf "pc %#lx.\\n", $pc')
                    places.append(gdb.expect(r"pc (0x[0-9a-f]+)\.")[1])
                assert places[0] == places[1]
            owner.send("delete")
            owner.resume()
            reader.resume()
            console.send("x")
            console.expect("demo_counter is")
            console.send("off\r")
            for gdb in (owner, reader):
                gdb.expect("exited normally")
    assert machine.wait() == 0, machine.stderr


def test_the_run_control_changes_hands(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program) as one, attached(machine, gdb_program) as two:
        two.send("monitor run-control")
        two.expect(r"debugger 1, 127\.0\.0\.1 port \d+, has the run control\n")
        two.expect(r"debugger 2, 127\.0\.0\.1 port \d+, \(this one\) reads\n")
        two.send("monitor run-control take")
        two.expect("debugger 1, .* has the run control; take --force takes it away")

        # By its owner's will: the guest goes on.
        one.send("monitor run-control give")
        one.expect("only reads from now on")
        busy(console)
        two.send("monitor run-control take")
        two.expect("the machine stands still")
        two.send("maintenance flush register-cache")
        two.send("maintenance flush dcache")
        stood = counter(two)
        assert counter(two) == counter(one) == stood
        two.send("break demo_main")
        two.send("stepi")
        two.resume()
        time.sleep(0.5)

        # By force, while the other one waits: that is told so, and goes on to wait.
        one.send("monitor run-control take --force")
        one.expect("the machine stands still")
        two.expect("debugger 1, .* has taken the run control: this one only reads from now on")
        one.send("maintenance flush register-cache")
        stood = counter(one)
        assert counter(one) == stood
        two.expect(r'"vcpu0/VMPL2" stopped\.')
        assert counter(two) == stood
        one.resume()
        two.send("delete")
        two.send("stepi")
        two.expect(REFUSAL)
        one.interrupt()
        one.expect("received signal SIGINT")
        one.send("disconnect")
        one.expect("Ending remote debugging")
        time.sleep(0.5)  # it says so before it does so
        two.send("stepi")
        two.expect("no debugger has the run control; monitor run-control take")
    console.send("x")
    console.expect("demo_counter is")


def test_who_lost_the_run_control_at_a_breakpoint(svsmd: Start, gdb_program: str) -> None:
    """gdb steps off it, and if that is answered by an error, tries again without end."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program, "break demo_busy_loop") as gdb:
        gdb.resume()
        console.send("busy\r")
        gdb.expect("Breakpoint 1, demo_busy_loop")
        with RawDebugger(machine.gdb_port) as other:
            other.monitor("run-control take --force")
            for command in ("continue", "next", "stepi", "step", "stepi 50", "delete\nstepi"):
                gdb.send(command)
                gdb.expect(REFUSAL)
                gdb.expect(r'"vcpu0/VMPL2" stopped\.\ndemo_busy_loop')
            gdb.send("print 6 * 7")
            gdb.expect("= 42")
            assert gdb.transcript.count(REFUSAL) == 6


def test_a_path_and_a_port(svsmd: Start, gdb_program: str, tmp_path: Path) -> None:
    """gdb attaches to a path as it does to a port, and a reader beside it."""
    path = tmp_path / "gdb.sock"
    machine = svsmd("demo", f"--gdb=unix:{path}", "-S")
    machine.said(f'debugger: gdb -ex "(target remote {path})"')
    start = [gdb_program, "-nx", "-q", "-ex", "set confirm off", "-ex", f"target remote {path}"]
    with Program([*start, str(DEMO)]) as owner, RawDebugger(path, silent=True) as reader:
        owner.send("monitor run-control")
        owner.expect(r"debugger 1, process \d+, \(this one\) has the run control")
        owner.send("tbreak demo_main")
        owner.send("continue")
        owner.expect("Temporary breakpoint 1, ")
        assert f"debugger 2, process {os.getpid()}, (this one) reads" in (
            reader.monitor("run-control")
        )
        assert reader.ask(b"M200000,1:00") == b"E0d"
        owner.send("kill")
        owner.expect("killed")
    machine.console().expect("demo> ")


def test_non_stop_is_refused(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    command = machine.gdb_command(gdb_program, "info threads")
    command[1:1] = ["-batch", "-ex", "set non-stop on"]
    with Program(command) as gdb:
        gdb.expect("Non-stop mode requested, but remote does not support non-stop")
    with RawDebugger(machine.gdb_port) as raw:
        features = raw.ask(b"qSupported:error-message+")
        assert b"QNonStop" not in features
        assert raw.ask(b"QNonStop:0") == b"OK"
        assert raw.ask(b"QNonStop:1").startswith(b"E.all-stop only, since a stopped vCPU would")


@pytest.mark.parametrize("readers", [1, 5])
def test_readers_do_not_starve_anybody(svsmd: Start, readers: int) -> None:
    """Floods of questions while the guest computes: it, its console and others go on."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    address = SymbolReader(DEMO.read_bytes()).symbol("demo_counter")["st_value"]
    ask = b"m%x,8" % address
    with RawDebugger(machine.gdb_port) as owner, RawDebugger(machine.gdb_port) as probe:
        owner.send(b"vCont;c")
        busy(console)
        floods = [RawDebugger(machine.gdb_port) for _ in range(readers)]
        for flood in floods:  # none of them ever reads an answer
            flood.socket.settimeout(0.1)
        blocked = set[RawDebugger]()
        values = []
        for _ in range(20):
            for flood in floods:
                if flood not in blocked:
                    try:
                        flood.send(*[b"m%x,fff0" % (address & ~0xFFFF)] * 20)
                    except TimeoutError:
                        blocked.add(flood)
            started = time.monotonic()
            values.append(int.from_bytes(bytes.fromhex(probe.ask(ask).decode()), "little"))
            assert time.monotonic() - started < 5
        assert values == sorted(set(values))
        started = time.monotonic()
        console.send("x")
        console.expect("demo_counter is")
        assert time.monotonic() - started < 5
        owner.socket.sendall(b"\x03")
        assert owner.reply().startswith(b"T02")
        for flood in floods:
            flood.close()
