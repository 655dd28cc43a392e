# SPDX-License-Identifier: MIT
"""The shell of a Linux that has booted from an initrd of tools/make_initrd.py."""

from collections.abc import Callable
from typing import Final

from tests.svsmd_process import SECONDS, Linux, SvsmdProcess

Start = Callable[..., SvsmdProcess]

COMMAND_LINE: Final = "console=ttyS0"
BOOT_SECONDS: Final = 180.0
"""A boot takes a few seconds; other work on the same computer may slow it down a lot."""
PROMPT: Final = r"# (?:\x1b\[6n)?"
BAD: Final = (
    "Oops", "BUG:", "Call Trace", "WARNING: CPU", "detected stalls", "self-detected stall",
    "soft lockup", "blocked for more than", "as unstable because",
)  # fmt: skip
"""What a kernel says when it is not well."""


class Shell:
    """A booted kernel's shell on the console.

    Args:
        svsmd: starts a machine.
        linux: what it boots.
        options: of svsmd.
        append: what the kernel's command line has besides the console.
    """

    def __init__(self, svsmd: Start, linux: Linux, *options: str, append: str = "") -> None:
        files = (f"--kernel={linux.kernel}", f"--initrd={linux.initrd}")
        self.machine = svsmd(*files, f"--append={COMMAND_LINE} {append}", *options)
        self.console = self.machine.console()
        self.console.expect("SVMBOOT: shell", BOOT_SECONDS)
        self.console.expect(PROMPT)
        # Messages of the kernel would get between the lines of programs.
        self.run("dmesg -n 1")

    def run(self, command: str, seconds: float = SECONDS) -> str:
        """The output of a command that succeeds, without what was typed."""
        self.console.send(f"{command} && echo d'on'e\r")
        before = len(self.console.transcript)
        self.console.expect("^done$", seconds)
        self.console.expect(PROMPT)
        return self.console.transcript[before:]

    def power_off(self) -> None:
        """The end of a machine that was well all the time."""
        self.console.send("poweroff -f\r")
        assert self.machine.wait() == 0, self.machine.stderr
        assert "the guest powered off" in self.machine.stderr
        for bad in BAD:
            assert bad not in self.console.transcript, self.console.transcript
