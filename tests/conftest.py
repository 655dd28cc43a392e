# SPDX-License-Identifier: MIT
"""Fixtures that start the installed svsmd, and the report of what was skipped.

`make test` runs pytest more than once. What one run skips is kept in the file of `--skip-log`, so
that the last run can show all of it at its end.
"""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from svsmd.snp import cpu_unicorn
from tests.svsmd_process import Linux, SvsmdProcess
from tools.apt_packages import AptError
from tools.fetch_gdb import GdbError, fetch_gdb
from tools.fetch_kernel import fetch_kernel
from tools.make_initrd import find_busybox, initrd

# Two noisy cores say nothing about the time of one example. CI repeats the same examples.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("svsmd")
    group.addoption("--skip-log", type=Path, help="file that collects what several runs skip")
    group.addoption("--no-skips", action="store_true", help="what is skipped counts as failed")


def _skipped(reporter: pytest.TerminalReporter) -> list[str]:
    """One line for each test that was skipped."""
    lines = []
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        lines.append(f"{report.nodeid}: {reason.removeprefix('Skipped: ')}")
    return lines


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--no-skips"):
        return
    if _skipped(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> Iterator[None]:
    yield
    log = config.getoption("--skip-log")
    lines = _skipped(terminalreporter)
    if log is not None:
        with log.open("a") as file:
            file.writelines(line + "\n" for line in lines)
        lines = log.read_text().splitlines()
    if lines:
        terminalreporter.section("skipped in this run and those before it" if log else "skipped")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session")
def svsmd_program() -> Path:
    """The installed svsmd of this environment."""
    program = Path(sys.executable).with_name("svsmd")
    assert program.is_file(), f"{program} is not there: run `make env`"
    return program


@pytest.fixture
def svsmd(svsmd_program: Path, tmp_path: Path) -> Iterator[Callable[..., SvsmdProcess]]:
    """Starts `svsmd run` with the arguments given; all that was started ends with the test."""
    with ExitStack() as stack:

        def start(*arguments: str) -> SvsmdProcess:
            log = tmp_path / f"svsmd-{len(list(tmp_path.glob('svsmd-*')))}.stderr"
            return stack.enter_context(SvsmdProcess(svsmd_program, arguments, log))

        yield start


@pytest.fixture(scope="session")
def gdb_program() -> str:
    """The stock gdb."""
    return _program("gdb")


@pytest.fixture(scope="session")
def dap_gdb_program() -> str:
    """A gdb with the Debug Adapter Protocol: the stock one, or else one from PyPI."""
    try:
        return str(fetch_gdb())
    except GdbError as error:
        pytest.skip(f"no gdb with the Debug Adapter Protocol: {error}")


@pytest.fixture(scope="session")
def telnet_program() -> str:
    """The stock telnet."""
    return _program("telnet")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture(scope="session")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Linux:
    """A distribution's kernel, or that of $SVSMD_TEST_KERNEL, and an initrd with a shell."""
    try:
        given = os.environ.get("SVSMD_TEST_KERNEL")
        kernel = Path(given) if given else fetch_kernel()
        busybox = find_busybox().read_bytes()
    except (AptError, OSError) as error:
        pytest.skip(f"no Linux to boot: {error}")
    path = tmp_path_factory.mktemp("linux") / "initrd.cpio"
    path.write_bytes(initrd(busybox))
    return Linux(kernel, path)


@pytest.fixture(scope="module", params=["native", "python"])
def both_callbacks(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a module's tests with the engine's callbacks in C, and again with those in Python."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "python":
            patch.setattr(cpu_unicorn, "native_library", lambda: Path("/nowhere/accel.so"))
        yield request.param
