# SPDX-License-Identifier: MIT
"""The command line: options, what it says about mistakes, exit codes."""

import json
import logging
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from svsmd import cli, config, doctor
from svsmd.config import DEMO_RTC, DEMO_SEED, GIB, MIB, MachineConfig, OnReboot
from svsmd.errors import ExitCode, UserError
from svsmd.slice_end import Ended
from tests.fake_machine import FakeMachine

QUIET_RUN = ("run", "--gdb", "null", "--serial", "null")


@pytest.fixture
def _logger() -> Iterator[None]:
    """The command line configures logging for the process; the other tests' is put back."""
    logger = logging.getLogger("svsmd")
    handlers, level = logger.handlers, logger.level
    yield
    logger.handlers = handlers
    logger.setLevel(level)


@pytest.fixture
def built(monkeypatch, _logger) -> list[FakeMachine]:
    """The machines that the command line builds; each powers off at once."""
    machines: list[FakeMachine] = []

    def build_machine(wanted: MachineConfig, payload: object = None) -> FakeMachine:
        machine = FakeMachine(wanted)
        machine.script.append(lambda: Ended(0, "the guest powered off"))
        machines.append(machine)
        return machine

    fake = types.ModuleType("svsmd.machine")
    fake.build_machine = build_machine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "svsmd.machine", fake)
    fake_target = types.ModuleType("svsmd.gdbstub.machine_target")
    fake_target.MachineTarget = lambda machine: machine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "svsmd.gdbstub.machine_target", fake_target)
    return machines


def machine_of(built: list[FakeMachine], *arguments: str) -> MachineConfig:
    assert cli.invoke([*QUIET_RUN, *arguments]) == 0
    wanted = built.pop().config
    assert wanted is not None
    return wanted


