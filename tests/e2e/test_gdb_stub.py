# SPDX-License-Identifier: MIT
"""The stock gdb against the stub, with a machine of four instructions behind it."""

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from svsmd.endpoint import TcpEndpoint
from svsmd.gdbstub.eager_stream import EagerSocketStream
from svsmd.gdbstub.server import MAX_DEBUGGERS
from svsmd.gdbstub.service import serve_gdb
from tests.fake_target import FakeMachine, FakeRunner

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed"),
]


class Stub:
    """A stub with a fake machine that runs."""

    def __init__(self, port: int, machine: FakeMachine, runner: FakeRunner) -> None:
        self.port = port
        self.machine = machine
        self.runner = runner

    async def gdb(self, *commands: str) -> str:
        """Run gdb with these commands after `target remote`; what it printed."""
        return await _gdb(f"target remote 127.0.0.1:{self.port}", *commands)

    async def wait_until(self, *, running: bool) -> None:
        """Wait until the machine runs, or stands still."""
        with trio.fail_after(10):
            while self.runner.running is not running:  # noqa: ASYNC110
                await trio.sleep(0.01)


async def _gdb(*commands: str) -> str:
    with trio.fail_after(60):
        done = await trio.run_process(
            _command_line(commands), capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    return done.stdout.decode()


def _command_line(commands: Sequence[str]) -> list[str]:
    options = [option for command in commands for option in ("-ex", command)]
    return ["gdb", "-nx", "-q", "-batch", "-ex", "set pagination off", *options]


@pytest.fixture
async def stub(nursery: trio.Nursery) -> Stub:
    machine = FakeMachine()
    runner = FakeRunner(machine, running=True)
    nursery.start_soon(runner.run)
    bound = await nursery.start(serve_gdb, TcpEndpoint("127.0.0.1", 0), lambda: machine, runner)
    return Stub(bound.port, machine, runner)


async def test_attach_and_look_round(stub: Stub) -> None:
    output = await stub.gdb(
        "info threads",
        "info registers",
        "info registers fs_base gs_base",
        "p $xmm0.uint128",
        "p $st0",
        "x/4i 0x1000",
        "x/2xb 0x2fff",
        "x/xb 0x3000",
        "monitor help",
        "monitor echo hello there",
        "monitor fail",
    )
    assert '* 1    Thread 1 "vcpu0" (VMPL2 & running)' in output
    assert '  2    Thread 2 "vcpu1" (VMPL2, halted)' in output
    for line in (
        r"rsp            0x2ff8              0x2ff8",
        r"eflags         0x2                 \[ \]",
        r"gs             0x0                 0",
        r"cr0            0x80000011          \[ PE ET PG \]",
        r"cr3            0x0                 0",
        r"efer           0x0                 \[ \]",
        r"cs_base        0x0                 0x0",
        r"vmpl           0x2                 2",
        r"fs_base        0x0                 0",
        r"gs_base        0x0                 0",
        r"\$1 = 0",
        r"\$2 = 0",
        r".*0x1000:\tincq   0x2000",
        r".*0x1008:\tinc    %rax",
        r".*0x100b:\tnop",
        r".*0x100c:\tjmp    0x1000",
        r"0x2fff:\t0x00\tCannot access memory at address 0x3000",
        r"0x3000:\tCannot access memory at address 0x3000",
        r"help \[COMMAND\] +list the commands, or explain one",
        r"hello there",
        r"fail: that does not work",
    ):
        assert re.search(f"^{line}$", output, re.MULTILINE), f"{line}\n{output}"
    assert stub.runner.running  # the end of gdb is a detachment


async def test_break_watch_step_and_write(stub: Stub) -> None:
    output = await stub.gdb(
        "break *0x1008",
        "continue",
        "stepi",
        "stepi",
        "delete",
        "hbreak *0x100b",
        "continue",
        "delete",
        "set var *(long *) 0x2000 = 41",
        "watch *(long *) 0x2000",
        "continue",
        "delete",
        "rwatch *(long *) 0x2000",
        "continue",
        "delete",
        "awatch *(long *) 0x2000",
        "continue",
        "delete",
        "set var $rbx = 0x1234",
        "set var $cr3 = 0x5000",
        "set var $xmm5.v2_int64[1] = 7",
        "p/x $rbx + $cr3 + $xmm5.v2_int64[1]",
        "set var $vmpl = 0",
        "tbreak *0x1000",
        "jump *0x100c",
    )
    assert re.findall(r" hit (.*?\d)[,:]", output) == [
        "Breakpoint 1",
        "Breakpoint 2",
        "Hardware watchpoint 3",
        "Hardware read watchpoint 4",
        "Hardware access (read/write) watchpoint 5",
        "Temporary breakpoint 6",
    ], output
    assert "0x000000000000100b in ?? ()\n0x000000000000100c in ?? ()" in output
    assert "Old value = 41\nNew value = 42" in output
    assert "$1 = 0x623b" in output
    assert 'Could not write register "vmpl"' in output
    assert stub.machine.breakpoints == []
    assert stub.machine.watchpoints == []


async def test_ctrl_c_and_attach_again(stub: Stub) -> None:
    """One gdb interrupts the machine twice, detaches, attaches again and leaves by `quit`."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            gdb = await nursery.start(
                partial(
                    trio.run_process,
                    ["gdb", "-nx", "-q", "-ex", "set pagination off", "-ex", "set confirm off"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
            session = GdbSession(gdb)
            await session.send(f"target remote 127.0.0.1:{stub.port}")
            await session.expect("0x0000000000001")
            counts = []
            for _ in range(2):
                await session.send("continue")
                await session.expect("Continuing.")
                await stub.wait_until(running=True)
                await trio.sleep(0.05)
                gdb.send_signal(signal.SIGINT)
                await session.expect("received signal SIGINT")
                await session.send(r'printf "count %ld\n", *(long *) 0x2000')
                counts.append(int(await session.expect(r"count (\d+)")))
            assert 0 < counts[0] < counts[1]
            await session.send("detach")
            await session.expect("detached")
            await stub.wait_until(running=True)
            await session.send(f"target remote 127.0.0.1:{stub.port}")
            await session.expect("0x0000000000001")
            await stub.wait_until(running=False)
            await session.send("stepi")
            await session.expect("0x0000000000001")
            await session.send("quit")
            await session.expect("detached")
    await stub.wait_until(running=True)


class GdbSession:
    """The standard streams of an interactive gdb."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._output = ""

    async def send(self, line: str) -> None:
        await self._stdin.send_all(line.encode() + b"\n")

    async def expect(self, pattern: str) -> str:
        """Read until the pattern appears; its first group, if it has one."""
        while (match := re.search(pattern, self._output, re.MULTILINE)) is None:
            data = await self._stdout.receive_some()
            assert data, f"gdb has ended: {self._output}"
            self._output += data.decode()
        self._output = self._output[match.end() :]
        return match[1] if match.groups() else match[0]


async def test_a_gdb_too_many_is_told_why(stub: Stub) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(MAX_DEBUGGERS):
            stream = await stack.enter_async_context(
                await trio.open_tcp_stream("127.0.0.1", stub.port)
            )
            await stream.send_all(b"$QStartNoAckMode#b0")
            await stream.receive_some()
        output = await stub.gdb("info threads")
    assert "16 debuggers are attached already" in output


async def test_small_packets_are_sent_at_once() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.open_tcp_stream(*listener.socket.getsockname())
        accepted = await listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)  # trio sets it, too
        async with client, EagerSocketStream(accepted):
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
