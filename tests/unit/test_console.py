# SPDX-License-Identifier: MIT
"""Consoles over streams, on stdio and in files, and with the telnet program of the system."""

import os
import pty
import shutil
import signal
import stat
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from svsmd.console.hub import MAX_CLIENTS, Hub
from svsmd.console.server import (
    TOO_MANY,
    serve_raw_client,
    serve_stream_console,
    serve_telnet_client,
)
from svsmd.console.stdio import raw_terminal, serve_file_console, serve_stdio_console
from svsmd.console.telnet import TelnetCodec
from svsmd.endpoint import FileEndpoint, TelnetEndpoint, UnixEndpoint
from svsmd.errors import UserError

GREETING = TelnetCodec().greeting()


class Line:
    """A hub, and what its clients typed."""

    def __init__(self) -> None:
        self.typed = b""
        self.hub = Hub(self._type_in)

    async def _type_in(self, data: bytes) -> None:
        self.typed += data


@pytest.fixture
def line() -> Line:
    return Line()


async def receive(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    """Exactly `count` bytes, or fewer at the end of the stream."""
    received = b""
    with trio.fail_after(5):
        while len(received) < count and (data := await stream.receive_some(count - len(received))):
            received += data
    return received


class TestRaw:
    async def test_bytes_pass_as_they_are(self, line, nursery):
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_raw_client, line.hub, theirs, "test")
        await trio.testing.wait_all_tasks_blocked()
        await ours.send_all(b"\xff\r\0\n")
        line.hub.feed(b"\xff\r\n")
        assert await receive(ours, 3) == b"\xff\r\n"
        assert line.typed == b"\xff\r\0\n"
        await ours.aclose()

    async def test_who_has_typed_all_still_reads(self, line, nursery):
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_raw_client, line.hub, theirs, "test")
        await ours.send_all(b"off\r")
        await ours.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        line.hub.feed(b"bye")
        with trio.fail_after(5):
            await line.hub.close()
        assert await receive(ours, 100) == b"bye"

    async def test_a_client_that_vanishes_is_forgotten(self, line, nursery):
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_raw_client, line.hub, theirs, "test")
        await trio.testing.wait_all_tasks_blocked()
        await ours.aclose()
        line.hub.feed(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert line.hub.clients == 0

    async def test_one_too_many_is_told(self, line):
        attached = [line.hub.attach("x") for _ in range(MAX_CLIENTS)]
        for client in attached:
            client.__enter__()
        ours, theirs = trio.testing.memory_stream_pair()
        await serve_raw_client(line.hub, theirs, "test")
        assert await receive(ours, 1000) == TOO_MANY


class TestTelnet:
    async def test_greets_before_anything_else(self, line, nursery):
        line.hub.feed(b"old\r")
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_telnet_client, line.hub, theirs, "test")
        assert await receive(ours, len(GREETING) + 5) == GREETING + b"old\r\0"
        await ours.send_all(b"ls\r\0\xff\xf6")
        answer = await receive(ours, 16)
        assert b"yes" in answer
        assert line.typed == b"ls\r"
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert line.hub.clients == 0

    async def test_noise_ends_nothing(self, line, nursery):
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_telnet_client, line.hub, theirs, "test")
        await ours.send_all(bytes(range(256)) * 40)
        await ours.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert line.hub.clients == 0


async def test_clients_come_and_go_over_a_socket(line, nursery, tmp_path):
    endpoint = UnixEndpoint(tmp_path / "console")
    await nursery.start(partial(serve_stream_console, line.hub, endpoint))
    for _ in range(3):
        async with await trio.open_unix_socket(endpoint.path) as client:
            await client.send_all(b"x")
            line.hub.feed(b"y")
    await arrival(line, b"xxx")
    nursery.cancel_scope.cancel()


async def test_a_client_that_does_not_read_stops_nobody(line, nursery, tmp_path):
    endpoint = UnixEndpoint(tmp_path / "console")
    await nursery.start(partial(serve_stream_console, line.hub, endpoint))
    async with await trio.open_unix_socket(endpoint.path):
        with trio.fail_after(5):
            while line.hub.clients == 0:  # noqa: ASYNC110 - the server accepts when it likes
                await trio.sleep(0.001)
            for _ in range(64):
                line.hub.feed(bytes(65536))
                await trio.lowlevel.checkpoint()
            async with await trio.open_unix_socket(endpoint.path) as other:
                assert len(await receive(other, 65536)) == 65536
    nursery.cancel_scope.cancel()


