# SPDX-License-Identifier: MIT
"""Callbacks for events of gdb's that end when the extension is loaded again.

gdb keeps them, and with them the modules of an earlier copy: so they are noted where a later copy
finds them, in gdb's own module.

Spec: GDB manual, "Events In Python".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gdb

_NOTES = "_svsmd_gdb_connections"


def _noted() -> list[Callable[[], None]]:
    if not hasattr(gdb, _NOTES):
        setattr(gdb, _NOTES, [])
    notes: list[Callable[[], None]] = getattr(gdb, _NOTES)
    return notes


def connect(registry: gdb.EventRegistry[Any], callback: Callable[..., object]) -> None:
    """Have gdb call it for an event, until `end_all`."""
    registry.connect(callback)
    at_end(lambda: registry.disconnect(callback))


def at_end(callback: Callable[[], None]) -> None:
    """Have `end_all` call it."""
    _noted().append(callback)


def end_all() -> None:
    """End what an earlier copy has begun, the latest first."""
    notes = _noted()
    while notes:
        notes.pop()()