class TestRun:
    def test_the_demo_guest_is_the_same_everywhere(self, built):
        wanted = machine_of(built)
        assert wanted == MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC)
        assert wanted == machine_of(built, "demo")
        assert (wanted.memory, wanted.cpus, wanted.guest_vmpl, wanted.svsm) == (
            512 * MIB,
            1,
            2,
            True,
        )

    def test_a_kernel_gets_new_secrets_and_the_date(self, built, tmp_path, monkeypatch):
        monkeypatch.setattr("time.time", lambda: 1234567.8)
        (tmp_path / "vmlinuz").write_bytes(b"")
        first = machine_of(built, "--kernel", str(tmp_path / "vmlinuz"), "--append", "quiet")
        second = machine_of(built, "--kernel", str(tmp_path / "vmlinuz"))
        assert first.kernel == tmp_path / "vmlinuz"
        assert first.append == "quiet"
        assert first.rtc == 1234567
        assert len(first.seed) == cli.RANDOM_SEED_SIZE
        assert first.seed != second.seed

    @pytest.mark.parametrize(
        ("arguments", "attribute", "value"),
        [
            (["--memory", "2G"], "memory", 2 * GIB),
            (["--cpus", "4"], "cpus", 4),
            (["--guest-vmpl", "3"], "guest_vmpl", 3),
            (["--no-svsm"], "guest_vmpl", 0),
            (["--no-svsm"], "svsm", False),
            ([], "secure_tsc", False),
            (["--secure-tsc"], "secure_tsc", True),
            (["--seed", "0xabc"], "seed", b"\x0a\xbc"),
            (["--seed", "00"], "seed", b"\0"),
            (["--rtc", "0"], "rtc", 0),
            (["--name", "a-1"], "name", "a-1"),
            (["--on-reboot", "exit"], "on_reboot", OnReboot.EXIT),
        ],
    )
    def test_options_reach_the_machine(self, built, arguments, attribute, value):
        assert getattr(machine_of(built, *arguments), attribute) == value

    def test_a_random_seed_for_the_demo(self, built):
        assert machine_of(built, "--seed", "random") != machine_of(built, "--seed", "random")

    def test_it_talks_on_stderr_only(self, built, capsys):
        assert cli.invoke(["run", "-v", "--serial", "telnet::0", "--gdb", "null"]) == 0
        output, talk = capsys.readouterr()
        assert output == ""
        lines = talk.splitlines()
        assert lines[0].startswith("svsmd: console: telnet 127.0.0.1 ")
        assert lines[1] == f"svsmd: seed {DEMO_SEED.hex()}, rtc {DEMO_RTC}"
        assert lines[2:] == ["svsmd: the guest powered off", "svsmd: clock 1000 ticks"]

    def test_quiet(self, built, capsys):
        assert cli.invoke([*QUIET_RUN, "-q"]) == 0
        assert capsys.readouterr() == ("", "")

    def test_the_exit_code_of_the_machine(self, built, monkeypatch):
        def build_machine(wanted: MachineConfig, payload: object = None) -> FakeMachine:
            machine = FakeMachine(wanted)
            machine.script.append(lambda: Ended(3, "asked to be terminated"))
            return machine

        monkeypatch.setattr(sys.modules["svsmd.machine"], "build_machine", build_machine)
        assert cli.invoke([*QUIET_RUN]) == ExitCode.GUEST_TERMINATED

    def test_a_bug_is_not_hidden(self, built, monkeypatch):
        def build_machine(_wanted: MachineConfig, payload: object) -> FakeMachine:
            raise ZeroDivisionError

        monkeypatch.setattr(sys.modules["svsmd.machine"], "build_machine", build_machine)
        with pytest.raises(ZeroDivisionError):
            cli.invoke([*QUIET_RUN])

    def test_ctrl_c_while_the_machine_is_built(self, built, monkeypatch):
        def build_machine(_wanted: MachineConfig, payload: object) -> FakeMachine:
            raise KeyboardInterrupt

        monkeypatch.setattr(sys.modules["svsmd.machine"], "build_machine", build_machine)
        assert cli.invoke([*QUIET_RUN]) == ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["nosuch"], "No such command 'nosuch'"),
        (["run", "--nosuch"], "No such option"),
        (["run", "--memory"], "requires an argument"),
        (["run", "--memory", "lots"], "'--memory': 'lots' is not a size"),
        (["run", "--memory", "512"], "'512' is not a size"),
        (["run", "--memory", "1K"], "memory of 1K makes no sense"),
        (["run", "--memory", "999999G"], "more than this computer has"),
        (["run", "--memory", "33793K"], "not a multiple of 2M"),
        (["run", "--cpus", "0"], "0 vCPUs make no sense"),
        (["run", "--cpus", "x"], "'x' is not a valid integer"),
        (["run", "--guest-vmpl", "0"], "not 0"),
        (["run", "--no-svsm", "--guest-vmpl", "2"], "without an SVSM"),
        (["run", "--kernel", "/nonexistent"], "'/nonexistent' does not exist"),
        (["run", "--kernel", "/"], "is a directory"),
        (["run", "--initrd", "/dev/null"], "goes with a kernel"),
        (["run", "demo", "--kernel", "/dev/null"], "exclude each other"),
        (["run", "linux"], "there is no image 'linux'"),
        (["run", "--append", "x" * 4096], "at most 4095 bytes"),
        (["run", "--name", "../x"], "is not a name"),
        (["run", "--seed", "xyz"], "'xyz' is neither hexadecimal"),
        (["run", "--seed", ""], "1 to 64 bytes"),
        (["run", "--seed", "00" * 65], "1 to 64 bytes"),
        (["run", "--rtc", "-1"], "not a date"),
        (["run", "--clock", "fast"], "'fast' is not one of"),
        (["run", "--time-limit", "0"], "time limit of 0.0 s makes no sense"),
        (["run", "--time-limit", "nan"], "time limit of nan s makes no sense"),
        (["run", "--time-limit", "soon"], "'soon' is not a valid float"),
        (["run", "--gdb", "1234"], "'--gdb': '1234' is not an endpoint"),
        (["run", "--gdb", "null", "-S"], "needs a debugger"),
        (["run", "--gdb", "stdio"], "cannot be served at stdio"),
        (["run", "--gdb", "null", "--serial", "tcp:0.0.0.0:0"], "other machines could connect"),
        (["run", "--gdb", "null", "--serial", "unix:/nonexistent/s"], "No such file"),
        (["measure", "--serial", "null"], "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_a_hint_at_most(built, capsys, arguments, message):
    assert cli.invoke(arguments) == ExitCode.USAGE
    output, talk = capsys.readouterr()
    assert output == ""
    first, *more = talk.splitlines()
    assert first.startswith("svsmd: ")
    assert message in first
    assert not more or more[0].startswith("svsmd: hint: ")
    assert len(more) <= 1


class TestMeasure:
    def test_prints_the_launch_digest(self, built, capsys):
        assert cli.invoke(["measure", "--memory", "64M"]) == 0
        assert capsys.readouterr() == (FakeMachine.launch_digest.hex() + "\n", "")
        assert built[0].config == MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC, memory=64 * MIB)

    def test_json(self, built, capsys):
        assert cli.invoke(["measure", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "launch-digest": FakeMachine.launch_digest.hex()
        }


class TestDoctor:
    def test_all_is_well(self, built, capsys):
        assert cli.invoke(["doctor"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines if line.split()[1] in ("Python", "engine")] == [
            "Python",
            "engine",
        ]

    def test_an_engine_that_fails_is_reported_not_raised(self):
        def fail(_wanted: MachineConfig) -> None:
            raise RuntimeError("offsets do not match")

        finding = list(doctor.examine(fail))[-1]
        assert not finding.found
        assert finding.required
        assert "offsets do not match" in finding.detail

    def test_what_is_required_decides_the_exit_code(self, built, monkeypatch, capsys):
        missing = doctor.Finding("gdb", False, "no gdb in PATH", "debugging a guest")
        monkeypatch.setattr(doctor, "examine", lambda _build: iter([missing]))
        assert cli.invoke(["doctor"]) == 0
        assert "needed for debugging a guest" in capsys.readouterr().out
        required = doctor.Finding("engine", False, "broken", "everything", required=True)
        monkeypatch.setattr(doctor, "examine", lambda _build: iter([missing, required]))
        assert cli.invoke(["doctor", "--json"]) == ExitCode.USAGE
        assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["gdb", "engine"]


class TestSizes:
    @pytest.mark.parametrize(
        ("text", "size"),
        [
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
            ("1MB", 1 << 20),
        ],
    )
    def test_parse(self, text, size):
        assert config.parse_size(text) == size
        assert config.parse_size(config.format_size(size)) == size

    @pytest.mark.parametrize(
        "text", ["", "M", "1", "1.5G", "-1M", "1 M", "0x1M", "1T", "٣M", "1M\n"]
    )
    def test_refuse(self, text):
        with pytest.raises(UserError):
            config.parse_size(text)

    def test_format_of_odd_ones(self):
        assert config.format_size(0) == "0 bytes"
        assert config.format_size(1025) == "1025 bytes"


def test_version_and_help_load_neither_trio_nor_the_engine():
    program = (
        "import sys; from svsmd.cli import invoke;"
        "codes = [invoke(['--version']), invoke(['run', '--help'])];"
        "heavy = {'trio', 'unicorn', 'cryptography', 'svsmd.machine'} & set(sys.modules);"
        "sys.exit(f'{codes} {heavy}' if heavy or any(codes) else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("svsmd ")


def test_help_is_complete(built):
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.opts}"
