# SPDX-License-Identifier: MIT
"""Programs at CPL 3 of the emulated CPU: what they may do works, and what they must not do harms
nobody but themselves, on any number of CPUs.

They check themselves (tests/modules) and say that they have passed.
"""

from pathlib import Path

import pytest

from svsmd.core.memory import AllocatorStatistics, PageKind
from svsmd.errors import ExitCode
from tests.module_machine import ModuleMachine, program

CPUS = [1, 2, 4]
SPAWNS: dict[str, object] = {"capabilities": ["spawn"], "children": 8, "pages": 512}
PROGRAMS: dict[str, dict[str, object]] = {
    "torture": SPAWNS,
    "bomb": SPAWNS,
    "fpu": SPAWNS,
    "tasks": SPAWNS,
    "start": {"arguments": ["start", "one", "two words"], "environment": ["A=1", "B="]},
}
NEIGHBOURS = (
    program("/bin/hello")
    + program("/bin/spin", arguments=["spin", "40"])
    + program("/bin/spin", arguments=["spin", "1000000"], priority="low")
)
NEIGHBOUR_NAMES = ("hello", "spin")


def statistics(machine: ModuleMachine) -> AllocatorStatistics:
    """Of the SVSM's memory."""
    core = machine.machine.core
    assert core is not None
    assert core._machine is not None
    return core._machine.pages.statistics()


def check_alive(machine: ModuleMachine) -> None:
    """The neighbours, the guest and the SVSM have seen nothing."""
    assert machine.run("spin: done, unharmed", "hello: hello from CPL 3") is None
    assert "selftest" in machine.type("help")
    assert "00000000" in machine.type("peek 0x1000 16")
    core = machine.machine.core
    assert core is not None
    assert not core.panicked


@pytest.mark.parametrize("cpus", CPUS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_check_themselves(tmp_path: Path, name: str, cpus: int) -> None:
    configuration = program(f"/bin/{name}", **PROGRAMS[name])
    machine = ModuleMachine(tmp_path, configuration, names=[name], cpus=cpus)
    assert machine.run(f"{name}: ") is None
    assert machine.lines_of(name) == ["passed"], machine.svsm.decode()
    assert "selftest" in machine.type("help")
    # All that it had is free again.
    assert statistics(machine).by_kind.get(PageKind.PROCESS, 0) == 0


@pytest.mark.parametrize("cpus", [1, 2])
def test_wild_arguments_in_every_system_call(tmp_path: Path, cpus: int) -> None:
    configuration = program("/bin/wild", **SPAWNS) + NEIGHBOURS
    machine = ModuleMachine(tmp_path, configuration, names=["wild", *NEIGHBOUR_NAMES], cpus=cpus)
    assert machine.run("wild: passed") is None
    said = [line for line in machine.lines_of("wild") if "status" in line or "is not so" in line]
    assert not said
    check_alive(machine)


@pytest.mark.parametrize("cpus", [1, 2])
def test_hostile_programs_die_alone(tmp_path: Path, cpus: int) -> None:
    configuration = program("/bin/hostile", **SPAWNS) + NEIGHBOURS
    machine = ModuleMachine(tmp_path, configuration, names=["hostile", *NEIGHBOUR_NAMES], cpus=cpus)
    assert machine.run("hostile: passed, but") is None
    said = [line for line in machine.lines_of("hostile") if "ends with" in line or "not so" in line]
    assert not said
    check_alive(machine)


def test_memory_of_the_svsm_runs_out(tmp_path: Path) -> None:
    """Quotas that the machine cannot meet: who asks for more gets nothing, and nobody else ends."""
    configuration = NEIGHBOURS + 3 * program("/bin/eater", pages=1_000_000)
    machine = ModuleMachine(tmp_path, configuration, names=["eater", *NEIGHBOUR_NAMES], cpus=2)
    free = statistics(machine).free if machine.run("hello: ") is None else 0
    assert machine.run("eater: no memory for it") is None
    check_alive(machine)
    while len([line for line in machine.lines_of("eater") if line.startswith("no memory")]) < 3:
        assert machine.machine.run_slice() is not None
    assert "is full" not in machine.lines_of("eater")
    assert statistics(machine).free >= free


@pytest.mark.parametrize("cpus", [1, 2])
def test_modules_survive_a_restart_of_the_guest(tmp_path: Path, cpus: int) -> None:
    configuration = program("/bin/spin", arguments=["spin", "200"]) + program(
        "/bin/spin", arguments=["spin", "1000000"], priority="low"
    )
    machine = ModuleMachine(tmp_path, configuration, names=["spin"], cpus=cpus)
    assert machine.run() is None
    for count in range(1, 4):
        machine.type("reboot")
        assert machine.run(f"the guest starts again: restart {count}") is None
    assert machine.run("spin: done, unharmed") is None
    assert "selftest" in machine.type("help")


@pytest.mark.parametrize("cpus", CPUS)
def test_modules_repeat_to_the_tick(tmp_path: Path, cpus: int) -> None:
    ends = []
    for slice_ticks in (2_000_000, 77_777):
        configuration = NEIGHBOURS + "".join(
            program(f"/bin/{name}", **PROGRAMS[name]) for name in ("tasks", "fpu")
        )
        names = ["tasks", "fpu", *NEIGHBOUR_NAMES]
        machine = ModuleMachine(tmp_path, configuration, names=names, cpus=cpus, append="selftest")
        machine.slice = slice_ticks
        end = machine.run("never said")
        assert end is not None
        assert end.exit_code == ExitCode.OK, machine.console.decode()[-2000:]
        assert b" 0 failed" in machine.console
        ends.append((machine.machine.clock_now, machine.svsm, machine.console))
    assert ends[0] == ends[1]
