# SPDX-License-Identifier: MIT
"""The extension of gdb that svsmd serves: what it adds runs in gdb, in gdb's own Python.

It imports gdb, this package and the standard library, nothing else: it is sent to whatever machine
gdb runs on (`svsmd/gdbstub/extension.py`). Python 3.9 and gdb 13 are enough.

Spec: GDB manual, "Python API".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import catchpoints, commands, connections, functions, handlers, printers, system_calls
from .catalogue import Catalogue


def register(data: Mapping[str, Any]) -> None:
    """Make everything known to gdb; what an earlier `register` has made is replaced."""
    connections.end_all()
    catalogue = Catalogue.load(data)
    commands.register(catalogue)
    catchpoints.register(catalogue)
    functions.register(catalogue)
    printers.register(catalogue)
    system_calls.register_all(catalogue.kernel)
    handlers.register_all(catalogue.error_codes)
