# SPDX-License-Identifier: MIT
"""What is fused into the chip: its identity, and the secret that its endorsement keys come from.

Spec: SNP firmware ABI (56860), 1.4 (VCEK) and SNP_GET_ID; AMD does not publish how a VCEK comes out
of the fuses and a TCB. Here each TCB has a stream of entropy of its own.
"""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_version import TcbVersion

CHIP_ID_SIZE: Final = 64
ROOT_SIZE: Final = 32
"""Bytes of a root key that guests' keys are derived from."""

_P384_ORDER: Final = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
    16,
)


class ChipKeys:
    """Identity and keys of one chip, from `entropy`.

    Attributes:
        chip_id: CHIP_ID of reports, hwID of certificates; 64 bytes.
    """

    def __init__(self, entropy: EntropySource) -> None:
        self.chip_id: Final = entropy.stream("chip id").read(CHIP_ID_SIZE)
        self._secret: Final = entropy.stream("chip secret")

    def vcek(self, tcb: TcbVersion) -> ec.EllipticCurvePrivateKey:
        """The versioned chip endorsement key of a TCB, which signs reports; on P-384."""
        # A bias of 2^-64 in the choice of the key: eight bytes more than the order has.
        secret = int.from_bytes(self._secret.stream(f"vcek {tcb:#018x}").read(56), "little")
        return ec.derive_private_key(secret % (_P384_ORDER - 1) + 1, ec.SECP384R1())

    def derivation_root(self, tcb: TcbVersion) -> bytes:
        """The root of the keys that guests derive from the VCEK of a TCB, 32 bytes."""
        return self._secret.stream(f"derivation root {tcb:#018x}").read(ROOT_SIZE)
