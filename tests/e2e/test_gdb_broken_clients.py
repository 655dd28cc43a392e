# SPDX-License-Identifier: MIT
"""Debuggers that die, hang, or send garbage: the guest goes on, and computes what it would have."""

import random
import signal
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.gdbstub.rsp import encode
from tests.e2e.test_determinism import OPTIONS, finish
from tests.e2e.test_gdb_clients import attached, busy
from tests.raw_debugger import RawDebugger
from tests.svsmd_process import Console, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
CLIENTS = 50
LOOKS = (
    b"g", b"m200000,1000", b"p1b", b"qXfer:threads:read::0,fff", b"qXfer:osdata:read:rmp:0,fff",
    b"qXfer:osdata:read:pagetable:0,fff", b"qRcmd," + b"info mem".hex().encode(), b"?",
    b"qRcmd," + b"vmsa".hex().encode(), b"qSearch:memory:200000;10000;svsmd", b"qCRC:200000,10000",
    b"Hgp1.1", b"m200000,1000", b"g", b"Hgp3.1", b"Qqemu.PhyMemMode:1", b"m0,1000",
    b"Qqemu.PhyMemMode:0", b"M200000,1:00", b"P0=0000000000000000", b"Z0,200000,1", b"vCont;s:p3.1",
    b"qRcmd," + b"why 0x200000".hex().encode(),
)  # fmt: skip
"""What a reader can ask, other worlds and what is refused included."""


def answers(console: Console) -> None:
    """The guest is there."""
    console.send("caa\r")
    console.expect("call_pending 0")
    console.expect("demo> ")


def start_stopped(svsmd: Start) -> SvsmdProcess:
    return svsmd(*OPTIONS, "-S")


