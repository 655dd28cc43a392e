# SPDX-License-Identifier: MIT
"""Programs that serve calls of two vCPUs, and what these get when the program or the guest ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from svsmd.core import request_loop
from svsmd.core.calls import Reply
from svsmd.core.core import Core
from svsmd.core.gate import Handler
from svsmd.core.memory import AllocatorStatistics
from svsmd.core.percpu import PerCpu
from svsmd.core.result_codes import SvsmResult
from svsmd.snp.types import Gpa
from tests.module_machine import ModuleMachine, program

PROTOCOL = 0xC001_0001
SLICES_MAX = 1000
SELFTEST = "selftest svsm.module.two-cpus"
"""Starts a second vCPU, which calls again and again; if it fails it leaves it so."""


def core_of(machine: ModuleMachine) -> Core:
    core = machine.machine.core
    assert core is not None
    assert not core.panicked
    return core


def statistics(machine: ModuleMachine) -> AllocatorStatistics:
    """Of the SVSM's memory."""
    found = core_of(machine).machine
    assert found is not None
    return found.pages.statistics()


def until(machine: ModuleMachine, replies: list[tuple[int, int]], wanted: tuple[int, int]) -> None:
    """A vCPU has got that."""
    for _ in range(SLICES_MAX):
        if wanted in replies:
            return
        machine.machine.run_slice()
    raise AssertionError(f"no {wanted} among {set(replies)}")


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What vCPUs found in RAX after calls: APIC id, result."""
    found: list[tuple[int, int]] = []
    write = request_loop._write_reply

    def noted(cpu: PerCpu, vmsa: Gpa, reply: Reply) -> Handler[None]:
        found.append((cpu.apic_id, reply.rax))
        yield from write(cpu, vmsa, reply)

    monkeypatch.setattr(request_loop, "_write_reply", noted)
    return found


def test_a_server_that_dies_while_two_vcpus_wait(
    tmp_path: Path, replies: list[tuple[int, int]]
) -> None:
    configuration = program(
        "/bin/mortal", capabilities=["spawn", "register", "serve_protocol"], services=["mortal"],
        protocols=[PROTOCOL], children=1,
    )  # fmt: skip
    machine = ModuleMachine(tmp_path, configuration, names=["mortal"], cpus=2)
    gone, call = SvsmResult.SVSM_ERR_UNSUPPORTED_PROTOCOL, f"call {PROTOCOL:x} 0 1 2 3 4"
    free = []
    for number, how in enumerate(("exit", "fault", "kill", "exit")):
        assert machine.run(f"{number} serves until {how}") is None
        if number:
            free.append(statistics(machine).free)
        replies.clear()
        assert f"{gone:x}" in machine.type(call if number else SELFTEST)
        assert (0, gone) in replies
        until(machine, replies, (1, gone))
    assert machine.run("4 serves until never") is None
    replies.clear()
    assert "0, SUCCESS: rcx 2 rdx 3 r8 4" in machine.type(call)
    until(machine, replies, (1, SvsmResult.SVSM_SUCCESS))
    assert len(set(free)) == 1, free


def test_the_guest_starts_again_while_a_program_serves_it(
    tmp_path: Path, replies: list[tuple[int, int]]
) -> None:
    configuration = program(
        "/bin/keeper", capabilities=["serve_protocol", "guest_memory"], protocols=[PROTOCOL]
    )
    machine = ModuleMachine(tmp_path, configuration, names=["keeper"], cpus=2)
    assert machine.run() is None
    free = []
    for number in range(3):
        replies.clear()
        assert "FAIL svsm.module.two-cpus" in machine.type(SELFTEST)
        until(machine, replies, (1, SvsmResult.SVSM_ERR_INCOMPLETE))
        assert machine.lines_of("keeper")[-1] == "keeps a call"
        machine.type("reboot")
        assert machine.run(f"the guest starts again: restart {number + 1}") is None
        replies.clear()
        assert "0, SUCCESS: rcx 5 rdx 6 r8 7" in machine.type(f"call {PROTOCOL:x} 7 4 5 6 7")
        assert machine.lines_of("keeper") == ["keeps a call", "its guest is gone"] * (number + 1)
        assert {apic_id for apic_id, _ in replies} == {0}
        free.append(statistics(machine).free)
    assert len(set(free)) == 1, free
