# SPDX-License-Identifier: MIT
"""Result codes of SVSM calls: what the guest finds in RAX.

Spec: 58019 (SVSM), section 5, "Result codes"; the core protocol's own codes: section 6.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SVSM_ERR_PROTOCOL_BASE: Final = 0x8000_1000
"""Codes from here on belong to the protocol that was called."""


class SvsmResult(IntEnum):
    """Result codes that every protocol shares, by the specification's names."""

    SVSM_SUCCESS = 0x0000_0000
    SVSM_ERR_INCOMPLETE = 0x8000_0000
    """Work is left: the guest makes the same call again."""
    SVSM_ERR_UNSUPPORTED_PROTOCOL = 0x8000_0001
    SVSM_ERR_UNSUPPORTED_CALL = 0x8000_0002
    SVSM_ERR_INVALID_ADDRESS = 0x8000_0003
    SVSM_ERR_INVALID_FORMAT = 0x8000_0004
    SVSM_ERR_INVALID_PARAMETER = 0x8000_0005
    SVSM_ERR_INVALID_REQUEST = 0x8000_0006
    SVSM_ERR_BUSY = 0x8000_0007
    """Another vCPU holds what the call needs: the guest makes the same call again."""


class SvsmCoreResult(IntEnum):
    """Codes of the core protocol: 0x80001000 + the code of PVALIDATE or RMPADJUST (24594)."""

    FAIL_INPUT = SVSM_ERR_PROTOCOL_BASE + 1
    FAIL_PERMISSION = SVSM_ERR_PROTOCOL_BASE + 2
    FAIL_INUSE = SVSM_ERR_PROTOCOL_BASE + 3
    FAIL_SIZEMISMATCH = SVSM_ERR_PROTOCOL_BASE + 6
    """Linux answers this one by splitting a 2 MiB entry into 512 of 4 KiB."""
    PVALIDATE_NO_CHANGE = SVSM_ERR_PROTOCOL_BASE + 0x10
    """PVALIDATE set CF, and the entry does not say that this is to be ignored."""


class SvsmError(Exception):
    """A call ends with a result code other than success; `code` goes into RAX."""

    def __init__(self, code: int) -> None:
        super().__init__(f"result {code:#x}")
        self.code: Final = code
