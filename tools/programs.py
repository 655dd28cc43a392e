# SPDX-License-Identifier: MIT
"""Where programs are that not every user has in PATH."""

from __future__ import annotations

import os
import shutil
from typing import Final

_SBIN: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def find_program(name: str) -> str | None:
    """The path of a program, of one for administrators as well; None if it is not here."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
