# SPDX-License-Identifier: MIT
"""svsmd's extension of gdb: this script knows its modules by heart, and registers everything.

Load it again and it replaces what it has registered before.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class _Bundled(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds and loads modules whose sources are here."""

    def __init__(self, package: str, sources: Mapping[str, str]) -> None:
        self.package, self._sources = package, sources

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._sources:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin="target:/svsmd-gdb.py")

    def is_package(self, fullname: str) -> bool:
        return fullname == self.package

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname]


def load(sources: Mapping[str, str], catalogue: Mapping[str, Any]) -> None:
    """Import the package out of `sources` and register it."""
    package = min(sources, key=len)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    sys.meta_path[:] = [
        finder for finder in sys.meta_path if getattr(finder, "package", None) != package
    ]
    sys.meta_path.insert(0, _Bundled(package, sources))
    importlib.import_module(package).register(catalogue)
