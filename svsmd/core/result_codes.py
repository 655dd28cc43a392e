# SPDX-License-Identifier: MIT
"""Result codes of SVSM calls: what the guest finds in RAX.

Spec: 58019 (SVSM), section 5, "Result codes"; the core protocol's own codes: section 6.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SVSM_ERR_PROTOCOL_BASE: Final = 0x8000_1000
"""Codes from here on belong to the protocol that was called."""


SVSM_MEMORY_REQUIRED_BASE: Final = 0x4000_0000
"""Plus a number of 4 KiB pages: the call needs that much memory. The guest may deposit it
(SVSM_CORE_DEPOSIT_MEM) and make the call again."""
SVSM_MEMORY_REQUIRED_MAX: Final = 0x3FFF_FFFF


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
    UNKNOWN_FAILURE = SVSM_ERR_PROTOCOL_BASE + 0x11
    """PVALIDATE or RMPADJUST failed with a code that the specification has no room for."""


_MAX_INSTRUCTION_CODE: Final = 0xF


class SvsmError(Exception):
    """A call ends with a result code other than success; `code` goes into RAX."""

    def __init__(self, code: int) -> None:
        super().__init__(f"result {code:#x}")
        self.code: Final = code


def instruction_failed(code: int) -> SvsmError:
    """The error for an EAX of PVALIDATE or RMPADJUST that is not 0."""
    if code > _MAX_INSTRUCTION_CODE:
        return SvsmError(SvsmCoreResult.UNKNOWN_FAILURE)
    return SvsmError(SVSM_ERR_PROTOCOL_BASE + code)


def memory_required(npages: int) -> int:
    """The result code of a call that found no memory."""
    return SVSM_MEMORY_REQUIRED_BASE + min(npages, SVSM_MEMORY_REQUIRED_MAX)
