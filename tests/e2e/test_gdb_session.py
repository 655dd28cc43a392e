# SPDX-License-Identifier: MIT
"""The stock gdb and the live demo guest: what somebody who debugs a guest does."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from svsmd.images import image_path
from tests.svsmd_process import Program, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
DEMO = image_path("demo")


@contextmanager
def attached(machine: SvsmdProcess, gdb: str) -> Iterator[Program]:
    """An interactive gdb with the demo guest's symbols, attached: they are the first inferior's."""
    with Program(machine.gdb_command(gdb, "echo attached\\n", symbols=DEMO)) as session:
        session.expect("^attached")
        yield session


def test_session(svsmd: Start, gdb_program: str) -> None:
    """Breakpoint, backtrace, watchpoint, step, write, Ctrl-C in a busy loop, detach, again."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program) as gdb:
        gdb.send("break demo_busy_loop")
        gdb.expect(r"Breakpoint 1 at 0x[0-9a-f]+: file \S*commands\.c, line \d+\.")
        gdb.resume()
        console.send("busy\r")
        hit = r"Breakpoint 1, demo_busy_loop \(rounds=(?:rounds@entry=)?\d+\) at \S*commands\.c:\d+"
        gdb.expect(hit)

        gdb.send("backtrace")
        gdb.expect(r"#0 .*demo_busy_loop .* at \S*commands\.c:\d+$")
        gdb.expect(r"^#\d .*command_busy .* at \S*commands\.c:\d+$")
        gdb.expect(r"^#\d .*shell .* at \S*shell\.c:\d+$")
        gdb.expect(r"^#\d .*demo_main .* at \S*main\.c:\d+$")

        gdb.send("delete")
        gdb.send("watch demo_counter")
        gdb.expect(r"[Ww]atchpoint 2: demo_counter")
        for old in range(2):
            gdb.send("continue")
            gdb.expect(rf"Old value = {old}\nNew value = {old + 1}\n")
        gdb.send("delete")

        gdb.send('printf "pc %#lx\\n", $pc')
        before = gdb.expect(r"pc (0x[0-9a-f]+)")[1]
        gdb.send("stepi")
        gdb.send('printf "pc %#lx\\n", $pc')
        assert gdb.expect(r"pc (0x[0-9a-f]+)")[1] != before
        gdb.send("next")
        gdb.expect(r"\d+\t.*;$|demo_busy_loop .*$|command_busy .*$")

        gdb.send("set var demo_counter = 1000000000")
        gdb.send("print demo_counter")
        gdb.expect(r"\$1 = 1000000000$")

        gdb.resume()
        # gdb loses a Ctrl-C between this line of its own and the packet that resumes.
        time.sleep(0.5)
        gdb.interrupt()
        gdb.expect("received signal SIGINT")
        # Wherever it was, it was there for the busy loop's sake.
        gdb.send("backtrace")
        gdb.expect(r"^#\d .*command_busy .* at \S*commands\.c:\d+$")

        gdb.send("disconnect")
        gdb.expect("Ending remote debugging")
        console.send("x")
        assert int(console.expect(r"demo_counter is (\d+)")[1]) > 1_000_000_000
        console.expect("demo> ")

        gdb.send(f"target remote 127.0.0.1:{machine.gdb_port}")
        gdb.send("echo again\\n")
        gdb.expect("again")
        gdb.send("print demo_counter > 1000000000")
        gdb.expect(r"\$2 = 1$")
        gdb.send("quit")
        assert gdb.wait() == 0
    console.send("off\r")
    assert machine.wait() == 0, machine.stderr


@pytest.mark.parametrize(("kind", "title"), [("rwatch", "read"), ("awatch", "access")])
def test_other_watchpoints(svsmd: Start, gdb_program: str, kind: str, title: str) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with attached(machine, gdb_program) as gdb:
        gdb.send(f"{kind} demo_counter")
        gdb.resume()
        console.send("busy\r")
        gdb.expect(rf"hit Hardware {title}.* watchpoint 1: demo_counter")
        gdb.expect(r"Value = \d+")
        gdb.send("quit")
        gdb.wait()


