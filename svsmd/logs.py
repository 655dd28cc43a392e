# SPDX-License-Identifier: MIT
"""Where log records go: stderr, one line each, never stdout, which belongs to the guest's console.

Spec: docs/cli.md, options `-v` and `-q`.
"""

import logging
import sys
from typing import Final

_LEVELS: Final = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
"""Level for a verbosity of -1 (`-q`), 0, 1 (`-v`) and 2 (`-vv`)."""


def configure(verbosity: int) -> None:
    """Send the records of all loggers of svsmd to stderr, from the level of `verbosity` on.

    Args:
        verbosity: number of `-v` minus number of `-q`; values outside -1..2 mean the nearest one.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("svsmd: %(levelname)s: %(name)s: %(message)s"))
    logger = logging.getLogger("svsmd")
    logger.handlers = [handler]
    logger.setLevel(_LEVELS[max(-1, min(verbosity, 2)) + 1])
