# SPDX-License-Identifier: MIT
"""A short run of the fuzzer, from the dialogues of real debuggers on."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.module_machine import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FUZZ_SECONDS: Final = 30
HANG_SECONDS: Final = 10
RSS_MIB: Final = 512


def test_sessions(tmp_path: Path) -> None:
    """No crash, no hang, no unbounded memory."""
    pytest.importorskip("atheris", reason="no atheris for this Python")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.session", tmp_path / "corpus",
         f"-max_total_time={FUZZ_SECONDS}", f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={RSS_MIB}",
         f"-artifact_prefix={tmp_path}/"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=FUZZ_SECONDS + 60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    runs = re.search(r"Done (\d+) runs in", done.stdout)
    assert runs is not None, done.stdout[-3000:]
    assert int(runs[1]) > 100
