# SPDX-License-Identifier: MIT
"""A fake machine with all its services round it."""

import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from svsmd.config import MachineConfig
from svsmd.daemon import RunConfig, how_to_reach, run
from svsmd.endpoint import PtyEndpoint, TcpEndpoint, parse_endpoint
from svsmd.errors import ExitCode, UserError
from svsmd.gdbstub.target import Target
from svsmd.slice_end import Ended, Idle, SliceEnd
from tests.fake_machine import SLICE_TICKS, FakeMachine
from tests.fake_target import FakeMachine as FakeTarget

MACHINE = MachineConfig(seed=b"\xab", rtc=0)
ROOT = Path(__file__).parents[2]


def config(serial: str = "null", gdb: str = "null", **options: Any) -> RunConfig:
    return RunConfig(
        machine=MACHINE, serial=parse_endpoint(serial), gdb=parse_endpoint(gdb), **options
    )


class Daemon:
    """A run in the background, and what it says."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.said: list[str] = []
        self.exit_code: int | None = None
        self.ended = trio.Event()

    async def run(self, wanted: RunConfig) -> None:
        self.exit_code = await run(
            wanted,
            build_machine=lambda _config: self.machine,
            build_target=lambda _machine: cast("Target", FakeTarget()),
            say=self.said.append,
        )
        self.ended.set()

    async def wait(self) -> int | None:
        with trio.fail_after(5):
            await self.ended.wait()
        return self.exit_code

    async def heard(self, pattern: str) -> re.Match[str]:
        """What it says, as soon as it says it."""
        with trio.fail_after(5):
            while True:
                for line in self.said:
                    if match := re.search(pattern, line):
                        return match
                await trio.sleep(0.001)


@pytest.fixture
def start(nursery) -> Callable[..., Daemon]:
    def start(wanted: RunConfig, *script: Callable[[FakeMachine], SliceEnd]) -> Daemon:
        machine = FakeMachine()
        machine.script.extend(partial(step, machine) for step in script)
        daemon = Daemon(machine)
        nursery.start_soon(daemon.run, wanted)
        return daemon

    return start


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    with trio.fail_after(5):
        while data := await stream.receive_some():
            received += data
    return received


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (Ended(0, "the guest powered off"), ExitCode.OK),
        (Ended(3, "the guest asked to be terminated"), ExitCode.GUEST_TERMINATED),
        (Ended(4, "the guest crashed"), ExitCode.GUEST_CRASHED),
    ],
)
async def test_the_end_of_the_machine_is_the_end_of_the_run(start, ended, code):
    daemon = start(config(), lambda _machine: ended)
    assert await daemon.wait() == code
    assert daemon.said == [ended.reason]


async def test_a_client_types_and_reads_to_the_last_byte(start):
    daemon = start(config(serial="tcp::0"))
    port = int((await daemon.heard(r"console: nc 127\.0\.0\.1 (\d+)"))[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"off")
        assert await read_all(client) == b"OFF"
    assert await daemon.wait() == 0


async def test_what_a_client_typed_that_is_gone_still_counts(start):
    daemon = start(config(serial="tcp::0"))
    port = int((await daemon.heard(r"console: nc 127\.0\.0\.1 (\d+)"))[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as client:
        await client.send_all(b"off")
    assert await daemon.wait() == 0


async def test_the_log_of_the_svsm(start, tmp_path):
    def log_and_end(machine: FakeMachine) -> SliceEnd:
        machine.on_svsm_console(b"SVSM: launched\n")
        return Ended(0, "")

    log = parse_endpoint(f"file:{tmp_path / 'log'}")
    await start(config(svsm_console=log), log_and_end).wait()
    assert (tmp_path / "log").read_bytes() == b"SVSM: launched\n"


async def test_a_ring_is_shown_when_the_guest_crashes(start):
    def panic(machine: FakeMachine) -> SliceEnd:
        machine.on_console(b"x" * 1024 + b"Kernel panic\xff")
        return Ended(4, "triple fault")

    daemon = start(config(serial="ring:1K"), panic)
    assert await daemon.wait() == ExitCode.GUEST_CRASHED
    assert daemon.said[-1].endswith("xKernel panic\\xff")
    assert len(daemon.said[-1]) == 1024 + 3


async def test_the_panic_of_an_svsm_is_shown_if_nobody_reads_its_log(start, tmp_path):
    def panic(machine: FakeMachine) -> SliceEnd:
        machine.on_svsm_console(b"panic: no more\n")
        return Ended(4, "it panicked", ("panic: no more", "  on vCPU 0"))

    daemon = start(config(), panic)
    assert await daemon.wait() == ExitCode.GUEST_CRASHED
    assert daemon.said == ["it panicked", "panic: no more", "  on vCPU 0"]
    log = parse_endpoint(f"file:{tmp_path / 'log'}")
    daemon = start(config(svsm_console=log), panic)
    assert await daemon.wait() == ExitCode.GUEST_CRASHED
    assert daemon.said == ["it panicked"]


async def test_it_says_what_it_began_with_and_where_its_clock_ended(start):
    daemon = start(config(verbose=True), lambda _machine: Ended(0, "done"))
    await daemon.wait()
    assert daemon.said == ["seed ab, rtc 0", "done", f"clock {SLICE_TICKS} ticks"]


async def test_the_time_limit(start):
    daemon = start(config(time_limit=0.05), FakeMachine.spin)
    assert await daemon.wait() == ExitCode.TIME_LIMIT
    assert daemon.said == ["the time limit of 0.05 s ran out"]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)],
)
@pytest.mark.parametrize("busy", [True, False])
async def test_signals_end_the_run_within_a_second(start, number, code, busy):
    slices = [FakeMachine.spin] if busy else [lambda _machine: Idle(None)]
    daemon = start(config(), *slices)
    with trio.fail_after(5):
        while not daemon.machine.slices:  # noqa: ASYNC110 - a fake machine sets no trio.Event
            await trio.sleep(0.001)
    before = time.monotonic()
    os.kill(os.getpid(), number)
    assert await daemon.wait() == code
    assert time.monotonic() - before < 1


async def test_nothing_is_left_behind(start, tmp_path):
    daemon = start(config(serial=f"unix:{tmp_path / 'c'}", gdb=f"unix:{tmp_path / 'g'}"))
    await daemon.heard("debugger")
    assert sorted(os.listdir(tmp_path)) == ["c", "g"]
    os.kill(os.getpid(), signal.SIGTERM)
    assert await daemon.wait() == 0
    assert os.listdir(tmp_path) == []


class TestErrors:
    async def test_a_bug_of_the_machine_comes_out_alone(self):
        machine = FakeMachine()

        def fail():
            raise ZeroDivisionError("bug")

        machine.script.append(fail)
        with pytest.raises(ZeroDivisionError):
            await Daemon(machine).run(config(serial="tcp::0"))

    async def test_a_port_in_use(self, start):
        daemon = start(config(serial="tcp::0"))
        port = (await daemon.heard(r"console: nc 127\.0\.0\.1 (\d+)"))[1]
        with pytest.raises(UserError, match="the address is in use"):
            await Daemon(FakeMachine()).run(config(gdb=f"tcp::{port}"))
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon.wait()

    async def test_a_machine_that_cannot_be_built(self):
        def refuse(_config: MachineConfig) -> FakeMachine:
            raise UserError("not an ELF file")

        with pytest.raises(UserError, match="not an ELF file"):
            await run(
                config(),
                build_machine=refuse,
                build_target=lambda _machine: cast("Target", FakeTarget()),
                say=lambda _line: None,
            )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"gdb": "stdio"}, "a debugger cannot be served at stdio"),
            ({"gdb": "telnet::1"}, "a debugger cannot be served at telnet"),
            ({"paused": True}, "needs a debugger"),
            (
                {"serial": "stdio", "svsm_console": parse_endpoint("stdio")},
                "stdio serves one console",
            ),
        ],
    )
    def test_what_excludes_each_other(self, options, message):
        with pytest.raises(UserError, match=message):
            config(**options)


class TestDebugger:
    async def test_it_starts_a_machine_that_waits_for_it(self, start):
        daemon = start(config(gdb="tcp::0", paused=True), lambda _machine: Ended(0, "ended"))
        port = int((await daemon.heard(r'gdb -ex "target remote :(\d+)"'))[1])
        await daemon.heard("stopped before the first instruction")
        assert daemon.machine.slices == 0
        async with await trio.open_tcp_stream("127.0.0.1", port) as client:
            await client.send_all(b"$c#63")
            answers = await read_all(client)
        assert b"$W00#" in answers
        assert await daemon.wait() == 0


def test_how_to_reach_what():
    assert how_to_reach(TcpEndpoint("::1", 5), debugger=True) == 'gdb -ex "target remote [::1]:5"'
    assert how_to_reach(PtyEndpoint("/dev/pts/9"), debugger=False) == "screen /dev/pts/9"
    assert how_to_reach(parse_endpoint("telnet::5555"), debugger=False) == "telnet 127.0.0.1 5555"
    assert how_to_reach(parse_endpoint("stdio"), debugger=False) is None


DRIVER = """
import sys, time, trio
from functools import partial
from svsmd import daemon
from svsmd.config import MachineConfig
from svsmd.endpoint import parse_endpoint
from tests.fake_machine import FakeMachine

