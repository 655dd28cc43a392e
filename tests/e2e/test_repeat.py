# SPDX-License-Identifier: MIT
"""Again and again: what goes wrong once in a hundred times must not."""

from collections.abc import Callable

import pytest

from tests.e2e.test_linux_boot import boot
from tests.e2e.test_selftest import check_output
from tests.svsmd_process import Linux, SvsmdProcess

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

Start = Callable[..., SvsmdProcess]


@pytest.mark.parametrize("_number", range(10))
def test_linux_boots(svsmd: Start, linux: Linux, _number: int) -> None:
    boot(svsmd, linux)


@pytest.mark.parametrize("_number", range(50))
@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_selftests(svsmd: Start, clock: str, _number: int) -> None:
    machine = svsmd("demo", "--append=selftest", "--serial=stdio", f"--clock={clock}")
    output = machine.stdout.read_to_end()
    assert machine.wait() == 0, machine.stderr
    check_output(output)
