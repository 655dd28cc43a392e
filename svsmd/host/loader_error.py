# SPDX-License-Identifier: MIT
"""The one error of the direct-boot loader.

Spec: none (this project's rule: bad input gives one clear line).
"""


class LoaderError(ValueError):
    """A kernel, initrd, command line or memory size that cannot be booted.

    ``str()`` is one line that names what is wrong; the command line prints it and ends with code 2.
    """
