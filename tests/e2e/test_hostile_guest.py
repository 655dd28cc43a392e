# SPDX-License-Identifier: MIT
"""A guest that does its worst stops nobody: debuggers, consoles and signals are served at once.

Two noisy cores say nothing about one answer; what is bounded is the median of some.
"""

import signal
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from svsmd.console.telnet import ARE_YOU_THERE_ANSWER, Command
from tests.hostile_guests import ECHO, GUESTS, MEMORY, SPIN_EVERYWHERE, VCPUS, hostile_kernel
from tests.svsmd_process import SvsmdProcess
from tools.bench.rsp import RspClient

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]

ROUNDS = 20
MEDIAN_SECONDS = 0.1
END_SECONDS = 1.0
RUN_SECONDS = 0.02
"""What the guest gets between two interruptions."""
ALWAYS = ("nothing but VMGEXIT", "page states of 4 KiB", "console", SPIN_EVERYWHERE)
"""Those that have once shown something; the others are variations."""


@pytest.fixture
def guest(svsmd: Start, tmp_path: Path) -> Callable[..., SvsmdProcess]:
    """Starts a machine with one of the hostile guests."""

    def start(name: str, *options: str) -> SvsmdProcess:
        kernel = tmp_path / "kernel"
        kernel.write_bytes(hostile_kernel(name))
        cpus = VCPUS if name == SPIN_EVERYWHERE else 1
        return svsmd(f"--kernel={kernel}", f"--memory={MEMORY}", f"--cpus={cpus}", *options)

    return start


def median_of(measure: Callable[[], object]) -> float:
    """Seconds that it takes."""
    seconds = []
    for _ in range(ROUNDS):
        begin = time.monotonic()
        measure()
        seconds.append(time.monotonic() - begin)
        time.sleep(RUN_SECONDS)
    return statistics.median(seconds)


class Telnet:
    """A client that asks the server, not the guest, and reads all that the guest says meanwhile."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._pending = b""

    def are_you_there(self) -> None:
        """A question and its answer."""
        self._socket.sendall(bytes((Command.IAC, Command.ARE_YOU_THERE)))
        answer = ARE_YOU_THERE_ANSWER.strip()
        while answer not in self._pending:
            self._pending = self._pending[-len(answer) :] + self._socket.recv(1 << 16)
        self._pending = self._pending.partition(answer)[2]

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.slow) for name in GUESTS],
)
def test_everybody_is_answered(guest: Callable[..., SvsmdProcess], name: str) -> None:
    machine = guest(name, "--serial=telnet:127.0.0.1:0")
    telnet = Telnet(machine.console_port)
    port = machine.gdb_port
    time.sleep(0.5)
    answers = {"are you there": median_of(telnet.are_you_there)}
    telnet.close()

    def attach() -> None:
        RspClient(port).close()

    answers["attach"] = median_of(attach)
    clocks = []
    with RspClient(port) as gdb:
        gdb.resume()
        time.sleep(RUN_SECONDS)

        def interrupt() -> None:
            gdb.interrupt()
            clocks.append(gdb.monitor("info"))
            gdb.request(b"g")
            gdb.resume()

        answers["interrupt"] = median_of(interrupt)
        gdb.interrupt()
    assert max(answers.values()) < MEDIAN_SECONDS, answers
    assert len(set(clocks)) == len(clocks), f"the guest stands still: {clocks[-1]}"
    time.sleep(RUN_SECONDS)
    sent = time.monotonic()
    machine.send_signal(signal.SIGINT)
    assert machine.wait() == 130
    assert time.monotonic() - sent < END_SECONDS
    assert "Traceback" not in machine.stderr


def test_what_is_typed_comes_back_at_once(guest: Callable[..., SvsmdProcess]) -> None:
    """The guest looks at its keyboard after much work of the kind that takes the machine long."""
    console = guest(ECHO).console()
    console.send("!")
    console.expect("!")
    letters = iter("abcdefghijklmnopqrstuvwxyz")

    def type_a_letter() -> None:
        letter = next(letters)
        console.send(letter)
        console.expect(letter)

    assert median_of(type_a_letter) < MEDIAN_SECONDS
