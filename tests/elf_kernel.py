# SPDX-License-Identifier: MIT
"""The smallest kernel that svsmd boots: an ELF executable that is a few instructions.

Spec: System V gABI 4.1 chapters 4 and 5.
"""

import struct
from typing import Final

ENTRY: Final = 0x10_0000
_PAGE: Final = 0x1000


def elf_kernel(code: bytes, at: int = ENTRY) -> bytes:
    """An ELF with one segment, `code`, which lies at an address and starts there."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\2\1\1", 2, 62, 1, at, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    size = len(code)
    segment = struct.pack("<IIQQQQQQ", 1, 7, _PAGE, at, at, size, size, _PAGE)
    return (header + segment).ljust(_PAGE, b"\0") + code