class TestStdio:
    async def test_pipes(self, line, nursery):
        stdin, typing = os.pipe()
        reading, stdout = os.pipe()
        serve = partial(serve_stdio_console, line.hub, stdin=stdin, stdout=stdout)
        await nursery.start(serve)
        os.write(typing, b"help\n")
        os.close(typing)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert line.typed == b"help\n"
        line.hub.feed(b"still here")  # the end of stdin was not the end of the machine
        with trio.fail_after(5):
            await line.hub.close()
        assert os.read(reading, 100) == b"still here"
        assert os.get_blocking(stdin)
        assert os.get_blocking(stdout)
        for fd in (stdin, reading, stdout):
            os.close(fd)

    async def test_files(self, line, nursery, tmp_path):
        (tmp_path / "in").write_bytes(b"skipped\nhelp\n")
        stdin = os.open(tmp_path / "in", os.O_RDONLY)
        os.read(stdin, 8)  # as a shell does that has read a part
        stdout = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        await nursery.start(partial(serve_stdio_console, line.hub, stdin=stdin, stdout=stdout))
        line.hub.feed(b"done")
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            await line.hub.close()
        os.close(stdin)
        os.close(stdout)
        assert line.typed == b"help\n"
        assert (tmp_path / "out").read_bytes() == b"done"

    async def test_a_reader_that_went_away_does_not_end_the_machine(self, line, nursery):
        stdin, typing = os.pipe()
        reading, stdout = os.pipe()
        os.close(reading)
        await nursery.start(partial(serve_stdio_console, line.hub, stdin=stdin, stdout=stdout))
        line.hub.feed(b"into the void")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert line.hub.clients == 0
        for fd in (stdin, typing, stdout):
            os.close(fd)

    async def test_a_terminal_is_raw_but_for_ctrl_c_and_restored(self):
        controller, terminal = os.openpty()
        before = termios.tcgetattr(terminal)
        with raw_terminal(terminal):
            iflag, oflag, _, lflag, _, _, cc = termios.tcgetattr(terminal)
            assert not lflag & (termios.ECHO | termios.ICANON | termios.IEXTEN)
            assert not iflag & (termios.ICRNL | termios.IXON)
            assert oflag == before[1]
            assert lflag & termios.ISIG
            assert cc[termios.VINTR] == b"\x03"
            assert cc[termios.VSUSP] == cc[termios.VQUIT] == b"\0"
        assert termios.tcgetattr(terminal) == before
        os.close(controller)
        os.close(terminal)


class TestFile:
    async def test_it_is_emptied_and_only_its_owner_reads_it(self, line, nursery, tmp_path):
        path = tmp_path / "log"
        await nursery.start(serve_file_console, line.hub, FileEndpoint(path))
        line.hub.feed(b"\r\nboot\xff")
        with trio.fail_after(5):
            await line.hub.close()
        assert path.read_bytes() == b"\r\nboot\xff"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    async def test_one_that_cannot_be_written(self, line, tmp_path):
        with pytest.raises(UserError, match="cannot write there: Is a directory"):
            await serve_file_console(line.hub, FileEndpoint(tmp_path))

    async def test_a_fifo_without_a_reader(self, line, tmp_path):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(UserError, match="cannot write there"):
            await serve_file_console(line.hub, FileEndpoint(tmp_path / "fifo"))

    async def test_a_full_disk_does_not_end_the_machine(self, line, nursery):
        await nursery.start(serve_file_console, line.hub, FileEndpoint(Path("/dev/full")))
        line.hub.feed(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert line.hub.clients == 0


@asynccontextmanager
async def telnet_program(*arguments: str) -> AsyncIterator[trio.lowlevel.FdStream]:
    """The system's telnet in a terminal of its own; what its user sees and types."""
    pid, controller = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp("telnet", ["telnet", *arguments])
    async with trio.lowlevel.FdStream(controller) as screen:
        try:
            yield screen
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it is dead


async def read_until(screen: trio.lowlevel.FdStream, text: bytes) -> bytes:
    seen = b""
    with trio.fail_after(10):
        while text not in seen:
            seen += await screen.receive_some()
    return seen


@pytest.mark.skipif(shutil.which("telnet") is None, reason="no telnet here")
async def test_stock_telnet_is_in_character_mode_from_the_first_key(line, nursery):
    bound = await nursery.start(
        partial(serve_stream_console, line.hub, TelnetEndpoint("127.0.0.1", 0))
    )
    async with telnet_program(bound.host, str(bound.port)) as screen:
        await read_until(screen, b"Escape character is")
        line.hub.feed(b"demo> ")
        await read_until(screen, b"demo> ")
        # One key without Enter arrives, and nothing but the guest echoes it.
        await screen.send_all(b"x")
        await arrival(line, b"x")
        line.hub.feed(b"<echo>")
        assert b"x" not in await read_until(screen, b"<echo>")
        # Enter is one CR, Ctrl-C a character, and bytes above 127 survive.
        await screen.send_all(b"\r\x03" + "é".encode())
        await arrival(line, b"x\r\x03" + "é".encode())
        line.hub.feed(b"10%\r20%\r\n" + "é".encode() + b"|")
        assert "20%\r\né|".encode() in await read_until(screen, b"|")
        # The client's own commands: a break is not typed, "are you there" is answered.
        for command in (b"send brk\r", b"send ayt\r"):
            await screen.send_all(b"\x1d")
            await read_until(screen, b"telnet> ")
            await screen.send_all(command)
        await read_until(screen, b"[svsmd: yes]")
        assert line.typed == b"x\r\x03" + "é".encode()
    nursery.cancel_scope.cancel()


async def arrival(line: Line, typed: bytes) -> None:
    with trio.fail_after(10):
        while line.typed != typed:  # noqa: ASYNC110 - typed by another process
            await trio.sleep(0.005)
