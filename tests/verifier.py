# SPDX-License-Identifier: MIT
"""A relying party: verifies reports and certificates with `cryptography`, and nothing of svsmd's.

Offsets are those of 56860, table "ATTESTATION_REPORT structure"; extensions those of 57230.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import NameOID

REPORT_SIZE: Final = 0x4A0
SIGNED_SIZE: Final = 0x2A0
ARK: Final = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
ASK: Final = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
VCEK: Final = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
AMD: Final = "1.3.6.1.4.1.3704.1"


def verify_signature(report: bytes, key: ec.EllipticCurvePublicKey) -> None:
    """Check the signature of a report; InvalidSignature if it is not the key's."""
    assert len(report) == REPORT_SIZE
    assert struct.unpack_from("<I", report, 0x34) == (1,), "ECDSA P-384 with SHA-384"
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    assert report[0x330:] == bytes(REPORT_SIZE - 0x330)
    key.verify(encode_dss_signature(r, s), report[:SIGNED_SIZE], ec.ECDSA(hashes.SHA384()))


def certificates_of(table: bytes) -> dict[uuid.UUID, bytes]:
    """The certificates of a table (56421, 4.1.8.1), by their GUIDs."""
    found = {}
    at = 0
    while table[at : at + 16] != bytes(16):
        guid, offset, length = struct.unpack_from("<16sII", table, at)
        assert offset + length <= len(table)
        found[uuid.UUID(bytes=guid)] = table[offset : offset + length]
        at += 24
    return found


def _common_name(name: x509.Name) -> str:
    (attribute,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert isinstance(attribute.value, str)
    return attribute.value


@dataclass(frozen=True)
class Chain:
    """ARK, ASK and VCEK."""

    ark: x509.Certificate
    ask: x509.Certificate
    vcek: x509.Certificate

    @classmethod
    def of_table(cls, table: bytes) -> Self:
        """The chain in a certificate table."""
        certificates = certificates_of(table)
        assert certificates.keys() == {ARK, ASK, VCEK}
        return cls(*(x509.load_der_x509_certificate(certificates[g]) for g in (ARK, ASK, VCEK)))

    @property
    def vcek_key(self) -> ec.EllipticCurvePublicKey:
        """The key that signs reports."""
        key = self.vcek.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def verify(self, at: datetime) -> None:
        """Check the chain from its root on, for a date; InvalidSignature if a link is broken."""
        self.ark.verify_directly_issued_by(self.ark)
        self.ask.verify_directly_issued_by(self.ark)
        self.vcek.verify_directly_issued_by(self.ask)
        names = [_common_name(c.subject) for c in (self.ark, self.ask, self.vcek)]
        assert names == ["ARK-Milan", "SEV-Milan", "SEV-VCEK"]
        for certificate in (self.ark, self.ask, self.vcek):
            assert certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc
            parameters = certificate.signature_algorithm_parameters
            assert isinstance(parameters, padding.PSS)
            assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
        for authority in (self.ark, self.ask):
            key = authority.public_key()
            assert isinstance(key, rsa.RSAPublicKey)
            assert key.key_size == 4096
            assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
            usage = authority.extensions.get_extension_for_class(x509.KeyUsage)
            assert usage.critical
            assert usage.value.key_cert_sign
            assert not usage.value.digital_signature

    def _extension(self, arc: str) -> bytes:
        oid = x509.ObjectIdentifier(f"{AMD}.{arc}")
        value = self.vcek.extensions.get_extension_for_oid(oid).value
        assert isinstance(value, x509.UnrecognizedExtension)
        return value.value

    def _number(self, arc: str) -> int:
        der = self._extension(arc)
        assert der[:2] == bytes((2, len(der) - 2)), "an INTEGER"
        return int.from_bytes(der[2:], "big", signed=True)

    @property
    def hwid(self) -> bytes:
        """The chip that the VCEK is for."""
        return self._extension("4")

    @property
    def tcb(self) -> int:
        """The TCB that the VCEK is for, as TCB_VERSION of a Milan."""
        # blSPL, teeSPL, spl4 to spl7, snpSPL, ucodeSPL.
        arcs = ("3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8")
        return int.from_bytes(bytes(self._number(arc) for arc in arcs), "little")

    @property
    def product(self) -> str:
        """Product and stepping."""
        der = self._extension("2")
        assert der[:2] == bytes((22, len(der) - 2)), "an IA5String"
        return der[2:].decode("ascii")

    def verify_report(self, report: bytes) -> None:
        """Check that a report is of the chip and the TCB of the VCEK, and signed by it."""
        verify_signature(report, self.vcek_key)
        assert report[0x1A0:0x1E0] == self.hwid
        assert struct.unpack_from("<Q", report, 0x180) == (self.tcb,)
