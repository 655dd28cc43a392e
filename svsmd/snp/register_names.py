# SPDX-License-Identifier: MIT
"""Names of registers, and where the engine has them.

Spec: names as in 24593; widths in svsmd/gdbstub/target_xml.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

GENERAL: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr", "gdtr", "idtr")
"""In the engine's order."""
CONTROL: Final[Mapping[str, int]] = {f"cr{number}": number for number in (0, 2, 3, 4)}
MSRS: Final[Mapping[str, str]] = {
    "k_gs_base": "kernel_gs_base", "star": "star", "lstar": "lstar", "cstar": "cstar",
    "fmask": "fmask", "sysenter_esp": "sysenter_esp", "sysenter_eip": "sysenter_eip", "pat": "pat",
    "tsc_aux": "tsc_aux",
}  # fmt: skip
"""Fields of the engine's layout by the names of the registers."""
LAYOUT_WORDS: Final[Mapping[str, str]] = {**MSRS, "efer": "efer"}
FPU_POINTERS: Final = ("fiseg", "fioff", "foseg", "fooff", "fop")
"""Of the last x87 instruction, by gdb's names; the engine does not keep them."""


class _FpuFields(NamedTuple):
    top: int
    status: int
    control: int
    tags: int
    registers: int


FPU: Final = _FpuFields(top=12, status=16, control=18, tags=20, registers=32)
"""Where the engine has x87 state, from EFER on: the top of the stack apart from the status word,
one byte a tag, and 16 bytes a register, none of them turned by the top."""
