# SPDX-License-Identifier: MIT
"""The gdb extension as one script, which a debugger gets from the stub: /svsmd-gdb.py.

It is the package `svsmd/gdbstub/svsmd_gdb` with the tables that it needs. gdb's `source` reads no
file of a target, so there are two ways to it: the file, by `remote get`, and `monitor python`.

Spec: GDB manual, "File Transfer", "Python Commands".
"""

from __future__ import annotations

from enum import IntFlag
from functools import cache
from pathlib import Path
from pprint import pformat
from typing import Any, Final

from svsmd.core.request_loop import CAA_CALL_PENDING, CAA_MEM_AVAILABLE
from svsmd.elf_symbols import elf_symbols
from svsmd.gdbstub.catchpoints import SIGNALS
from svsmd.images import image_path
from svsmd.snp.events import CLASSES
from svsmd.snp.events.classes import COMMON
from svsmd.snp.ghcb import Ghcb, GhcbExit
from svsmd.snp.interrupt_delivery import ERROR_CODE_VECTORS
from svsmd.snp.page_view import PageView
from svsmd.snp.types import C_BIT
from svsmd.snp.vmsa import Cr0, Cr4, Efer, SevFeatures, Vmsa

PACKAGE: Final = "svsmd_gdb"
_DIRECTORY: Final = Path(__file__).with_name(PACKAGE)
_LOADER: Final = "_loader.py"
_FLAGS: Final[dict[str, type[IntFlag]]] = {
    "cr0": Cr0, "cr4": Cr4, "efer": Efer, "sev_features": SevFeatures,
}  # fmt: skip
_CALLING_AREA: Final = [
    ("call_pending", CAA_CALL_PENDING, 1),
    ("mem_available", CAA_MEM_AVAILABLE, 1),
    ("no_eoi_required", 2, 1),
    ("buffer", 8, 0xFF8),
]
"""Name, offset and size; 58019, 4 and 8.2. Beyond the flags the guest has its arguments there."""


@cache
def script() -> str:
    """The script, in ASCII."""
    sources = {
        PACKAGE if path.stem == "__init__" else f"{PACKAGE}.{path.stem}": path.read_text()
        for path in sorted(_DIRECTORY.glob("*.py"))
        if path.name != _LOADER
    }
    loader = (_DIRECTORY / _LOADER).read_text()
    text = f"{loader}\n\nload(\n    {sources!r},\n    {pformat(catalogue(), width=100)},\n)\n"
    assert text.isascii(), "gdb may run in any locale"
    return text


def catalogue() -> dict[str, Any]:
    """What `svsmd_gdb.catalogue` is made of."""
    return {
        "c_bit": C_BIT,
        "error_codes": sorted(ERROR_CODE_VECTORS),
        "kernel": _kernel(),
        "structures": {
            "vmsa": _fields(Vmsa),
            "ghcb": _fields(Ghcb),
            "caa": _CALLING_AREA,
        },
        "flags": {
            register: {flag.name: int(flag) for flag in flags} for register, flags in _FLAGS.items()
        },
        "exits": {int(code): code.name for code in GhcbExit},
        "classes": {
            spec.name: {
                "signal": SIGNALS[kind].name,
                "doc": spec.doc,
                "stop": spec.stop,
                "fields": {field.name: field.doc for field in (*spec.fields, *COMMON)},
                "constants": dict(spec.constants),
            }
            for kind, spec in CLASSES.items()
        },
    }


def _kernel() -> dict[str, int]:
    symbols = elf_symbols(image_path("svsm").read_bytes())
    gate = symbols["svsm_gate_loop"]
    return {
        "gate": gate.start,
        "gate_end": gate.stop,
        "saved": symbols["svsm_exception_gate"].start,
    }


def _fields(structure: type[PageView]) -> list[tuple[str, int, int]]:
    return [(name, *where) for name, where in structure.FIELDS.items()]
