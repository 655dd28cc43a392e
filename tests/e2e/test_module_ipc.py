# SPDX-License-Identifier: MIT
"""Programs at CPL 3 that talk to each other, and one that the guest talks to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.module_machine import modules
from tests.svsmd_process import SvsmdProcess
from tools.make_archive import make_archive

pytestmark = pytest.mark.e2e

Start = Callable[..., SvsmdProcess]
ECHO = """
[[program]]
path = "/bin/echo"
arguments = ["echo", "--mortal"]
capabilities = ["serve_protocol", "guest_memory"]
protocols = [0xC0010001]
"""
PINGPONG = """
[[program]]
path = "/bin/pingpong"
capabilities = ["spawn", "register"]
services = ["pingpong"]
children = 1
"""


@pytest.fixture
def archive(tmp_path: Path) -> Callable[[str], Path]:
    """An archive with a configuration and the programs that it may start."""

    def write(configuration: str) -> Path:
        files = {f"/bin/{name}": modules()[name] for name in ("echo", "pingpong")}
        path = tmp_path / "modules.tar"
        path.write_bytes(make_archive({"/svsm.toml": configuration.encode(), **files}))
        return path

    return write


@pytest.mark.parametrize("cpus", [1, 2])
def test_two_programs_talk(svsmd: Start, archive: Callable[[str], Path], cpus: int) -> None:
    machine = svsmd(
        "demo", f"--archive={archive(PINGPONG)}", "--svsm-console=stdio", f"--cpus={cpus}"
    )
    for line in (
        r"pingpong-client: 1000 calls, \d+ ticks each|pingpong: 1000 calls, \d+ ticks each",
        r": 1000 messages, \d+ ticks each",
        ": handles and shared memory are there",
        "pingpong: 2002 messages served, client ended with 0",
    ):
        machine.stdout.expect(line)


@pytest.mark.parametrize("cpus", [1, 2])
def test_the_guest_calls_a_module(svsmd: Start, archive: Callable[[str], Path], cpus: int) -> None:
    machine = svsmd(
        "demo",
        f"--archive={archive(ECHO + PINGPONG)}",
        "--append=selftest",
        "--serial=stdio",
        f"--cpus={cpus}",
    )
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    for name in ("call", "guest-memory", "incomplete", "two-cpus"):
        skipped = " (skipped: one CPU)" if (name, cpus) == ("two-cpus", 1) else ""
        assert f"ok svsm.module.{name}{skipped}\n" in output
    assert ", 0 failed" in output


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_server_that_dies_while_the_guest_waits(
    svsmd: Start, archive: Callable[[str], Path], cpus: int
) -> None:
    machine = svsmd("demo", f"--archive={archive(ECHO)}", f"--cpus={cpus}")
    console = machine.console()
    console.expect("demo> ")
    for command, answer in (
        ("svsm", "protocol c0010001, echo: versions 1 to 1"),
        ("call c0010001 0 1 2 3 4", "0, SUCCESS: rcx 2 rdx 3 r8 4"),
        ("call c0010001 9 5", "80000002, UNSUPPORTED_CALL: rcx 5"),
        ("bench module", r"bench module: 2000 calls, \d+ ticks"),
        ("call c0010001 3 7", "80000001, UNSUPPORTED_PROTOCOL: rcx 7"),
        ("call c0010001 0 7", "80000001, UNSUPPORTED_PROTOCOL: rcx 7"),
        ("svsm", "protocol c0010001, echo: not offered"),
    ):
        console.send(command + "\r")
        console.expect(answer)
        console.expect("demo> ")
    console.send("off\r")
    assert machine.wait() == 0, machine.stderr
