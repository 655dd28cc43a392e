# SPDX-License-Identifier: MIT
"""Versions of the security processor's firmware, and of all that the machine's security rests on.

Spec: SNP firmware ABI (56860), 3.1 and table "TCB version structure" (of a Milan). Deviation: the
versions never change, so that the current, the committed, the reported and the launch TCB are one.
"""

from __future__ import annotations

from typing import Final

from svsmd.snp.bits import Bits, Register64

API_MAJOR: Final = 1
API_MINOR: Final = 55
BUILD_ID: Final = 1
"""Version of the firmware ABI that this processor speaks; the build is svsmd's own count."""


class TcbVersion(Register64):
    """TCB_VERSION: the security version number of each part."""

    BOOT_LOADER = Bits(7, 0)
    TEE = Bits(15, 8)
    SNP = Bits(55, 48)
    MICROCODE = Bits(63, 56)

    def exceeds(self, other: TcbVersion) -> bool:
        """Whether any byte, reserved ones included, is above the same byte of `other`."""
        mine, others = (tcb.to_bytes(8, "little") for tcb in (self, other))
        return any(a > b for a, b in zip(mine, others, strict=True))


TCB_VERSION: Final = TcbVersion.of(BOOT_LOADER=4, TEE=0, SNP=API_MINOR, MICROCODE=1)
