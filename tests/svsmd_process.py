# SPDX-License-Identifier: MIT
"""The installed svsmd as a process, its console and its debuggers, for end-to-end tests.

Everything that waits has a time limit, and what a test has started does not outlive it.
"""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

START_SECONDS: Final = 30.0
SECONDS: Final = 60.0
"""How long a test waits for anything, unless it knows better."""
_POLL_SECONDS: Final = 0.02
_TERMINATE_SECONDS: Final = 10.0

_GDB_PORT = re.compile(r'debugger: gdb -ex "target remote \S*:(\d+)"')
_CONSOLE_PORT = re.compile(r"console: (?:nc|telnet) \S+ (\d+)")


@dataclass(frozen=True, slots=True)
class Linux:
    """A kernel and an initrd whose init starts a shell on COM1."""

    kernel: Path
    initrd: Path


class Expect:
    """Reads a file descriptor until a pattern appears."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._pending = ""
        self.ended = False
        self.transcript = ""

    def expect(self, pattern: str, seconds: float = SECONDS) -> re.Match[str]:
        """What matches next; the output up to its end is consumed. AssertionError if it fails."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self._pending, re.MULTILINE)) is None:
            assert not self.ended, f"{self._name} ended before {pattern!r}:\n{self.transcript}"
            left = end - time.monotonic()
            assert left > 0, f"{self._name} says no {pattern!r}:\n{self.transcript}"
            self._receive(left)
        self._pending = self._pending[match.end() :]
        return match

    def read_to_end(self, seconds: float = SECONDS) -> str:
        """All that comes until the other side closes."""
        end = time.monotonic() + seconds
        while not self.ended:
            left = end - time.monotonic()
            assert left > 0, f"{self._name} does not end:\n{self.transcript}"
            self._receive(left)
        rest, self._pending = self._pending, ""
        return rest

    def _receive(self, seconds: float) -> None:
        if not select.select([self._fd], [], [], seconds)[0]:
            return
        try:
            data = os.read(self._fd, 1 << 16)
        except ConnectionResetError:
            data = b""
        self.ended = not data
        text = data.decode(errors="backslashreplace").replace("\r", "")
        self._pending += text
        self.transcript += text


class Console(Expect):
    """The guest's serial console over a raw TCP connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        super().__init__(self._socket.fileno(), "the console")

    def send(self, text: str) -> None:
        """Type something; a line ends with \\r."""
        self._socket.sendall(text.encode())

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Program(Expect):
    """An interactive program on two pipes, such as a gdb that a test types at."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin = self._process.stdin
        self._stdout = self._process.stdout
        super().__init__(self._stdout.fileno(), command[0])

    def send(self, line: str) -> None:
        """Type a line."""
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    def resume(self) -> None:
        """Have a gdb continue; it says so."""
        self.send("continue")
        self.expect("Continuing")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.send_signal(signal.SIGINT)

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        self._process.wait()

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code, when it has ended."""
        return self._process.wait(seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what could not be written any more
            self._stdin.close()
        self._stdout.close()


class SvsmdProcess:
    """`svsmd run` with arguments of a test.

    Unless the arguments say otherwise the debugger's port and the console's are free ones, and the
    console is raw TCP.

    Args:
        program: the svsmd to run.
        arguments: of `svsmd run`.
        log: file that takes its stderr.
    """

    def __init__(self, program: Path, arguments: Sequence[str], log: Path) -> None:
        self._log = log
        given = {argument.partition("=")[0] for argument in arguments}
        defaults = [
            option
            for option in ("--gdb=tcp:127.0.0.1:0", "--serial=tcp:127.0.0.1:0")
            if option.partition("=")[0] not in given
        ]
        self._consoles: list[Console] = []
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [program, "run", *arguments, *defaults],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                # Ctrl-C at the tests' terminal is the tests' own.
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.stdout = Expect(self._process.stdout.fileno(), "svsmd's stdout")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="backslashreplace")

    def said(self, pattern: str | re.Pattern[str], seconds: float = START_SECONDS) -> str:
        """The first group of a pattern in stderr, as soon as it is there."""
        end = time.monotonic() + seconds
        while (match := re.search(pattern, self.stderr)) is None:
            assert self._process.poll() is None, f"svsmd has ended:\n{self.stderr}"
            assert time.monotonic() < end, f"svsmd does not say {pattern!r}:\n{self.stderr}"
            time.sleep(_POLL_SECONDS)
        return match[1]

    @property
    def gdb_port(self) -> int:
        """Where debuggers attach."""
        return int(self.said(_GDB_PORT))

    @property
    def console_port(self) -> int:
        """Where the console is."""
        return int(self.said(_CONSOLE_PORT))

    def console(self) -> Console:
        """A new client of the console."""
        console = Console(self.console_port)
        self._consoles.append(console)
        return console

    def gdb_command(self, program: str, *commands: str, symbols: Path | None = None) -> list[str]:
        """A command line of gdb that attaches, and then executes commands."""
        start = ["set pagination off", "set confirm off", "set width 0"]
        lines = [*start, f"target remote 127.0.0.1:{self.gdb_port}", *commands]
        files = [str(symbols)] if symbols is not None else []
        return [program, "-nx", "-q", *files, *(part for line in lines for part in ("-ex", line))]

    def gdb(
        self, program: str, *commands: str, symbols: Path | None = None, seconds: float = SECONDS
    ) -> str:
        """What a gdb prints that attaches, executes commands and leaves."""
        command = self.gdb_command(program, *commands, symbols=symbols)
        done = subprocess.run(
            [command[0], "-batch", *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
        return done.stdout.decode(errors="backslashreplace")

    def send_signal(self, number: signal.Signals) -> None:
        """Send the daemon a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float = SECONDS) -> int:
        """Its exit code, when it has ended by itself."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"svsmd does not end:\n{self.stderr}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for console in self._consoles:
            console.close()
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
