# SPDX-License-Identifier: MIT
"""Where a program was that an exception has ended, or that the SVSM served when it panicked."""

import re
import subprocess
from pathlib import Path

import pytest

from svsmd.core.backtrace.symbols import Symbols
from svsmd.core.syscalls.posix import PosixCalls
from svsmd.core.tasks.executable import PIE_BASE
from svsmd.core.tasks.program_frames import FRAMES_MAX
from svsmd.errors import ExitCode
from tests.module_machine import ROOT, ModuleMachine, modules, program

SDK = ROOT / "svsmd" / "modules" / "sdk"
SOURCE = ROOT / "tests" / "modules" / "crash" / "crash.c"
FRAME = re.compile(r"#\d+ \[module\] (0x[0-9a-f]+)(?: ([\w.]+?)(?:\+0x[0-9a-f]+)?)?(?: at (.+))?")


def line_of(text: str, nth: int = 0) -> int:
    """Number of the nth line of crash.c that is this text."""
    lines = SOURCE.read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if line.strip() == text][nth]


def crash(tmp_path: Path, *arguments: str, code: bytes | None = None) -> list[str]:
    """What the log says of the program with these arguments, until it has ended."""
    machine = ModuleMachine(
        tmp_path,
        program("/bin/crash", arguments=["crash", *arguments])
        + program("/bin/spin", arguments=["spin", "20"]),
        files={"/bin/crash": code or modules()["crash"]},
        names=["spin"],
    )
    assert machine.run("crash: killed at", "spin: done, unharmed") is None
    return machine.lines_of("crash")


def places(lines: list[str]) -> list[tuple[str, str]]:
    """Function, and file and line, of each frame."""
    found = [FRAME.fullmatch(line) for line in lines]
    return [(match[2] or "", match[3] or "") for match in found if match]


def expected(function: str, line: int, main: int) -> list[tuple[str, str]]:
    return [
        (function, f"crash/crash.c:{line}"),
        ("middle", f"crash/crash.c:{line_of(f'{function}();')}"),
        ("outer", f"crash/crash.c:{line_of('middle(asks);')}"),
        ("main", f"crash/crash.c:{main}"),
    ]


MAIN = 'outer(strcmp(argv[1], "ask") == 0);'


def test_killed_program_says_where(tmp_path: Path) -> None:
    lines = crash(tmp_path, "store")
    assert re.fullmatch(r"killed at 0x[0-9a-f]+: #PF at 0x8, error code 0x6", lines[0])
    store = line_of("*(volatile int *)somewhere(8) = 1;")
    assert places(lines)[:4] == expected("store", store, line_of(MAIN))
    assert places(lines)[4][0] == "_start"
    # The first frame is where it was killed; who has called is shown where it returns to.
    assert f"#0 [module] {lines[0].split()[2].rstrip(':')} store" in lines[1]
    assert len(lines) == 6


def test_killed_pie(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", "-g", "-ffreestanding", "-fno-stack-protector", "-fpie",
         "-fno-omit-frame-pointer", f"-I{SDK}/include", f"-ffile-prefix-map={SOURCE.parent}=crash",
         "-nostdlib", "-static-pie", "-Wl,-z,separate-code", "-o", file, SOURCE,
         *sorted((SDK / "lib").glob("*.[cS]"))],
        check=True,
    )  # fmt: skip
    lines = crash(tmp_path, "store", code=file.read_bytes())
    assert int(lines[0].split()[2].rstrip(":"), 16) > PIE_BASE
    store = line_of("*(volatile int *)somewhere(8) = 1;")
    assert places(lines)[:4] == expected("store", store, line_of(MAIN))