def test_from_the_first_instruction(svsmd: Start, gdb_program: str) -> None:
    """Breakpoints work before there are page tables, or the code is there at all."""
    machine = svsmd("demo", "-S", "--append=selftest")
    output = machine.gdb(
        gdb_program,
        "unset tdesc filename",  # of the SVSM: gdb has read it for the first inferior
        "info registers cr0 vmpl",
        "stepi",
        "hbreak demo_main",
        "break selftest_run",
        "continue",
        "info registers vmpl",
        "continue",
        "bt",
        "info inferiors",
        "delete",
        "continue",
        symbols=DEMO,
    )
    first, second = re.findall(r"^vmpl +0x(\d)", output, re.MULTILINE)
    assert (first, second) == ("0", "2")
    cr0 = re.search(r"^cr0 +(0x[0-9a-f]+)", output, re.MULTILINE)
    assert cr0 is not None
    assert int(cr0[1], 16) >> 31 == 0, "paging is on"
    assert re.search(r"hit Breakpoint 1, demo_main \(.*\) at \S+\.[ch]:\d+", output), output
    assert re.search(r"hit Breakpoint 2, selftest_run \(.*\) at \S*selftest\.c:\d+", output), output
    assert "exited normally" in output
    assert machine.wait() == 0, machine.stderr


def test_what_is_not_there(svsmd: Start, gdb_program: str) -> None:
    """Memory that is not mapped is an error, and the connection goes on."""
    machine = svsmd("demo")
    machine.console().expect("demo> ")
    output = machine.gdb(
        gdb_program,
        "x/xb 0xffffdead00000000",
        "x/xb 0x8000000000000000",
        "set var *(char *) 0xffffdead00000000 = 1",
        "p sizeof (demo_counter)",
        "info threads",
        "info registers",
        "info registers fs_base gs_base cr0 cr2 cr3 cr4 cr8 efer",
        "p $xmm0.uint128",
        "monitor help",
        symbols=DEMO,
    )
    assert output.count("Cannot access memory at address") == 3, output
    assert "$1 = 8" in output
    assert re.search(r"^\* 1\.1 +Thread 3\.1", output, re.MULTILINE), output
    for name in ("rip", "fs_base", "gs_base", "cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
        assert re.search(rf"^{name} +0x", output, re.MULTILINE), f"{name}\n{output}"
    assert "list the commands" in output


def test_vcpus_are_threads(svsmd: Start, gdb_program: str) -> None:
    """Those of one world each are its threads, from when it starts on that vCPU."""
    machine = svsmd("demo", "--cpus=2")
    machine.console().expect("demo> ")
    output = machine.gdb(gdb_program, "info threads")
    found = re.findall(r"^[* ] (\d\.\d) +Thread (\S+) \"(vcpu\d/VMPL\d)\"", output, re.MULTILINE)
    assert found == [
        ("1.1", "3.1", "vcpu0/VMPL2"),
        ("2.1", "1.1", "vcpu0/VMPL0"),
        ("2.2", "1.2", "vcpu1/VMPL0"),
    ], output


@pytest.mark.parametrize("noise", [b"\xff" * 65536, b"$" + b"a" * 200_000, b"$?#3f" * 20_000])
def test_noise_closes_its_own_connection_only(svsmd: Start, gdb_program: str, noise: bytes) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    with socket.create_connection(("127.0.0.1", machine.gdb_port)) as client:
        client.settimeout(5)
        try:
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        except ConnectionError:
            pass
    console.send("caa\r")
    console.expect("call_pending 0")
    assert "vmpl" in machine.gdb(gdb_program, "info registers vmpl")


def test_bad_packets(svsmd: Start) -> None:
    """Stray bytes are ignored, a bad checksum gets `-`, an unknown packet the empty reply."""
    machine = svsmd("demo", "-S")
    with socket.create_connection(("127.0.0.1", machine.gdb_port)) as client:
        client.settimeout(10)
        for sent, answer in (
            (b"stray$?#00", b"-"),
            (b"$vUnknown#db"[:9] + b"#%02x" % (sum(b"vUnknown") & 0xFF), b"+$#00"),
        ):
            client.sendall(sent)
            received = b""
            while len(received) < len(answer):
                data = client.recv(len(answer) - len(received))
                assert data
                received += data
            assert received == answer
        client.sendall(b"+")
