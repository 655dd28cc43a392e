# SPDX-License-Identifier: MIT
"""The manufacturer's certificates for a chip: ARK, ASK and VCEK, as AMD's key server has them.

Names and extensions are those of AMD's certificates, since verifiers check them; the keys are this
machine's own, and ARK and ASK say so in a comment. Everything comes from the machine's seed and its
date at power-on: the same machine has the same certificates, byte by byte.

Spec: AMD 57230 (VCEK certificate and KDS interface), 2 (chain), 3 (VCEK) and table "X.509
extensions"; RFC 5280. Deviations: the serial numbers are 1 and 2, where AMD's VCEKs have 0; nobody
revokes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from svsmd.snp.entropy import EntropySource
from svsmd.snp.firmware_version import TcbVersion
from svsmd.snp.rsa_key import HASH, PSS, SeededRsaKey

PRODUCT: Final = "Milan"
PRODUCT_NAME: Final = f"{PRODUCT}-B1"
"""Product and stepping, as the family, model and stepping that CPUID shows have them."""
CRL_URL: Final = f"https://kdsintf.amd.com/vcek/v1/{PRODUCT}/crl"
COMMENT: Final = b"Emulated by svsmd: the key is software and not AMD's"

AUTHORITY_YEARS: Final = 25
VCEK_YEARS: Final = 7
CLOCK_SKEW: Final = timedelta(days=1)
"""Certificates start so long before power-on: not every verifier's clock is right."""

OID_STRUCT_VERSION: Final = ObjectIdentifier("1.3.6.1.4.1.3704.1.1")
OID_PRODUCT_NAME: Final = ObjectIdentifier("1.3.6.1.4.1.3704.1.2")
OID_TCB: Final = ObjectIdentifier("1.3.6.1.4.1.3704.1.3")
"""Below it are blSPL (1), teeSPL (2), snpSPL (3), spl4 to spl7 (4 to 7) and ucodeSPL (8)."""
OID_HWID: Final = ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
OID_COMMENT: Final = ObjectIdentifier("2.16.840.1.113730.1.13")
"""Netscape's certificate comment, which tools print as text."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_DATE: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""What RFC 5280, 4.1.2.5, has for certificates that do not end."""
_DAYS_PER_YEAR: Final = 365.25
_TAG_INTEGER: Final = 2
_TAG_IA5_STRING: Final = 22

_KEY_USAGES: Final = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
    "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CertificateChain:
    """Certificates in DER: the root, the intermediate one, and the chip's."""

    ark: bytes
    ask: bytes
    vcek: bytes


@dataclass(frozen=True, slots=True)
class Chip:
    """What a VCEK certificate says: the chip, its TCB, and the VCEK of the two."""

    chip_id: bytes
    tcb: TcbVersion
    vcek: ec.EllipticCurvePublicKey


def certificate_chain(entropy: EntropySource, chip: Chip, epoch: int) -> CertificateChain:
    """The certificates of `chip`.

    Args:
        entropy: the keys of ARK and ASK come from it.
        chip: what is certified.
        epoch: date at power-on, seconds since 1970.
    """
    ark, ask = (SeededRsaKey(entropy.stream(name)) for name in ("ark", "ask"))
    start = _date(epoch) - CLOCK_SKEW
    ark_name, ask_name = _name(f"ARK-{PRODUCT}"), _name(f"SEV-{PRODUCT}")
    authority_end, vcek_end = _years_after(start, AUTHORITY_YEARS), _years_after(start, VCEK_YEARS)

    root = _builder(ark_name, ark_name, ark.public_key(), 1, start, authority_end)
    root = _authority(root, ark, ark, path_length=None)
    middle = _builder(ask_name, ark_name, ask.public_key(), 2, start, authority_end)
    middle = _authority(middle, ask, ark, path_length=0)
    leaf = _builder(_name("SEV-VCEK"), ask_name, chip.vcek, 1, start, vcek_end)
    for oid, value in _vcek_extensions(chip):
        leaf = leaf.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return CertificateChain(_sign(root, ark), _sign(middle, ark), _sign(leaf, ask))


def _date(epoch: int) -> datetime:
    """A date that a certificate can have."""
    last = int((_LAST_DATE - _EPOCH).total_seconds())
    return _EPOCH + timedelta(seconds=min(epoch, last))


def _years_after(start: datetime, years: int) -> datetime:
    length = timedelta(days=int(years * _DAYS_PER_YEAR))
    return _LAST_DATE if _LAST_DATE - start < length else start + length


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
            x509.NameAttribute(NameOID.LOCALITY_NAME, "Santa Clara"),
            x509.NameAttribute(NameOID.STATE_OR_PROVINCE_NAME, "CA"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    serial: int,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _authority(
    builder: x509.CertificateBuilder,
    subject: SeededRsaKey,
    issuer: SeededRsaKey,
    *,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """Add the extensions of a certificate that certifies others."""
    usages = dict.fromkeys(_KEY_USAGES, False) | {"key_cert_sign": True}
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    crl = x509.DistributionPoint([x509.UniformResourceIdentifier(CRL_URL)], None, None, None)
    comment = _der(_TAG_IA5_STRING, COMMENT)
    return (
        builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
        .add_extension(x509.KeyUsage(**usages), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(subject.public_key()), critical=False
        )
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.CRLDistributionPoints([crl]), critical=False)
        .add_extension(x509.UnrecognizedExtension(OID_COMMENT, comment), critical=False)
    )


def _vcek_extensions(chip: Chip) -> list[tuple[ObjectIdentifier, bytes]]:
    """Each with its value in DER; hwID alone is its bytes without a tag, as in AMD's."""
    tcb = chip.tcb
    versions = (tcb.BOOT_LOADER, tcb.TEE, tcb.SNP, 0, 0, 0, 0, tcb.MICROCODE)
    oids = (ObjectIdentifier(f"{OID_TCB.dotted_string}.{i}") for i in range(1, 9))
    return [
        (OID_STRUCT_VERSION, _der_integer(0)),
        (OID_PRODUCT_NAME, _der(_TAG_IA5_STRING, PRODUCT_NAME.encode())),
        *((oid, _der_integer(version)) for oid, version in zip(oids, versions, strict=True)),
        (OID_HWID, chip.chip_id),
    ]


def _der(tag: int, value: bytes) -> bytes:
    """DER of a short primitive value."""
    return bytes((tag, len(value))) + value


def _der_integer(number: int) -> bytes:
    """DER of a number of eight bits; a zero byte in front keeps it from being negative."""
    return _der(_TAG_INTEGER, number.to_bytes(2 if number & 0x80 else 1, "big"))


def _sign(builder: x509.CertificateBuilder, key: SeededRsaKey) -> bytes:
    # It has what the builder uses of a key: the method that signs.
    certificate = builder.sign(cast("rsa.RSAPrivateKey", key), HASH, rsa_padding=PSS)
    return certificate.public_bytes(Encoding.DER)
