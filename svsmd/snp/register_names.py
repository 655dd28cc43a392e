# SPDX-License-Identifier: MIT
"""Names of registers, and where the engine has them.

Spec: names as in 24593; widths in svsmd/gdbstub/target_xml.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GENERAL: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")
"""In the engine's order."""
CONTROL: Final[Mapping[str, int]] = {f"cr{number}": number for number in (0, 2, 3, 4)}
MSRS: Final[Mapping[str, str]] = {
    "k_gs_base": "kernel_gs_base", "star": "star", "lstar": "lstar", "cstar": "cstar",
    "fmask": "fmask",
}  # fmt: skip
"""Fields of the engine's layout by the names of the registers."""
LAYOUT_WORDS: Final[Mapping[str, str]] = {**MSRS, "efer": "efer"}
