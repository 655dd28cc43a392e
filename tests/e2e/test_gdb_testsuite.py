# SPDX-License-Identifier: MIT
"""Files of gdb's own testsuite, with programs at CPL 3; all of them: `make gdb-testsuite`."""

from pathlib import Path

import pytest

from tools.apt_packages import AptError
from tools.gdb_testsuite.__main__ import FILE_SECONDS
from tools.gdb_testsuite.expected import Expectation, expectations
from tools.gdb_testsuite.packages import TESTSUITE_PACKAGES, Unpacked, unpacked
from tools.gdb_testsuite.runs import Stub, run_file

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="session")
def testsuite(gdb_program: str) -> Unpacked:
    """The testsuite and what runs it, unpacked and not installed."""
    try:
        return unpacked(TESTSUITE_PACKAGES)
    except AptError as error:
        pytest.skip(f"no testsuite: {error}")


@pytest.mark.parametrize(
    "expectation", [each for each in expectations() if each.quick], ids=lambda each: each.name
)
def test_file(testsuite: Unpacked, expectation: Expectation, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    result = run_file(testsuite, Stub.SVSMD, expectation.name, logs, FILE_SECONDS)
    assert not expectation.complaints(result)
