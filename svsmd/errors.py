# SPDX-License-Identifier: MIT
"""What every layer may tell the user: an error in one line, and the exit codes of the program.

Spec: docs/cli.md, "Exit codes". Nothing of svsmd is imported here: every layer can import it.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `svsmd` program."""

    OK = 0
    """The guest powered off, or reset with `--on-reboot exit`, or SIGTERM ended the run."""
    BUG = 1
    """A bug in svsmd: there is a traceback on stderr."""
    USAGE = 2
    """The command line, the configuration or a file that it names is wrong."""
    GUEST_TERMINATED = 3
    """The guest asked to be terminated (GHCB termination request)."""
    GUEST_CRASHED = 4
    """Triple fault, or a panic of the SVSM."""
    TIME_LIMIT = 5
    """`--time-limit` ran out."""
    INTERRUPTED = 130
    """SIGINT (Ctrl-C)."""


class UserError(Exception):
    """Something that the user can mend; printed as one line, never with a traceback.

    Args:
        message: what is wrong, one line, without a full stop at the end.
        hint: what to do about it, printed on a line of its own.
        exit_code: what the program ends with.
    """

    def __init__(
        self, message: str, hint: str | None = None, exit_code: ExitCode = ExitCode.USAGE
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