@pytest.fixture(scope="module")
def undisturbed(svsmd_program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What the guest prints with nobody looking, and the tick at which it ends."""
    log = tmp_path_factory.mktemp("undisturbed") / "stderr"
    with SvsmdProcess(svsmd_program, OPTIONS, log) as machine:
        return finish(machine)


def test_readers_change_nothing(svsmd: Start, undisturbed: tuple[str, str]) -> None:
    """Not what a guest computes, nor at which tick, however much they look."""
    machine = start_stopped(svsmd)
    with RawDebugger(machine.gdb_port) as owner, RawDebugger(machine.gdb_port) as reader:
        owner.ask(b"qSupported:multiprocess+")
        reader.ask(b"qSupported:multiprocess+")
        owner.send(b"vCont;c")
        looks = 0
        try:
            while True:
                for look in LOOKS:
                    reader.send(look)
                    while (reply := reader.reply()).startswith(b"O") and reply != b"OK":
                        pass
                    if not reply:
                        raise ConnectionError
                    looks += 1
        except ConnectionError:
            pass
        assert looks > len(LOOKS)
        assert finish(machine) == undisturbed


def test_killed_in_the_middle(svsmd: Start, gdb_program: str, undisturbed: tuple[str, str]) -> None:
    """Of a series of steps, and of a run with breakpoints."""
    machine = start_stopped(svsmd)
    for command in ("stepi 100000", "stepi 100000"):
        with attached(machine, gdb_program) as gdb:
            gdb.send(command)
            time.sleep(0.5)
            gdb.kill()
    # It stood still, and nobody has continued it.
    with attached(machine, gdb_program) as gdb:
        gdb.send("tbreak selftest_run")
        gdb.send("continue")
        gdb.expect("Temporary breakpoint 1, selftest_run")
        gdb.send("break *$pc if $rax == 0x123456789")
        gdb.send("watch boot_info.command_line")
        gdb.send("stepi 100000")
        time.sleep(0.3)
        gdb.kill()
    assert finish(machine) == undisturbed


def test_killed_while_the_machine_runs(svsmd: Start, gdb_program: str) -> None:
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    for _ in range(3):
        with attached(machine, gdb_program, "break demo_busy_loop if rounds == 1") as gdb:
            gdb.resume()
            busy(console)
            gdb.kill()
        console.send("x")
        console.expect("demo_counter is")
        answers(console)
    with RawDebugger(machine.gdb_port) as last:
        assert last.monitor("breakpoints") == "there are no breakpoints\n"


def test_hangs(svsmd: Start, gdb_program: str) -> None:
    """A gdb that is stopped itself, once with the machine in its hands and once while it runs."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    for runs in (False, True):
        with attached(machine, gdb_program, "break demo_busy_loop") as hung:
            if runs:
                hung.resume()
                time.sleep(0.5)  # it says so before it does so
            hung.send_signal(signal.SIGSTOP)
            with attached(machine, gdb_program) as other:
                other.send("monitor run-control")
                other.expect("has the run control")
                other.send("monitor run-control take --force")
                other.expect("this debugger has the run control, and the machine stands still")
                other.send("stepi")
                time.sleep(0.5)  # to have a place where it stands, of which the other one hears
            answers(console)
            hung.send_signal(signal.SIGCONT)
            if runs:
                hung.expect("has taken the run control: this one only reads from now on")
                hung.expect(r'"vcpu0/VMPL2" stopped\.')
            hung.send("delete")
            hung.send("stepi")
            hung.expect("no debugger has the run control; monitor run-control take")
            answers(console)


def test_half_a_connection(svsmd: Start) -> None:
    """One that was never said anything on, one that says half a packet, one that shuts its side."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    silent = RawDebugger(machine.gdb_port, silent=True)
    half = RawDebugger(machine.gdb_port, silent=True)
    half.socket.sendall(b"+$qSupp")
    answers(console)
    owner = RawDebugger(machine.gdb_port)
    assert "debugger 1, " in owner.monitor("run-control")
    owner.send(b"vCont;c")
    owner.socket.shutdown(socket.SHUT_WR)  # it would still hear
    assert owner.reply() == b""
    owner.close()
    answers(console)
    owner = RawDebugger(machine.gdb_port)
    owner.send(*[b"vCont;s:1"] * 500)
    # A reset, in the middle.
    owner.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    owner.close()
    answers(console)
    for each in (silent, half):
        each.close()


def test_garbage(svsmd: Start) -> None:
    """From an owner and from readers, packets cut and mixed at random; always the same ones."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    chance = random.Random(5)
    with RawDebugger(machine.gdb_port) as owner:
        owner.send(b"vCont;c")
        for _ in range(60):
            pieces = [
                chance.choice((
                    chance.randbytes(chance.randrange(40)),
                    encode(chance.choice(LOOKS)),
                    encode(chance.choice(LOOKS) + chance.randbytes(3)),
                    encode(chance.choice(LOOKS))[: chance.randrange(9)],
                    b"\x03", b"-", b"$" * 5,
                ))
                for _ in range(30)
            ]  # fmt: skip
            with RawDebugger(machine.gdb_port, silent=True) as reader:
                reader.socket.sendall(b"".join(pieces))
                reader.socket.shutdown(socket.SHUT_WR)
                try:
                    while reader.socket.recv(1 << 16):
                        pass
                except ConnectionResetError:
                    pass
        answers(console)
        owner.socket.sendall(b"\x03")
        assert owner.reply().startswith(b"T02")
    answers(console)
    assert "Traceback" not in machine.stderr


def test_many_at_once(svsmd: Start, gdb_program: str) -> None:
    """Sixteen are served, the others refused; the next one after them finds the machine free."""
    machine = svsmd("demo")
    console = machine.console()
    console.expect("demo> ")
    clients = [RawDebugger(machine.gdb_port, silent=True) for _ in range(CLIENTS)]
    for client in clients:
        client.send(b"qC")
    replies = [client.reply() for client in clients]
    assert replies.count(b"QC1") == 16
    assert replies.count(b"E.16 debuggers are attached already") == CLIENTS - 16
    served = [client for client, reply in zip(clients, replies, strict=True) if reply == b"QC1"]
    owners = [client for client in served if client.ask(b"M200000,0:") == b"OK"]
    assert len(owners) == 1
    assert all(len(client.ask(b"g")) == 1120 for client in served)
    owners[0].send(b"vCont;c")
    assert all(len(client.ask(b"g")) == 1120 for client in served if client not in owners)
    answers(console)
    for client in clients:
        client.close()
    answers(console)
    assert "vmpl" in machine.gdb(gdb_program, "stepi", "info registers vmpl")
    answers(console)
