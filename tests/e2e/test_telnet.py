# SPDX-License-Identifier: MIT
"""The stock telnet, and several clients of one console."""

import os
import pty
import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.svsmd_process import Console, Expect, SvsmdProcess

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]


def test_stock_telnet(svsmd: Start, telnet_program: str) -> None:
    """From the first key on, each key is sent at once and only the guest echoes it."""
    machine = svsmd("demo", "--serial=telnet:127.0.0.1:0")
    ours, theirs = pty.openpty()
    telnet = subprocess.Popen(
        [telnet_program, "127.0.0.1", str(machine.console_port)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        terminal = Expect(ours, "telnet")
        terminal.expect("demo> ")
        # No Enter: in line mode the guest would not see this, nor would it be echoed twice.
        os.write(ours, b"hel")
        terminal.expect("hel")
        os.write(ours, b"p\r")
        terminal.expect(r"p\r?\n")
        terminal.expect("this list")
        terminal.expect("demo> ")
        assert "helhel" not in terminal.transcript
        assert "help\nhelp" not in terminal.transcript
        os.write(ours, b"off\r")
        assert machine.wait() == 0, machine.stderr
        assert telnet.wait(30) in (0, 1)  # closed by the other side
    finally:
        telnet.kill()
        telnet.wait()
        os.close(ours)


def test_clients_share_a_console(svsmd: Start) -> None:
    """Who comes late gets the history; everybody sees everything, and everybody may type."""
    machine = svsmd("demo")
    first = machine.console()
    first.expect("demo> ")
    late = machine.console()
    late.expect("guest at VMPL 2")
    late.expect("demo> ")
    late.send("caa\r")
    for console in (first, late):
        console.expect("call_pending 0")
        console.expect("demo> ")


def test_a_slow_client_does_not_stop_the_guest(svsmd: Start) -> None:
    machine = svsmd("demo")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", machine.console_port))
        console: Console = machine.console()
        console.expect("demo> ")
        for _ in range(50):
            console.send("cpuid\r")
            console.expect("demo> ")
        console.send("off\r")
        console.read_to_end()
        assert machine.wait() == 0, machine.stderr
