# SPDX-License-Identifier: MIT
"""A whole machine without the daemon, whose SVSM runs modules that the tests have compiled."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from svsmd.config import MIB, MachineConfig
from svsmd.machine import Machine, build_machine
from svsmd.slice_end import DebugEvent, Ended, Idle, Stopped
from svsmd.snp.exits import DebugReason
from tools.make_archive import make_archive

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD: Final = ROOT / ".cache" / "test-modules"
PROMPT: Final = b"demo> "
SLICE: Final = 2_000_000
"""Ticks after which a run looks at the log."""
_SLICES_MAX: Final = 100_000


@functools.cache
def modules() -> Mapping[str, bytes]:
    """The programs of tests/modules, and the hello of svsmd/modules, by name."""
    for directory in (ROOT / "tests" / "modules", ROOT / "svsmd" / "modules"):
        subprocess.run(
            ["make", "-s", "-C", ROOT / "svsmd" / "modules", f"MODULES={directory}",
             f"BUILD={BUILD}"],
            check=True,
        )  # fmt: skip
    return {path.name: path.read_bytes() for path in BUILD.iterdir()}


def program(path: str, **values: object) -> str:
    """An entry of /svsm.toml; lists are of texts or numbers."""
    lines = ["[[program]]", f'path = "{path}"']
    for key, value in values.items():
        lines.append(f"{key} = {value!r}".replace("'", '"'))
    return "\n".join(lines) + "\n"


class ModuleMachine:
    """Runs the demo guest and the programs of a configuration, time as with --clock virtual."""

    def __init__(
        self,
        tmp_path: Path,
        configuration: str,
        files: Mapping[str, bytes] | None = None,
        names: Sequence[str] = (),
        **options: object,
    ) -> None:
        """`files` by path are added to the archive, and those programs of `modules` to /bin."""
        contents = {"/svsm.toml": configuration.encode()}
        contents |= {f"/bin/{name}": modules()[name] for name in names}
        contents |= files or {}
        archive = tmp_path / "modules.tar"
        archive.write_bytes(make_archive(contents))
        values: dict[str, object] = {
            "seed": b"modules", "rtc": 1_767_225_600, "memory": 64 * MIB, "archive": archive
        }  # fmt: skip
        self.machine: Machine = build_machine(
            MachineConfig(**(values | options))  # type: ignore[arg-type]
        )
        self.slice = SLICE
        self.console = bytearray()
        self.svsm = bytearray()
        self.machine.on_console = self.console.extend
        self.machine.on_svsm_console = self.svsm.extend

    @property
    def lines(self) -> list[str]:
        """The SVSM's log."""
        return self.svsm.decode().splitlines()

    def lines_of(self, name: str) -> list[str]:
        """What one program has said."""
        return [each.partition(": ")[2] for each in self.lines if each.startswith(f"{name}: ")]

    def run(self, *said: str, prompt: bool = True) -> Ended | None:
        """Until the log has all these texts, and the guest its prompt, or the machine has ended."""
        for _ in range(_SLICES_MAX):
            log = self.svsm.decode()
            assert "is not so" not in log, log[-2000:]
            if all(text in log for text in said) and (not prompt or PROMPT in self.console):
                return None
            match self.machine.run_slice(self.slice):
                case Ended() as end:
                    return end
                case Idle(None):
                    missing = [text for text in said if text not in self.svsm.decode()]
                    assert not missing, f"idle without {missing}:\n{self.svsm.decode()}"
                case Idle(int() as deadline):
                    self.machine.skip_idle(max(0, deadline - self.machine.clock_now))
                case Stopped() | DebugEvent(_, DebugReason.PANIC):
                    pass
                case other:
                    raise AssertionError(f"unexpected {other}")
        raise AssertionError(f"too long without {said}:\n{self.svsm.decode()}")

    def console_write(self, text: str) -> None:
        """Type a command at the guest's prompt."""
        self.machine.console_write(text.encode() + b"\r")

    def type(self, text: str) -> str:
        """What the guest answers to a command at its prompt."""
        self.console.clear()
        self.console_write(text)
        end = self.run()
        assert end is None, end
        return self.console.decode()