machine = FakeMachine()
if "hang" in sys.argv:
    def hang():
        print("hanging", file=sys.stderr, flush=True)
        while True: time.sleep(1)
    machine.script.append(hang)
config = daemon.RunConfig(
    machine=MachineConfig(seed=b"1", rtc=0), serial=parse_endpoint("stdio"),
    gdb=parse_endpoint("null"))
print("ready", file=sys.stderr, flush=True)
sys.exit(trio.run(partial(daemon.run, config, build_machine=lambda _: machine,
                          build_target=lambda _: None, say=lambda line: None)))
"""


def start_driver(*arguments: str, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )


class TestProcess:
    def test_a_script_talks_to_the_guest_on_stdio(self):
        process = start_driver(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        output, errors = process.communicate(b"hello, off", timeout=20)
        assert (output, process.returncode) == (b"HELLO, OFF", 0), errors

    def test_the_second_signal_ends_even_a_machine_that_hangs(self):
        process = start_driver("hang", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        assert process.stderr is not None
        for expected in (b"ready\n", b"hanging\n"):
            assert process.stderr.readline() == expected
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert process.stderr.read() == b""
        process.stderr.close()

    def test_a_terminal_is_restored(self):
        controller, terminal = os.openpty()
        before = termios.tcgetattr(terminal)
        process = start_driver(stdin=terminal, stdout=terminal)
        assert process.stderr is not None
        os.write(controller, b"x")
        seen = b""
        while not seen.endswith(b"X"):
            seen += os.read(controller, 100)
        assert not termios.tcgetattr(terminal)[3] & termios.ICANON
        assert os.get_blocking(terminal)
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130
        assert termios.tcgetattr(terminal) == before
        process.stderr.close()
        os.close(controller)
        os.close(terminal)


async def test_no_thread_is_left(start):
    daemon = start(config(serial="tcp::0"), lambda _machine: Ended(0, ""))
    await daemon.wait()
    engines = [thread.name for thread in threading.enumerate() if "run_slice" in thread.name]
    assert engines == []
