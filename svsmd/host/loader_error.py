# SPDX-License-Identifier: MIT
"""The one error of the direct-boot loader.

Spec: none (this project's rule: bad input gives one clear line).
"""


class LoaderError(ValueError):
    """A kernel, initrd, command line or memory size that cannot be booted.

    ``str()`` is one line that names what is wrong, `hint` one that says what to do about it, or
    None; the command line prints them and ends with code 2.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