@pytest.mark.parametrize(
    "rbp", ["ring", "0", "1", "8", "10000", "7fffff0000", "7fffffeff8", "800000000000",
            "ffff800003c00000", "ffffff0000005f51", "fffffffffffffff8"],
)  # fmt: skip
def test_wild_frame_pointers(tmp_path: Path, rbp: str) -> None:
    lines = crash(tmp_path, "ud2", rbp)
    assert lines[0].endswith("#UD, error code 0x0")
    found = places(lines)
    assert found[0][0] == "main"
    assert len(found) == (3 if rbp == "ring" else 1)
    if rbp == "ring":
        assert {function for function, _ in found[1:]} == {"make_ring"}
    # Nothing but the address where it was killed: what is in RBP is the program's.
    for line in lines[1 + len(found) :]:
        assert not re.search("[0-9]", line)


def test_program_without_symbols(tmp_path: Path) -> None:
    file = tmp_path / "crash"
    file.write_bytes(modules()["crash"])
    subprocess.run(["strip", file], check=True)
    lines = crash(tmp_path, "store", code=file.read_bytes())
    # Nobody knows where the innermost function begins: it has no frame, and hides its caller.
    assert places(lines) == [("", "")] * 4


def test_each_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes of it are killed; and not at all as long as none is."""
    made: list[Symbols] = []
    lookup = Symbols.lookup

    def counted(self: Symbols, address: int) -> object:
        if not any(self is each for each in made):
            made.append(self)
        return lookup(self, address)

    monkeypatch.setattr(Symbols, "lookup", counted)
    configuration = 3 * program("/bin/crash", arguments=["crash", "store"])
    machine = ModuleMachine(
        tmp_path, configuration + program("/bin/spin", arguments=["spin", "9"]), None,
        ["crash", "spin"],
    )  # fmt: skip
    assert not made
    assert machine.run("spin: done, unharmed") is None
    assert sum(line.startswith("killed") for line in machine.lines_of("crash")) == 3
    assert len(machine.lines_of("crash")) <= 3 * (2 + FRAMES_MAX)
    assert len(made) == 1


def test_panic_in_a_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise ArithmeticError("of the test")

    monkeypatch.setattr(PosixCalls, "_getrandom", fail)
    machine = ModuleMachine(
        tmp_path, program("/bin/crash", arguments=["crash", "ask"]), names=["crash"]
    )
    end = machine.run("never said")
    assert end is not None
    assert end.exit_code == ExitCode.GUEST_CRASHED
    report = machine.lines[machine.lines.index("panic: ArithmeticError") :]
    frames = [line.strip() for line in report if line.startswith("  #")]
    entry = next(n for n, line in enumerate(frames) if line.endswith(" [system call] SYSCALL"))
    assert all("[module]" not in line for line in frames[:entry])
    asked = line_of("CHECK(getrandom(&random, sizeof(random), 0) == sizeof(random));")
    found = places(frames[entry + 1 :])
    found = [place for place in found if place[0] != "getrandom"]
    # The SYSCALL instruction itself is of the SDK's header, and inlined.
    assert found[0][0] == "ask"
    assert found[1:4] == expected("ask", asked, line_of(MAIN))[1:]
    assert found[4][0] == "_start"


def test_panic_of_another_task_names_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What entered VMPL0 last may be a program that does not have the CPU any more."""
    machine = ModuleMachine(
        tmp_path, program("/bin/spin", arguments=["spin", "1000000"]), names=["spin"]
    )
    assert machine.run() is None
    core = machine.machine.core
    assert core is not None
    assert core._processes is not None
    assert core._scheduler is not None
    spin = next(task for task in core._scheduler.tasks.values() if task.name == "spin")
    monkeypatch.setattr(core._scheduler, "current", lambda apic_id: None)
    cpu = core.cpus[0]
    assert core._processes.module_on(cpu) is None
    monkeypatch.setattr(core._scheduler, "current", lambda apic_id: spin)
    process = core._processes._processes[spin]
    monkeypatch.setattr(process, "_loaded", None)
    assert core._processes.module_on(cpu) is None
    monkeypatch.setattr(process, "_loaded", cpu)
    module = core._processes.module_on(cpu)
    assert module is not None
    found = module.lookup(process.program.executable.entry)
    assert found is not None
    assert found.symbol == "_start"
    assert module.lookup(0) is None
