# SPDX-License-Identifier: MIT
"""What is here and what is missing, and what each thing is good for.

Spec: docs/cli.md, `svsmd doctor`.
"""

import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Final

from svsmd.config import DEMO_RTC, DEMO_SEED, MIN_MEMORY, MachineConfig

MIN_PYTHON: Final = (3, 11)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: of the thing.
        found: it is here; then `detail` says which one, else why not.
        purpose: what does not work without it.
        required: no machine runs without it.
    """

    name: str
    found: bool
    detail: str
    purpose: str
    required: bool = False


def examine(build_machine: Callable[[MachineConfig], object]) -> Iterator[Finding]:
    """Look at everything, one by one; the last one takes as long as starting a machine.

    Args:
        build_machine: makes a machine, and with it an engine, which calibrates itself.
    """
    yield Finding(
        "Python",
        sys.version_info >= MIN_PYTHON,
        platform.python_version(),
        "everything",
        required=True,
    )
    yield _distribution("unicorn", "everything: it is the CPU")
    yield _program(("cc", "gcc", "clang"), "C compiler", "building guests and the accelerator")
    yield _program(("gdb", "gdb-multiarch"), "gdb", "debugging a guest")
    yield _program(("telnet",), "telnet", "telnet: consoles")
    yield _program(("socat", "nc"), "socat or nc", "tcp: and unix: consoles")
    yield _accelerator()
    yield _engine(build_machine)


def _distribution(name: str, purpose: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name), purpose, required=True)
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", purpose, required=True)


def _program(commands: tuple[str, ...], name: str, purpose: str) -> Finding:
    for command in commands:
        path = shutil.which(command)
        if path is not None:
            return Finding(name, True, path, purpose)
    return Finding(name, False, f"no {' or '.join(commands)} in PATH", purpose)


def _accelerator() -> Finding:
    from svsmd.snp.native_callbacks import native_library

    path = native_library()
    detail = str(path) if path.exists() else f"{path} is not built"
    return Finding("accelerator", path.exists(), detail, "speed: without it the engine is slow")


def _engine(build_machine: Callable[[MachineConfig], object]) -> Finding:
    purpose = "everything"
    try:
        build_machine(MachineConfig(seed=DEMO_SEED, rtc=DEMO_RTC, memory=MIN_MEMORY))
    except Exception as error:  # whatever it is, it belongs into the report
        return Finding("engine", False, f"{type(error).__name__}: {error}", purpose, required=True)
    return Finding("engine", True, "built a machine and launched it", purpose, required=True)
