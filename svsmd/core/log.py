# SPDX-License-Identifier: MIT
"""The core's log: a ring of lines, shown on the SVSM's own console.

Spec: none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

LOG_LINES: Final = 1000
"""Lines that the ring keeps; the oldest go first."""
LOG_LINE_LENGTH: Final = 400
"""Characters of a line; the rest is cut off."""


class CoreLog:
    """Lines of the SVSM. `lines` holds the last ones; `on_line` gets each when it is written."""

    def __init__(self, on_line: Callable[[str], None] | None = None) -> None:
        self.lines: Final[deque[str]] = deque(maxlen=LOG_LINES)
        self.on_line = on_line

    def write(self, line: str) -> None:
        """Append one line, without its end of line."""
        line = line[:LOG_LINE_LENGTH]
        self.lines.append(line)
        if self.on_line is not None:
            self.on_line(line)
